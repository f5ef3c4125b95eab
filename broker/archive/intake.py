"""From a staged file to its row: what C-STORE and the recovery at start have in common."""

import datetime as dt
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO

from sqlalchemy import event
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as NoTurn
from sqlmodel import Session

from broker import db, log
from broker.archive import ingest
from broker.archive.digest import Comparison, Digest, canonical_digest
from broker.archive.ingest import Registered
from broker.archive.staging import Staged, Staging
from broker.archive.store import Store, make_store
from broker.config import Limits, Settings
from broker.errors import BrokerError, DatabaseAway, NoRoom, UnknownKey
from broker.model.images import Instance

COMPARISONS_MAX = 4  # each finds that one more object with this UID came in between, or that a file is gone
OURS = (DataError, IntegrityError, ProgrammingError)  # of this object, or of us: the same again fails again


class InDoubt(DatabaseAway):
    """The connection broke in the COMMIT. The server may be at it still, so a row that is not there may come yet, and
    the file must stay whatever the database says now."""


def accept(
    settings: Settings, staging: Staging, staged: Staged, *, now: dt.datetime, adopted: bool = False
) -> Registered:
    """The row for a staged object. A copy of what is known already is removed, once it is certain that the first is
    there: 0000 means that somewhere there are bytes.

    Where it raises, the file stays. DatabaseAway, NoRoom: it has no row. InDoubt: it may have one."""
    store = make_store(settings)
    comparison, lost = None, None
    for _ in range(COMPARISONS_MAX):
        registered = _register(staged, now=now, comparison=comparison, lost=lost, adopted=adopted)
        if registered.compare:
            comparison = _compare(settings, staging, staged, registered.compare)
        elif registered.duplicate and not _is_there(staging, store, registered.instance):
            lost = registered.instance
        else:
            if registered.duplicate:
                staging.remove(staged.key)
            return registered
    raise NoRoom("(0008,0018)", "several objects with this UID come at once: send again later")


def _register(staged: Staged, **how: Any) -> Registered:
    committing = False

    def register(session: Session) -> Registered:
        nonlocal committing
        committing = False
        event.listen(session, "before_commit", begin_commit)
        return ingest.register(session, staged, **how)

    def begin_commit(_session: Session) -> None:
        nonlocal committing
        committing = True

    try:
        return db.run(register)
    except BrokerError:
        raise
    except Exception as error:
        if committing and not _is_refusal(error):
            refused: BrokerError = InDoubt("database")
        elif isinstance(error, DBAPIError) and db.is_unique_violation(error):
            refused = NoRoom("(0008,0018)", "several objects with this UID come at once: send again later")
        elif isinstance(error, DBAPIError | NoTurn) and not isinstance(error, OURS):
            refused = DatabaseAway("database")
        else:
            raise
        log.get().error("instance.no_database", kind=type(error).__name__, in_doubt=isinstance(refused, InDoubt))
        raise refused from None


def _is_refusal(error: Exception) -> bool:
    """The database itself said no to the COMMIT, as SQLite does on a full disk."""
    full = getattr(getattr(error, "orig", None), "sqlite_errorname", "") == "SQLITE_FULL"
    return full or isinstance(error, DataError | IntegrityError)


def _is_there(staging: Staging, store: Store, instance: Instance | None) -> bool:
    """Whether the bytes are where the row says. Another node's staging cannot be looked into."""
    assert instance is not None
    if instance.store_key:
        return store.exists(instance.store_key)
    return instance.staged_node != staging.node or staging.path(instance.staged_key).is_file()


def _compare(settings: Settings, staging: Staging, staged: Staged, known: Sequence[Instance]) -> Comparison:
    """Reads the files, so outside of any transaction."""
    store, limits = make_store(settings), settings.limits
    with staging.path(staged.key).open("rb") as file:
        own = canonical_digest(file, staged.transfer_syntax, limits)
    others: dict[int, Digest | None] = {}
    same = set()
    for one in known:
        if one.canonical_digest:
            others[one.key] = Digest(*one.canonical_digest.split(":"))
        else:
            others[one.key] = _digest(partial(_open_received, staging, store, one), one, limits)
        rendition = _digest(partial(store.open, one.rendition_key), one, limits) if one.rendition_key else None
        if own in (others[one.key], rendition):
            same.add(one.key)
    return Comparison(own, others, frozenset(same))


def _open_received(staging: Staging, store: Store, instance: Instance) -> BinaryIO:
    if instance.store_key:
        return store.open(instance.store_key)
    if instance.staged_node == staging.node:
        return staging.path(instance.staged_key).open("rb")
    raise UnknownKey(f"instance {instance.key}", "is in the staging of another node")


def _digest(open_file: Callable[[], BinaryIO], instance: Instance, limits: Limits) -> Digest | None:
    try:
        with open_file() as file:
            return canonical_digest(file, instance.transfer_syntax_uid, limits)
    except (OSError, BrokerError) as error:
        log.get().warning("instance.not_compared", instance=instance.key, error=type(error).__name__)
        return None
