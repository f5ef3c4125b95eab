"""Open files and sockets: one limit for the whole process, so that a flood at one port can shut the others
(durability.md 1.3, I10)."""

import resource

from broker import log
from broker.config import Limits

HTTP_BACKLOG = 128  # asyncio accepts as many at one go, before any of them is looked at
OTHERS = 100 + HTTP_BACKLOG  # the program's own files, what it listens on, the log
PER_ASSOCIATION = 2  # its socket, and the object that it sends
PER_DATABASE_CONNECTION = 3  # SQLite's: the database, its log and its index
HTTP_MIN = 32


def raise_limit(limits: Limits) -> None:
    """Take all that the system allows, and say where that is less than the limits may need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    needed = _needed(limits) + limits.http_connections_max
    if _allowed() < needed:
        log.get().warning("process.few_descriptors", allowed=_allowed(), needed=needed, http=left_for_http(limits))


def left_for_http(limits: Limits) -> int:
    """HTTP connections that leave enough for DICOM, HL7 and the database when all of these are in full use."""
    return max(HTTP_MIN, _allowed() - _needed(limits))


def _allowed() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _needed(limits: Limits) -> int:
    """By all but HTTP."""
    return (
        OTHERS
        + limits.dicom_connections_max * PER_ASSOCIATION
        + limits.mllp_connections_max
        + (limits.database_pool_connections + limits.database_worklist_connections) * PER_DATABASE_CONNECTION
    )
