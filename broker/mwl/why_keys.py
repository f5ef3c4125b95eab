"""Why the queries of a device do not find an exam: whether it asked, how that ended, which keys remove it. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from broker import clock
from broker.dicom.tree import Tree
from broker.errors import BrokerError, InvalidValue
from broker.mwl import keys, matching, plan, replay
from broker.mwl.funnel import name_of
from broker.mwl.history import Run
from broker.mwl.keys import plain, step_keys
from broker.mwl.questions import IDENTIFYING, RECENT, SEARCHES_MAX, STANDING_MAX, searched_by
from broker.mwl.view import OWN
from broker.mwl.why_device import change_node, station, with_alias, with_days
from broker.mwl.why_facts import Cause, Causes, Device, Facts, Step, command, listed, of_order

DONE, CANCELLED, OUT_OF_RESOURCES = 0x0000, 0xFE00, 0xA700
BACK = ("reinstate", "release", "wrong_entry")  # what brings a step back on the list
# Keys whose values name no patient.
TOLD = {
    plan.STATION, plan.MODALITY, matching.START_DATE, matching.START_TIME, keys.STATUS, 0x00400010, 0x00400011,
    0x00741202,
}  # fmt: skip


def not_asked(f: Facts, step: Step) -> Causes:
    runs = f.device.runs
    back = step.moved.at if step.moved and step.moved.event in BACK else step.made_at
    here = max(back, step.made_at)
    if not runs:
        days = f.settings.worklist.queries_days
        says = f"{f.title} has not asked for its worklist in the {days:g} days that are kept (worklist.queries_days)"
        mend = f"refresh the list on the device; is {f.settings.dicom.ae_title} set there as its worklist server?"
        yield Cause("never_asked", says, mend, {"last_query": ""})
        return
    recent = [run for run in runs if run.last_at >= runs[0].last_at - RECENT]
    last = next((run for run in recent if not _is_search(run)), runs[0])
    got_it = any(pk == step.pk for run in runs if run.last_at >= here for pk, _, _ in run.items)
    if last.last_at < here and not got_it:
        for_list = "" if last is runs[0] else " for its list, but for one patient or number alone,"
        since = f"since step {step.sps_id} is there ({f.at(here)}): last {f.at(last.last_at)}"
        says = f"{f.title} has not asked{for_list} {since}"
        yield Cause("not_asked_since", says, "refresh the list on the device", {"last_query": clock.iso(last.last_at)})


REFUSED: Mapping[int, tuple[str, str]] = {
    0xA900: ("query_refused", "have the device ask otherwise: the Error Comment that it got names the key"),
    0xC001: ("query_refused", "its data set cannot be read; the log names the place (dimse)"),
    CANCELLED: ("query_cancelled", "the device broke it off itself: is its list limited?"),
}


def refused(f: Facts, step: Step) -> Causes:
    """Its newest query. Where another of this time had the item it is worth knowing, and no more."""
    newest = f.device.runs[0] if f.device.runs else None
    if newest is None or newest.status in (DONE, OUT_OF_RESOURCES):
        return
    recent = (run for run in f.device.runs if run.last_at >= newest.last_at - RECENT)
    with_it = [run for run in recent if any(pk == step.pk for pk, _, _ in run.items)]
    if newest in with_it:
        return
    code, mend = REFUSED.get(newest.status, ("query_refused", "see the log"))
    mend = _fault(f, newest) or mend
    at = f"{f.at(newest.last_at)} ({newest.times} times since {f.at(newest.first_at)})"
    says = f"the last query of {f.title}, {at}, ended with {newest.status:04X} after {len(newest.items)} items"
    evidence = {"status": f"{newest.status:04X}", "times": newest.times}
    yield Cause(code, says, mend, evidence, blocks=not with_it)


def _fault(f: Facts, run: Run) -> str:
    """Of a query that is refused for one of its keys: which, and what mends it."""
    try:
        keys.check(taken(f.device, run))
    except InvalidValue as error:
        suggest = command("node", "suggest", f.title)
        habit = f": {suggest} may know the habit" if keys.QUERY_LEVEL in error.tags else ""
        return f"its key {error.place} {error.text}" + (habit or ": have the device ask otherwise")
    return ""


def too_many(f: Facts, step: Step) -> Causes:
    """Every question that finds it finds more than the device takes."""
    if not step.found_by or not step.found_by <= f.device.crowded:
        return
    at = next((f" (last at {f.at(run.last_at)})" for run in f.device.runs if run.status == OUT_OF_RESOURCES), "")
    says = (
        f"{f.title} asks for more than {f.device.view.matches_max} items, or more than limits.worklist_looked_at_max"
        f" must be looked at for it: it gets none, but A700{at}"
    )
    mend = f"have it ask for less, or {' or '.join(_fewer(f, step))}"
    yield Cause("too_many", says, mend, {"matches_max": f.device.view.matches_max})


def _fewer(f: Facts, step: Step) -> Iterator[str]:
    """What it does not have yet, and what leaves this step to it."""
    what, change, limit = f.device.view, change_node(f), f.settings.limits.worklist_matches_max
    is_own = not f.device.directory.means(f.title).isdisjoint(step.item.stations)
    if is_own and what.sees != (OWN,):
        yield f"{change} --sees own"
    if not what.last_day and step.item.start_date <= what.today:
        yield f"{change} --days-after 1"
    if what.matches_max < limit:
        yield f"{change} --matches-max … (at most {limit}: limits.worklist_matches_max)"
    else:
        yield "raise limits.worklist_matches_max"


@dataclass(frozen=True)
class Replayed:
    """failed: keys that remove the item. elsewhere: in the zone that the query names."""

    run: Run
    query: Tree
    failed: tuple[int, ...]
    elsewhere: bool = False


def removed(f: Facts, step: Step) -> Causes:
    """Nothing where one of its present questions finds it."""
    runs = questions(f.device.runs)
    asked = [again for run in runs if (again := _replayed(f, step, run))]
    if runs and not asked:
        says = f"the last query of {f.title}, {f.at(runs[0].last_at)}, would be refused now (A900)"
        yield Cause("query_refused", says, _fault(f, runs[0]) or REFUSED[0xA900][1], {"status": "A900"})
    elif step.item.tree and all(one.failed for one in asked):
        yield from _by_keys(f, step, asked)
        yield from _for_others(f, step, [one for one in asked if not IDENTIFYING.isdisjoint(one.failed)])


def questions(runs: Sequence[Run]) -> list[Run]:
    """Those that a device still asks, as it asked them last: the newest of each set of keys that we could work with.
    Searches for one patient or number only where no other stands: they say nothing of its list.

    runs: the newest first."""
    found: dict[int, Run] = {}
    for run in runs:
        if run.keys is not None and run.status in (DONE, CANCELLED, OUT_OF_RESOURCES):
            found.setdefault(run.keys_pk, run)
    newest = [*found.values()]
    recent = [run for run in newest if run.last_at >= newest[0].last_at - RECENT]
    standing = [run for run in recent if not _is_search(run)]
    return standing[:STANDING_MAX] or recent[:SEARCHES_MAX]


def _is_search(run: Run) -> bool:
    return run.keys is not None and bool(searched_by(run.keys))


def _replayed(f: Facts, step: Step, run: Run) -> Replayed | None:
    """None where the query is one that is refused now."""
    query = taken(f.device, run)
    try:
        keys.check(query)
        zone = matching.zone_of(query) if f.settings.worklist.timezone_adjustment else None
        meant = [query, *([matching.in_zone(query, zone, ZoneInfo(f.settings.site.timezone))] if zone else [])]
        tried = [
            Replayed(run, query, _failed(f, step, one, fuzzy=fuzzy), one is not query)
            for one in meant
            for fuzzy in ((False, True) if f.settings.worklist.fuzzy_names else (False,))
        ]
    except BrokerError:
        return None
    # Whether the device negotiated zone and fuzzy names is not on record: what it was shown tells it.
    shown = any(pk == step.pk for pk, _, _ in run.items)
    return ([one for one in tried if bool(one.failed) != shown] or tried)[-1]


def taken(device: Device, run: Run) -> Tree:
    """Its keys, without what is ignored of this device."""
    ignored = keys.QUERY_LEVEL if "query_level" in device.habits.quirks else 0
    return {tag: value for tag, value in (run.keys or {}).items() if tag != ignored}


def _failed(f: Facts, step: Step, query: Tree, *, fuzzy: bool) -> tuple[int, ...]:
    wanted = plan.of(query, f.device.view, f.device.directory, fuzzy=fuzzy)
    failed = replay.failing(wanted, f.device.view, f.device.directory, step.item, fuzzy=fuzzy)
    return tuple(one for one in failed if isinstance(one, int))


def _by_keys(f: Facts, step: Step, asked: Sequence[Replayed]) -> Causes:
    """What several questions have in common is told of the newest alone."""
    told = set[str]()
    for again in asked:
        for tag in _told(again.failed):
            value = _value(again.query, tag)
            said = f"{name_of(tag)} = {value}" if value else name_of(tag)
            if said not in told:
                told.add(said)
                yield _removed(f, step, again, tag, said)


def _told(failed: Sequence[int]) -> Iterator[int]:
    for tag in failed:
        # What is on another day is at another time.
        if tag not in IDENTIFYING and not (tag == matching.START_TIME and matching.START_DATE in failed):
            yield tag


def _removed(f: Facts, step: Step, again: Replayed, tag: int, said: str) -> Cause:
    run = again.run
    evidence = {
        "key": name_of(tag), "asked_at": clock.iso(run.last_at), "since": clock.iso(run.first_at), "times": run.times,
        "funnel": funnel(run, again.query), "stations": list(step.item.stations),
    }  # fmt: skip
    code, why, mend = _because(f, step, again, tag, _value(again.query, tag))
    counted = f"; of what waited about then: {evidence['funnel']}" if evidence["funnel"] else ""
    says = f"{f.title} asked at {f.at(run.last_at)} with {said}, which leaves step {step.sps_id} out{why}{counted}"
    return Cause(code, says, mend, evidence)


def _for_others(f: Facts, step: Step, asked: Sequence[Replayed]) -> Causes:
    """asked: for something that the exam is not; told once, however often it searched."""
    if not asked:
        return
    runs = [one.run for one in asked]
    times, last = sum(run.times for run in runs), max(run.last_at for run in runs)
    names = list(dict.fromkeys(name_of(tag) for one in asked for tag in one.failed if tag in IDENTIFYING))
    often = "once" if times == 1 else f"{times} times"
    says = (
        f"{f.title} searched {often} for one patient or one number ({', '.join(names)}), last at {f.at(last)}, and"
        f" step {step.sps_id} is not of it; it has not asked for its whole list of late"
    )
    mend = "refresh the list on the device without that; or correct the order, if it is this exam that was looked for"
    yield Cause("key", says, mend, {
        "key": names[0], "keys": names, "asked_at": clock.iso(last),
        "since": clock.iso(min(run.first_at for run in runs)), "times": times, "stations": list(step.item.stations),
    })  # fmt: skip


def funnel(run: Run, query: Tree) -> str:
    """`14 waiting -> 14 after Modality = CT -> 0 after ScheduledStationAETitle = CT_1`; empty = not counted."""
    if not run.removed and not run.considered:
        return ""
    values = {name_of(tag): _value(query, tag) for tag in (*step_keys(query), *query)}
    parts, left = [f"{run.considered} waiting"], run.considered
    for name, count in run.removed:
        left -= count
        parts.append(f"{left} after {name}" + (f" = {values[name]}" if values.get(name) else ""))
    return " -> ".join(parts)


def _value(query: Tree, tag: int) -> str:
    return (plain(step_keys(query), tag) or plain(query, tag)) if tag in TOLD else ""


def _because(f: Facts, step: Step, again: Replayed, tag: int, value: str) -> tuple[str, str, str]:
    """Code, what the order says instead, how to mend it."""
    if again.elsewhere and tag in (matching.START_DATE, matching.START_TIME):
        zone = plain(again.query, matching.TIMEZONE)
        why = f" (in its time zone {zone}; here it is on {step.item.start_date})"
        return "time_zone", why, "set the zone of the device, or worklist.timezone_adjustment = false"
    if tag == plan.STATION:
        return _because_of_station(f, step, value)
    if tag == matching.START_DATE:
        return _because_of_date(f, step, again, value)
    if tag == plan.MODALITY:
        modality = step.item.named.get("modality", "")
        return "modality", f" (our order says {modality})", of_order(f, "modality")
    if tag == matching.START_TIME:
        return "time", " (our order has another time)", of_order(f, "scheduled_start")
    return "key", "", "clear that key on the device, or correct the order: what it asks for is not what the order says"


def _because_of_station(f: Facts, step: Step, value: str) -> tuple[str, str, str]:
    stations = step.item.stations
    says, own_title = f" (our orders say {listed(stations)})", f"have {f.title} ask for its own title"
    directory = f.device.directory
    if set(stations) & directory.means(f.title) and not directory.kind(value):
        return "asks_for_unknown_station", says, with_alias(f, value) or own_title
    if set(stations) & directory.means(f.title):
        return "asks_for_other_device", says, own_title
    (first, *_) = [*station(f, step)] or [Cause("other_device", "", of_order(f, "station_ae_titles"))]
    return first.code, says, first.mend


def _because_of_date(f: Facts, step: Step, again: Replayed, value: str) -> tuple[str, str, str]:
    date, change = step.item.start_date, of_order(f, "scheduled_start")
    asked_at = again.run.last_at.astimezone(ZoneInfo(f.settings.site.timezone))
    if matching.date_range(value) != (f"{asked_at:%Y%m%d}",) * 2:
        return "date", f" (our order is on {date})", f"ask for that day on the device, or {change}"
    today: Tree = {**step_keys(again.query), matching.START_DATE: ("DA", f.device.view.today)}
    query: Tree = {**again.query, matching.STEP_SEQUENCE: ("SQ", [today])}
    if matching.START_DATE not in _failed(f, step, query, fuzzy=False):
        return "not_asked_today", f" ({f.title} has not asked today)", "refresh the list on the device"
    why = f" (it asks for its today; our order is on {date})"
    return "date", why, ", or ".join([*with_days(f, step, today_alone=True), change])


def drops(f: Facts, step: Step) -> Causes:
    for keyword in step.drops:
        says = f"{f.title} drops step {step.sps_id} itself: it takes no item without {keyword}"
        mend = f"complete the order, or, if it does take it, {change_node(f, '--requires')} …"
        yield Cause("device_drops", says, mend, {"keyword": keyword})
