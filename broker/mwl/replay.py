"""One item against one query: what of it the item fails, in the order in which it counts. Pure.

The plan is the one by which the database is asked (mwl/plan.py), so that what is told is what happened."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.dicom.habits import Directory
from broker.dicom.tree import Tree
from broker.mwl import matching, plan, view, worklist
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.keys import step_keys
from broker.mwl.plan import Condition, Plan
from broker.mwl.view import View


@dataclass(frozen=True)
class Item:
    """stations: Scheduled Station AE Titles as the order has them. named: by clause of a plan, what it is compared
    with. tree: as it is shown, empty where the step lacks a type 1 key."""

    status: str
    status_at: dt.datetime | None
    start_date: str
    label: str
    stations: tuple[str, ...]
    named: Mapping[str, str]
    tree: Tree


def failing(wanted: Plan, what: View, directory: Directory, item: Item, *, fuzzy: bool = False) -> list[int | str]:
    """Tags of keys and names of rules."""
    failed = [one.of for one in wanted.conditions if not passes(one, item)]
    if item.tree:
        failed += _one_by_one(wanted, what, directory, item, fuzzy)
    return list(dict.fromkeys(failed))


def passes(one: Condition, item: Item) -> bool:
    return TESTS[one.clause](one.values, item)


def _since(values: Sequence[Any], item: Item) -> bool:
    return item.status == values[0] and item.status_at is not None and item.status_at >= values[1]


def _named(clause: str) -> Callable[[Sequence[Any], Item], bool]:
    return lambda values, item: item.named.get(clause, "") == values[0]


def _is_for(values: Sequence[Any], item: Item) -> bool:
    """The days before the titles are those of the date key, which is a condition of its own."""
    return not set(values[2:]).isdisjoint(item.stations)


TESTS: Mapping[str, Callable[[Sequence[Any], Item], bool]] = {
    **{clause: _named(clause) for clause in plan.CLAUSE_OF.values()},
    # They let pass more than their key, which is looked at with the rest.
    **{clause: lambda _values, _item: True for clause in ("like_name", *plan.LIKENESSES.values())},
    "station": _is_for,
    "open_station": _is_for,
    "days": lambda values, item: values[0] <= item.start_date <= values[1],
    "label": lambda values, item: item.label in values,
    "any": lambda values, item: any(passes(one, item) for one in values),
    "status": lambda values, item: item.status in values,
    "since": _since,
}


def _one_by_one(wanted: Plan, what: View, directory: Directory, item: Item, fuzzy: bool) -> Iterator[int | str]:
    step = step_keys(item.tree)
    if wanted.by_item and not view.sees_item(what, step, directory):
        yield plan.SEES
    stations = worklist.shown_stations(step, directory)
    if stations is not None:
        step = {**step, plan.STATION: ("AE", "\\".join(stations))}
    shown: Tree = {**item.tree, STEP_SEQUENCE: ("SQ", [step])}
    for tag, keys in _parts(wanted.rest):
        if not matching.matches(keys, shown, fuzzy=fuzzy):
            yield tag


def _parts(rest: Tree) -> Iterator[tuple[int, Tree]]:
    """Key by key; dates and times that are one interval go together."""
    step = step_keys(rest)
    combined = matching.combined_interval(step) is not None
    for tag, value in step.items():
        dates = {matching.START_DATE: step[matching.START_DATE]} if combined and tag == matching.START_TIME else {}
        yield tag, {STEP_SEQUENCE: ("SQ", [{**dates, tag: value}])}
    yield from ((tag, {tag: value}) for tag, value in rest.items() if tag != STEP_SEQUENCE)
