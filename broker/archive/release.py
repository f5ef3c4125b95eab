"""What a person's decision does to a study that was held: to an order, to its own patient, out of the exam, and back.

Nothing here deletes bytes: what is rejected or hidden stays in custody."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import func
from sqlmodel import Session, col, select

from broker import audit, casebook, db, outbox
from broker.archive import performed_by_images
from broker.config import Settings
from broker.errors import InvalidValue, MissingField, UnknownKey, WrongState
from broker.model.images import Decision, Instance, ReconciliationCase, Study, StudyOrder
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.mwl import identity, patients
from broker.mwl.commands import Identifier, PersonCommand
from broker.states import INSTANCE, STUDY, advance

RULES_VERSION = "person"
REJECTED = "R"  # Decision.outcome beside those of the table
# PS3.16 CID 7011, IOCM (conformance.md 3.5).
REJECTION_CODES = {
    "113001": "Rejected for Quality Reasons",
    "113037": "Rejected for Patient Safety Reasons",
    "113038": "Incorrect Modality Worklist Entry",
    "113039": "Data Retention Policy Expired",
}


@dataclass(frozen=True)
class Wanted:
    """What two people must agree on. order_id, sps_id: for match. code: for reject."""

    action: str
    order_id: int | None = None
    sps_id: str | None = None
    code: str | None = None


@dataclass(frozen=True)
class Desk:
    """Who decides what, when, and why. reason: what the person wrote."""

    wanted: Wanted
    principal: str
    is_person: bool
    reason: str
    now: dt.datetime
    settings: Settings


# Where the study goes


@dataclass(frozen=True)
class Target:
    """person: to be registered where there is no patient yet. procedure, step: of the order; none for unscheduled."""

    patient: Patient | None = None
    person: PersonCommand | None = None
    order: ImagingOrder | None = None
    procedure: RequestedProcedure | None = None
    step: ScheduledStep | None = None


def _order_target(session: Session, study_pk: int, desk: Desk) -> Target:
    if desk.wanted.order_id is None:
        raise MissingField("order_id", "match names an order")
    if session.get(ImagingOrder, desk.wanted.order_id) is None:
        raise UnknownKey("order_id", "no such order")
    order = db.lock(session, ImagingOrder, desk.wanted.order_id)
    steps = session.exec(
        select(ScheduledStep).where(ScheduledStep.order_pk == order.key).order_by(col(ScheduledStep.pk))
    ).all()
    if desk.wanted.sps_id is not None:
        steps = [step for step in steps if step.sps_id == desk.wanted.sps_id]
        if not steps:
            raise UnknownKey("sps_id", "is no step of that order")
    if len(steps) != 1:
        raise MissingField("sps_id", f"the order has {len(steps)} steps: name one")
    procedure = session.get_one(RequestedProcedure, steps[0].requested_procedure_pk)
    patient = session.get_one(Patient, order.patient_pk)
    return Target(patient=patient, order=order, procedure=procedure, step=steps[0])


def _own_target(session: Session, study_pk: int, desk: Desk) -> Target:
    """The patient that the images name, known or to be registered."""
    facts = session.exec(
        select(Instance.facts).where(
            Instance.study_pk == study_pk, col(Instance.state).in_(("STAGED", "HELD", "HIDDEN")),
            col(Instance.conflict_of).is_(None),
        )
    ).all()  # fmt: skip
    named = {(one["patient_id"], one["issuer_of_patient_id"]) for one in facts}
    if len(named) != 1:
        raise InvalidValue("patient.id", f"the images name {len(named)} patients; one is needed")
    value, issuer = named.pop()
    if not value:
        raise InvalidValue("patient.id", "the images name no patient: match the study with an order")
    site = desk.settings.site
    value = value.zfill(site.patient_id_pad_to) if value.isdecimal() else value
    issuer = issuer or site.patient_id_issuer
    query = select(PatientIdentifier.patient_pk).where(PatientIdentifier.value == value)
    owners = session.exec(query.where(PatientIdentifier.issuer == issuer) if issuer else query).all()
    if len(owners) > 1:
        raise InvalidValue("patient.id", "is known under several issuers: match the study with an order")
    if owners:
        return Target(patient=db.lock(session, Patient, identity.survivor(session, owners[0]).key))
    first = facts[0]
    return Target(
        person=PersonCommand((Identifier(value, issuer),), first["patient_name"], first["birth_date"], first["sex"])
    )


def _no_target(session: Session, study_pk: int, desk: Desk) -> Target:
    if desk.wanted.code not in REJECTION_CODES:
        raise InvalidValue("code", f"is none of {', '.join(REJECTION_CODES)}")
    return Target()


# What is done


def _accept(session: Session, case: ReconciliationCase, study: Study, target: Target, desk: Desk) -> None:
    """To an order, or with the study's own identity. The commit job stores what is released here."""
    patient = target.patient
    if patient is None:
        assert target.person is not None
        patient, _ = patients.for_order(session, target.person, now=desk.now, actor=desk.principal)
    _link(session, study, target, desk)
    study.patient_pk, study.order_pk = patient.key, target.order.key if target.order else None
    study.flags = [flag for flag in study.flags if flag != "UNSCHEDULED"] + ["UNSCHEDULED"] * (target.order is None)
    released = _release(session, study.key)
    # The one thing that an unscheduled study does not keep: an identifier that was merged, or lacks its zeros.
    outcome = "C" if target.order or not _says_so(session, study.key, patient) else "A"
    _close(session, case, study, "study.resolve", outcome, released, desk)


def _reject(session: Session, case: ReconciliationCase, study: Study, _: Target, desk: Desk) -> None:
    """What was held leaves the exam; its bytes stay in custody. What was stored before stays available."""
    rejected = []
    for instance in _instances(session, study.key, "STAGED", "HELD"):
        instance.state = advance(INSTANCE, instance.state, "reject")
        session.add(instance)
        rejected.append(instance.key)
    if not _instances(session, study.key, "STORED"):
        _link(session, study, Target(), desk)
        study.patient_pk = study.order_pk = None
    _close(session, case, study, "study.reject", REJECTED, rejected, desk)


Find = Callable[[Session, int, Desk], Target]
CarryOut = Callable[[Session, ReconciliationCase, Study, Target, Desk], None]
ACTIONS: dict[str, tuple[Find, CarryOut]] = {
    "match": (_order_target, _accept),
    "accept_unscheduled": (_own_target, _accept),
    "reject": (_no_target, _reject),
}


def _link(session: Session, study: Study, target: Target, desk: Desk) -> None:
    """Make the target the study's only order. Images that were stored for another one do not move along."""
    links = session.exec(select(StudyOrder).where(StudyOrder.study_pk == study.key)).all()
    wanted = target.procedure.key if target.procedure else None
    if any(link.requested_procedure_pk != wanted for link in links) and _instances(session, study.key, "STORED"):
        raise WrongState("study", "has images in the archive for another order; undo that decision first")
    for link in links:
        outbox.touch(session, link.order_pk)
        if link.requested_procedure_pk != wanted:
            performed_by_images.retract(session, link, now=desk.now, actor=desk.principal)
            session.delete(link)
    session.flush()
    if target.order and target.procedure and target.step:
        kept = next((link for link in links if link.requested_procedure_pk == wanted), None)
        kept = kept or StudyOrder(
            study_pk=study.key, order_pk=target.order.key, requested_procedure_pk=target.procedure.key
        )
        kept.step_pk = target.step.key
        session.add(kept)
        outbox.touch(session, target.order.key)


def _release(session: Session, study_pk: int) -> list[int]:
    """Everything but copies in conflict, which stay aside. Hidden images are shown again by the commit, afresh."""
    released = []
    for instance in _instances(session, study_pk, "STAGED", "HELD", "HIDDEN"):
        if instance.conflict_of is not None:
            instance.state = advance(INSTANCE, instance.state, "reject")
        else:
            released.append(instance.key)
            if instance.state == "HELD":
                instance.state = advance(INSTANCE, instance.state, "release")
        session.add(instance)
    return released


def _says_so(session: Session, study_pk: int, patient: Patient) -> bool:
    """Whether every image has the patient's leading identifier."""
    leading = patients.identifiers(session, patient.key)[0].value
    return all(one.facts["patient_id"] == leading for one in _instances(session, study_pk, "STAGED", "HIDDEN"))


def _close(
    session: Session,
    case: ReconciliationCase,
    study: Study,
    action: audit.Action,
    outcome: str,
    instances: list[int],
    desk: Desk,
) -> None:
    """The decision with what it covers, the study's state, the case. A study of which something is stored stays
    accepted, whatever was rejected of it."""
    last = session.exec(select(func.max(Instance.pk)).where(Instance.study_pk == study.key)).one()
    decision = Decision(
        study_pk=study.key, at=desk.now, rules_version=RULES_VERSION, row=case.row, outcome=outcome,
        reasons=[desk.reason] if desk.reason else [], order_pk=study.order_pk, by=desk.principal,
        facts={"case": case.key, "wanted": asdict(desk.wanted), "last": last, "instances": instances,
               "released": [] if outcome == REJECTED else instances},
    )  # fmt: skip
    session.add(decision)
    session.flush()
    gone = outcome == REJECTED and not _instances(session, study.key, "STORED")
    study.state = advance(STUDY, study.state, "reject" if gone else "resolve")
    study.decided_at, study.not_before, study.attempts = desk.now, None, 0
    session.add(study)
    audit.record(
        session, action, f"study:{study.key}", actor=desk.principal, now=desk.now, case=case.key,
        decision=decision.key, instances=len(instances), state=study.state,
    )  # fmt: skip
    resolution = {**asdict(desk.wanted), "reason": desk.reason, "decision": decision.key}
    casebook.close_case(session, case, now=desk.now, actor=desk.principal, resolution=resolution)


def _instances(session: Session, study_pk: int, *states: str) -> Sequence[Instance]:
    return session.exec(
        select(Instance)
        .where(Instance.study_pk == study_pk, col(Instance.state).in_(states))
        .order_by(col(Instance.pk))
    ).all()


BACK = {"STORED": "hide", "STAGED": "hold", "REJECTED": "restore"}


def take_back(session: Session, study: Study, case: ReconciliationCase, principal: str, now: dt.datetime) -> None:
    """Hold what the decision covered and what came after it; what was stored before it stays."""
    decision = session.get(Decision, case.resolution.get("decision"))
    covered, last = (set(decision.facts["instances"]), decision.facts["last"]) if decision else (set(), 0)
    study.state = advance(STUDY, study.state, "undo")
    session.add(study)
    held = [one for one in _instances(session, study.key, *BACK) if one.key in covered or one.key > last]
    for instance in held:
        instance.state = advance(INSTANCE, instance.state, BACK[instance.state])
        session.add(instance)
    audit.record(
        session, "study.undo", f"study:{study.key}", actor=principal, now=now, case=case.key, instances=len(held)
    )
    for order_pk in session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study.key)).all():
        outbox.touch(session, order_pk)
