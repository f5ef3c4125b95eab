"""Which studies wait for the gate, as conditions on their rows. The state is the queue (architecture.md 9)."""

import datetime as dt
from collections.abc import Callable

from sqlalchemy import ColumnElement, and_, exists, false, func, or_
from sqlmodel import Session, col, select

from broker.archive import performed_of
from broker.archive.plan import RULES
from broker.config import Settings
from broker.model.images import Decision, Instance, Study
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.model.performed import PerformedSeries, PerformedStep
from broker.mpps.rules import FINAL, WRONG_ENTRY

Which = Callable[[Session, Settings, dt.datetime], ColumnElement[bool]]


def settled(session: Session, settings: Settings, now: dt.datetime) -> ColumnElement[bool]:
    """Nothing came for a while, or all that final MPPS name is here."""
    quiet_since = now - dt.timedelta(seconds=settings.reconcile.settle_seconds)
    receiving = col(Study.state) == "RECEIVING"
    busy = session.exec(
        select(Study.pk)
        .where(receiving, col(Study.last_received_at) > quiet_since, _named_by_final())
        .order_by(col(Study.last_received_at))
        .limit(settings.limits.list_items_max)
    ).all()
    whole = [pk for pk in busy if pk is not None and _is_whole(session, pk)]
    return and_(receiving, or_(col(Study.last_received_at) <= quiet_since, col(Study.pk).in_(whole)))


def _named_by_final() -> ColumnElement[bool]:
    return exists().where(performed_of.is_about(), col(PerformedStep.status).in_(FINAL)).correlate(Study)


def _is_whole(session: Session, study_pk: int) -> bool:
    """Each MPPS of the study is final, and each instance that they name is here."""
    about = select(PerformedStep.pk).join(Study, performed_of.is_about()).where(Study.pk == study_pk)
    if session.exec(about.where(col(PerformedStep.status).not_in(FINAL))).first() is not None:
        return False
    named = session.exec(select(PerformedSeries.instance_uids).where(col(PerformedSeries.performed_pk).in_(about)))
    announced = {uid for uids in named for uid in uids}
    here = set(session.exec(select(Instance.sop_instance_uid).where(Instance.study_pk == study_pk)))
    return bool(announced) and announced <= here


def worth_another_look(session: Session, settings: Settings, now: dt.datetime) -> ColumnElement[bool]:
    """Held, and since the last look an order, a patient or an MPPS changed, or objects joined."""
    if session.exec(select(Study.pk).where(Study.state == "IN_REVIEW").limit(1)).first() is None:
        return false()
    tables = (ImagingOrder, ScheduledStep, Patient, PatientIdentifier, PerformedStep)
    changes = [session.exec(select(func.max(table.updated_at))).one() for table in tables]
    changed_at = max((at for at in changes if at is not None), default=None)
    joined = exists().where(col(Instance.study_pk) == col(Study.pk), col(Instance.state) == "STAGED")
    changed = col(Study.decided_at) < changed_at if changed_at else false()
    return and_(col(Study.state) == "IN_REVIEW", or_(joined, changed))


def to_recall(session: Session, settings: Settings, now: dt.datetime) -> ColumnElement[bool]:
    """Let in, and then its MPPS was discontinued with 110514; or rejected, and then more objects came. What a person
    let in after that stays."""
    wrong = and_(
        performed_of.is_about(),
        col(PerformedStep.discontinuation_code) == WRONG_ENTRY[0],
        col(PerformedStep.discontinuation_scheme) == WRONG_ENTRY[1],
        exists()
        .where(
            col(Instance.study_pk) == col(Study.pk),
            col(Instance.decision_pk) == col(Decision.pk),
            or_(col(Decision.by) == RULES, col(Decision.at) <= col(PerformedStep.updated_at)),
        )
        .correlate(Study, PerformedStep),
    )
    joined = exists().where(col(Instance.study_pk) == col(Study.pk), col(Instance.state) == "STAGED")
    return or_(
        and_(col(Study.state).in_(("ACCEPTED", "ARCHIVED")), exists().where(wrong).correlate(Study)),
        and_(col(Study.state) == "REJECTED", joined),
    )
