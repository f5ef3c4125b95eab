"""What the commit of a study has to do, read from the rows: which instances, under whose decision, saying what."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_
from sqlmodel import Session, col, select

from broker.archive.changes import Identity, Request, Target
from broker.archive.devices import Devices
from broker.config import Settings
from broker.model.images import Decision, Instance, Study, StudyOrder
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.model.site import Node
from broker.mwl import identity

RULES = "rules"  # Decision.by of a decision that no person made


@dataclass(frozen=True)
class How:
    """What one instance will say. target: None where it keeps its own word. decided_at: the same at every try.
    replaced: it shows another patient, and a person gave it to this one: nothing of that identity stays. only_name:
    identifiers and links agree."""

    target: Target | None
    decided_at: dt.datetime
    replaced: bool
    only_name: bool


@dataclass(frozen=True)
class Plan:
    """instances: to be stored from this node's staging, or to be shown again after they were hidden; how: by their
    keys. decisions: of each, as it was when the plan was made."""

    study_pk: int
    patient_pk: int | None
    instances: Sequence[Instance]
    how: Mapping[int, How]

    @property
    def decisions(self) -> dict[int, int | None]:
        return {one.key: one.decision_pk for one in self.instances}


def make_plan(session: Session, study_pk: int, node: str, settings: Settings) -> Plan | None:
    """None where nothing that was let in waits here."""
    study = session.get_one(Study, study_pk)
    here = [one for one in pending(session, study_pk) if one.state == "HIDDEN" or one.staged_node == node]
    if not here:
        return None
    how = _Hows(session, study, settings)
    return Plan(study.key, study.patient_pk, here, {one.key: how.of(one) for one in here})


class _Hows:
    """What the instances of one study will say."""

    def __init__(self, session: Session, study: Study, settings: Settings) -> None:
        self._session, self._study, self._site = session, study, settings.site
        self._devices = Devices(session.exec(select(Node)).all())
        decisions = session.exec(select(Decision).where(Decision.study_pk == study.key))
        self._decisions = {one.key: one for one in decisions}
        requests = _requests(session, study.key)
        patient = identity.survivor(session, study.patient_pk) if study.patient_pk is not None else None
        self._patient_pk = patient.key if patient else None
        self._target = Target(_identity(session, patient), requests) if patient else None

    def of(self, instance: Instance) -> How:
        assert instance.decision_pk is not None
        decision = self._decisions[instance.decision_pk]
        is_a, target = decision.outcome == "A", self._target
        if target is None or (is_a and not target.requests):
            return How(None, decision.at, replaced=False, only_name=False)
        person = decision.by != RULES or not self._is_the_patients(instance)
        replaced = person and self._study.order_pk is not None
        return How(target, decision.at, replaced, only_name=is_a and not replaced)

    def _is_the_patients(self, instance: Instance) -> bool:
        """A later object that is remembered (row 47) shows what a person gave to this patient, and is no less wrong."""
        said = instance.facts
        node_issuer, _ = self._devices.issuers(instance.source_ae)
        whom = identity.named(self._session, said["patient_id"], said["issuer_of_patient_id"], self._site, node_issuer)
        return whom.patients == (self._patient_pk,)


def latest_decision(session: Session, study_pk: int) -> Decision | None:
    return session.exec(
        select(Decision).where(Decision.study_pk == study_pk).order_by(col(Decision.pk).desc()).limit(1)
    ).first()


def is_pending() -> ColumnElement[bool]:
    """A condition on Instance: let in, and not yet in the archive, or not yet shown again."""
    return and_(
        col(Instance.decision_pk).is_not(None),
        col(Instance.state).in_(("STAGED", "HIDDEN")),
        col(Instance.conflict_of).is_(None),
    )


def pending(session: Session, study_pk: int) -> Sequence[Instance]:
    query = select(Instance).where(Instance.study_pk == study_pk, is_pending()).order_by(col(Instance.pk))
    return session.exec(query).all()


def _identity(session: Session, patient: Patient) -> Identity:
    known = identity.identifiers(session, patient.key)
    leading = known[0] if known else None
    return Identity(
        patient_id=leading.value if leading else "",
        issuer=leading.issuer if leading else "",
        name=patient.name,
        birth_date=patient.birth_date,
        sex=patient.sex,
        retired=frozenset(one.value for one in known if one.retired),
    )


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
