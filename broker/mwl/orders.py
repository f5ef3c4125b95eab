"""Orders: what a message asks for becomes orders, requested procedures and steps (conformance.md 5.3).

One rule for what comes twice, late or in another order: what is known at the end is what the messages say in the order
of their own times (mwl/said.py). What changes an order before it is known is refused (204); its sender sends it again.
What has begun is not stopped, what has ended never comes back, and what a message does not mention stays."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import replace

from sqlmodel import Session

from broker import audit, casebook, db
from broker.config import Site
from broker.errors import DuplicateKey, MissingField, WrongState
from broker.model.orders import ImagingOrder, RequestedProcedure
from broker.model.patients import Patient
from broker.mwl import items, order_identity, patients, said, slots, steps
from broker.mwl import order_finding as finding
from broker.mwl.commands import PRIORITIES, OrderCommand, Outcome
from broker.mwl.order_changes import Told, tell_parts
from broker.mwl.said import Part, Telling
from broker.mwl.steps import Cause, move_step
from broker.states import STEP, can

__all__ = ["apply", "carry_out", "move_step"]

# What is said of steps: by ORC-1; by ORC-5 (table 0038) of a state that the RIS tells (SC), or of a change (XO). What
# is not here says nothing that we act upon: A some results are there, ER error.
WORDS = {"CA": "cancel", "DC": "cancel", "HD": "hold", "RL": "release", "no_show": "no_show"}
CAUSES = {"no_show": "no show", said.BACK: "a person"}  # of the others: ORC-1
STATUS = {
    "SC": "release", "IP": "arrive", "CM": "complete", "CA": "cancel", "DC": "cancel", "HD": "hold", "RP": "cancel",
}  # fmt: skip
STATUS_OF_CHANGE = {code: STATUS[code] for code in ("IP", "CM", "CA", "DC", "HD")}
# An end that is older than all of what it names: the case that it opens.
TOO_OLD = {
    "cancel": ("late_cancel", "a cancel"), "no_show": ("late_cancel", "a no-show"),
    "complete": ("late_change", "a completion"),
}  # fmt: skip
UNABLE = {"hold": "UH", "release": "UR"}  # where something newer says the opposite (table 0119)
ORDERED = "ordered_priority"  # said by a new order; of several groups the most urgent counts, until a change
DISCONTINUED = "DC"  # ORC-1 or ORC-5: what has begun is known to go on


def apply(
    session: Session, command: OrderCommand, *, now: dt.datetime, actor: str, site: Site, message_pk: int | None = None
) -> ImagingOrder:
    """The order of `carry_out`."""
    outcome = carry_out(session, command, now=now, actor=actor, site=site, message_pk=message_pk)
    return db.get(session, ImagingOrder, outcome.order_pk)


def carry_out(
    session: Session, command: OrderCommand, *, now: dt.datetime, actor: str, site: Site, message_pk: int | None = None
) -> Outcome:
    """Do what ORC-1 says. DuplicateKey where it contradicts what is known, UnknownKey for an order never heard of.

    The same command again changes nothing, however late it comes."""
    return CONTROLS[command.control](session, command, Cause(now, actor, site, message_pk))


# New


def _new(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    if command.replaces:
        return _replace(session, command, cause)
    return Outcome(_place(session, command, cause)[0].key)


def _place(session: Session, command: OrderCommand, cause: Cause) -> tuple[ImagingOrder, Told]:
    if command.patient is None:
        raise MissingField("patient", "a new order names its patient")
    command = patients.with_visit(command)
    assert command.patient is not None
    patient, conflicts = patients.for_order(session, command.patient, now=cause.now, actor=cause.actor)
    order = finding.placed(session, command, patient)
    order_identity.refuse_reused_numbers(session, command, order)
    is_new = order is None
    order = order or _made(session, command, patient.key, cause)
    telling = Telling(_at(order, command, cause), _place_of(command), command.known == "refuse" and not is_new)
    told = Told()
    if is_new:
        _tell_order(order, command, telling)
        said.named(order, telling.at)
        _remember(session, order, command, cause)
        session.flush()
        audit.record(session, "order.create", f"order:{order.key}", actor=cause.actor, now=cause.now)
    _withhold(session, order, conflicts, cause)
    if _is_older_than_all(order, telling.at):
        telling.older = True
    else:
        told = tell_parts(session, order, command, telling, cause, is_new=is_new)
        if not is_new:
            (_complete if told.added else _tell_order)(order, command, telling)
            said.named(order, telling.at)
        if command.begun:  # ORC-5 IP: scheduled, and the patient is here
            steps.happen(session, order, told.steps, "arrive", telling.at, "order", cause)
    _finish(session, order, command, telling, told, cause)
    return order, told


def _made(session: Session, command: OrderCommand, patient_pk: int, cause: Cause) -> ImagingOrder:
    """Not in the database yet."""
    assert command.patient is not None
    return ImagingOrder(
        patient_pk=patient_pk,
        accession_number=order_identity.accession_number(session, command),
        accession_issuer=command.accession_issuer,
        placed_at=said.not_ahead(command.at, cause.now),
        message_pk=cause.message_pk,
        identifier_pk=order_identity.identifier_pk(session, command.patient),
    )


def _complete(order: ImagingOrder, command: OrderCommand, telling: Telling) -> None:
    """A further group of one accession number: what it knows more of the order, and the more urgent priority."""
    if command.priority and telling.at >= order.said.get("priority", ""):
        order.priority = _more_urgent(order, command.priority)
        order.said = order.said | {ORDERED: telling.at}
    more = {name: value for name, value in said.contents(command).items() if telling.at > order.said.get(name, "")}
    said.tell(replace(telling, refuse=False), order, more, "order")


def _more_urgent(order: ImagingOrder, priority: str) -> str:
    """Of what was ordered; ROUTINE where nobody has said."""
    if not {ORDERED, "priority"} & order.said.keys():
        return priority
    return max(order.priority, priority, key=PRIORITIES.index)


def _tell_order(order: ImagingOrder, command: OrderCommand, telling: Telling) -> None:
    said.tell(telling, order, said.contents(command), "order")
    priority = command.priority
    if priority is None or telling.at < order.said.get("priority", ""):
        return
    if command.control == "XO" and telling.at >= order.said.get(said.BORN, ""):
        telling.changed += ["priority"] if priority != order.priority else []
        order.priority, order.said = priority, order.said | {"priority": telling.at}
    elif command.control != "XO":
        is_free = command.known == "change" or said.is_listed(order, ORDERED)
        ordered = priority if is_free else _more_urgent(order, priority)
        is_fixed = telling.at >= order.said.get(said.BORN, "") and not said.is_listed(order, ORDERED)
        if telling.refuse and ordered != order.priority and is_fixed:
            raise DuplicateKey(telling.place, "the order exists already with another priority; send a change (XO)")
        telling.changed += ["priority"] if ordered != order.priority else []
        order.priority, order.said = ordered, order.said | {ORDERED: telling.at}


def _withhold(session: Session, order: ImagingOrder, conflicts: Sequence[str], cause: Cause) -> None:
    """An order that contradicts the patient's record is taken, offered to no device, and a person is asked
    (reconciliation.md 3.3). One of which all steps have ended is offered to none in any case."""
    own = steps.of(session, order.key) if conflicts else ()
    if not conflicts or (own and all(step.status in steps.HAVE_ENDED for step in own)):
        return
    if order.withheld != "patient_conflict":
        order.withheld = "patient_conflict"
        session.flush()
        items.rebuild(session, order.key, now=cause.now)
    casebook.open_case(
        session, "patient_conflict", f"order:{order.key}", level="amber", reasons=conflicts, order_pk=order.key,
        now=cause.now, actor=cause.actor,
    )  # fmt: skip


# Change


def _change(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    if command.unknown == "place" and finding.find(session, command) is None:
        order, _ = _place(session, command, cause)
        return _say_status(session, order, command, STATUS_OF_CHANGE, cause)
    order = finding.known(session, command)
    command = slots.resolved(session, order, command)
    if command.patient is not None:
        patient = db.get(session, Patient, order.patient_pk)
        _withhold(session, order, patients.contradictions(patient, command.patient, "the change"), cause)
    telling = Telling(_at(order, command, cause), _place_of(command))
    told = Told()
    if _is_older_than_all(order, telling.at):
        telling.older = True
    else:
        told = tell_parts(session, order, command, telling, cause)
        _tell_order(order, command, telling)
    _finish(session, order, command, telling, told, cause)
    outcome = _say_status(session, order, command, STATUS_OF_CHANGE, cause)
    is_stale = telling.older and not telling.changed and outcome.reply == "OK"
    return Outcome(order.key, "UX", _status(session, order)) if is_stale else outcome


def _finish(
    session: Session, order: ImagingOrder, command: OrderCommand, telling: Telling, told: Told, cause: Cause
) -> None:
    if told.late:
        steps.ask(session, order, "late_change", f"a change came after {told.late} of its steps had ended", cause)
    _remember(session, order, command, cause)
    if telling.changed:
        audit.record(
            session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now,
            changed=sorted(set(telling.changed)),
        )  # fmt: skip
    elif telling.older:
        _trace(session, order, command, cause)
    if telling.changed or told.added:
        items.rebuild(session, order.key, now=cause.now)


# What is said of steps


def _say(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    """CA and DC: what has not begun is cancelled, and nothing ever deleted. HD, RL: off the worklist, and back."""
    order = finding.known(session, command)
    return _tell_steps(session, order, command, WORDS[command.control], cause)


def _bring_back(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    """A person has what was cancelled, expired or not shown on the worklist again. What was said before that of its
    end, of a hold or an arrival counts no more, and what else was said of it meanwhile does.

    Raises WrongState where nothing of it has ended so, MissingField where its steps have in several ways."""
    order = finding.known(session, command)
    targets = finding.targets(session, order, command)
    ended = {step.status for step in steps.under(session, order, targets) if can(STEP, step.status, said.BACK)}
    if not ended:
        raise WrongState(_place_of(command), "nothing of it was cancelled, has expired or was not shown")
    if len(ended) > 1:
        raise MissingField("sps_id", f"its steps are {' and '.join(sorted(ended))}: say which one is to come back")
    return _say_of(session, order, targets, command, said.BACK, cause)


def _state(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    """SC: the state that the RIS tells. A blank or unlisted ORC-5 is noted."""
    order = finding.known(session, command)
    if command.status not in STATUS:
        return _note(session, command, cause)
    return _say_status(session, order, command, STATUS, cause)


def _say_status(
    session: Session, order: ImagingOrder, command: OrderCommand, words: dict[str, str], cause: Cause
) -> Outcome:
    word = words.get(command.status) or ("arrive" if command.begun else "")
    return _tell_steps(session, order, command, word, cause) if word else Outcome(order.key)


def _tell_steps(session: Session, order: ImagingOrder, command: OrderCommand, word: str, cause: Cause) -> Outcome:
    targets = finding.targets(session, order, command)
    return _say_of(session, order, targets, command, word, cause)


def _say_of(
    session: Session,
    order: ImagingOrder,
    targets: Sequence[Part],
    command: OrderCommand,
    word: str,
    cause: Cause,
    *,
    are_named: bool = True,
) -> Outcome:
    """A cancel that comes too late for some step, an end of what was cancelled, and an end that is older than all of
    what it names (two senders' clocks may differ), are questions for a person."""
    why = CAUSES.get(command.control, f"ORC-1 {command.control}")
    effect = steps.happen(session, order, targets, word, _at(order, command, cause), why, cause)
    doubts: dict[str, list[str]] = {"late_cancel": [], "late_change": []}
    if effect.late and DISCONTINUED not in (command.control, command.status):
        doubts["late_cancel"].append(f"a cancel came after {effect.late} of its steps had begun")
    if effect.unborn and are_named and word in TOO_OLD:
        kind, what = TOO_OLD[word]
        doubts[kind].append(f"{what} {steps.OVERTOOK}")
    if effect.contradicted:
        reason = f"the RIS says that it is completed, and {effect.contradicted} of its steps are not"
        doubts["late_change"].append(reason)
    for kind, reasons in doubts.items():
        if reasons:
            steps.ask(session, order, kind, "; ".join(reasons), cause)
    if effect.older or effect.unborn:
        _trace(session, order, command, cause)
    audit.record(
        session, "order.cancel" if word == "cancel" else "order.status", f"order:{order.key}", actor=cause.actor,
        now=cause.now, control=command.control, status=command.status, late=effect.late,
        **({"reason": command.reason} if command.reason else {}),
    )  # fmt: skip
    _remember(session, order, command, cause)
    reply = "UC" if doubts["late_cancel"] else UNABLE.get(word, "OK") if effect.older else "OK"
    return Outcome(order.key, reply, _status(session, order))


# Numbers


def _assign(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    """SN: each group that lacks a placer or filler number gets one of ours (issuer: the site's name)."""
    order, told = _place(session, command, cause)
    for procedure in told.procedures:
        parts = [procedure, *(step for step in told.steps if step.requested_procedure_pk == procedure.pk)]
        for kind, (number, issuer) in zip("PF", finding.NUMBERS, strict=True):
            if not getattr(procedure, number):
                setattr(procedure, number, order_identity.order_number(session, kind, number, order, procedure))
                setattr(procedure, issuer, cause.site.name)
            for part in parts:
                if not getattr(part, number):
                    setattr(part, number, getattr(procedure, number))
                    setattr(part, issuer, getattr(procedure, issuer))
        session.add_all(parts)
    session.flush()
    items.rebuild(session, order.key, now=cause.now)
    return Outcome(order.key, "NA", **_ours(command, told))


def _ours(command: OrderCommand, told: Told) -> dict[str, str]:
    """The numbers of the first group that its sender did not state."""
    groups = list(zip(told.procedures, command.procedures, strict=True))[:1]
    return {
        name: getattr(row, name)
        for row, wanted in groups for pair in finding.NUMBERS if not getattr(wanted, pair[0]) for name in pair
    }  # fmt: skip


def _assigned(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    """NA: numbers for an order that is known by another one. DuplicateKey where it has another one of that kind."""
    order = finding.known(session, command)
    added = []
    found = finding.procedures(session, order, command.procedures, _place_of(command))
    for procedure, wanted in zip(found, command.procedures, strict=True):
        if procedure is None or finding.contradicts(procedure, wanted):
            raise DuplicateKey(_place_of(command), "has another number of that kind already")
        rows = steps.of(session, order.key, procedure.key)
        parts: list[Part] = [procedure, *rows]
        for part in parts:
            if not finding.contradicts(part, wanted):
                added += finding.add_numbers(part, wanted)
                session.add(part)
    if added:
        audit.record(
            session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now, changed=sorted(set(added))
        )
        session.flush()
        items.rebuild(session, order.key, now=cause.now)
    _remember(session, order, command, cause)
    return Outcome(order.key)


# Replace


def _replace(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    """RP with RO: the old orders are cancelled as by CA, the new one says which it stands in for. Where both are of one
    accession number, what is new joins that order, and what it does not mention is cancelled."""
    olds = [(old, known) for old in command.replaces if (known := _replaced(session, command, old))]
    is_same = any(known.key == _pk_of_new(session, command) for _, known in olds)
    order, told = _place(session, replace(command, known="change") if is_same else command, cause)
    for old, known in olds:
        are_named = known.key != order.key
        if are_named:
            targets = finding.targets(session, known, old)
            order.replaces_pk = order.replaces_pk or known.key
        else:
            targets = _not_told(session, order, told)
        cancel = replace(old, control="CA", status="", at=command.at)
        _say_of(session, known, targets, cancel, "cancel", cause, are_named=are_named)
    audit.record(
        session, "order.replace", f"order:{order.key}", actor=cause.actor, now=cause.now,
        replaces=[known.key for _, known in olds],
    )  # fmt: skip
    session.add(order)
    return Outcome(order.key, "RQ", _status(session, order))


def _replaced(session: Session, command: OrderCommand, old: OrderCommand) -> ImagingOrder | None:
    """Found before the new one is placed: the two may share numbers, as they do when the message comes again."""
    wanted = replace(old, patient=old.patient or command.patient, place=old.place or command.place)
    besides = None if old.accession_number else _pk_of_new(session, command)
    if finding.find(session, wanted, besides=besides) is not None:
        return finding.known(session, wanted, besides=besides)
    if command.unknown == "place" and finding.find(session, wanted) is None:
        return None
    return finding.known(session, wanted)


def _pk_of_new(session: Session, command: OrderCommand) -> int | None:
    return finding.pk_of_placed(session, command) if command.accession_number else None


def _not_told(session: Session, order: ImagingOrder, told: Told) -> list[Part]:
    """The procedures that the new order does not mention; of those that it does, the steps that it does not."""
    kept = {row.key for row in told.procedures}
    mentioned = {step.key for step in told.steps}
    procedures: list[RequestedProcedure] = list(steps.procedures_of(session, order.key))
    rest = [step for step in steps.of(session, order.key)
            if step.requested_procedure_pk in kept and step.key not in mentioned]  # fmt: skip
    return [*(row for row in procedures if row.key not in kept), *rest]


# What changes nothing


def _send_status(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    order = finding.known(session, command)
    return Outcome(order.key, "SC", _status(session, order))


def _note(session: Session, command: OrderCommand, cause: Cause) -> Outcome:
    order = finding.known(session, command)
    _remember(session, order, command, cause)
    audit.record(
        session, "order.note", f"order:{order.key}", actor=cause.actor, now=cause.now, control=command.control,
        status=command.status,
    )  # fmt: skip
    return Outcome(order.key)


# Small things


def _status(session: Session, order: ImagingOrder) -> str:
    return steps.status_code(steps.of(session, order.key))


def _at(order: ImagingOrder, command: OrderCommand, cause: Cause) -> str:
    return said.time_of(command.at, order.last_event_at, cause.now)


def _is_older_than_all(order: ImagingOrder, at: str) -> bool:
    """Of an order from before there were times of what is said: older than the last message, nothing changes."""
    last = order.last_event_at
    return last is not None and not order.said and at < said.time_of(last, None, last)


def _place_of(command: OrderCommand) -> str:
    return command.place or "order"


def _remember(session: Session, order: ImagingOrder, command: OrderCommand, cause: Cause) -> None:
    said.heard(order, command.at, cause.now)
    session.add(order)


def _trace(session: Session, order: ImagingOrder, command: OrderCommand, cause: Cause) -> None:
    audit.record(
        session, "order.update", f"order:{order.key}", actor=cause.actor, now=cause.now, outcome="stale",
        control=command.control,
    )  # fmt: skip


CONTROLS: dict[str, Callable[[Session, OrderCommand, Cause], Outcome]] = {
    "NW": _new, "XO": _change, **dict.fromkeys(WORDS, _say), said.BACK: _bring_back, "SC": _state, "SN": _assign,
    "NA": _assigned, "SS": _send_status, "note": _note,
}  # fmt: skip
