"""Exams whose device sends no MPPS: decided images say that a step began, quiet says that it ended (contract.md 4)."""

import datetime as dt
from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, exists, or_
from sqlmodel import Session, col, select

from broker import clock, db, outbox
from broker.config import Settings
from broker.model.images import Series, Study, StudyOrder
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.performed import PerformedStep, PerformedStepLink
from broker.mpps.rules import WRONG_ENTRY
from broker.mwl import orders

ACTOR, CAUSE = "broker", "images"
# What was discontinued or cancelled stays so, whatever images there are (reconciliation.md row 19).
NOT_BEGUN = ("SCHEDULED", "ARRIVED", "READY", "EXPIRED", "NO_SHOW")
DECIDED = ("ACCEPTED", "ARCHIVED")


def work(settings: Settings) -> int:
    """One pass; how many steps moved."""
    now = clock.now()
    quiet_since = now - dt.timedelta(seconds=settings.reconcile.complete_without_mpps_seconds)
    moved = 0
    for event, due in (("start", _began()), ("complete", _ended(quiet_since))):
        for step_pk in db.read(_steps, due, settings.limits.list_items_max):
            moved += db.run(_move, step_pk, event, due, now=now)
    for study_pk in db.read(_fallen_quiet, quiet_since, settings.limits.list_items_max):
        db.run(_note_quiet, study_pk, quiet_since, now=now)
    return moved


def is_quiet(study: Study) -> bool:
    """Nothing came for long, as far as the last pass could see."""
    return study.quiet_at is not None and study.quiet_at >= study.last_received_at


def _fallen_quiet(session: Session, quiet_since: dt.datetime, limit: int) -> Sequence[int]:
    noted = and_(col(Study.quiet_at).is_not(None), col(Study.quiet_at) >= col(Study.last_received_at))
    query = select(Study.pk).where(col(Study.last_received_at) <= quiet_since, ~noted, col(Study.state).in_(DECIDED))
    return [pk for pk in session.exec(query.order_by(col(Study.pk)).limit(limit)) if pk is not None]


def _note_quiet(session: Session, study_pk: int, quiet_since: dt.datetime, *, now: dt.datetime) -> None:
    """The status of its orders may follow: an MPPS that names no image does not say how many are to come."""
    study = db.lock(session, Study, study_pk)
    if study.last_received_at > quiet_since:
        return
    study.quiet_at = now
    session.add(study)
    for order_pk in session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study_pk)):
        outbox.touch(session, order_pk)


def retract(session: Session, link: StudyOrder, *, now: dt.datetime, actor: str) -> None:
    """A person takes a study away from its order: steps that only its images had begun are as if never begun."""
    others = exists().where(
        col(StudyOrder.requested_procedure_pk) == link.requested_procedure_pk,
        col(StudyOrder.study_pk) != link.study_pk,
    )
    begun_by_it = select(ScheduledStep).where(
        _covered(col(StudyOrder.pk) == link.pk), ~others, ~_has_mpps(),
        col(ScheduledStep.status).in_(("STARTED", "COMPLETED")),
    )  # fmt: skip
    for step in session.exec(begun_by_it).all():
        orders.move_step(session, step, "wrong_entry", now=now, actor=actor, cause=CAUSE)


def _steps(session: Session, due: ColumnElement[bool], limit: int) -> Sequence[int]:
    return [
        pk for pk in session.exec(select(ScheduledStep.pk).where(due).order_by(col(ScheduledStep.pk)).limit(limit))
        if pk is not None
    ]  # fmt: skip


def _move(session: Session, step_pk: int, event: str, due: ColumnElement[bool], *, now: dt.datetime) -> bool:
    """Looks again under the order's lock: an MPPS or a person may have been quicker."""
    db.lock(session, ImagingOrder, session.get_one(ScheduledStep, step_pk).order_pk)
    step = session.exec(
        select(ScheduledStep).where(ScheduledStep.pk == step_pk, due).execution_options(populate_existing=True)
    ).first()
    if step is None:
        return False
    orders.move_step(session, step, event, now=now, actor=ACTOR, cause=CAUSE)
    return True


# Conditions on ScheduledStep


def _began() -> ColumnElement[bool]:
    return and_(col(ScheduledStep.status).in_(NOT_BEGUN), _covered(col(Study.state).in_(DECIDED)), ~_has_mpps())


def _ended(quiet_since: dt.datetime) -> ColumnElement[bool]:
    busy = or_(col(Study.last_received_at) > quiet_since, col(Study.state).not_in(DECIDED))
    return and_(
        col(ScheduledStep.status) == "STARTED",
        _covered(col(Study.state).in_(DECIDED)),
        ~_covered(busy),
        ~_has_mpps(),
    )


def _covered(which: ColumnElement[bool]) -> ColumnElement[bool]:
    """A study for which `which` holds is linked to the step: by its key, else by procedure and modality."""
    same_modality = (
        exists()
        .where(col(Series.study_pk) == col(StudyOrder.study_pk), col(Series.modality) == col(ScheduledStep.modality))
        .correlate(StudyOrder, ScheduledStep)
    )
    return exists().where(
        col(StudyOrder.requested_procedure_pk) == col(ScheduledStep.requested_procedure_pk),
        col(StudyOrder.study_pk) == col(Study.pk),
        or_(col(StudyOrder.step_pk) == col(ScheduledStep.pk), and_(col(StudyOrder.step_pk).is_(None), same_modality)),
        which,
    )


def _has_mpps() -> ColumnElement[bool]:
    """One that was made from the wrong worklist item says nothing about the step."""
    return exists().where(
        col(PerformedStepLink.step_pk) == col(ScheduledStep.pk),
        col(PerformedStepLink.performed_pk) == col(PerformedStep.pk),
        col(PerformedStep.discontinuation_code) != WRONG_ENTRY[0],
    )
