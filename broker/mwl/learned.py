"""What the queries of a device say about its habits: proposals that an administrator takes or leaves. Pure.

A proposal is made only where every query says so: one that does not shows that the device can do more."""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.config import Limits
from broker.dicom import charset, habits, tree
from broker.dicom.tree import CHARSET, Tree
from broker.errors import InvalidValue
from broker.mwl import matching
from broker.mwl.keys import QUERY_LEVEL, plain, step_keys

QUERIES_MIN = 10
DAYS_MIN = 2  # with a date key: who asks once for the day that it is may ask tomorrow for another
CLOCKS_APART = dt.timedelta(minutes=15)  # around midnight the device's day may be another than ours
STATION = 0x00400001
CHARACTER_SET = "character-set"


@dataclass(frozen=True)
class Query:
    """A run of queries with the same keys: first_at, last_at, how many, in the site's zone."""

    keys: Tree
    first_at: dt.datetime
    last_at: dt.datetime
    times: int = 1


@dataclass(frozen=True)
class Proposal:
    """name: of a shipped profile, or `character-set`. changes: of the node, field -> value."""

    name: str
    sentence: str
    evidence: str
    changes: Mapping[str, Any] = field(default_factory=dict)


def keys_of(dataset: bytes, declared: str) -> Tree:
    """The keys of a recorded query (model/worklist.py), with the (0008,0005) that the device declared. Raises
    Unreadable."""
    return tree.read(dataset, tree.EXPLICIT_LE, Limits()) | {CHARSET: ("CS", declared)}


def propose(queries: Sequence[Query], node: Any, site_character_set: str = "") -> list[Proposal]:
    """What the node does not have yet, by the queries that it sent.

    node: a Node. site_character_set: what it is answered in where it says nothing."""
    count = sum(query.times for query in queries)
    if count < QUERIES_MIN:
        return []
    since = min(query.first_at for query in queries)
    evidence = f"{count} of {count} queries since {since:%Y-%m-%d %H:%M}"
    found = [
        Proposal(name, habits.SENTENCES[name], evidence, changes)
        for name, shows in SHOWN_BY.items()
        if shows(queries) and (changes := _with_profile(node, name))
    ]
    declared = {plain(query.keys, CHARSET) for query in queries}
    if len(declared) == 1 and _is_news(said := declared.pop(), node, site_character_set):
        found.append(Proposal(CHARACTER_SET, f"declares {said} in its queries", evidence, {"character_set": said}))
    return found


def merged(proposals: Sequence[Proposal]) -> dict[str, Any]:
    """The changes of all of them together."""
    changes: dict[str, Any] = {}
    for one in proposals:
        for name, value in one.changes.items():
            changes[name] = _joined(changes[name], value) if name in changes else value
    return changes


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str):
        return ",".join(dict.fromkeys([*habits.names(first), *habits.names(second)]))
    return list(dict.fromkeys([*first, *second]))


def _without_station(queries: Sequence[Query]) -> bool:
    return all(plain(step_keys(query.keys), STATION) in ("", "*") for query in queries)


def _for_today(queries: Sequence[Query]) -> bool:
    days = {_day(query) for query in queries}
    return "" not in days and len(days) >= DAYS_MIN


def _day(query: Query) -> str:
    """The one day that it asks for, where that was the day on which it came; else empty."""
    key = plain(step_keys(query.keys), matching.START_DATE)
    try:
        low, high = matching.date_range(key)
    except InvalidValue:
        return ""
    return low if low == high and low in _days_of(query.first_at) & _days_of(query.last_at) else ""


def _days_of(moment: dt.datetime) -> set[str]:
    return {f"{moment + apart:%Y%m%d}" for apart in (-CLOCKS_APART, CLOCKS_APART)}


def _with_query_level(queries: Sequence[Query]) -> bool:
    return all(QUERY_LEVEL in query.keys for query in queries)


SHOWN_BY: Mapping[str, Callable[[Sequence[Query]], bool]] = {
    "asks-without-station": _without_station,
    "asks-for-today": _for_today,
    "sends-query-level": _with_query_level,
}


def _with_profile(node: Any, name: str) -> dict[str, Any]:
    """What makes the node so; nothing where it is, or where it says itself that it is to be otherwise."""
    shipped, has = habits.PROFILES[name], habits.of(node)
    if name in habits.names(node.profile) or (shipped.quirks and shipped.quirks <= has.quirks):
        return {}
    if shipped.sees and (has.sees or node.sees is not None):
        return {}
    changes: dict[str, Any] = {"profile": ",".join([*habits.names(node.profile), name])}
    if shipped.quirks and node.quirks is not None:  # a list of its own goes before that of a profile
        changes["quirks"] = [*node.quirks, *sorted(shipped.quirks - {*node.quirks})]
    return changes


def _is_news(declared: str, node: Any, site_character_set: str) -> bool:
    """ISO_IR 6, or nothing, is what a device says that never asks for a name."""
    has = habits.of(node).character_set
    is_more = declared not in ("", "ISO_IR 6") and charset.supported(charset.terms(declared))
    return is_more and has in ("", site_character_set) and declared != site_character_set
