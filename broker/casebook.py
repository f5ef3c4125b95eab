"""Open and close the cases that wait for a person. What a case means is decided by whoever opens it."""

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from broker import audit, db, outbox
from broker.model.images import ReconciliationCase
from broker.states import CASE, advance

LEVELS = ("amber", "red")  # one person, two persons
OPEN = db.Entities(
    select(ReconciliationCase)
    .where(ReconciliationCase.kind == bindparam("kind"), ReconciliationCase.subject == bindparam("subject"))
    .where(ReconciliationCase.state != "RESOLVED")
)


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
    instances: Sequence[int] = (),
    candidates: Sequence[dict[str, Any]] = (),
    study_pk: int | None = None,
    order_pk: int | None = None,
    performed_pk: int | None = None,
) -> ReconciliationCase:
    """The open case of that kind and subject: made, or brought up to date (its level never falls by itself).

    reasons: sentences without patient data. instances: keys of the objects that it is about."""
    case = find_open(session, kind, subject)
    if case is None:
        case = ReconciliationCase(kind=kind, subject=subject, level=level)
        session.add(case)
    elif _is_news(case, level, reasons, instances):
        _forget_approvals(case)
    case.level = max(case.level, level, key=LEVELS.index)
    case.row, case.reasons, case.candidates = row, list(reasons), list(candidates)
    case.instances = list(instances)
    case.study_pk, case.order_pk, case.performed_pk = study_pk, order_pk, performed_pk
    session.flush()
    audit.record(session, "case.open", f"case:{case.key}", actor=actor, now=now, kind=kind, of=subject, level=level)
    outbox.touch(session, order_pk)
    return case


def _is_news(case: ReconciliationCase, level: str, reasons: Sequence[str], instances: Sequence[int]) -> bool:
    worse = LEVELS.index(level) > LEVELS.index(case.level)
    return worse or list(reasons) != case.reasons or not set(instances) <= set(case.instances)


def _forget_approvals(case: ReconciliationCase) -> None:
    """An approval that was given for something else is none."""
    case.approvals = []
    if case.state == "TAKEN":
        case.state = advance(CASE, case.state, "release")


def join(session: Session, case: ReconciliationCase, instances: Iterable[int]) -> None:
    """Further objects for an open case."""
    joined = set(instances) - set(case.instances)
    if joined:
        case.instances = sorted({*case.instances, *joined})
        _forget_approvals(case)
        session.add(case)


def latest(session: Session, kind: str, subject: str) -> ReconciliationCase | None:
    """The newest case of that kind and subject, open or resolved."""
    return session.exec(
        select(ReconciliationCase)
        .where(ReconciliationCase.kind == kind, ReconciliationCase.subject == subject)
        .order_by(col(ReconciliationCase.pk).desc())
        .limit(1)
    ).first()


def find_open(session: Session, kind: str, subject: str) -> ReconciliationCase | None:
    return OPEN.first(session, kind=kind, subject=subject)


def close_case(
    session: Session, case: ReconciliationCase, *, now: dt.datetime, actor: str, resolution: dict[str, Any]
) -> None:
    """resolution: {"action": …, …}: what was done, without patient data."""
    case.state = advance(CASE, case.state, "resolve")
    case.resolution, case.resolved_at, case.resolved_by = resolution, now, actor
    session.add(case)
    audit.record(session, "case.resolve", f"case:{case.key}", actor=actor, now=now, resolution=resolution)
    outbox.touch(session, case.order_pk)
