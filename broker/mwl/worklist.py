"""Reads of the worklist: which items a query finds."""

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import Engine
from sqlmodel import Session

from broker import db, log
from broker.dicom.habits import Directory
from broker.dicom.tree import Tree
from broker.errors import TooMany, Unreadable
from broker.mwl import matching, plan, view
from broker.mwl.answers import item_of
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.keys import plain, step_keys
from broker.mwl.plan import Plan
from broker.mwl.view import View

BY_START = operator.itemgetter(4, 5, 6, 0)  # date, time, SPS ID: by us, as databases sort texts each in its own way
PAGE_ROWS, ALL_ROWS = 500, 2**62


class Found(NamedTuple):
    """One item: its row, which version, its status as it is shown, its bytes. stations: Scheduled Station AE Titles in
    place of those in the bytes, where some of them stand for others; None = as they are."""

    step_pk: int
    version: int
    status: str
    dataset: bytes
    stations: tuple[str, ...] | None = None


def search(
    query: Tree, what: View, directory: Directory, *, fuzzy: bool = False, on: Engine | None = None
) -> list[Found]:
    """Items that match, earliest first, all of one state of the database. Raises TooMany over the device's cap,
    InvalidValue for a malformed key.

    query: MWL identifier; an empty value matches all and asks for the key (universal matching, PS3.4 C.2.2.2.3).
    Times are site local, as devices show them. on: see db.look. Source: PS3.4 K.6.1, matching C.2.2.2."""
    return find(plan.of(query, what, directory, fuzzy=fuzzy), what, directory, fuzzy=fuzzy, on=on)


def find(
    wanted: Plan, what: View, directory: Directory, *, fuzzy: bool = False, on: Engine | None = None
) -> list[Found]:
    asked = plan.statement(plan.shape(wanted.conditions))
    values = plan.bound(wanted.conditions)
    most = what.matches_max
    page = most + 1 if wanted.is_whole else PAGE_ROWS
    rows = sorted(db.look(asked, {**values, "most": page}, on=on), key=BY_START)
    if wanted.is_whole or len(rows) < page:
        found = list(match_rows(rows, wanted, what, directory, fuzzy))
    else:
        found = db.read_from(on or db.engine(), _long, asked, values, wanted, what, directory, fuzzy)
    if len(found) > most:
        raise TooMany("")
    return found


def _long(
    session: Session, asked: db.Prepared, values: Mapping[str, Any], wanted: Plan, what: View, directory: Directory,
    fuzzy: bool,
) -> list[Found]:  # fmt: skip
    """The same where the database cannot say all and there is much to look at: row by row, until there are too many."""
    found: list[tuple[Any, Found]] = []
    rows = asked.stream(session, {**values, "most": ALL_ROWS}, PAGE_ROWS)
    looked_at = (row for n, row in enumerate(rows) if n < what.looked_at_max or _refuse())
    for row in looked_at:
        found += [(row, one) for one in match_rows([row], wanted, what, directory, fuzzy)]
        if len(found) > what.matches_max:
            break
    return [one for _, one in sorted(found, key=lambda pair: BY_START(pair[0]))]


def match_rows(rows: Iterable[Any], wanted: Plan, what: View, directory: Directory, fuzzy: bool) -> Iterable[Found]:
    renames = directory.renames
    if wanted.is_whole and not renames:
        return [Found(pk, version, view.SHOWN_AS.get(status, status), data) for pk, version, status, data, *_ in rows]
    return _looked_at(rows, wanted, what, directory, fuzzy)


def _looked_at(rows: Iterable[Any], wanted: Plan, what: View, directory: Directory, fuzzy: bool) -> Iterator[Found]:
    renames = directory.renames
    for step_pk, version, status, dataset, *_ in rows:
        shown_as = view.SHOWN_AS.get(status, status)
        try:
            item = item_of(dataset, shown_as)
        except Unreadable:  # one that we spoiled ourselves must not cost a device all others
            log.get().error("worklist.unreadable_item", step=step_pk, version=version)
            continue
        step = step_keys(item)
        if wanted.by_item and not view.sees_item(what, step, directory):
            continue
        stations = shown_stations(step, directory) if renames else None
        if stations is not None:
            step = {**step, plan.STATION: ("AE", "\\".join(stations))}
            item = {**item, STEP_SEQUENCE: ("SQ", [step])}
        if matching.matches(wanted.rest, item, fuzzy=fuzzy):
            yield Found(step_pk, version, shown_as, dataset, stations)


def _refuse() -> bool:
    raise TooMany("", "too many items to look at, refine query")


def unbounded(wanted: Plan, what: View, directory: Directory) -> list[Found]:
    """As many as there are: for who counts them."""
    return find(wanted, replace(what, matches_max=ALL_ROWS - 1), directory)


def shown_stations(step: Tree, directory: Directory) -> tuple[str, ...] | None:
    """None where each stands for itself."""
    titles = plain(step, plan.STATION).split("\\")
    shown = tuple(dict.fromkeys(other for title in titles for other in directory.shown(title)))
    return None if shown == tuple(titles) else shown


def usual(what: View) -> Tree:
    """The query of a device that is shown all that its keys ask for: most ask for their own title."""
    return {} if what.sees else {STEP_SEQUENCE: ("SQ", [{plan.STATION: ("AE", what.ae_title)}])}
