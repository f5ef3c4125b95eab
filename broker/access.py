"""Who may knock at the DICOM port: the site's nodes, their addresses, and a list of those who were turned away."""

import functools
import ipaddress
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Engine, func
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from broker import audit, clock, db, log
from broker.dicom import habits
from broker.dicom.service import NodeInfo
from broker.errors import DatabaseAway
from broker.model.site import Node, UnknownPeer

CACHE_SECONDS = 2.0  # a change of a node is effective after this
LOOK_SECONDS_MAX = 1.0  # that a device waits for the table before the last known one counts
REFUSAL_SECONDS_BETWEEN = 5.0  # the same refusal is written once in this time
REFUSALS_WRITTEN_MAX = 10  # of all peers in that time: a title that changes must not fill the audit trail
UNKNOWN_PEERS_MAX = 1_000


@dataclass(frozen=True)
class Table:
    """The nodes as they were read. good_until: monotonic. stale: the last look failed."""

    nodes: Mapping[str, NodeInfo]
    directory: habits.Directory
    engine: Engine
    good_until: float
    stale: bool = False


_table: Table | None = None
_refused_at: dict[tuple[str, str, str], float] = {}
_not_written = 0
_last_addresses: dict[str, frozenset[str]] = {}
_lock = threading.Lock()


def find_node(ae_title: str) -> NodeInfo | None:
    """Whoever calls by this title. An alias is a name in orders, not who somebody is: it may not call.

    While the database is away the last known nodes count: a device that came yesterday may come today (durability.md
    1.7). Raises DatabaseAway where none were ever read."""
    return _known().nodes.get(ae_title)


def directory() -> habits.Directory:
    """What the site's AE titles stand for, as old as the nodes are. Raises DatabaseAway as find_node does."""
    return _known().directory


def learn() -> None:
    """Know the nodes, should the database go before the first device comes. Who comes first asks for them again: they
    may have been added in between."""
    global _table
    _table = replace(_known(), good_until=0.0)


def _known() -> Table:
    table = _table
    if table is None or table.engine is not db.engine() or time.monotonic() >= table.good_until:
        table = _look(table)
    return table


def _look(before: Table | None) -> Table:
    global _table
    engine = db.engine()
    known = before if before and before.engine is engine else None
    try:
        nodes, stale = _lookout.ask().result(LOOK_SECONDS_MAX), False
    except Exception as error:  # also a bug of ours must not shut the port
        if known is None:
            raise DatabaseAway("node") from None
        nodes, stale = known.nodes, True
        if not known.stale:
            log.get().error("nodes.stale", kind=type(error).__name__, nodes=len(nodes))
    titles = known.directory if known and nodes == known.nodes else _directory(nodes)
    _table = Table(nodes, titles, engine, time.monotonic() + CACHE_SECONDS, stale)
    return _table


def _directory(nodes: Mapping[str, NodeInfo]) -> habits.Directory:
    return habits.directory({title: node.habits for title, node in nodes.items()})


def _nodes(session: Session) -> Mapping[str, NodeInfo]:
    return {
        row.ae_title: NodeInfo(
            pk=row.key,
            ae_title=row.ae_title,
            host=row.host,
            any_address=row.any_address,
            device=row.device or row.ae_title,
            rights=frozenset(row.rights),
            character_set=row.character_set,
            mpps_strict=row.mpps_strict,
            modality=row.modality,
            habits=habits.of(row),
        )
        for row in session.exec(select(Node)).all()
    }


_lookout = db.Lookout(_nodes)


def forget() -> None:
    """Look at the tables again at the next question."""
    global _table
    _table = None
    _refused_at.clear()


def address_allowed(node: NodeInfo, address: str) -> bool:
    return node.any_address or address in addresses(node.host)


def addresses(host: str) -> frozenset[str]:
    """What a name or an address stands for, asked again every minute; what it last was where nobody can say (out of
    descriptors, no name server), empty where nobody ever could."""
    try:
        return frozenset([str(ipaddress.ip_address(host))])
    except ValueError:
        pass
    try:
        _last_addresses[host] = _addresses(host, int(time.monotonic() / 60))
    except OSError:
        log.get().warning("node.no_address", host=host)
    return _last_addresses.get(host, frozenset())


@functools.lru_cache(maxsize=1024)
def _addresses(host: str, _minute: int) -> frozenset[str]:
    return frozenset(str(info[4][0]) for info in socket.getaddrinfo(host, None))


def note_refusal(ae_title: str, address: str, called: str, reason: str) -> None:
    """List and audit a refusal; a flood is written now and then. Whoever is refused is not kept by our own trouble."""
    with _lock:
        if not _is_worth_writing((ae_title, address, reason), time.monotonic()):
            return
    try:
        db.run(_write_refusal, ae_title, address, called, reason)
    except SQLAlchemyError as error:
        log.get().error("peer.refusal_not_written", address=address, kind=type(error).__name__)


def _is_worth_writing(key: tuple[str, str, str], now: float) -> bool:
    global _not_written
    for old in [one for one, at in _refused_at.items() if now - at >= REFUSAL_SECONDS_BETWEEN]:
        del _refused_at[old]
    if key in _refused_at:
        return False
    if len(_refused_at) >= REFUSALS_WRITTEN_MAX:
        _not_written += 1
        return False
    if _not_written:
        log.get().warning("peer.refusals_not_written", times=_not_written)
        _not_written = 0
    _refused_at[key] = now
    return True


def _write_refusal(session: Session, ae_title: str, address: str, called: str, reason: str) -> None:
    now = clock.now()
    known = session.exec(
        select(UnknownPeer)
        .where(UnknownPeer.ae_title == ae_title, UnknownPeer.address == address, UnknownPeer.reason == reason)
        .with_for_update()
    ).first()
    if known is None:
        if session.exec(select(func.count(col(UnknownPeer.pk)))).one() >= UNKNOWN_PEERS_MAX:
            return
        known = UnknownPeer(ae_title=ae_title, address=address, reason=reason, times=0, last_at=now)
    known.called, known.times, known.last_at = called, known.times + 1, now
    session.add(known)
    audit.record(session, "peer.refuse", f"ae:{ae_title}", actor=address, now=now, outcome="refused", reason=reason)
