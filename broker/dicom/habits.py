"""What a device is shown of the worklist, and how. Pure.

A node says what differs from its profiles; what none of them says is as the site has it (`None`)."""

import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True)
class Habits:
    """aliases: further AE titles by which orders and its own queries mean the device. groups: AE titles that stand for
    any of several devices. sees: `own` (scheduled for it, its aliases, its groups), `modality`, `ae:TITLE`,
    `location:TEXT`; any of them is enough, and without one its keys alone decide. labels: of worklists; empty = all.
    hide: statuses. matches_max: answers to one query. days_before, days_after: today, what lies outside is not shown.
    character_sets_also: what may be added to, or stand in for, its character set where that does not do
    (`ISO 2022 IR 159`, `ISO_IR 192`). lengths: keyword -> characters that it can take. requires: keywords without which
    it drops an item. quirks: see QUIRKS. expire_days, idle_days: of the items scheduled for it alone."""

    aliases: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    sees: tuple[str, ...] = ()
    labels: frozenset[str] = frozenset()
    hide: frozenset[str] | None = None
    started_hours: float | None = None
    finished_hours: float | None = None
    matches_max: int | None = None
    days_before: int | None = None
    days_after: int | None = None
    character_set: str = ""
    character_sets_also: tuple[str, ...] = ()
    lengths: tuple[tuple[str, int], ...] = ()
    requires: tuple[str, ...] = ()
    quirks: frozenset[str] = frozenset()
    expire_days: float | None = None
    idle_days: float | None = None


NO_HABITS = Habits()

QUIRKS: Mapping[str, str] = MappingProxyType(
    {
        "query_level": "sends (0008,0052), which has no place in a worklist query: it is ignored",
        "today_is_window": "can ask for today alone: such a date key asks for days_before to days_after",
        "no_inner_sequences": "cannot take sequences inside an item of a sequence unless it names them",
        "omit_empty": "cannot take zero-length elements: they are left out",
        "half_width_kana": "group 1 of names in half-width kana (ISO_IR 13)",
    }
)
# What no list of `hide` leaves out: nobody is to examine those.
NEVER_SHOWN = frozenset({"CANCELED", "NO_SHOW", "EXPIRED", "ON_HOLD"})
_DESCRIPTIONS = ("RequestedProcedureDescription", "ScheduledProcedureStepDescription")
_SHIPPED: Mapping[str, tuple[str, Habits]] = {
    "asks-without-station": (
        "asks without an AE title, and is shown what is scheduled for it alone",
        Habits(sees=("own",)),
    ),
    "asks-for-today": (
        "can ask for today alone, and is shown yesterday and tomorrow with it",
        Habits(days_before=1, days_after=1, quirks=frozenset({"today_is_window"})),
    ),
    "sends-query-level": (
        "sends a query level (0008,0052), as to an archive, and is answered all the same",
        Habits(quirks=frozenset({"query_level"})),
    ),
    "no-inner-sequences": (
        "cannot take sequences inside an item of a sequence that it did not name, and gets none",
        Habits(quirks=frozenset({"no_inner_sequences"})),
    ),
    "no-empty-elements": (
        "cannot take elements without a value, and gets none",
        Habits(quirks=frozenset({"omit_empty"})),
    ),
    "drops-incomplete": (
        "drops items without an accession number or a description",
        Habits(requires=("AccessionNumber", *_DESCRIPTIONS)),
    ),
    "short-texts": (
        "shows 16 characters of a description",
        Habits(lengths=tuple((keyword, 16) for keyword in _DESCRIPTIONS)),
    ),
    "ascii-only": (
        "reads ASCII alone: names in romaji",
        Habits(character_set="ASCII"),
    ),
    "half-width-kana": (
        "reads group 1 of names in half-width kana (ISO_IR 13), kanji beside it",
        Habits(character_set="ISO 2022 IR 13\\ISO 2022 IR 87", quirks=frozenset({"half_width_kana"})),
    ),
}  # fmt: skip
PROFILES: Mapping[str, Habits] = MappingProxyType({name: shipped for name, (_, shipped) in _SHIPPED.items()})
SENTENCES: Mapping[str, str] = MappingProxyType({name: sentence for name, (sentence, _) in _SHIPPED.items()})


def names(profile: str) -> list[str]:
    """Those of a node's `profile`, which may name several, separated by commas."""
    return [name.strip() for name in profile.split(",") if name.strip()]


def of(row: Any) -> Habits:
    """row: a Node. An unknown profile counts as none: it was one when the node was written."""
    said: dict[str, Any] = {"aliases": frozenset(row.aliases), "groups": frozenset(row.groups)}
    for one in fields(Habits):
        value = getattr(row, one.name)
        if one.name not in said and value not in (None, ""):
            said[one.name] = _frozen(one.name, value)
    if "hide" in said:
        said["hide"] |= NEVER_SHOWN
    profiles = (PROFILES.get(name, NO_HABITS) for name in names(row.profile))
    return replace(functools.reduce(_both, profiles, NO_HABITS), **said)


def _both(first: Habits, second: Habits) -> Habits:
    """All that either says; of one thing, what the first says, but of two lengths the shorter."""
    merged: dict[str, Any] = {}
    for one in fields(Habits):
        ours, theirs = getattr(first, one.name), getattr(second, one.name)
        if one.name == "lengths":
            merged[one.name] = tuple(
                sorted({**dict(ours), **{k: min(v, dict(ours).get(k, v)) for k, v in theirs}}.items())
            )
        elif isinstance(ours, frozenset) and isinstance(theirs, frozenset):
            merged[one.name] = ours | theirs
        elif isinstance(ours, tuple):
            merged[one.name] = tuple(dict.fromkeys((*ours, *theirs)))
        else:
            merged[one.name] = theirs if ours in (None, "") else ours
    return Habits(**merged)


def _frozen(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted(value.items()))
    if isinstance(value, list):
        return tuple(value) if name in ("sees", "requires", "character_sets_also") else frozenset(value)
    return value


AeKind = Literal["node", "alias", "group", ""]


@dataclass(frozen=True)
class Directory:
    """What the AE titles in orders and in keys stand for (conformance.md 1.3, rule 7)."""

    _kinds: Mapping[str, AeKind] = field(default_factory=dict)
    _means: Mapping[str, frozenset[str]] = field(default_factory=dict)
    _devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def means(self, ae_title: str) -> frozenset[str]:
        """The titles under which that may be scheduled which a key with this title asks for. Of a device: its own, its
        aliases and groups; of a group: its own, and what its members alone are called."""
        return self._means.get(ae_title, frozenset([ae_title]))

    def shown(self, ae_title: str) -> tuple[str, ...]:
        """What an answer has in place of it: of an alias the node, of a group its members."""
        return self._devices.get(ae_title, (ae_title,))

    def devices(self, ae_title: str) -> tuple[str, ...]:
        """The nodes that it stands for; none where it is not known here."""
        return self._devices.get(ae_title, ())

    @property
    def renames(self) -> bool:
        """Whether any title stands for another."""
        return any(kind != "node" for kind in self._kinds.values())

    def kind(self, ae_title: str) -> AeKind:
        """Empty: not known here."""
        return self._kinds.get(ae_title, "")


def directory(nodes: Mapping[str, Habits]) -> Directory:
    """nodes: by AE title. A title that says two things, which the site refuses, is a node before an alias, an alias
    before a group, and an alias of the first of two: it must mean the same to a key as to an answer."""
    owners = {alias: title for title in sorted(nodes, reverse=True) for alias in nodes[title].aliases - nodes.keys()}
    own = {title: {title} for title in nodes}
    members: dict[str, list[str]] = defaultdict(list)
    for alias, title in owners.items():
        own[title].add(alias)
    for title in sorted(nodes):
        for group in nodes[title].groups - nodes.keys() - owners.keys():
            members[group].append(title)
    means = {title: {*names} for title, names in own.items()}
    for group, titles in members.items():
        for title in titles:
            means[title].add(group)
    means |= {alias: means[title] for alias, title in owners.items()}
    means |= {group: {group}.union(*(own[title] for title in titles)) for group, titles in members.items()}
    devices = {title: (title,) for title in nodes} | {alias: (title,) for alias, title in owners.items()}
    kinds: dict[str, AeKind] = dict.fromkeys(members, "group")
    kinds |= dict.fromkeys(owners, "alias")
    kinds |= dict.fromkeys(nodes, "node")
    return Directory(
        kinds,
        {title: frozenset(names) for title, names in means.items()},
        devices | {group: tuple(titles) for group, titles in members.items()},
    )
