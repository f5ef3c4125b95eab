"""Who may knock at the DICOM port: the site's nodes, their addresses, and a list of those who were turned away."""

import functools
import socket
import threading
import time

from sqlalchemy import func
from sqlmodel import Session, col, select

from broker import audit, clock, db
from broker.dicom.service import NodeInfo
from broker.model.site import Node, UnknownPeer

CACHE_SECONDS = 2.0  # a change of a node is effective after this
REFUSAL_SECONDS_BETWEEN = 5.0  # the same refusal is written once in this time
UNKNOWN_PEERS_MAX = 1_000

_refused_at: dict[tuple[str, str, str], float] = {}
_lock = threading.Lock()


def find_node(ae_title: str) -> NodeInfo | None:
    return _nodes(int(time.monotonic() / CACHE_SECONDS), id(db.engine())).get(ae_title)


@functools.lru_cache(maxsize=1)
def _nodes(_turn: int, _engine: int) -> dict[str, NodeInfo]:
    rows = db.read(lambda session: session.exec(select(Node)).all())
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
        )
        for row in rows
    }


def forget() -> None:
    """Look at the tables again at the next question."""
    _nodes.cache_clear()
    _refused_at.clear()


def address_allowed(node: NodeInfo, address: str) -> bool:
    return node.any_address or address in addresses(node.host)


def addresses(host: str) -> frozenset[str]:
    """What a name or an address stands for, asked again every minute; empty where nobody knows it."""
    return _addresses(host, int(time.monotonic() / 60))


@functools.lru_cache(maxsize=1024)
def _addresses(host: str, _minute: int) -> frozenset[str]:
    try:
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(host, None))
    except OSError:
        return frozenset()


def note_refusal(ae_title: str, address: str, called: str, reason: str) -> None:
    """List and audit a refusal; a flood of the same one is written now and then."""
    key, now = (ae_title, address, reason), time.monotonic()
    with _lock:
        if now - _refused_at.get(key, -REFUSAL_SECONDS_BETWEEN) < REFUSAL_SECONDS_BETWEEN:
            return
        if len(_refused_at) >= UNKNOWN_PEERS_MAX:
            _refused_at.clear()
        _refused_at[key] = now
    db.run(_write_refusal, ae_title, address, called, reason)


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
