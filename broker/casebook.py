"""Open and close the cases that wait for a person. What a case means is decided by whoever opens it."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

from sqlmodel import Session, select

from broker import audit, outbox
from broker.model.images import ReconciliationCase
from broker.states import CASE, advance

LEVELS = ("amber", "red")  # one person, two persons


def open_case(
    session: Session,
    kind: str,
    subject: str,
    *,
    level: str,
    reasons: Sequence[str],
    now: dt.datetime,
    actor: str,
    row: str = "",
    candidates: Sequence[dict[str, Any]] = (),
    study_pk: int | None = None,
    order_pk: int | None = None,
    performed_pk: int | None = None,
) -> ReconciliationCase:
    """The open case of that kind and subject: made, or brought up to date (its level never falls by itself).

    reasons: sentences without patient data."""
    case = find_open(session, kind, subject)
    if case is None:
        case = ReconciliationCase(kind=kind, subject=subject, level=level)
        session.add(case)
    elif LEVELS.index(level) > LEVELS.index(case.level) or list(reasons) != case.reasons:
        case.approvals = []  # an approval given for other reasons is none
    case.level = max(case.level, level, key=LEVELS.index)
    case.row, case.reasons, case.candidates = row, list(reasons), list(candidates)
    case.study_pk, case.order_pk, case.performed_pk = study_pk, order_pk, performed_pk
    session.flush()
    audit.record(session, "case.open", f"case:{case.key}", actor=actor, now=now, kind=kind, of=subject, level=level)
    outbox.touch(session, order_pk)
    return case


def find_open(session: Session, kind: str, subject: str) -> ReconciliationCase | None:
    return session.exec(
        select(ReconciliationCase)
        .where(ReconciliationCase.kind == kind, ReconciliationCase.subject == subject)
        .where(ReconciliationCase.state != "RESOLVED")
    ).first()


def close_case(
    session: Session, case: ReconciliationCase, *, now: dt.datetime, actor: str, resolution: dict[str, Any]
) -> None:
    """resolution: {"action": …, …}: what was done, without patient data."""
    case.state = advance(CASE, case.state, "resolve")
    case.resolution, case.resolved_at, case.resolved_by = resolution, now, actor
    session.add(case)
    audit.record(session, "case.resolve", f"case:{case.key}", actor=actor, now=now, resolution=resolution)
    outbox.touch(session, case.order_pk)
