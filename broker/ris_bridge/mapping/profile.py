"""One profile: read from its text once, with every fault and its line, then asked for each message. Pure."""

import fnmatch
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker import ids
from broker.config import Limits, Site
from broker.errors import BrokerError, ConfigError
from broker.mwl.commands import Policies
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.hl7.message import Segment, part
from broker.ris_bridge.hl7.values import NULL
from broker.ris_bridge.mapping import paths
from broker.ris_bridge.mapping.lines import faults, line_of
from broker.ris_bridge.mapping.paths import ALL, ROW, ROW_DELIMITERS, Condition, Path, Scope
from broker.ris_bridge.mapping.targets import LEVELS, TARGETS, Target, joined, keyword_of

TYPE = r"^[A-Z]{3}(\^[A-Z0-9]{3})?$"  # ORM^O01, or ORM for all its events
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
FOLDER = resources.files("broker.ris_bridge.mapping") / "profiles"
EXTENDS_MAX = 8  # profiles, one above the other
TEXT_BYTES_MAX = 1024**2
RULES_MAX = 2000  # fields, tables, stations and messages of one profile, each
FAULTS_MAX = 100  # told of one profile at once
UNREAD = "\0"  # a base that cannot be read
# What stands in for what is wrong and must be there, while the rest is looked at.
INSTEAD = {"name": "profile", "extends": UNREAD, "to": "step.start", "type": "ORM", "means": "order"}

# Message code -> the shipped profile that reads it, unless the sender's entry names another.
BY_TYPE = {"ORM": "ihe-rad4-2.3.1", "OMI": "ihe-rad4-2.5.1", "OMG": "ihe-rad4-2.5.1"}

# Every type that is read: the keys of READERS in hl7/road.py, which lies above this.
TYPES = {
    "ORM^O01", "OMG^O19", "OMI^O23", "ORU^R01",
    *(f"SIU^{event}" for event in ("S12", "S13", "S14", "S15", "S17", "S26")),
    *(f"ADT^A{event}" for event in "01 02 03 04 05 08 10 11 12 13 18 24 28 31 34 37 38 40 43 47".split()),
}  # fmt: skip
FIELDS_MAX = Limits().mllp_fields_max  # where the site does not say

Missing = Literal["reject", "generate", "derive"]
Means = Literal["order", "schedule", "report", "arrive", "unarrive", "ignore"]
# What an ORC-1 may mean; `orders_in` says what is done. Table 0119.
Meaning = Literal[
    "NW", "XO", "CA", "DC", "HD", "RL", "SC", "SN", "NA", "SS", "RP", "RU", "RO", "PA", "CH", "OC", "OD", "CR",
    "OK", "UA", "UC", "UX", "RQ",
]  # fmt: skip
MEANINGS: tuple[str, ...] = get_args(Meaning)
BUILT_IN = {"PA_CA": "CA"}  # JAHIS: a whole examination that is cancelled
# Over HL7, where neither profile nor site says more. `orders_in` wants the Study UID of OMI and ZDS.
DEFAULTS: dict[str, Missing] = {
    "accession_number": "reject", "requested_procedure_id": "reject", "sps_id": "reject",
    "study_instance_uid": "derive",
}  # fmt: skip
# Of what was mapped, what the `when` of a station may ask for, by its level.
STATION_ASKS = {
    "step": ("modality", "description", "start_date", "start_time"),
    "procedure": ("code_value", "code_scheme", "description"),
}
ASKED = tuple(f"{level}.{name}" for level, names in STATION_ASKS.items() for name in names)
Find = Callable[[str], str | None]


# The text


class Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldText(Table):
    to: str
    sources: list[str] = Field(default=[], alias="from", max_length=20)
    when: list[str] = Field(default=[], max_length=20)
    table: str = ""
    default: str = ""


class StationText(Table):
    priority: int = 0
    when: list[str] = Field(default=[], max_length=20)
    ae_titles: list[str] = Field(default=[], max_length=50)
    station_name: str = ""
    location: str = ""
    modality: str = ""
    always: bool = False


class IdentityText(Table):
    accession_number: Missing | None = None
    requested_procedure_id: Missing | None = None
    sps_id: Missing | None = None
    study_instance_uid: Missing | None = None
    accession_issuer: str | None = Field(default=None, max_length=64)
    patient_id_issuer: str | None = Field(default=None, max_length=64)
    known: Literal["refuse", "change"] | None = None
    unknown: Literal["refuse", "place"] | None = None


class ControlsText(Table):
    enabled: list[Meaning] | None = None
    meanings: dict[str, Meaning] = {}


class MessageText(Table):
    type: str = Field(pattern=TYPE)
    when: list[str] = Field(default=[], max_length=20)
    means: Means


class ProfileText(Table):
    name: str = Field(pattern=f"^{NAME}$")
    description: str = ""
    extends: str = ""
    messages: list[Annotated[str, Field(pattern=TYPE)]] = []
    field: list[FieldText] = Field(default=[], max_length=RULES_MAX)
    tables: dict[str, dict[str, str]] = {}
    station: list[StationText] = Field(default=[], max_length=RULES_MAX)
    identity: IdentityText = IdentityText()
    controls: ControlsText = ControlsText()
    message: list[MessageText] = Field(default=[], max_length=RULES_MAX)


# Compiled


@dataclass(frozen=True)
class CodeTable:
    """What a sender's code is here. Keys may hold * and ?; a code that no key fits says nothing. caseless: its keys are
    in capitals."""

    exact: Mapping[str, str]
    patterns: tuple[tuple["re.Pattern[str]", str], ...]
    caseless: bool = False

    def get(self, said: str) -> str | None:
        if self.caseless:
            said = said.upper()
        if said in self.exact:
            return self.exact[said]
        return next((value for pattern, value in self.patterns if pattern.fullmatch(said)), None)


@dataclass(frozen=True)
class Rule:
    """One [[field]]: the first source that says something counts. default: of new orders, where none does."""

    sources: tuple[tuple[Path, CodeTable | None], ...]
    when: tuple[Condition, ...]
    default: Any


@dataclass(frozen=True)
class Filled:
    """A target with its rules; the first that gives something counts."""

    target: Target
    keyword: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Station:
    """ae_titles …: None = the rule does not say. It speaks where the message names no station, or always."""

    priority: int
    when: tuple[Condition, ...]
    ae_titles: tuple[str, ...] | None
    station_name: str | None
    location: str | None
    modality: str | None
    always: bool
    line: int


@dataclass(frozen=True)
class MessageRule:
    type: str
    when: tuple[Condition, ...]
    means: Means


@dataclass(frozen=True)
class Problem:
    """warning: the profile works, but hardly as its author means it."""

    line: int
    text: str
    warning: bool = False
    profile: str = ""


Said = tuple[dict[str, Any], dict[str, Any]]
Trace = Callable[[Target, Path | None, Segment | None, Any], None]


@dataclass(frozen=True, eq=False)
class Profile:
    """label: as the journal names it, `jahis v3`. levels: by target. chain: the names of those that it extends.
    steps_by: the segments that it reads for a step. trace: is told of each value where it came from."""

    name: str
    description: str
    messages: tuple[str, ...]
    levels: Mapping[str, tuple[Filled, ...]]
    stations: tuple[Station, ...]
    identity: IdentityText
    enabled: frozenset[str]
    meanings: Mapping[str, str]
    rules: tuple[MessageRule, ...]
    chain: tuple[str, ...] = ()
    warnings: tuple[Problem, ...] = ()
    label: str = ""
    trace: Trace | None = None
    steps_by: frozenset[str] = frozenset()

    def said(self, level: str, scope: "Group", site: Site, *, new: bool) -> Said:
        """What the scope says of that level: fields of the command, and attributes by keyword. new: of an order that
        is placed, for which defaults count."""
        fields: dict[str, Any] = {}
        attributes: dict[str, Any] = {}
        for filled in self.levels[level]:
            target = filled.target
            value = self._first(filled, scope, site, new)
            into = attributes if target.attribute else fields
            if target.kind.parts:
                absent = target.kind.absent
                into.update(zip(target.kind.parts, value or (absent,) * len(target.kind.parts), strict=True))
            else:
                into[target.name] = target.kind.absent if value is None else value
        return fields, attributes

    def _first(self, filled: Filled, scope: "Group", site: Site, new: bool) -> Any:
        target = filled.target
        lost: Any = None  # codes that cannot be kept: what stood there before is not right any more, either
        for rule in filled.rules:
            if rule.when and not paths.all_hold(rule.when, scope, {}):
                continue
            for path, table in rule.sources:
                segment = scope.get(path.segment)
                if segment is None:
                    continue
                if path.column:
                    found = path.find(scope)
                    if found is None:
                        continue
                    segment, path = found
                fields, number = segment.fields, path.number
                if number >= len(fields) or not fields[number]:
                    continue
                value = _read(filled, scope, segment, path, table, site)
                if value == [] and fields[number] != NULL:
                    lost = value
                elif value is not None:
                    if self.trace:
                        self.trace(target, path, segment, value)
                    return value
            if new and rule.default is not None:
                if self.trace:
                    self.trace(target, None, None, rule.default)
                return rule.default
        return lost

    def set_station(
        self, said: dict[str, Any], attributes: dict[str, Any], scope: Scope, procedure: Mapping[str, Any]
    ) -> None:
        """What the station rules say of a step, beside what the message names or, for always, in place of it."""
        own = {f"step.{name}": said.get(name) for name in STATION_ASKS["step"]}
        own |= {f"procedure.{name}": procedure.get(name) for name in STATION_ASKS["procedure"]}
        rule = self.station(scope, own, named=bool(said.get("station_ae_titles")))
        if rule is None:
            return
        for into, name, value in (
            (said, "station_ae_titles", rule.ae_titles),
            (said, "modality", rule.modality),
            (attributes, "ScheduledStationName", [rule.station_name] if rule.station_name else None),
            (attributes, "ScheduledProcedureStepLocation", rule.location),
        ):
            if value and (rule.always or not into.get(name)):
                into[name] = value
                self.tell(f"step.{name}", f"station rule of line {rule.line}", value)

    def tell(self, target: str, source: str, value: Any) -> None:
        """Of a value that no field said."""
        if self.trace and value is not None:
            self.trace(TARGETS[target], Path("", text=source), None, value)

    def station(self, scope: Scope, own: Mapping[str, str | None], *, named: bool) -> Station | None:
        """The rule that says where a step goes. named: the message says so itself."""
        for rule in self.stations:
            if (rule.always or not named) and paths.all_hold(rule.when, scope, own):
                return rule
        return None

    def meaning(self, control: str, status: str) -> str | None:
        """Of ORC-1 and ORC-5; None for a control that is not taken."""
        if control in MEANINGS and control not in self.enabled:
            return None
        meant = self.meanings.get(f"{control}_{status}") or self.meanings.get(control)
        return meant or (control if control in MEANINGS else None)

    def means(self, kind: str, scope: Scope) -> Means | None:
        """What a message is, where a [[message]] rule says so. kind: MSH-9, `ORU^R01`."""
        for rule in self.rules:
            if rule.type in (kind, kind.partition("^")[0]) and paths.all_hold(rule.when, scope, {}):
                return rule.means
        return None

    def missing(self, identifier: str, site: Site, default: Missing) -> Missing:
        """What becomes of a new order without it: the profile says, else the site, else the kind of message."""
        return getattr(self.identity, identifier) or getattr(site, f"missing_{identifier}") or default

    def reads(self, kind: str) -> bool:
        """Whether messages of that type are its. kind: MSH-9, `ORM^O01`."""
        known = {*self.messages, *(rule.type for rule in self.rules)}
        return not self.messages or bool({kind, kind.partition("^")[0]} & known)

    def policies(self, site: Site) -> Policies:
        """How those are made that are missing and may be."""
        return Policies(**{
            name: "derive" if self.missing(name, site, default) == "derive" else "generate"
            for name, default in DEFAULTS.items()
        })  # fmt: skip

    def source_site(self, site: Site) -> Site:
        """The site as this source of messages has it: whose numbers are those without an authority. Of all its
        messages, whichever of them the profile reads: an ADT speaks of the same patients as its orders."""
        names = ("accession_issuer", "patient_id_issuer")
        own = {name: value for name in names if (value := getattr(self.identity, name)) is not None}
        return site.model_copy(update=own) if own else site

    def source_of(self, target: str, scope: Scope) -> tuple[Segment, int] | None:
        """Where the message would have said it: for the error that it does not."""
        return next(self.sources_of(target, scope), None)

    def sources_of(self, target: str, scope: Scope) -> Iterator[tuple[Segment, int]]:
        for filled in self.levels[target.partition(".")[0]]:
            if filled.target.text == target:
                for rule in filled.rules:
                    if paths.all_hold(rule.when, scope, {}):
                        for path, _ in rule.sources:
                            if found := path.find(scope):
                                yield found[0], found[1].number


class Group(dict[str, Segment]):
    """The first segment of each name, and all of them: a scope."""

    segments: Sequence[Segment] = ()

    @classmethod
    def of(cls, segments: Sequence[Segment], above: Mapping[str, Segment] | None = None) -> "Group":
        group = cls(above or {})
        own: dict[str, Segment] = {}
        for segment in segments:
            own.setdefault(segment.name, segment)
        group.update(own)
        group.segments = segments
        return group

    def with_segment(self, segment: Segment) -> "Group":
        group = Group(self)
        group[segment.name] = segment
        group.segments = self.segments
        return group


def _read(filled: Filled, scope: Group, segment: Segment, path: Path, table: CodeTable | None, site: Site) -> Any:
    kind = filled.target.kind
    if kind.lines:
        segments = [one for one in scope.segments if one.name == path.segment]
        return joined(
            [line for one in segments if (line := kind.read(one, path, filled.keyword, site))], filled.keyword
        )
    if table is not None:
        translated = _translated(segment, path, table)
        if translated is None:
            return None
        segment = translated
    return kind.read(paths.picked(segment, path), path, filled.keyword, site)


def _translated(segment: Segment, path: Path, table: CodeTable) -> Segment | None:
    """The segment with its codes looked up, each in the place of the sender's. None: the table has none of them."""
    if segment.field(path.number) == NULL:
        return segment
    signs = segment.delimiters
    if path.whole:
        value = table.get(segment.text(path.number).strip())
        return None if value is None else paths.with_field(segment, path.number, paths.written(value, signs))
    found = []
    for repetition in segment.repetitions(path.number):
        said = part(repetition, signs, path.component, path.subcomponent).strip()
        value = table.get(said) if said else None
        if value is not None:
            before = signs[1] * (path.component - 1) + signs[4].replace("\0", "") * (path.subcomponent - 1)
            found.append(before + paths.written(value, signs))
        elif path.repetition > 0:  # it says which: that one stays where it is
            found.append("")
    return paths.with_field(segment, path.number, signs[2].join(found)) if any(found) else None


# Reading a profile


def shipped_text(name: str) -> str | None:
    return _shipped_texts().get(name)


@cache
def _shipped_texts() -> dict[str, str]:
    return {
        file.name.removesuffix(".toml"): file.read_text("utf-8")
        for file in FOLDER.iterdir()
        if file.name.endswith(".toml")
    }


def shipped_names() -> list[str]:
    return sorted(_shipped_texts())


@cache
def shipped(name: str) -> Profile:
    text = shipped_text(name)
    if text is None:
        raise ConfigError(f"mapping {name}", f"is none of those that are shipped: {', '.join(shipped_names())}")
    return parse(text)


def for_type(kind: str) -> Profile | None:
    """What reads a message of that type where its sender has no profile of its own. kind: MSH-9, `ORM^O01`."""
    name = BY_TYPE.get(kind.partition("^")[0])
    return shipped(name) if name else None


def for_sender(own: Profile | None, kind: str) -> Profile | None:
    """What reads a message of that type: its sender's own profile where that is about such messages, else the shipped
    one. None: no profile reads that type."""
    return own if own is not None and own.reads(kind) else for_type(kind)


def parse(text: str, find: Find = shipped_text, label: str = "") -> Profile:
    """Raises ConfigError with the line of the first fault. find: the text of a profile that it extends."""
    profile, problems = look(text, find)
    faults = [problem for problem in problems if not problem.warning]
    if faults or profile is None:
        first = faults[0]
        raise ConfigError(f"{first.profile or 'mapping'} line {first.line}", first.text)
    return replace(profile, label=label or profile.name)


def is_read(kind: str) -> bool:
    """Whether messages of that type are: `ORM^O01`, or `ORM` for any of its events."""
    return kind in TYPES or kind in {one.partition("^")[0] for one in TYPES}


def look(text: str, find: Find = shipped_text, *, fields_max: int = FIELDS_MAX) -> tuple[Profile | None, list[Problem]]:
    """The profile, None where it has faults, and everything that is wrong or odd in it, the faults first: as many as
    FAULTS_MAX, and how many more. fields_max: of one segment."""
    chain, problems, is_whole = _chain(text, find)
    profile = None
    if chain:
        compiler = _Compiler(chain, is_whole, fields_max)
        profile = compiler.profile()
        problems += compiler.problems
    problems = sorted(problems, key=lambda one: (one.warning, one.line))
    if any(not one.warning for one in problems):
        profile = None
    if len(problems) > FAULTS_MAX:
        rest = problems[FAULTS_MAX]
        more = replace(rest, text=f"and {len(problems) - FAULTS_MAX} more faults; mend these first")
        problems = [*problems[:FAULTS_MAX], more]
    return profile, problems


def _chain(text: str, find: Find) -> tuple[list[tuple[ProfileText, str]], list[Problem], bool]:
    """The profile and those that it extends, its own first, as far as they can be read; what is wrong with them; and
    whether these are all."""
    chain: list[tuple[ProfileText, str]] = []
    problems: list[Problem] = []
    names: list[str] = []
    while True:
        said, found = _text(text, names[-1] if names else "")
        problems += found
        if said is None:
            return chain, problems, False
        chain.append((said, text))
        if found and said.extends == UNREAD:
            return chain, problems, False
        if not said.extends:
            return chain, problems, True
        line = line_of(text, "", key="extends")
        names.append(said.extends)
        below = find(said.extends)
        sentence = ""
        if said.extends in [one.name for one, _ in chain]:
            sentence = f"extends itself: {' -> '.join(one.name for one, _ in chain)} -> {said.extends}"
        elif len(chain) > EXTENDS_MAX:
            sentence = f"stands on more than {EXTENDS_MAX} others"
        elif below is None:
            sentence = f"no such profile: {said.extends}"
        if sentence or below is None:
            return chain, [*problems, Problem(line, sentence, profile=said.name)], False
        text = below


def _text(text: str, name: str) -> tuple[ProfileText | None, list[Problem]]:
    """As much of it as can be read, and what cannot. None: nothing can."""
    if len(text.encode()) > TEXT_BYTES_MAX:
        return None, [Problem(1, f"is larger than {TEXT_BYTES_MAX} bytes", profile=name)]
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line ([0-9]+)", str(error))
        return None, [Problem(int(found[1]) if found else 1, f"is not TOML: {error}", profile=name)]
    problems: list[Problem] = []
    for _ in range(2):  # as it stands, and without what is wrong
        try:
            return ProfileText.model_validate(tree), problems
        except ValidationError as error:
            wrong = faults(error)
        problems += (
            Problem(_line(text, where), f"{'.'.join(where)}: {sentence}", profile=name) for where, sentence in wrong
        )
        for where, _sentence in wrong:
            _leave_out(tree, where)
    return None, problems


def _leave_out(tree: dict[str, Any], where: Sequence[str]) -> None:
    """A key that is wrong, so that all others can still be looked at. The tables of a list stay in their places."""
    match where:
        case [("field" | "station" | "message") as word, index, key, *_] if isinstance(tree[word], list):
            entry = tree[word][int(index)]
            entry.pop(key, None)
            if key == "to":  # nobody knows what the rest of it means
                entry.clear()
            if key in INSTEAD:
                entry[key] = INSTEAD[key]
        case ["tables", name, key, *_] if isinstance(tree["tables"].get(name), dict):
            tree["tables"][name].pop(key, None)
        case ["controls", "meanings", key, *_] if isinstance(tree["controls"].get("meanings"), dict):
            tree["controls"]["meanings"].pop(key, None)
        case [("tables" | "identity" | "controls") as word, key, *_] if isinstance(tree[word], dict):
            tree[word].pop(key, None)
        case [("name" | "extends") as word, *_]:
            tree[word] = INSTEAD[word]
        case [word, *_]:
            tree.pop(word, None)


def _line(text: str, where: Sequence[str]) -> int:
    """where: `field 3 to`, `tables priority S`, `identity known`, `name`."""
    match where:
        case ["messages", *_]:
            return line_of(text, "", key="messages")
        case [word, index, *rest] if index.isdigit():
            return line_of(text, word, int(index), rest[0] if rest else "")
        case ["tables", name, *rest]:
            return line_of(text, f"tables.{name}", 0, rest[0] if rest else "")
        case ["controls", "meanings", *rest]:
            return line_of(text, "controls.meanings", 0, rest[0] if rest else "")
        case [word, key, *_]:
            return line_of(text, word, 0, key)
        case [key]:
            return line_of(text, "", key=key) if line_of(text, "", key=key) > 1 else line_of(text, key)
    return 1


def _reads_rows(levels: Mapping[str, tuple[Filled, ...]]) -> bool:
    """Whether it can read a CSV file: a row without a patient is refused."""
    return any(
        path.column
        for filled in levels["patient"]
        if filled.target.name == "id"
        for rule in filled.rules
        for path, _ in rule.sources
    )


class _Compiler:
    """Collects what is wrong instead of stopping at the first. chain: the profile, then what it extends. is_whole: all
    of these; else nobody knows which tables there are. columns: what names one of a CSV file."""

    def __init__(self, chain: Sequence[tuple[ProfileText, str]], is_whole: bool, fields_max: int) -> None:
        self.chain, self.is_whole, self.fields_max = chain, is_whole, fields_max
        self.problems: list[Problem] = []
        self.text, self.name = chain[0][1], chain[0][0].name
        self.used: set[str] = set()
        self.columns: list[Problem] = []

    def wrong(self, where: Sequence[str], text: str, *, warning: bool = False) -> None:
        self.problems.append(self._problem(where, text, warning=warning))

    def _problem(self, where: Sequence[str], text: str, *, warning: bool) -> Problem:
        return Problem(_line(self.text, where), text, warning, self.name)

    def profile(self) -> Profile:
        said = self.chain[0][0]
        tables = self._tables()
        identity: dict[str, Any] = {}
        meanings: dict[str, str] = dict(BUILT_IN)
        enabled, messages = frozenset(MEANINGS), ()
        for one, _ in reversed(self.chain):
            identity |= one.identity.model_dump(exclude_none=True)
            meanings |= one.controls.meanings
            if one.controls.enabled is not None:
                enabled = frozenset(one.controls.enabled)
            messages = tuple(one.messages) or messages  # type: ignore[assignment]
        self._look_at_types()
        levels = self._levels(tables)
        profile = Profile(
            name=said.name,
            description=said.description,
            messages=messages,
            levels=levels,
            stations=self._stations(),
            identity=IdentityText(**identity),
            enabled=enabled,
            meanings=meanings,
            rules=self._rules(),
            chain=tuple(one.name for one, _ in self.chain[1:]),
            steps_by=frozenset(
                path.segment for filled in levels["step"] for rule in filled.rules for path, _ in rule.sources
            ),
        )
        if self.is_whole and not _reads_rows(levels):
            self.problems += self.columns
        self._at(0)
        for name in said.tables if self.is_whole else ():
            if name not in self.used:
                self.wrong(["tables", name], f"no field uses the table {name}", warning=True)
        return replace(profile, warnings=tuple(one for one in self.problems if one.warning))

    def _at(self, n: int) -> ProfileText:
        said, self.text = self.chain[n]
        self.name = said.name
        return said

    def _look_at_types(self) -> None:
        """A message of a type that nobody reads is refused before its profile is asked, unless the profile ignores
        it."""
        ignored = {entry.type for one, _ in self.chain for entry in one.message if entry.means == "ignore"}
        ignored |= {kind.partition("^")[0] for kind in ignored}
        for n in range(len(self.chain)):
            said = self._at(n)
            named = [(kind, ["messages"]) for kind in said.messages]
            named += [(entry.type, ["message", str(at), "type"]) for at, entry in enumerate(said.message)]
            for kind, where in named:
                if not is_read(kind) and not {kind, kind.partition("^")[0]} & ignored:
                    known = sorted(one for one in TYPES if one.partition("^")[0] == kind.partition("^")[0])
                    known = known or sorted({one.partition("^")[0] for one in TYPES})
                    self.wrong(where, f"{kind}: no such message is read; {', '.join(known)} are", warning=True)

    def _look_at(self, path: Path, text: str, where: Sequence[str]) -> None:
        """A path that can be written and finds nothing in any message."""
        if path.column:
            sentence = f"{text}: a message has no columns; of a CSV file the profile would say patient.id by one, too"
            self.columns.append(self._problem(where, sentence, warning=True))
        elif path.number >= self.fields_max + (path.segment == "MSH"):  # MSH-1 is the sign before its first field
            limit = f"limits.mllp_fields_max ({self.fields_max})"
            self.wrong(where, f"{text}: a segment has no such field, by {limit}", warning=True)

    def _tables(self) -> dict[str, dict[str, str]]:
        """A table of the same name adds to the one below, or changes it."""
        tables: dict[str, dict[str, str]] = {}
        for one, _ in reversed(self.chain):
            for name, entries in one.tables.items():
                tables[name] = tables.get(name, {}) | entries
        return tables

    def _levels(self, tables: dict[str, dict[str, str]]) -> dict[str, tuple[Filled, ...]]:
        """What a profile says of a target stands in place of all that those below say of it."""
        filled: dict[str, tuple[int, list[Rule]]] = {}
        for n in range(len(self.chain)):
            for index, entry in enumerate(self._at(n).field):
                known = filled.setdefault(entry.to, (n, []))
                rule = self._rule(entry, index, tables)
                if known[0] == n and rule is not None:
                    known[1].append(rule)
        levels: dict[str, list[Filled]] = {level: [] for level in LEVELS}
        for name, (_, rules) in sorted(filled.items()):
            if (target := TARGETS.get(name)) and any(rule.sources or rule.default is not None for rule in rules):
                levels[target.level].append(Filled(target, keyword_of(target), tuple(rules)))
        return {level: tuple(found) for level, found in levels.items()}

    def _rule(self, entry: FieldText, index: int, tables: dict[str, dict[str, str]]) -> Rule | None:
        where = ["field", str(index)]
        target = TARGETS.get(entry.to)
        if target is None:
            self.wrong([*where, "to"], f"no such target: {entry.to}")
            return None
        table = None
        if entry.table:
            if entry.table not in tables:
                if self.is_whole:
                    self.wrong([*where, "table"], f"no such table: {entry.table}")
            else:
                self.used.add(entry.table)
                table = self._table(entry.table, tables[entry.table], target)
        sources = []
        for text in entry.sources:
            try:
                path = paths.parse(text)
            except ConfigError as error:
                self.wrong([*where, "from"], error.text)
                continue
            if path.repetition == ALL and not (
                target.kind.several or target.kind.lines or target.kind.read is ALL_TEXT
            ):
                self.wrong([*where, "from"], f"{text}: {entry.to} takes one value; name a repetition, such as [1]")
            self._look_at(path, text, [*where, "from"])
            sources.append((path, table))
        return Rule(tuple(sources), self._when(entry.when, where), self._default(entry, target, where))

    def _table(self, name: str, entries: dict[str, str], target: Target) -> CodeTable:
        for key, value in entries.items():
            owner = next(n for n, (one, _) in enumerate(self.chain) if key in one.tables.get(name, {}))
            sentence = self._unfit(target, value)
            if sentence:
                text, own_name = self.chain[owner][1], self.chain[owner][0].name
                line = _line(text, ["tables", name, key])
                self.problems.append(Problem(line, f"{key}: {value!r} {sentence} ({target.text})", profile=own_name))
        if target.kind.caseless:
            entries = {key.upper(): value for key, value in entries.items()}
        patterns = tuple(
            (re.compile(fnmatch.translate(key)), value) for key, value in entries.items() if "*" in key or "?" in key
        )
        return CodeTable(entries, patterns, target.kind.caseless)

    def _unfit(self, target: Target, value: str) -> str:
        if target.kind.check is None:
            return "stands where neither a table nor a default can"
        return target.kind.check(value, keyword_of(target)) if value else ""

    def _default(self, entry: FieldText, target: Target, where: Sequence[str]) -> Any:
        if not entry.default:
            return None
        sentence = self._unfit(target, entry.default)
        if sentence:
            self.wrong([*where, "default"], f"{entry.default!r} {sentence}")
            return None
        cell = Segment(ROW, [ROW, entry.default], ROW_DELIMITERS)
        try:
            return target.kind.read(cell, Path(ROW, 1, whole=True), keyword_of(target), Site())
        except BrokerError as error:
            self.wrong([*where, "default"], error.text)
            return None

    def _when(self, texts: Sequence[str], where: Sequence[str], own: Sequence[str] = ()) -> tuple[Condition, ...]:
        found = []
        for text in texts:
            try:
                found.append(paths.condition(text, own=own))
            except ConfigError as error:
                self.wrong([*where, "when"], error.text)
                continue
            if path := found[-1].path:
                self._look_at(path, text, [*where, "when"])
        return tuple(found)

    def _rules(self) -> tuple[MessageRule, ...]:
        return tuple(
            MessageRule(entry.type, self._when(entry.when, ["message", str(index)]), entry.means)
            for n in range(len(self.chain))
            for index, entry in enumerate(self._at(n).message)
        )

    def _stations(self) -> tuple[Station, ...]:
        """The highest priority first; of the same, in their order, a profile's own before those below."""
        found = []
        for n in range(len(self.chain)):
            for index, entry in enumerate(self._at(n).station):
                where = ["station", str(index)]
                for title in entry.ae_titles:
                    if not re.fullmatch(ids.AE_TITLE, title):
                        self.wrong([*where, "ae_titles"], f"{title!r} is no AE title")
                if entry.modality and not values.CODE_STRING.fullmatch(entry.modality):
                    self.wrong([*where, "modality"], f"{entry.modality!r} is no DICOM modality such as CT")
                for name in ("station_name", "location"):
                    if len(getattr(entry, name)) > values.CHARACTERS_MAX["SH"]:
                        self.wrong([*where, name], "is longer than 16 characters")
                if not (entry.ae_titles or entry.station_name or entry.location or entry.modality):
                    self.wrong(where, "the rule says nothing: ae_titles, station_name, location or modality")
                when = self._when(entry.when, where, ASKED)
                if len(when) < len(entry.when):  # with fewer conditions it would go before others
                    continue
                found.append(
                    (n, Station(
                        entry.priority, when, tuple(entry.ae_titles) or None, entry.station_name or None,
                        entry.location or None, entry.modality or None, entry.always, _line(self.text, where),
                    ))
                )  # fmt: skip
        ordered = sorted(found, key=lambda one: -one[1].priority)
        for at, (n, rule) in enumerate(ordered):
            self._at(n)
            self._dead(rule, [one for _, one in ordered[:at]])
        return tuple(rule for _, rule in ordered)

    def _dead(self, rule: Station, before: Sequence[Station]) -> None:
        text = ""
        for condition in rule.when:
            if any(condition.excludes(other) for other in rule.when):
                text = f"never speaks: {condition.text!r} excludes another condition of the same rule"
        for other in before:
            if (other.always or not rule.always) and all(
                any(mine.implies(theirs) for mine in rule.when) for theirs in other.when
            ):
                text = f"never speaks: the rule of line {other.line} goes before it wherever it could"
        if text:
            self.problems.append(Problem(rule.line, text, True, self.name))


ALL_TEXT = TARGETS["step.ScheduledStationName"].kind.read
