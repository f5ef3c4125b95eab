"""Why a device is not shown an exam: who it is, what of the worklist it may see, and for whom the exam is. Pure."""

import datetime as dt
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from broker import clock, ids
from broker.config import DAYS_MAX
from broker.dicom.habits import PROFILES
from broker.mwl import keys, matching, plan, replay, view
from broker.mwl.exceptions import CHARACTERS, OTHER_SET, OTHER_TEXT
from broker.mwl.keys import step_keys
from broker.mwl.why_facts import Cause, Causes, Facts, Refusal, Step, command, listed, of_order


def unknown_device(f: Facts, _step: Step) -> Causes:
    if f.device.configured or f.settings.dicom.unknown_ae == "accept":
        return
    knocks = [one for one in f.device.refusals if one.reason == "unknown AE title"]
    knocked = f"; it was refused at the door {_times(f, knocks[0])}" if knocks else ""
    address = knocks[0].address if knocks else "ADDRESS"
    mend = command("node", "add", f.title, "--host", address, "--port", "104")
    yield Cause("unknown_device", f"{f.title} is no device that is known here{knocked}", mend, _door(f, knocks))


def no_right(f: Facts, _step: Step) -> Causes:
    if f.device.configured and "worklist" not in f.device.rights:
        mend = change_node(f, "--rights", ",".join(["worklist", *sorted(f.device.rights)]))
        yield Cause("no_right", f"{f.title} has no right to the worklist: its queries get 0124", mend,
                    {"rights": sorted(f.device.rights)})  # fmt: skip


def door_shut(f: Facts, _step: Step) -> Causes:
    """What has been refused since it last asked, and since its node was last changed."""
    asked = f.device.runs[0].last_at if f.device.runs else None
    changed = f.device.changed_at
    for one in f.device.refusals if f.device.configured else ():
        if (asked and one.last_at <= asked) or (changed and one.last_at <= changed and one.reason in BY_NODE):
            continue
        mend = BY_NODE.get(one.reason, OF_TITLE if one.reason.startswith("called") else OF_LOAD)
        yield Cause(
            "refused_at_the_door",
            f"{f.title} was refused at the door {_times(f, one)}: {one.reason}",
            mend.format(
                change=change_node(f, "--host", one.address), ours=f.settings.dicom.ae_title, called=one.called
            ),
            _door(f, [one]) | {"host": f.device.host},
        )


BY_NODE: Mapping[str, str] = {
    "known AE title from another address": "{change}, if that is the device",
    "unknown AE title": "broker node list",
}
OF_TITLE = "it called {called}: make it call {ours}, or add that to dicom.ae_aliases"
OF_LOAD = "limits.dicom_associations_per_ae_max; does it leave associations open?"


def _times(f: Facts, one: Refusal) -> str:
    return f"{one.times} times, last {f.at(one.last_at)} from {one.address}"


def _door(f: Facts, refusals: Iterable[Refusal]) -> dict[str, Any]:
    return {
        "refusals": [
            {"address": one.address, "called": one.called, "reason": one.reason, "times": one.times,
             "last_at": clock.iso(one.last_at)}
            for one in refusals
        ]
    }  # fmt: skip


# What the device may see


def rules_failed(f: Facts, step: Step) -> list[int | str]:
    """By their names. A device that asks for a status may see what has started."""
    newest = next((run.keys for run in f.device.runs if run.keys), {})
    status = step_keys(newest).get(keys.STATUS, ("CS", ""))
    rules = plan.of({matching.STEP_SEQUENCE: ("SQ", [{keys.STATUS: status}])}, f.device.view, f.device.directory)
    failed = replay.failing(rules, f.device.view, f.device.directory, step.item)
    return [one for one in failed if isinstance(one, str)]


def sees(f: Facts, step: Step) -> Causes:
    what = f.device.view
    if plan.SEES not in rules_failed(f, step):
        return
    if what.sees == (view.OWN,):
        yield from station(f, step)
        return
    modality = step.item.named.get("modality", "")
    if what.sees == (view.MODALITY,):
        says = f"{f.title} is shown its own modality {what.modality or 'none'}, and step {step.sps_id} is {modality}"
        yield Cause("modality", says, f"{of_order(f, 'modality')}, or {change_node(f, '--modality')} …")
        return
    says = (
        f"{f.title} is shown {', '.join(what.sees)} alone, and step {step.sps_id} is for"
        f" {listed(step.item.stations)}, modality {modality}"
    )
    mend = change_node(f, "--sees", ",".join((*what.sees, "ae:" + (step.item.stations or ("TITLE",))[0])))
    yield Cause("not_of_this_device", says, mend, {"sees": list(what.sees)})


def assumed_station(f: Facts, step: Step) -> Causes:
    """Of a device that has not asked yet: it will ask for its own title, as most do."""
    own = f.device.directory.means(f.title)
    asked = any(run.keys is not None for run in f.device.runs)
    if not asked and not f.device.view.sees and step.item.stations and own.isdisjoint(step.item.stations):
        yield from station(f, step)


def station(f: Facts, step: Step) -> Causes:
    """Of a step that is not for the device: for whom it is."""
    stations = step.item.stations
    evidence = {"stations": {title: f.device.directory.kind(title) or "unknown" for title in stations}}
    unknown = [title for title in stations if not f.device.directory.kind(title)]
    groups = [title for title in stations if f.device.directory.kind(title) == "group"]
    for title in unknown:
        says = f"step {step.sps_id} is for {title}, which is no device, alias or group here"
        alias = with_alias(f, title)
        mend = f"if it means {f.title}: {alias}" if alias else of_order(f, "station_ae_titles")
        yield Cause("unknown_station", says, mend, evidence)
    for title in groups:
        members = f.device.directory.devices(title)
        says = f"step {step.sps_id} is for the group {title}, whose devices are {', '.join(members)}"
        groups_then = ",".join([*sorted(f.device.habits.groups), title])
        mend = f"if {f.title} is one of them: {change_node(f, '--groups', groups_then)}"
        yield Cause("other_device", says, mend, evidence)
    others = [title for title in stations if title not in (*unknown, *groups)]
    if others:
        words = listed([_whose(f, title) for title in others])
        says = f"step {step.sps_id} is for {words}, not for {f.title}"
        yield Cause("other_device", says, of_order(f, "station_ae_titles"), evidence)


def _whose(f: Facts, title: str) -> str:
    if f.device.directory.kind(title) != "alias":
        return title
    return f"{title}, an alias of {', '.join(f.device.directory.devices(title))}"


def with_alias(f: Facts, title: str) -> str:
    """Empty for what no alias can be: a pattern, or what a list with commas cannot name."""
    if not re.fullmatch(ids.AE_TITLE, title) or set(title) & set(",*?"):
        return ""
    return change_node(f, "--aliases", ",".join([*sorted(f.device.habits.aliases), title]))


def change_node(f: Facts, *options: str) -> str:
    return command("node", "change", f.title, *options)


def label(f: Facts, step: Step) -> Causes:
    if plan.LABELS in rules_failed(f, step):
        labels, label = f.device.view.labels, step.item.label
        seen = ", ".join(one or "what has no label" for one in labels)
        says = f"step {step.sps_id} stands on the worklist {label or 'without a label'}, and {f.title} sees {seen}"
        named = ", ".join(filter(None, labels))
        mend = f"label it with one of {named}" if named else "take its label away"
        # What is separated by commas names neither a label with one nor, beside others, what has none.
        if label and "," not in label and "" not in labels:
            mend = change_node(f, "--labels", ",".join((*labels, label)))
        yield Cause("label", says, f"{mend}, or POST /api/v1/worklist/{step.pk}/label",
                    {"label": label, "labels": list(labels)})  # fmt: skip


def window(f: Facts, step: Step) -> Causes:
    if step.item.start_date and plan.WINDOW in rules_failed(f, step):
        what = f.device.view
        days = f"{what.first_day or 'any day'} to {what.last_day or 'any day'}"
        says = f"step {step.sps_id} is on {step.item.start_date}, and {f.title} is shown {days} (today is {what.today})"
        mend = ", or ".join([*with_days(f, step), of_order(f, "scheduled_start")])
        yield Cause("date_window", says, mend, {"today": what.today, "first": what.first_day, "last": what.last_day})


def with_days(f: Facts, step: Step, *, today_alone: bool = False) -> Iterator[str]:
    """How its node is told to be shown the day of the step; nothing for one that no node can be told.

    today_alone: of a device that can ask for today alone, the days of the profile asks-for-today at least."""
    today, date = map(dt.date.fromisoformat, (f.device.view.today, step.item.start_date))
    later, said = (date - today).days, f.device.habits
    if abs(later) > DAYS_MAX:
        return
    if not today_alone:
        yield change_node(f, *(("--days-after", f"{later}") if later > 0 else ("--days-before", f"{-later}")))
        return
    profile = PROFILES["asks-for-today"]
    before, after = (
        max(days, (usual or 0) if own is None else own)
        for days, own, usual in (
            (-later, said.days_before, profile.days_before), (later, said.days_after, profile.days_after),
        )
    )  # fmt: skip
    quirks = ",".join(sorted(said.quirks | profile.quirks))
    change = change_node(f, "--quirks", quirks, "--days-before", f"{before}", "--days-after", f"{after}")
    yield f"{change} (as the profile asks-for-today)"


def characters(f: Facts, step: Step) -> Causes:
    if not step.withheld:
        return
    says = f"{f.title} is not shown step {step.sps_id}: {step.withheld}"
    if "longer than it takes" in step.withheld:
        yield Cause("length", says, f"{change_node(f, '--lengths')} …: not of identifiers")
        return
    what = CHARACTERS.get(step.withheld, (OTHER_TEXT, ()))[0]
    yield Cause("characters", says, f"{what}, {OTHER_SET}", {"lost": sorted(step.lost)})
