"""How many items each key of a query took away, in the order in which they count: the rules of the device first, then
dates, modality, station and what identifies, then what is looked at item by item."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.datadict import keyword_for_tag

from broker import db
from broker.dicom.habits import Directory
from broker.dicom.tree import Tree
from broker.mwl import matching, plan, worklist
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.keys import step_keys
from broker.mwl.plan import Plan
from broker.mwl.view import View

ITEMS_MAX = 2_000  # that are looked at one by one; of more, the keys that need it are not counted


@dataclass(frozen=True)
class Counts:
    """considered: items that wait for any device. removed: (rule or keyword of a key, how many of them it took)."""

    considered: int
    removed: tuple[tuple[str, int], ...]


NOT_COUNTED = Counts(0, ())


def count(wanted: Plan, what: View, directory: Directory) -> Counts:
    conditions = wanted.conditions
    considered = _number(conditions[:1])
    removed, left = [], considered
    for n in range(1, len(conditions)):
        now = _number(conditions[: n + 1]) if left else 0
        removed.append((name_of(conditions[n].of), left - now))
        left = now
    if left and left <= ITEMS_MAX and not wanted.is_whole:
        removed += _one_by_one(wanted, what, directory, left)
    together: dict[str, int] = {}
    for name, number in removed:  # a name with wildcards is narrowed by the database, and then looked at
        together[name] = together.get(name, 0) + number
    return Counts(considered, tuple(together.items()))


def _number(conditions: Sequence[plan.Condition]) -> int:
    asked = plan.statement(plan.shape(conditions), counts=True)
    return int(db.look(asked, plan.bound(conditions))[0][0])


def _one_by_one(wanted: Plan, what: View, directory: Directory, left: int) -> list[tuple[str, int]]:
    removed = []
    for name, part in _parts(wanted):
        now = len(worklist.unbounded(part, what, directory))
        removed.append((name, left - now))
        left = now
    return removed


def _parts(wanted: Plan) -> list[tuple[str, Plan]]:
    """The plan with the first of its remaining keys, the first two, and so on; dates and times that are one interval
    go together."""
    found = [(plan.SEES, Plan(wanted.conditions, {}, True))] if wanted.by_item else []
    step = step_keys(wanted.rest)
    combined = matching.combined_interval(step) is not None
    done: Tree = {}
    for tag, value in step.items():
        if combined and tag == matching.START_DATE:
            continue
        more = {matching.START_DATE: step[matching.START_DATE]} if combined and tag == matching.START_TIME else {}
        done = {**done, **more, tag: value}
        found.append((name_of(tag), Plan(wanted.conditions, {STEP_SEQUENCE: ("SQ", [done])}, wanted.by_item)))
    whole: Tree = {STEP_SEQUENCE: ("SQ", [done])} if done else {}
    for tag, value in wanted.rest.items():
        if tag != STEP_SEQUENCE:
            whole = {**whole, tag: value}
            found.append((name_of(tag), Plan(wanted.conditions, whole, wanted.by_item)))
    return found


def name_of(of: int | str) -> str:
    return of if isinstance(of, str) else keyword_for_tag(of) or f"({of >> 16:04X},{of & 0xFFFF:04X})"
