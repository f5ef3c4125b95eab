"""Steps: the one place where they move, and what order controls do to them.

An order control is said of an order, a requested procedure or a step, and reaches the steps below: also one that is
first heard of later, by a message that was made before (mwl/said.py). A step that has begun or ended is never stopped
by one, and none brings an ended step back."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, update
from sqlmodel import Session, col, select

from broker import audit, casebook, db, outbox
from broker.config import Site
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.performed import PerformedStepLink
from broker.mwl import items, said
from broker.states import STEP, advance, can

OPEN = ("SCHEDULED", "ARRIVED", "READY", "STARTED")  # what a device may be shown by its usual query
BEGUN = ("STARTED", "COMPLETED", "DISCONTINUED")
HAVE_ENDED = ("COMPLETED", "DISCONTINUED", "CANCELED", "EXPIRED", "NO_SHOW")
# What is said -> the events that lead there, as far as the table has them from where the step is.
PATHS = {
    "arrive": ("arrive",),
    "unarrive": ("unarrive",),
    "hold": ("hold",),
    "release": ("release",),
    "cancel": ("cancel",),
    "no_show": ("release", "no_show"),  # the same, whichever of hold and no-show came first
    "complete": ("release", "start", "complete"),  # no MPPS told of it, so the RIS does
    said.BACK: ("reinstate",),
}
OVERTOOK = "is older than the order of what it names"  # why a person is asked about an end
ENDS = ("cancel", "no_show", "complete")
OF_ITS_TIME = (*ENDS, "arrive", said.BACK)  # reach only the steps that were there when it was said
NEVER_COMPLETED = ("CANCELED", "DISCONTINUED")
Above = tuple[ImagingOrder, RequestedProcedure, ScheduledStep]  # of a step: what is said of them is said of it


@dataclass(frozen=True)
class Cause:
    """Who does it, when, under which site rules, from which journalled message."""

    now: dt.datetime
    actor: str
    site: Site
    message_pk: int | None = None


@dataclass
class Effect:
    """Numbers of steps. late: had begun before they could be cancelled. contradicted: are cancelled or discontinued,
    and now said to be completed. older: something newer was said before. unborn: of parts of which it was said, and no
    step was there yet."""

    late: int = 0
    contradicted: int = 0
    older: bool = False
    unborn: int = 0


def move_step(session: Session, step: ScheduledStep, event: str, *, now: dt.datetime, actor: str, cause: str) -> None:
    """The one place where a step's status changes. Raises WrongState where the table has no such arrow."""
    before = step.status
    step.status = advance(STEP, step.status, event)
    if step.status != before:
        step.status_at = now
        session.add(step)
        if (before in OPEN) != (step.status in OPEN):
            OPEN_STATIONS.execute(session, {"of_step": step.key, "now_open": step.status in OPEN})
        audit.record(
            session, "step.change", f"step:{step.key}", actor=actor, now=now, event=event, cause=cause, before=before,
            after=step.status,
        )  # fmt: skip
        if (before in items.LIVE) != (step.status in items.LIVE):
            items.follow(session, step, now=now)
    outbox.touch(session, step.order_pk)


OPEN_STATIONS = db.Prepared(
    update(ScheduledStation)
    .where(col(ScheduledStation.step_pk) == bindparam("of_step"))
    .values(is_open=bindparam("now_open"), updated_at=ScheduledStation.updated_at)
)


def of(session: Session, order_pk: int, procedure_pk: int | None = None) -> Sequence[ScheduledStep]:
    """All steps of an order, or of one of its procedures, locked."""
    if procedure_pk is not None:
        return OF_PROCEDURE.all(session, order_pk=order_pk, procedure_pk=procedure_pk)
    return OF_ORDER.all(session, order_pk=order_pk)


def procedures_of(session: Session, order_pk: int) -> Sequence[RequestedProcedure]:
    return PROCEDURES.all(session, order_pk=order_pk)


def under(session: Session, order: ImagingOrder, targets: Sequence[said.Part]) -> list[ScheduledStep]:
    """Those that are among these parts of the order, or below them; locked."""
    procedures = {row.key: row for row in procedures_of(session, order.key)}
    return [
        step
        for step in of(session, order.key)
        if any(one is row for one in targets for row in (order, procedures[step.requested_procedure_pk], step))
    ]


def happen(
    session: Session, order: ImagingOrder, targets: Sequence[said.Part], control: str, at: str, why: str, cause: Cause
) -> Effect:
    """A control is said, at that time, of the order or some of its parts."""
    heard = [row for row in targets if said.word(row, control, at)]
    session.add_all(heard)
    effect = Effect(older=len(heard) < len(targets))
    procedures = {row.key: row for row in procedures_of(session, order.key)}
    reached: set[int] = set()  # places in `heard`
    missed: set[int] = set()
    for step in of(session, order.key):
        above = (order, procedures[step.requested_procedure_pk], step)
        over = {place for place, one in enumerate(heard) if any(row is one for row in above)}
        if not over or any(said.newest(above, one) > at for one in said.against(control)):
            continue
        if control in OF_ITS_TIME and at < step.said.get(said.BORN, ""):
            missed |= over
            continue
        reached |= over
        effect.late += control == "cancel" and step.status in BEGUN
        effect.contradicted += control == "complete" and step.status in NEVER_COMPLETED
        _reach(session, step, above, control, at, why, cause)
    effect.unborn = len(missed - reached)
    return effect


def inherit(session: Session, above: Above, cause: Cause, *, until: str = "") -> None:
    """What was said of this step, its procedure and its order, and has not reached it: it was made just now, or is now
    known to be older than the message (of the time `until`) by which it was known before. An end of the same time has
    arrived before the message that names the step now, and of two of one time the later counts."""
    step, born = above[2], above[2].said[said.BORN]
    if _is_here(above):
        _reach(session, step, above, "arrive", said.newest(above, "arrive"), "arrive", cause)
    if said.holds(above, "hold"):
        _reach(session, step, above, "hold", said.newest(above, "hold"), "hold", cause)
    counts_from = said.newest(above, said.BACK)
    told = [(row.said[end], end) for row in above for end in ENDS if row.said.get(end, "") > born]
    ends = [(at, end) for at, end in told if at >= counts_from]
    due = [(at, end) for at, end in sorted(ends) if not until or at < until]
    for at, end in due:
        _reach(session, step, above, end, at, end, cause)
    if due:
        _answered(session, step.order_pk, cause)


def _answered(session: Session, order_pk: int, cause: Cause) -> None:
    """The end that came before its order has found it: nobody need be asked any more."""
    for kind in ("late_cancel", "late_change"):
        case = casebook.find_open(session, kind, f"order:{order_pk}")
        if case and all(OVERTOOK in reason for reason in case.reasons):
            casebook.close_case(session, case, now=cause.now, actor=cause.actor, resolution={"action": "took effect"})


def _is_here(above: Above) -> bool:
    """The patient came, and not before the step was ordered: who was here in July is not here for September's."""
    return said.holds(above, "arrive") and said.newest(above, "arrive") >= above[2].said.get(said.BORN, "")


def _reach(session: Session, step: ScheduledStep, above: Above, control: str, at: str, why: str, cause: Cause) -> None:
    if control == "complete" and not _may_complete(session, step):
        return
    before = step.status
    path = PATHS[control]
    if control == "release" and _is_here(above):
        path = ("release", "arrive")  # who had come before the hold is still here
    for event in path:
        if can(STEP, step.status, event):
            move_step(session, step, event, now=cause.now, actor=cause.actor, cause=why)
    if control in ENDS and step.status != before:
        step.said = step.said | {said.ENDED: max(at, step.said.get(said.ENDED, ""))}
        session.add(step)


def _may_complete(session: Session, step: ScheduledStep) -> bool:
    """What a device reports about itself (MPPS) ends when the device says so."""
    linked = select(PerformedStepLink.pk).where(PerformedStepLink.step_pk == step.pk, col(PerformedStepLink.propagated))
    return step.status not in NEVER_COMPLETED and (
        step.status != "STARTED" or session.exec(linked.limit(1)).first() is None
    )


_of_order = select(ScheduledStep).where(ScheduledStep.order_pk == bindparam("order_pk")).order_by(col(ScheduledStep.pk))
OF_ORDER = db.Entities(_of_order.with_for_update())
OF_PROCEDURE = db.Entities(
    _of_order.where(ScheduledStep.requested_procedure_pk == bindparam("procedure_pk")).with_for_update()
)
PROCEDURES = db.Entities(
    select(RequestedProcedure)
    .where(RequestedProcedure.order_pk == bindparam("order_pk"))
    .order_by(col(RequestedProcedure.pk))
)


def status_code(found: Sequence[ScheduledStep]) -> str:
    """ORC-5 (table 0038) of an order with these steps."""
    statuses = {step.status for step in found}
    if statuses and statuses <= set(HAVE_ENDED):
        return next((code for status, code in ENDED_CODES.items() if status in statuses), "CA")
    if statuses & {"STARTED", "COMPLETED", "DISCONTINUED"}:
        return "IP"
    return "HD" if "ON_HOLD" in statuses else "SC"


ENDED_CODES: Mapping[str, str] = {"COMPLETED": "CM", "DISCONTINUED": "DC"}


def ask(session: Session, order: ImagingOrder, kind: str, reason: str, cause: Cause) -> None:
    """What is begun, finished or cancelled is not changed by a message; a person is asked (conformance.md 5.3)."""
    casebook.open_case(
        session, kind, f"order:{order.key}", level="amber", order_pk=order.key, now=cause.now, actor=cause.actor,
        reasons=[f"{reason}; nothing was changed there"],
    )  # fmt: skip
