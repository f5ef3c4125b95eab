"""What leaves. Services say that an order changed; the events follow from its status document (ADR 0005)."""

import datetime as dt
from typing import Any

from sqlmodel import Session

from broker import db, ids
from broker.model.work import Destination, Outbox

DESTINATIONS = db.Prepared(
    db.columns(Destination.pk, Destination.name, Destination.kind, Destination.events).order_by(Destination.pk)
)
TOUCHED = "touched orders"


def touch(session: Session, order_pk: int | None) -> None:
    """Something that this order's status document may show has changed; it is looked at before the commit."""
    if order_pk is not None:
        session.info.setdefault(TOUCHED, set()).add(order_pk)


def touched(session: Session) -> set[int]:
    """The orders touched since the last call."""
    return session.info.pop(TOUCHED, set())


def emit(session: Session, event: str, *, lane: str, body: dict[str, Any], now: dt.datetime) -> None:
    """One row for each destination that subscribed to `event`, in the caller's transaction."""
    for destination in DESTINATIONS.rows(session):
        if destination.events and event not in destination.events:
            continue
        sent = {
            "destination_pk": destination.pk, "lane": f"{destination.name}|{lane}", "kind": destination.kind,
            "event": event, "body": body, "control_id": ids.control_id(), "due_at": now,
        }  # fmt: skip
        db.append(session, Outbox, sent)
