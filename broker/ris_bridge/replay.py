"""What a person does about refused messages: look at them again by what is known now, or say that no more is needed."""

import datetime as dt
from collections.abc import Callable
from typing import Any, Literal

from sqlmodel import Session

from broker import audit, clock, db
from broker.config import Settings
from broker.errors import Unsupported
from broker.model.messages import Message
from broker.ris_bridge import csv_road, inbox, journal, rest_road, upstream_effect, upstream_road
from broker.ris_bridge.fhir import road as fhir_road
from broker.ris_bridge.hl7 import road
from broker.ris_bridge.inbox import Received, Road
from broker.states import MESSAGE, advance

# Protocol -> how a message of the journal is looked at once more.
ROADS: dict[str, Callable[[Message, Settings], tuple[Received, Road]]] = {
    road.PROTOCOL: road.again,
    rest_road.PROTOCOL: rest_road.again,
    fhir_road.PROTOCOL: fhir_road.again,
    csv_road.PROTOCOL: csv_road.again,
    upstream_effect.PROTOCOL: upstream_road.again,
}
Outcome = Literal["applied", "refused", "was applied already"]


def replay(pk: int, settings: Settings, *, actor: str, parked: bool = True) -> dict[str, Any]:
    """The message as it is then, with its `outcome`. What was applied is never applied again. A sender that sends the
    same bytes later gets the answer of this time. parked: also one of which the program died.

    Raises UnknownKey, and database trouble as the inbox does: nothing has changed then."""
    row = db.read(journal.get, pk)
    outcome: Outcome = "was applied already"
    if row.state != "APPLIED":
        if row.protocol not in ROADS:
            raise Unsupported("message_id", f"a message that came by {row.protocol} cannot be looked at again")
        db.run(
            audit.record, "message.replay", f"message:{pk}", actor=actor, now=clock.now(), state=row.state,
            code=row.error_code, place=row.error_place,
        )  # fmt: skip
        inbox.take(*ROADS[row.protocol](row, settings), again=True, parked=parked)
        row = db.read(journal.get, pk)
        outcome = "applied" if row.state == "APPLIED" else "refused"
    return {"outcome": outcome, **journal.summary(row, clock.now())}


def replay_many(
    wanted: journal.Wanted, settings: Settings, *, actor: str, limit: int, after: int = 0
) -> dict[str, Any]:
    """At most `limit` of those found, in the order in which they came; what is parked stays so. next: after which one
    to go on."""
    rows, following = db.read(
        journal.find, wanted, limit=limit, looked_at=settings.limits.journal_rows_max, after=after, oldest_first=True
    )
    return {"items": [replay(row.key, settings, actor=actor, parked=False) for row in rows], "next": following}


def dismiss(session: Session, pk: int, *, reason: str, actor: str, now: dt.datetime) -> Message:
    """Nothing more is needed of a refused message, says a person. Raises WrongState where it is not refused."""
    journal.get(session, pk)
    row = db.lock(session, Message, pk)
    row.state = advance(MESSAGE, row.state, "dismiss")
    row.noted = reason
    session.add(row)
    audit.record(session, "message.dismiss", f"message:{pk}", actor=actor, now=now, reason=reason)
    return row
