"""Where a value stands in a message, and conditions on what stands there.

`OBR-24`, `PID-3.4.2` (component, subcomponent), `IPC-7[2]` (the second repetition), `IPC-7[*]` (all), `OBR-12.*` (the
whole field as text), `col:NAME` (a column of a CSV file). Pure."""

import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from broker.errors import ConfigError
from broker.ris_bridge.hl7.message import Segment, escape

PATH = re.compile(
    r"(?P<segment>[A-Z][A-Z0-9]{2})-(?P<number>[1-9][0-9]?[0-9]?)(?:\[(?P<repetition>[1-9][0-9]?|\*)\])?"
    r"(?:\.(?P<component>[1-9][0-9]?|\*)(?:\.(?P<subcomponent>[1-9][0-9]?))?)?"
)
COLUMN = re.compile(r"col:(?P<column>[^\[\]]+?)(?:\[(?P<repetition>[1-9][0-9]?|\*)\])?")
OWN = re.compile(r"[a-z]+\.[A-Za-z_]+")
SIGNS = ("=", "!", "~", "<", ">")
CONDITION = re.compile(r"(?P<not>!?)\s*(?P<path>[^\s=!~]+)\s*(?:(?P<sign>!=|!~|=|~)\s*(?P<value>.*))?")
ROW = "ROW"  # what a row of a CSV file is called in a scope
ROW_DELIMITERS = "\0^~\0\0"  # a cell may hold a code (`6000…^胸部単純CT^JJ1017-16M`) and several values
ALL = -1
Scope = Mapping[str, Segment]


@dataclass(frozen=True)
class Path:
    """repetition: 0 = not stated, ALL = `[*]`. whole: the field as text. text: as the profile writes it."""

    segment: str
    number: int = 0
    component: int = 1
    subcomponent: int = 1
    repetition: int = 0
    whole: bool = False
    column: str = ""
    text: str = ""

    def find(self, scope: Scope) -> tuple[Segment, "Path"] | None:
        """The segment and the path in it. A column has its number from the header of its file."""
        segment = scope.get(self.segment)
        if segment is None:
            return None
        if not self.column:
            return segment, self
        number = segment.columns.get(self.column) if isinstance(segment, Row) else None
        return None if number is None else (segment, replace(self, number=number))


@dataclass
class Row(Segment):
    """A row of a CSV file as if it were a segment: its cells are fields."""

    columns: Mapping[str, int] = None  # type: ignore[assignment]

    def place(self, number: int) -> str:
        name = next((name for name, at in self.columns.items() if at == number), str(number))
        return f"line {self.position}, {name}"


def row(header: Sequence[str], cells: Sequence[str], line: int) -> Row:
    """header: the file's first line. line: where the row stands, for errors."""
    columns = {name.strip(): at for at, name in enumerate(header, 1)}
    return Row(ROW, [ROW, *cells], ROW_DELIMITERS, line, columns)


def parse(text: str) -> Path:
    """Raises ConfigError with a sentence."""
    if found := PATH.fullmatch(text):
        whole = found["component"] == "*"
        return Path(
            segment=found["segment"], number=int(found["number"]),
            component=1 if whole else int(found["component"] or 1), subcomponent=int(found["subcomponent"] or 1),
            repetition=_repetition(found["repetition"]), whole=whole, text=text,
        )  # fmt: skip
    if found := COLUMN.fullmatch(text):
        repetition = _repetition(found["repetition"])
        return Path(ROW, repetition=repetition, whole=not repetition, column=found["column"].strip(), text=text)
    raise ConfigError("path", f"{text!r} is no path such as OBR-24, PID-3.4.2, IPC-7[2], OBR-12.* or col:NAME")


def _repetition(text: str | None) -> int:
    return ALL if text == "*" else int(text or 0)


def picked(segment: Segment, path: Path) -> Segment:
    """The segment as if its field had the stated repetition alone. None stated: an empty one before all others says
    nothing."""
    if path.repetition <= 0:
        sign, field = segment.delimiters[2], segment.field(path.number)
        return with_field(segment, path.number, field.lstrip(sign)) if field[:1] == sign else segment
    said = segment.repetitions(path.number)
    one = said[path.repetition - 1] if len(said) >= path.repetition else ""
    return with_field(segment, path.number, one)


def with_field(segment: Segment, number: int, value: str) -> Segment:
    fields = list(segment.fields)
    fields[number] = value
    return replace(segment, fields=fields)


def read(segment: Segment, path: Path) -> str:
    """Unescaped text; empty where absent. Of the first repetition: see `picked`."""
    return segment.text(path.number) if path.whole else segment.get(path.number, path.component, path.subcomponent)


def written(value: str, delimiters: str) -> str:
    """A value of a code table as a field: `^` parts components, everything else is text."""
    if value.isalnum() or delimiters == ROW_DELIMITERS:
        return value
    return delimiters[1].join(escape(part, delimiters) for part in value.split("^"))


# Conditions


@dataclass(frozen=True)
class Condition:
    """sign: `=`, `~` (with * and ?), or empty: is there. values: any of them. own: of what was mapped before."""

    path: Path | None
    sign: str
    values: tuple[str, ...]
    positive: bool
    own: str
    text: str

    def holds(self, scope: Scope, own: Mapping[str, str | None]) -> bool:
        return self._is(scope, own) == self.positive

    def _is(self, scope: Scope, own: Mapping[str, str | None]) -> bool:
        if self.path is None:
            said = own.get(self.own) or ""
        elif not self.path.number and not self.path.column:
            return self.path.segment in scope
        else:
            found = self.path.find(scope)
            said = read(picked(*found), found[1]).strip() if found else ""
        if not self.sign:
            return bool(said)
        if self.sign == "=":
            return said in self.values
        return any(fnmatch.fnmatchcase(said, value) for value in self.values)

    def implies(self, other: "Condition") -> bool:
        """Wherever this holds, the other holds, too. As far as it can be told without messages."""
        if self == other:
            return True
        if self.path != other.path or self.own != other.own or not (self.positive and self.sign == "="):
            return False
        return all(other._allows(value) for value in self.values)

    def excludes(self, other: "Condition") -> bool:
        """Never both hold."""
        if self.path != other.path or self.own != other.own or not (self.positive and self.sign == "="):
            return False
        return not any(other._allows(value) for value in self.values)

    def _allows(self, value: str) -> bool:
        if not self.sign:
            return bool(value) == self.positive
        if self.sign == "=":
            return (value in self.values) == self.positive
        return any(fnmatch.fnmatchcase(value, one) for one in self.values) == self.positive


def condition(text: str, *, own: Collection[str] = ()) -> Condition:
    """`OBR-24 = CT|MR`, `PV1-2 != I`, `MSH-4 ~ HOSP*`, `MSH-4 !~ X*`, `OBR-44` (is there), `!IPC` (is not there). own:
    of what was mapped, what may be asked for, too, such as `step.modality = CT`."""
    found = CONDITION.fullmatch(text.strip())
    if not found or (found["not"] and found["sign"]):
        raise ConfigError(
            "when", f"{text!r} is no condition: it is written like OBR-24 = CT|MR, PV1-2 != I, MSH-4 ~ HOSP*, !IPC"
        )
    sign, name = found["sign"] or "", found["path"]
    if sign and found["value"][:1] in SIGNS and found.end("sign") == found.start("value"):
        raise ConfigError("when", f"{text!r} has another sign than =, !=, ~ or !~; a value that begins with one stands"
                          " after a blank")  # fmt: skip
    path = None
    if own and OWN.fullmatch(name):
        if name not in own:
            raise ConfigError("when", f"{name} is not known where it is asked for; {', '.join(own)} are")
    elif re.fullmatch(r"[A-Z][A-Z0-9]{2}", name) and not sign:
        path = Path(name, text=name)
    else:
        path = parse(name)
    if path is not None and path.repetition == ALL:
        raise ConfigError("when", f"{name} asks for one repetition: [1]")
    return Condition(
        path=replace(path, text="") if path else None,
        sign=sign.removeprefix("!"),
        values=tuple(value.strip() for value in (found["value"] or "").split("|")) if sign else (),
        positive=not (found["not"] or sign.startswith("!")),
        own="" if path else name,
        text=text.strip(),
    )


def all_hold(conditions: Sequence[Condition], scope: Scope, own: Mapping[str, str | None]) -> bool:
    return all(one.holds(scope, own) for one in conditions)
