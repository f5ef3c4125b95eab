"""Why an exam is not on a device's list: the first thing in the way, and all that stands behind it. Pure.

Rules go from the order over the device to its queries. What they say holds ids and AE titles, and of the keys of a
query those alone that name no patient."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from broker import clock
from broker.config import HOURS_MAX
from broker.dicom import variants
from broker.dicom.habits import NEVER_SHOWN
from broker.mwl import plan, view
from broker.mwl import why_device as device
from broker.mwl import why_keys as queries
from broker.mwl.exceptions import MENDS
from broker.mwl.history import Run
from broker.mwl.why_device import change_node, rules_failed
from broker.mwl.why_facts import Cause, Causes, Facts, Step, command, listed


def explain(facts: Facts) -> list[Cause]:
    """The first thing in the way first; where nothing is, that; then what is worth knowing."""
    found = [cause for rule in RULES for cause in rule(facts)]
    if facts.step is not None:
        found += [cause for by_step in STEP_RULES for cause in by_step(facts, facts.step)]
    in_the_way = [cause for cause in found if cause.blocks]
    known = [cause for cause in found if not cause.blocks]
    if not in_the_way and facts.step is not None:
        in_the_way = [_nothing(facts, facts.step)]
    return [*in_the_way, *known]


# The order


def _messages(f: Facts) -> Causes:
    blocks = f.order is None
    for one in f.messages:
        refused = one.state != "RECEIVED"
        code = ("message_refused" if blocks else "change_refused") if refused else "message_unread"
        became = f"was refused: {one.error}" if refused else "is not applied yet"
        mend = f"broker message show {one.pk}; mend the reason, then broker message replay {one.pk}"
        says = f"message {one.pk} ({one.type}) of {one.sender}, received {f.at(one.received_at)}, names it and {became}"
        yield Cause(code, says, mend, {"message_id": one.pk, "state": one.state}, blocks)


def _no_order(f: Facts) -> Causes:
    if f.order is not None:
        return
    of = f" of issuer {f.asked.issuer or 'none'}" if f.asked.issuer is not None else ""
    for one in f.near:
        if one.how == "accession":
            says = f"the number is known under issuer {one.issuer or 'none'} (order {one.order_pk}), not{of}"
            yield Cause(
                "other_issuer", says, f"ask with --issuer {shlex.quote(one.issuer)}", {"order_id": one.order_pk}
            )
        else:
            says = f"it is the {one.how} number of order {one.order_pk}, not its accession number"
            yield Cause("other_number", says, f"broker order show {one.order_pk}", {"order_id": one.order_pk})
    sent = command("message", "list", "--number", f.asked.accession_number)
    mend = f"was it sent? {sent}; else the RIS has to send it"
    yield Cause("no_order", f"there is no order with accession number {f.asked.accession_number}{of}", mend)


def _withheld(f: Facts) -> Causes:
    if f.order is not None and f.order.withheld:
        case = f"case {f.order.case_pk}" if f.order.case_pk else "a case"
        says = f"order {f.order.pk} is shown to no device: {f.order.withheld} is a question for a person ({case})"
        mend = f'POST /api/v1/cases/{f.order.case_pk or "{id}"}/resolve with {{"action": "acknowledge"}}'
        yield Cause("order_withheld", says, mend, {"case_id": f.order.case_pk, "order_id": f.order.pk})


def _no_step(f: Facts) -> Causes:
    if f.order is None or f.step is not None:
        return
    known = ", ".join(f.steps) or "none"
    said = f"no step {f.asked.sps_id}: its steps are {known}" if f.asked.sps_id else "no step"
    mend = "ask for one of them" if f.steps else "a change (XO) of the RIS, or PATCH, adds one"
    yield Cause("no_step", f"order {f.order.pk} has {said}", mend, {"steps": list(f.steps)})


# The step itself

ENDED: Mapping[str, tuple[str, str]] = {
    "CANCELED": ("cancelled", "was cancelled"), "NO_SHOW": ("no_show", "has the patient as not come"),
    "EXPIRED": ("expired", "has expired"), "ON_HOLD": ("on_hold", "is on hold"),
}  # fmt: skip
BEGUN: Mapping[str, tuple[str, str]] = {
    "STARTED": ("started", "has been started"), "COMPLETED": ("finished", "is completed"),
    "DISCONTINUED": ("finished", "was discontinued"),
}  # fmt: skip


def _status(f: Facts, step: Step) -> Causes:
    status = step.item.status
    if plan.HIDDEN not in rules_failed(f, step):
        return
    evidence = _moved(f, step)
    by = f", {f.at(step.moved.at)}, by {step.moved.actor}" if step.moved and step.moved.actor else ""
    reason = f" ({evidence['reason']})" if evidence["reason"] else ""
    if status in ENDED:
        code, words = ENDED[status]
        yield Cause(code, f"step {step.sps_id} {words}{by}{reason}", _back(f, step), evidence)
        return
    code, words = BEGUN.get(status, ("hidden", f"is {status}"))
    says = f"step {step.sps_id} {words}{by}, and what is {status} is hidden from {f.title}{_hidden_by(f, status)}"
    yield Cause(code, says, _shown_again(f, step), evidence)


HOURS: Mapping[str, str] = {"STARTED": "started_hours"} | dict.fromkeys(view.FINISHED, "finished_hours")


def _shown_again(f: Facts, step: Step) -> str:
    """Empty: what began or ended so long ago no node can be shown."""
    status, options = step.item.status, []
    if f.device.view.border(status) is None:
        options += ["--hide", _hide_without(f, status)]
    if name := HOURS.get(status):
        own = getattr(f.device.habits, name)
        kept = getattr(f.settings.worklist, name) if own is None else own
        age = (f.now - (step.item.status_at or f.now)).total_seconds() / 3600
        if age + 1 > HOURS_MAX:
            return ""
        if age > kept:
            options += [f"--{name.replace('_', '-')}", f"{math.ceil(age) + 1}"]
    return f"to have it shown: {change_node(f, *options)}"


def _moved(f: Facts, step: Step) -> dict[str, Any]:
    moved = step.moved
    return {
        "state": step.item.status, "since": clock.iso(moved.at) if moved else "", "by": moved.actor if moved else "",
        "event": moved.event if moved else "", "reason": moved.reason if moved else "",
    }  # fmt: skip


def _back(f: Facts, step: Step) -> str:
    assert f.order is not None
    if step.item.status == "ON_HOLD":
        return f"POST /api/v1/orders/{f.order.pk}/release, or RL of the RIS"
    only = ["--step", step.sps_id]
    if [*f.steps].count(step.sps_id) > 1:  # an SPS ID is unique in its procedure
        only += ["--id", step.item.named["requested_procedure_id"]]
    return f"{command('order', 'reinstate', f'{f.order.pk}', *only)} --reason …"


def _hidden_by(f: Facts, status: str) -> str:
    what, habits = f.device.view, f.device.habits
    border = what.border(status)
    if border is not None:
        return f": it was before {f.at(border)}, and it is shown no longer (started_hours, finished_hours)"
    return " (hide of its node)" if habits.hide is not None else " (worklist.hide)"


def _hide_without(f: Facts, status: str) -> str:
    """The device's list, which says nothing of what is never shown."""
    hide = f.settings.worklist.hide if f.device.habits.hide is None else f.device.habits.hide
    return ",".join(one for one in sorted(hide) if one != status and one not in NEVER_SHOWN) or "none"


def _incomplete(f: Facts, step: Step) -> Causes:
    if not step.missing or f.order is None:
        return
    mends = [MENDS[name] for name in step.missing]
    says = f"step {step.sps_id} lacks {', '.join(one.words for one in mends)}: no device is shown it"
    places = "; ".join(f"{one.words}: {one.rest or 'not by REST'} | {one.hl7}" for one in mends)
    mend = f"PATCH /api/v1/orders/{f.order.pk}, or a change (XO) of the RIS: {places}"
    yield Cause("incomplete", says, mend, {"missing": list(step.missing)})


# What is worth knowing


def _shown(f: Facts, step: Step) -> Causes:
    if not step.offered:
        return
    first, last = min(one.first_at for one in step.offered), max(step.offered, key=lambda one: one.last_at)
    evidence = {
        "first_at": clock.iso(first), "last_at": clock.iso(last.last_at),
        "times": sum(one.times for one in step.offered), "version_shown": last.version, "version": step.version,
    }  # fmt: skip
    says = (
        f"{f.title} was shown step {step.sps_id} at {f.at(first)} first and at {f.at(last.last_at)} last,"
        f" {evidence['times']} times"
    )
    older = f", with version {last.version}: it is version {step.version} now" if last.version < step.version else ""
    mend = "refresh the list on the device" if older else ""
    gone = next((run for run in f.device.runs if run.last_at > last.last_at and _leaves_out(f, run, step)), None)
    if gone:
        says = f"{says}, and not in the answer at {f.at(gone.last_at)} to the same question"
        evidence["withdrawn_at"] = clock.iso(gone.first_at)
    code = "shown_and_withdrawn" if gone else "shown_older" if older else "shown"
    yield Cause(code, says + older, mend, evidence, blocks=False)


def _leaves_out(f: Facts, run: Run, step: Step) -> bool:
    """Where an earlier answer to the same keys had it."""
    has_it = {one.pk for one in f.device.runs if any(pk == step.pk for pk, _, _ in one.items)}
    before = any(one.keys_pk == run.keys_pk and one.pk in has_it and one.pk < run.pk for one in f.device.runs)
    return before and run.pk not in has_it and run.status == queries.DONE


# What a step loses on a device (dicom/variants.py), as people say it.
LOST: Mapping[str, str] = {
    variants.GROUP: "leaves out a group of a name (the kanji, say)", variants.CHARACTERS: "leaves out characters",
    variants.IDENTIFIER: "leaves out an identifier", variants.LENGTH: "cuts texts",
    variants.VARIANT: "shows another form of a character",
}  # fmt: skip


def _looks_other(f: Facts, step: Step) -> Causes:
    if step.lost and not step.withheld:
        code = "shown_cut" if step.lost == {variants.LENGTH} else "shown_in_other_characters"
        words = listed([words for lost, words in LOST.items() if lost in step.lost])
        says = f"of step {step.sps_id}, {f.title} {words}"
        yield Cause(code, says, command("worklist", "list", "--ae", f.title, "--as-shown"), blocks=False)


def _nothing(f: Facts, step: Step) -> Cause:
    """The last word has the database, of which the rules above are a copy."""
    if step.found_by == frozenset():
        says = f"no question of {f.title} finds step {step.sps_id} now, and no rule says why"
        return Cause("unexplained", says, "please report it, with what broker worklist why --json says")
    got = (run for run in queries.questions(f.device.runs) if (step.pk, step.version) in {one[:2] for one in run.items})
    if newest := next(got, None):
        says = (
            f"nothing is in the way: {f.title} got step {step.sps_id} when it asked for it last, {f.at(newest.last_at)}"
        )
        return Cause("on_the_list", says, "look for a filter on the device itself", blocks=False)
    says = f"nothing is in the way: {f.title} is shown step {step.sps_id} when it asks next"
    return Cause("nothing_in_the_way", says, "refresh the list on the device", blocks=False)


RULES: Sequence[Callable[[Facts], Causes]] = (_messages, _no_order, _withheld, _no_step)
STEP_RULES: Sequence[Callable[[Facts, Step], Causes]] = (
    _status, _incomplete, device.unknown_device, device.no_right, device.door_shut, device.sees, device.assumed_station,
    device.label, device.window, device.characters, queries.not_asked, queries.refused, queries.too_many,
    queries.removed, queries.drops, _shown, _looks_other,
)  # fmt: skip
