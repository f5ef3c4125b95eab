"""The gate before the archive: studies that have settled are decided; what is doubtful is held for a person.

The rules are decide.py's. Here is what a verdict does to the rows: one transaction, with its audit."""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from sqlmodel import Session, select

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
        _carry_out(gathered, decide(gathered.facts), now)
    else:  # bytes that were lost came again: nothing new to decide
        study.state = advance(STUDY, study.state, "match")
        session.add(study)


def look_again(session: Session, study_pk: int, *, now: dt.datetime, settings: Settings) -> None:
    """Row 38: an order, a patient or an MPPS changed while the study is held, or objects joined it. Upgraded only to
    what the table says now, and never where a person has spoken or images were hidden: there the case is told only."""
    gathered = _locked(session, study_pk, now, settings)
    study, case = gathered.study, casebook.find_open(session, "study", f"study:{study_pk}")
    if study.state != "IN_REVIEW" or case is None:
        return
    verdict, before = decide(gathered.facts), plan.latest_decision(session, study_pk)
    by_rules = before is not None and before.by == plan.RULES
    hidden = any(one.state == "HIDDEN" for one in gathered.new)
    if case.state == "TAKEN" or case.approvals or hidden or not by_rules:
        study.decided_at = now
        session.add(study)
        _hold(session, gathered.new)
        if verdict.outcome in ("A", "C"):
            verdict = replace(verdict, row=case.row, reasons=tuple(case.reasons), candidates=tuple(case.candidates))
        _ask(gathered, verdict, now)
        _hide_errors(gathered)
        return
    study.state = advance(STUDY, study.state, "redecide")
    _carry_out(gathered, verdict, now, before, case)


def recall(session: Session, study_pk: int, *, now: dt.datetime, settings: Settings) -> None:
    """Row 21 after the commit: what the wrong worklist entry made is hidden at once. Objects that come after a person
    rejected their study wait for a person, too."""
    gathered = _locked(session, study_pk, now, settings)
    study = gathered.study
    if study.state not in ("ACCEPTED", "ARCHIVED", "REJECTED"):
        return
    rejected = study.state == "REJECTED"
    reason = (
        "objects came after the study was rejected" if rejected
        else "its MPPS was discontinued after the images were released: incorrect worklist entry selected (110514)"
    )  # fmt: skip
    study.state, study.decided_at = advance(STUDY, study.state, "recall"), now
    session.add(study)
    held = [*gathered.new, *gathered.kept]
    _hold(session, held)
    orders = _orders_of(session, study_pk)
    last = casebook.latest(session, "study", f"study:{study_pk}")
    level = last.level if rejected and last is not None else "red"
    casebook.open_case(
        session, "study", f"study:{study_pk}", level=level, reasons=[reason], row="28" if rejected else "21",
        instances=[one.key for one in held], study_pk=study_pk, order_pk=next(iter(orders), None), now=now, actor=ACTOR,
    )  # fmt: skip
    audit.record(session, "study.recall", f"study:{study_pk}", actor=ACTOR, now=now, rejected=rejected)
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
    gathered: Gathering,
    verdict: Verdict,
    now: dt.datetime,
    before: Decision | None = None,
    case: ReconciliationCase | None = None,
) -> None:
    """Study, instances, links, case and decision as the verdict says. The same verdict again writes nothing."""
    session, study = gathered.session, gathered.study
    accepted = verdict.outcome in ("A", "C")
    study.state = advance(STUDY, study.state, "match" if accepted else "doubt")
    study.decided_at, study.attempts = now, 0
    session.add(study)
    instances = [one.key for one in gathered.new]
    if before and case and not accepted and _says(before, case) == _says_now(verdict, instances):
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
        _accept(session, study, verdict, decision, gathered.new)
    else:
        _hold(session, gathered.new)
        _ask(gathered, verdict, now)
        _hide_errors(gathered)
    if accepted and case is not None:
        resolution = {"action": "decided again", "decision": decision.key, "row": verdict.row}
        casebook.close_case(session, case, now=now, actor=ACTOR, resolution=resolution)
    audit.record(
        session, "study.decide", f"study:{study.key}", actor=ACTOR, now=now, decision=decision.key, row=verdict.row,
        result=verdict.outcome, grade=verdict.grade, instances=len(instances), state=study.state,
    )  # fmt: skip
    named = {item.order_pk for item in gathered.facts.items if item.study_uid == study.study_instance_uid}
    _touch(session, {*named, *_orders_of(session, study.key), verdict.order_pk})


def _says(before: Decision, case: ReconciliationCase) -> tuple[object, ...]:
    return (before.row, before.outcome, before.reasons, case.candidates, case.order_pk, case.instances)


def _says_now(verdict: Verdict, instances: list[int]) -> tuple[object, ...]:
    said = (verdict.row, verdict.outcome, list(verdict.reasons), list(verdict.candidates), verdict.order_pk)
    return (*said, instances)


def _accept(
    session: Session, study: Study, verdict: Verdict, decision: Decision, instances: Sequence[Instance]
) -> None:
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
        instance.decision_pk = decision.key
        session.add(instance)
    session.flush()


def _hold(session: Session, instances: Sequence[Instance]) -> None:
    """Durable, and seen by nobody who asks for available images."""
    for instance in instances:
        if event := {"STAGED": "hold", "STORED": "hide"}.get(instance.state):
            instance.state = advance(INSTANCE, instance.state, event)
        instance.decision_pk = None
        session.add(instance)
    session.flush()


def _hide_errors(gathered: Gathering) -> None:
    """Row 21, whichever row speaks: what was let in before the device said that the entry was wrong goes at once, and
    belongs to the case."""
    errors = gathered.kept_in_error()
    case = casebook.find_open(gathered.session, "study", f"study:{gathered.study.key}")
    if errors and case is not None:
        _hold(gathered.session, errors)
        casebook.join(gathered.session, case, [one.key for one in errors])


def _ask(gathered: Gathering, verdict: Verdict, now: dt.datetime) -> None:
    session, study = gathered.session, gathered.study
    if verdict.row == "27":  # the images that are there may be the wrong ones
        study.flags = sorted({*study.flags, "CHECK"})
    casebook.open_case(
        session, "study", f"study:{study.key}", level="red" if verdict.outcome == "HH" else "amber",
        reasons=verdict.reasons, row=verdict.row, candidates=verdict.candidates,
        instances=[one.key for one in gathered.new], study_pk=study.key, order_pk=verdict.order_pk, now=now,
        actor=ACTOR,
    )  # fmt: skip


def _orders_of(session: Session, study_pk: int) -> list[int]:
    return list(session.exec(select(StudyOrder.order_pk).where(StudyOrder.study_pk == study_pk)).all())


def _touch(session: Session, orders: Iterable[int | None]) -> None:
    for order_pk in orders:
        outbox.touch(session, order_pk)
