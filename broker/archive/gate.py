"""The gate before the archive: studies that have settled are decided; what is doubtful is held for a person.

The rules are decide.py's. Here is what a verdict does to the rows: one transaction, with its audit."""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence

from sqlmodel import Session, col, select

from broker import audit, casebook, clock, db, leases, log, outbox
from broker.archive import due, facts, plan
from broker.archive.decide import RULES_VERSION, Verdict, decide
from broker.archive.gather import Gathering
from broker.config import Settings
from broker.errors import WrongState
from broker.model.images import Decision, Instance, ReconciliationCase, Study, StudyOrder
from broker.model.orders import ImagingOrder
from broker.model.patients import Patient
from broker.mwl import names
from broker.states import INSTANCE, STUDY, advance

ACTOR = plan.RULES
VERSION = f"rules {RULES_VERSION}, {names.TABLES_VERSION}"


def work(settings: Settings) -> int:
    """One pass: settled studies, held ones about which something new is known, stored ones that must come back. How
    many were looked at."""
    passes: tuple[tuple[due.Which, Callable[..., None]], ...] = (
        (due.settled, settle),
        (due.worth_another_look, look_again),
        (due.to_recall, recall),
    )
    return sum(_each(settings, which, step) for which, step in passes)


def _each(settings: Settings, which: due.Which, step: Callable[..., None]) -> int:
    """A study that cannot be decided is tried again later, and keeps no other waiting."""
    now, limits = clock.now(), settings.limits
    condition = db.read(which, settings, now)
    claimed = db.run(
        leases.claim_studies, condition, now=now, seconds=limits.lease_seconds, limit=limits.decide_batch_studies_max
    )
    for study_pk in claimed:
        not_before = None
        try:
            db.run(step, study_pk, now=clock.now(), settings=settings)
        except Exception:
            log.get().exception("study.decide_failed", study=study_pk)
            not_before = clock.now() + dt.timedelta(seconds=limits.decide_retry_seconds)
        db.run(leases.release_study, study_pk, not_before=not_before)
    return len(claimed)


# What is done


def settle(session: Session, study_pk: int, *, now: dt.datetime, settings: Settings) -> None:
    """Decide what has come since the last decision."""
    gathered = _locked(session, study_pk, now, settings)
    study = gathered.study
    if study.state != "RECEIVING":
        return
    study.state = advance(STUDY, study.state, "settle")
    if gathered.new:
        _carry_out(gathered, now)
    else:  # bytes that were lost came again: nothing new to decide
        study.state = advance(STUDY, study.state, "match")
        session.add(study)


def look_again(session: Session, study_pk: int, *, now: dt.datetime, settings: Settings) -> None:
    """Row 38: an order or patient changed while the study is held, or objects joined it. Upgraded only to what the
    table says now; where a person has begun to decide, the objects join the case and no rule speaks."""
    gathered = _locked(session, study_pk, now, settings)
    study, case = gathered.study, casebook.find_open(session, "study", f"study:{study_pk}")
    if study.state != "IN_REVIEW" or case is None:
        return
    before = plan.latest_decision(session, study_pk)
    study.decided_at = now
    session.add(study)
    person = case.state == "TAKEN" or case.approvals or before is None or before.by != plan.RULES
    if person or any(one.state == "HIDDEN" for one in gathered.new):
        _hold(session, gathered.new)
        return
    study.state = advance(STUDY, study.state, "redecide")
    _carry_out(gathered, now, before, case)


def recall(session: Session, study_pk: int, *, now: dt.datetime, settings: Settings) -> None:
    """Row 21 after the commit: what the wrong worklist entry made is hidden at once. Objects that come after a person
    rejected their study wait for a person, too."""
    study = db.lock(session, Study, study_pk)
    if study.state not in ("ACCEPTED", "ARCHIVED", "REJECTED"):
        return
    rejected = study.state == "REJECTED"
    row, reason = (
        ("28", "objects came after the study was rejected")
        if rejected
        else (
            "21",
            "its MPPS was discontinued after the images were released: incorrect worklist entry selected (110514)",
        )
    )
    study.state, study.decided_at = advance(STUDY, study.state, "recall"), now
    session.add(study)
    _hold(session, _instances(session, study_pk))
    orders = _orders_of(session, study_pk)
    casebook.open_case(
        session, "study", f"study:{study_pk}", level="amber" if rejected else "red", reasons=[reason], row=row,
        study_pk=study_pk, order_pk=next(iter(orders), None), now=now, actor=ACTOR,
    )  # fmt: skip
    audit.record(session, "study.recall", f"study:{study_pk}", actor=ACTOR, now=now, row=row)
    _touch(session, orders)


def _locked(session: Session, study_pk: int, now: dt.datetime, settings: Settings) -> Gathering:
    """The facts behind the locks of patients, orders and the study (architecture.md 7). Raises WrongState where another
    order turns up meanwhile: the next pass sees it."""
    first = Gathering(session, session.get_one(Study, study_pk), now=now, settings=settings).facts
    orders = {item.order_pk for item in first.items}
    for patient_pk in sorted(person.pk for person in first.people):
        db.lock(session, Patient, patient_pk)
    for order_pk in sorted(orders):
        db.lock(session, ImagingOrder, order_pk)
    study = db.lock(session, Study, study_pk)
    session.expire_all()  # what others committed while we waited counts
    gathered = Gathering(session, study, now=now, settings=settings)
    if {item.order_pk for item in gathered.facts.items} - orders:
        raise WrongState("study", "another order names it now")
    return gathered


def _carry_out(
    gathered: Gathering, now: dt.datetime, before: Decision | None = None, case: ReconciliationCase | None = None
) -> None:
    """Study, instances, links, case and decision as the verdict says. The same verdict again writes nothing."""
    session, study, verdict = gathered.session, gathered.study, decide(gathered.facts)
    accepted = verdict.outcome in ("A", "C")
    study.state = advance(STUDY, study.state, "match" if accepted else "doubt")
    study.decided_at, study.attempts = now, 0
    session.add(study)
    instances = [one.key for one in gathered.new]
    joined = any(one.state == "STAGED" for one in gathered.new)
    if before and not accepted and not joined and (before.row, before.reasons) == (verdict.row, list(verdict.reasons)):
        return
    decision = Decision(
        study_pk=study.key, at=now, rules_version=VERSION, row=verdict.row, outcome=verdict.outcome,
        reasons=list(verdict.reasons), order_pk=verdict.order_pk,
        facts={"study": facts.to_json(gathered.facts), "instances": instances, "grade": verdict.grade},
    )  # fmt: skip
    session.add(decision)
    session.flush()
    study.rule = verdict.row
    study.flags = sorted({*verdict.flags, *(flag for flag in study.flags if flag in ("UNSCHEDULED", "CHECK"))})
    if accepted:
        _accept(session, study, verdict, gathered.new)
    else:
        _hold(session, gathered.new)
        _ask(session, study, verdict, now)
    if accepted and case is not None:
        resolution = {"action": "decided again", "decision": decision.key, "row": verdict.row}
        casebook.close_case(session, case, now=now, actor=ACTOR, resolution=resolution)
    audit.record(
        session, "study.decide", f"study:{study.key}", actor=ACTOR, now=now, decision=decision.key, row=verdict.row,
        result=verdict.outcome, grade=verdict.grade, instances=len(instances), state=study.state,
    )  # fmt: skip
    named = {item.order_pk for item in gathered.facts.items if item.study_uid == study.study_instance_uid}
    _touch(session, {*named, *_orders_of(session, study.key), verdict.order_pk})


def _accept(session: Session, study: Study, verdict: Verdict, instances: Sequence[Instance]) -> None:
    """The commit job copies what is staged. Links only grow: a later object may name no order."""
    study.patient_pk = verdict.patient_pk
    known = select(StudyOrder.requested_procedure_pk).where(StudyOrder.study_pk == study.key)
    linked = set(session.exec(known).all())
    for link in verdict.links:
        if link.procedure_pk not in linked:
            session.add(
                StudyOrder(
                    study_pk=study.key, order_pk=link.order_pk, requested_procedure_pk=link.procedure_pk,
                    step_pk=link.step_pk,
                )
            )  # fmt: skip
    if study.order_pk is None and verdict.links:
        study.order_pk = verdict.links[0].order_pk
    for instance in instances:
        if instance.state == "HELD":
            instance.state = advance(INSTANCE, instance.state, "release")
            session.add(instance)
    session.flush()


def _hold(session: Session, instances: Sequence[Instance]) -> None:
    """Durable, and seen by nobody who asks for available images."""
    for instance in instances:
        if event := {"STAGED": "hold", "STORED": "hide"}.get(instance.state):
            instance.state = advance(INSTANCE, instance.state, event)
            session.add(instance)
    session.flush()


def _ask(session: Session, study: Study, verdict: Verdict, now: dt.datetime) -> None:
    if verdict.row == "27":  # the images that are there may be the wrong ones
        study.flags = sorted({*study.flags, "CHECK"})
    casebook.open_case(
        session, "study", f"study:{study.key}", level="red" if verdict.outcome == "HH" else "amber",
        reasons=verdict.reasons, row=verdict.row, candidates=verdict.candidates, study_pk=study.key,
        order_pk=verdict.order_pk, now=now, actor=ACTOR,
    )  # fmt: skip


def _instances(session: Session, study_pk: int) -> Sequence[Instance]:
    query = select(Instance).where(Instance.study_pk == study_pk, col(Instance.state).in_(("STAGED", "STORED")))
    return session.exec(query.order_by(col(Instance.pk))).all()


def _orders_of(session: Session, study_pk: int) -> list[int]:
    return list(session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study_pk)).all())


def _touch(session: Session, orders: Iterable[int | None]) -> None:
    for order_pk in orders:
        outbox.touch(session, order_pk)
