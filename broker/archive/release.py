"""What a person's decision does to a study that was held: to an order, to its own patient, out of the exam, and back.

Nothing here deletes bytes: what is rejected or hidden stays in custody."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from sqlmodel import Session, col, select

from broker import audit, casebook, db, outbox
from broker.archive import performed_by_images
from broker.archive.facts import Person, Seen
from broker.archive.gather import Gathering
from broker.archive.grades import grade, worst
from broker.config import Settings
from broker.errors import InvalidValue, MissingField, UnknownKey, WrongState
from broker.model.images import Decision, Instance, ReconciliationCase, Study, StudyOrder
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.mwl import identity, normalise, order_finding, patients
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
    order = order_finding.locked(session, desk.wanted.order_id)
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
    """The patient that the images of the case name, known or to be registered: all must say the same, and nothing else
    than the record."""
    case = casebook.find_open(session, "study", f"study:{study_pk}")
    shown = set(case.instances) if case else set()
    gathered = Gathering(session, session.get_one(Study, study_pk), now=desk.now, settings=desk.settings)
    seen = [one for one in gathered.facts.seen if shown & set(one.instances)]
    named = {one.patients or normalise.plain(one.patient_id) for one in seen}
    if len(named) != 1:
        raise InvalidValue("patient.id", f"the images name {len(named)} patients; one is needed")
    first = seen[0]
    if not normalise.plain(first.patient_id):
        raise InvalidValue("patient.id", "the images name no patient: match the study with an order")
    if len(first.patients) > 1:
        raise InvalidValue("patient.id", "is known under several issuers: match the study with an order")
    if not first.patients:
        return Target(person=_stranger(gathered, first, seen))
    patient = db.lock(session, Patient, first.patients[0])
    known = next(one for one in gathered.facts.people if one.pk == patient.key)
    found = worst([grade(one, known) for one in seen])
    if found.differs:
        raise InvalidValue("patient", f"the record with that ID differs in {', '.join(found.differs)}: match or reject")
    return Target(patient=patient)


def _stranger(gathered: Gathering, first: Seen, seen: Sequence[Seen]) -> PersonCommand:
    """Nobody has that ID here. Objects that disagree among themselves name nobody."""
    as_person = Person(0, first.name, first.birth_date, first.sex)
    if any(grade(replace(one, patients=(0,)), as_person).differs for one in seen):
        raise InvalidValue("patient", "the images disagree in name, birth date or sex: match the study with an order")
    sender = gathered.session.get_one(Instance, first.instances[0]).source_ae
    site = gathered.settings.site
    issuer = first.issuer or gathered.devices.issuers(sender)[0] or site.patient_id_issuer
    value = normalise.patient_id(first.patient_id, site.patient_id_pad_to)
    return PersonCommand((Identifier(value, issuer),), first.name, normalise.birth_date(first.birth_date), first.sex)


def is_another_patient(gathered: Gathering, case: ReconciliationCase, target: Target) -> bool:
    """Whether the images of the case name somebody else than the order that a person gives them to, or differ from its
    patient in more than one thing (grades G3 to GX, reconciliation.md 3.3)."""
    if target.patient is None or target.order is None:
        return False
    whom = Person(target.patient.key, target.patient.name, target.patient.birth_date, target.patient.sex)
    whom = next((one for one in gathered.facts.people if one.pk == whom.pk), whom)
    seen = [one for one in gathered.facts.seen if set(case.instances) & set(one.instances)]
    return any(grade(one, whom).code in ("G3", "G4", "G5", "GX") for one in seen)


def _no_target(session: Session, study_pk: int, desk: Desk) -> Target:
    if desk.wanted.code not in REJECTION_CODES:
        raise InvalidValue("code", f"is none of {', '.join(REJECTION_CODES)}")
    return Target()


# What is done


def _accept(session: Session, case: ReconciliationCase, study: Study, target: Target, desk: Desk) -> None:
    """To an order, or with the study's own identity. The commit job stores what is released here."""
    released = _release(session, case)
    patient = target.patient
    if patient is None:
        assert target.person is not None
        patient, _ = patients.for_order(session, target.person, now=desk.now, actor=desk.principal)
    _refuse_to_move(session, study, patient, target)
    _link(session, study, target, desk)
    study.patient_pk, study.order_pk = patient.key, target.order.key if target.order else None
    study.flags = [flag for flag in study.flags if flag != "UNSCHEDULED"] + ["UNSCHEDULED"] * (target.order is None)
    # The one thing that an unscheduled study does not keep: an identifier that was merged, or lacks its zeros.
    outcome = "C" if target.order or not _says_so(session, released, patient) else "A"
    _close(session, case, study, "study.resolve", outcome, released, desk)


def _reject(session: Session, case: ReconciliationCase, study: Study, _: Target, desk: Desk) -> None:
    """What was held leaves the exam; its bytes stay in custody. What was let in before stays available."""
    rejected = _shown(session, case)
    for instance in rejected:
        instance.state = advance(INSTANCE, instance.state, "reject")
        session.add(instance)
    session.flush()
    if not _let_in(session, study.key):
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


def _refuse_to_move(session: Session, study: Study, patient: Patient, target: Target) -> None:
    """Images that were let in for another order or patient do not move along with those of this case."""
    if not _let_in(session, study.key):
        return
    query = select(StudyOrder.requested_procedure_pk).where(StudyOrder.study_pk == study.key)
    own, wanted = set(session.exec(query).all()), {target.procedure.key} if target.procedure else set[int]()
    same_patient = study.patient_pk is None or identity.survivor(session, study.patient_pk).key == patient.key
    if own != wanted or not same_patient:
        raise WrongState("study", "has images in the archive for another order; undo that decision first")


def _link(session: Session, study: Study, target: Target, desk: Desk) -> None:
    """Make the target the study's only order."""
    links = session.exec(select(StudyOrder).where(StudyOrder.study_pk == study.key)).all()
    wanted = target.procedure.key if target.procedure else None
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


def _release(session: Session, case: ReconciliationCase) -> list[Instance]:
    """What the case shows, but copies in conflict, which stay aside: nobody lets in what nobody saw."""
    shown = _shown(session, case)
    released = [one for one in shown if one.conflict_of is None]
    if not released:
        raise WrongState("case", "shows only copies in conflict with what is here already; they can only be rejected")
    for instance in shown:
        if instance.conflict_of is not None:
            instance.state = advance(INSTANCE, instance.state, "reject")
        elif instance.state == "HELD":
            instance.state = advance(INSTANCE, instance.state, "release")
        session.add(instance)
    return released


def _shown(session: Session, case: ReconciliationCase) -> list[Instance]:
    """The objects of the case that are still undecided."""
    query = select(Instance).where(col(Instance.pk).in_(case.instances), col(Instance.decision_pk).is_(None))
    undecided = query.where(col(Instance.state).in_(("STAGED", "HELD", "HIDDEN"))).order_by(col(Instance.pk))
    return list(session.exec(undecided).all())


def _let_in(session: Session, study_pk: int) -> bool:
    """Whether some of the study is in the archive, or on its way there."""
    query = select(Instance.pk).where(Instance.study_pk == study_pk, col(Instance.decision_pk).is_not(None)).limit(1)
    return session.exec(query).first() is not None


def _says_so(session: Session, released: Sequence[Instance], patient: Patient) -> bool:
    """Whether every image has the patient's leading identifier."""
    leading = patients.identifiers(session, patient.key)[0].value
    return all(one.facts["patient_id"] == leading for one in released)


def _close(
    session: Session,
    case: ReconciliationCase,
    study: Study,
    action: audit.Action,
    outcome: str,
    instances: Sequence[Instance],
    desk: Desk,
) -> None:
    """The decision with what it covers, the study's state, the case. A study of which something was let in stays
    accepted, whatever was rejected of it; what came since the case was last looked at is decided on its own."""
    keys = [one.key for one in instances]
    decision = Decision(
        study_pk=study.key, at=desk.now, rules_version=RULES_VERSION, row=case.row, outcome=outcome,
        reasons=[desk.reason] if desk.reason else [], order_pk=study.order_pk, by=desk.principal,
        facts={"case": case.key, "wanted": asdict(desk.wanted), "instances": keys},
    )  # fmt: skip
    session.add(decision)
    session.flush()
    if outcome != REJECTED:
        for instance in instances:
            instance.decision_pk = decision.key
            session.add(instance)
        session.flush()
    study.state = advance(STUDY, study.state, "resolve" if _let_in(session, study.key) else "reject")
    if _undecided(session, study.key):
        study.state = advance(STUDY, study.state, "receive")
    study.decided_at, study.not_before, study.attempts = desk.now, None, 0
    session.add(study)
    audit.record(
        session, action, f"study:{study.key}", actor=desk.principal, now=desk.now, case=case.key,
        decision=decision.key, instances=len(keys), state=study.state,
    )  # fmt: skip
    resolution = {**asdict(desk.wanted), "reason": desk.reason, "decision": decision.key}
    casebook.close_case(session, case, now=desk.now, actor=desk.principal, resolution=resolution)


def _undecided(session: Session, study_pk: int) -> bool:
    query = select(Instance.pk).where(Instance.study_pk == study_pk, col(Instance.decision_pk).is_(None))
    return session.exec(query.where(col(Instance.state).in_(("STAGED", "HELD", "HIDDEN"))).limit(1)).first() is not None


def take_back(session: Session, study: Study, case: ReconciliationCase, principal: str, now: dt.datetime) -> None:
    """Hold what the decision covered, and what was let in on its strength; what was let in before it stays."""
    decision = session.get(Decision, case.resolution.get("decision"))
    covered, since = (set(decision.facts["instances"]), decision.key) if decision else (set[int](), 0)
    study.state = advance(STUDY, study.state, "undo")
    session.add(study)
    query = select(Instance).where(Instance.study_pk == study.key).order_by(col(Instance.pk)).with_for_update()
    held = []
    for instance in session.exec(query).all():
        let_in = decision is not None and instance.decision_pk is not None and instance.decision_pk >= since
        if not (let_in or (instance.key in covered and instance.state == "REJECTED")):
            continue
        if event := _back(instance):
            instance.state = advance(INSTANCE, instance.state, event)
        instance.decision_pk = None
        session.add(instance)
        held.append(instance.key)
    case.instances = sorted({*case.instances, *held})
    for order_pk in session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study.key)).all():
        outbox.touch(session, order_pk)  # HELD until somebody decides anew (contract.md 4)
    audit.record(
        session, "study.undo", f"study:{study.key}", actor=principal, now=now, case=case.key, instances=len(held)
    )


def _back(instance: Instance) -> str | None:
    """None for what waits hidden to be shown again."""
    if instance.state == "REJECTED":
        return "restore_hidden" if instance.store_key else "restore"
    return {"STORED": "hide", "STAGED": "hold"}.get(instance.state)
