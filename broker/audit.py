"""Who did what to what: one row in the transaction that did it."""

import datetime as dt
from typing import Any, Literal

from sqlmodel import Session

from broker import db
from broker.model.work import AuditEvent

Action = Literal[
    "order.create", "order.update", "order.cancel", "order.status", "order.replace", "order.note", "order.report",
    "patient.create", "patient.update", "patient.merge", "patient.move", "patient.change_id", "patient.undo",
    "step.change", "performed.create", "performed.update",
    "instance.receive", "instance.duplicate", "instance.conflict", "instance.adopt", "instance.missing",
    "study.settle", "study.decide", "study.resolve", "study.reject", "study.undo", "study.archive", "study.recall",
    "study.move",
    "case.open", "case.approve", "case.resolve", "case.undo",
    "query.worklist", "peer.refuse", "message.replay", "message.dismiss",
    "site.change", "token.create", "process.start", "process.stop",
]  # fmt: skip


def record(
    session: Session,
    action: Action,
    subject: str,
    *,
    actor: str,
    now: dt.datetime,
    outcome: str = "ok",
    **detail: Any,
) -> None:
    """subject: `order:17`. detail: keys, identifiers, states; before and after where a value changed."""
    said = {"at": now, "actor": actor, "action": action, "subject": subject, "outcome": outcome, "detail": detail}
    db.append(session, AuditEvent, said)
