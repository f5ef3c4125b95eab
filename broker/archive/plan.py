"""What the commit of a study has to do, read from the rows: which instances, under whose decision, saying what."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import Session, col, select

from broker.archive.changes import Identity, Request, Target
from broker.model.images import Decision, Instance, Study, StudyOrder
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.mwl import identity

RULES = "rules"  # Decision.by of a decision that no person made


@dataclass(frozen=True)
class Plan:
    """by_person: a person gave the study to an order. target: what the study was accepted for; None where it keeps its
    own word. instances: to be stored from this node's staging, or to be shown again after they were hidden."""

    study_pk: int
    patient_pk: int | None
    decision_pk: int
    decided_at: dt.datetime
    by_person: bool
    only_name: bool
    target: Target | None
    instances: Sequence[Instance]


def make_plan(session: Session, study_pk: int, node: str) -> Plan | None:
    """None where the study is not accepted (any more), or other nodes have all that is left."""
    study = session.get_one(Study, study_pk)
    decision = latest_decision(session, study_pk)
    if study.state != "ACCEPTED" or decision is None:
        return None
    waiting = pending(session, study_pk, decision)
    here = [one for one in waiting if one.state == "HIDDEN" or one.staged_node == node]
    if waiting and not here:
        return None
    return Plan(
        study_pk=study_pk,
        patient_pk=study.patient_pk,
        decision_pk=decision.key,
        decided_at=decision.at,
        by_person=decision.by != RULES and study.order_pk is not None,
        only_name=decision.outcome == "A",
        target=_target(session, study, decision),
        instances=here,
    )


def latest_decision(session: Session, study_pk: int) -> Decision | None:
    return session.exec(
        select(Decision).where(Decision.study_pk == study_pk).order_by(col(Decision.pk).desc()).limit(1)
    ).first()


def latest_acceptance(session: Session, study_pk: int) -> Decision | None:
    """The last decision that let objects of the study into the archive."""
    return session.exec(
        select(Decision)
        .where(Decision.study_pk == study_pk, col(Decision.outcome).in_(("A", "C")))
        .order_by(col(Decision.pk).desc())
        .limit(1)
    ).first()


def pending(session: Session, study_pk: int, decision: Decision) -> list[Instance]:
    """All that is staged, and what a person's decision released from being hidden. Never a conflicting copy."""
    released = set(decision.facts.get("released", ()))
    instances = session.exec(
        select(Instance)
        .where(Instance.study_pk == study_pk, col(Instance.conflict_of).is_(None))
        .where(col(Instance.state).in_(("STAGED", "HIDDEN")))
        .order_by(col(Instance.pk))
    ).all()
    return [one for one in instances if one.state == "STAGED" or one.key in released]


def _target(session: Session, study: Study, decision: Decision) -> Target | None:
    requests = _requests(session, study.key)
    if study.patient_pk is None or (decision.outcome == "A" and not requests):
        return None
    patient: Patient = identity.survivor(session, study.patient_pk)
    known = identity.identifiers(session, patient.key)
    leading = known[0] if known else None
    person = Identity(
        patient_id=leading.value if leading else "",
        issuer=leading.issuer if leading else "",
        name=patient.name,
        birth_date=patient.birth_date,
        sex=patient.sex,
        retired=frozenset(one.value for one in known if one.retired),
    )
    return Target(person, requests)


def _requests(session: Session, study_pk: int) -> list[Request]:
    """One for each procedure or step that the study is linked to (PS3.3 Table 10-9)."""
    links = session.exec(
        select(ImagingOrder, RequestedProcedure, ScheduledStep)
        .join(StudyOrder, col(StudyOrder.order_pk) == col(ImagingOrder.pk))
        .join(RequestedProcedure, col(StudyOrder.requested_procedure_pk) == col(RequestedProcedure.pk))
        .join(ScheduledStep, col(StudyOrder.step_pk) == col(ScheduledStep.pk), isouter=True)
        .where(StudyOrder.study_pk == study_pk)
        .order_by(col(StudyOrder.pk))
    ).all()
    return [_request(*link) for link in links]


def _request(order: ImagingOrder, procedure: RequestedProcedure, step: ScheduledStep | None) -> Request:
    code = {
        "CodeValue": procedure.code_value,
        "CodingSchemeDesignator": procedure.code_scheme,
        "CodeMeaning": procedure.code_meaning,
    }
    request: dict[str, Any] = {
        "AccessionNumber": order.accession_number,
        "IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": order.accession_issuer}]
        if order.accession_issuer else [],
        "StudyInstanceUID": procedure.study_instance_uid,
        "RequestedProcedureID": procedure.requested_procedure_id,
        "RequestedProcedureDescription": procedure.description,
        "RequestedProcedureCodeSequence": [code] if procedure.code_value else [],
    }  # fmt: skip
    if step is not None:
        request["ScheduledProcedureStepID"] = step.sps_id
        request["ScheduledProcedureStepDescription"] = step.description
        request["ScheduledProtocolCodeSequence"] = step.attributes.get("ScheduledProtocolCodeSequence", [])
    return request
