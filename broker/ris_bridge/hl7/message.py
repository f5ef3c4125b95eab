"""An HL7 v2 message, read by position. The raw bytes are the truth: nothing here is ever written back.

The header is read as ASCII first (its delimiters are ASCII), MSH-18 then says how the rest is decoded, and only then
is it split: a JIS or Shift_JIS byte may look like a delimiter (conformance.md 5.6, 5.7). Escapes are decoded last, at
the leaf, so that a decoded delimiter or line end is text and never structure (security V23)."""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from broker.config import Limits
from broker.errors import InvalidValue, Unreadable
from broker.ris_bridge.hl7 import charset

NULL = '""'  # "delete this value"; an empty field says nothing
HEADER_TEXT_MAX = 200  # characters of a header field that are kept for the journal
_BEFORE_MSH = b"\xef\xbb\xbf\r\n\t "  # a byte order mark, blank lines
_NAME = re.compile(r"[A-Z][A-Z0-9]{2}")
_PATH = re.compile(r"([A-Z][A-Z0-9]{2})-(\d+)(?:\.(\d+))?(?:\.(\d+))?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
_LINE_BREAKS = (".br", ".sp", ".ce")
_FORMATTING = re.compile(r"\.(br|sp|ce|sk|in|ti|fi|nf)[+-]?\d*")
_HEX = re.compile(r"X((?:[0-9A-Fa-f]{2})+)")


@dataclass(frozen=True)
class Header:
    """MSH as it came: what an answer needs even where nothing else can be read. fields: MSH-n at n - 1."""

    separator: bytes
    fields: tuple[bytes, ...]

    def raw(self, number: int) -> bytes:
        return self.fields[number - 1] if number <= len(self.fields) else b""

    def text(self, number: int, component: int = 0) -> str:
        """The field, or one component of it, as printable text of bounded length."""
        value = self.raw(number).decode("latin-1")
        if component:
            value = (value.split(self.component_separator) + [""] * component)[component - 1]
        return _CONTROL.sub("?", value)[:HEADER_TEXT_MAX].strip()

    @property
    def component_separator(self) -> str:
        return self.raw(2)[:1].decode("latin-1") or "^"

    @property
    def sender(self) -> str:
        return f"{self.text(3)}|{self.text(4)}"

    @property
    def control_id(self) -> str:
        return self.text(10)

    @property
    def type(self) -> str:
        """`OMI^O23`, whatever the delimiters are."""
        return "^".join(filter(None, (self.text(9, 1), self.text(9, 2))))


def read_header(raw: bytes, limits: Limits) -> Header:
    """MSH of a frame. Raises Unreadable where there is none: there is then nobody to answer."""
    line = re.split(rb"[\r\n]", raw[: limits.mllp_segment_bytes_max].lstrip(_BEFORE_MSH), maxsplit=1)[0]
    separator = line[3:4]
    if not line.startswith(b"MSH") or not _is_delimiter(separator):
        raise Unreadable("MSH", "no MSH segment at the start")
    return Header(separator, tuple(line.split(separator, limits.mllp_fields_max)))


def _is_delimiter(byte: bytes) -> bool:
    return len(byte) == 1 and 0x20 < byte[0] < 0x7F and not byte.isalnum()


@dataclass
class Syntax:
    """How this message is written, and what was odd about it (`notes`: places and reasons, no values)."""

    field: str
    component: str
    repetition: str
    escape: str
    subcomponent: str
    codec: str
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes and len(self.notes) < 100:
            self.notes.append(text)

    def unescape(self, text: str, place: str) -> str:
        """A leaf's text. A stray escape character is kept as it stands, and noted."""
        if not self.escape or self.escape not in text:
            return text
        first, *parts = text.split(self.escape)
        out, at = [first], 0
        while at < len(parts):
            closed = at + 1 < len(parts)
            decoded = self._escaped(parts[at], place) if closed else None
            if decoded is None:
                self.note(f"{place}: escape character left as it stands")
                out.append(self.escape + parts[at])
                at += 1
            else:
                out += (decoded, parts[at + 1])
                at += 2
        return "".join(out)

    def _escaped(self, body: str, place: str) -> str | None:
        """What `\\body\\` means; None where it is no escape sequence."""
        simple = {
            "F": self.field, "S": self.component, "R": self.repetition, "E": self.escape, "T": self.subcomponent,
            "P": "#", "H": "", "N": "",
        }  # fmt: skip
        if body in simple:
            return simple[body]
        if _FORMATTING.fullmatch(body):
            return "\n" if body.startswith(_LINE_BREAKS) else " "
        if match := _HEX.fullmatch(body):
            return _text(bytes.fromhex(match[1]), place, self)
        if body[:1] in ("C", "M") and len(body) in (5, 7):  # \Cxxyy\ and \Mxxyyzz\: conformance.md 5.7
            raise InvalidValue(place, "a character set switch inside a field is not supported", err="102")
        return None


@dataclass(frozen=True)
class Repetition:
    text: str
    place: str
    syntax: Syntax

    def get(self, component: int = 1, sub: int = 0) -> str | None:
        """A component, or one subcomponent of it. None: says nothing; empty: delete."""
        if self.text == NULL:
            return ""
        value = self._nth(self.text, self.syntax.component, component)
        if sub and value != NULL:
            value = self._nth(value, self.syntax.subcomponent, sub)
        return self._leaf(value)

    def whole(self) -> str | None:
        """All of it as one text: for ST, TX and FT, whose senders do not always escape `^` and `&`."""
        return self._leaf(self.text)

    def _nth(self, text: str, separator: str, number: int) -> str:
        if not separator:
            return text if number == 1 else ""
        parts = text.split(separator)
        return parts[number - 1] if number <= len(parts) else ""

    def _leaf(self, text: str) -> str | None:
        if text == NULL:
            return ""
        return self.syntax.unescape(text, self.place).strip() or None


@dataclass(frozen=True)
class Field:
    """One field of one segment; an absent one reads as empty. place: `IPC^2^1` as in ERR-2."""

    text: str
    place: str
    syntax: Syntax
    segment: "Segment | None" = None

    @property
    def repetitions(self) -> list[Repetition]:
        if not self.text:
            return []
        parts = self.text.split(self.syntax.repetition) if self.syntax.repetition else [self.text]
        return [Repetition(part, self.place, self.syntax) for part in parts if part]

    def get(self, component: int = 1, sub: int = 0) -> str | None:
        repetitions = self.repetitions
        return repetitions[0].get(component, sub) if repetitions else None

    def sibling(self, number: int) -> "Field":
        return self.segment.field(number) if self.segment else Field("", self.place, self.syntax)

    def note(self, text: str) -> None:
        self.syntax.note(f"{self.place}: {text}")


class Segment:
    """seq: which one of its name in the message, from 1."""

    def __init__(self, text: str, seq: int, syntax: Syntax) -> None:
        self.name, self.seq, self.text, self.syntax = text[:3], seq, text, syntax

    @functools.cached_property
    def _fields(self) -> list[str]:
        fields = self.text.split(self.syntax.field)
        return [fields[0], self.syntax.field, *fields[1:]] if self.name == "MSH" else fields

    def field(self, number: int) -> Field:
        text = self._fields[number] if number < len(self._fields) else ""
        return Field(text, f"{self.name}^{self.seq}^{number}", self.syntax, self)


class Segments:
    """Some segments of a message, read by paths like `OBR-18` or `PID-3.4.1`. A segment that is not among them is looked
    for in `parent`: an order group sees the message's PID and PV1, a step sees its group's ORC and OBR."""

    def __init__(self, segments: Iterable[Segment], syntax: Syntax, parent: "Segments | None" = None) -> None:
        self.syntax, self.parent = syntax, parent
        self.list = list(segments)
        self._by_name: dict[str, list[Segment]] = {}
        for segment in self.list:
            self._by_name.setdefault(segment.name, []).append(segment)

    def all(self, name: str) -> Sequence[Segment]:
        own = self._by_name.get(name, [])
        return own or (self.parent.all(name) if self.parent else [])

    def own(self, name: str) -> Sequence[Segment]:
        return self._by_name.get(name, [])

    def fields(self, path: str) -> list[Field]:
        """That field of every such segment."""
        name, number, _, _ = parse_path(path)
        return [segment.field(number) for segment in self.all(name)]

    def field(self, path: str) -> Field:
        name, number, _, _ = parse_path(path)
        segments = self.all(name)
        return segments[0].field(number) if segments else Field("", f"{name}^1^{number}", self.syntax)

    def get(self, path: str) -> str | None:
        """The value. None: says nothing; empty: delete."""
        _, _, component, sub = parse_path(path)
        return self.field(path).get(component or 1, sub)

    def __getitem__(self, path: str) -> str:
        return self.get(path) or ""


@functools.lru_cache(maxsize=1024)
def parse_path(path: str) -> tuple[str, int, int, int]:
    """Segment, field, component, subcomponent; 0 where the path does not name one."""
    match = _PATH.fullmatch(path)
    if not match:
        raise ValueError(f"not a path: {path}")
    return match[1], int(match[2]), int(match[3] or 0), int(match[4] or 0)


class Message(Segments):
    def __init__(self, header: Header, segments: list[Segment], syntax: Syntax) -> None:
        super().__init__(segments, syntax)
        self.header = header


def parse(raw: bytes, header: Header, limits: Limits, *, default: str, override: str = "") -> Message:
    """Decode and split. default: character set where MSH-18 is empty; override: in place of MSH-18.

    Raises InvalidValue (102: over a limit, or bytes that the declared set does not have) or Unreadable (100)."""
    syntax = _syntax(header, default, override)
    counts: Counter[str] = Counter()
    segments: list[Segment] = []
    for line in _lines(raw, limits, syntax):
        name = line[:3].decode("latin-1")
        if not _NAME.fullmatch(name) or line[3:4] not in (b"", header.separator):
            before = segments[-1] if segments else None
            raise Unreadable(f"{before.name}^{before.seq}" if before else "MSH^1", "the next line is no segment")
        counts[name] += 1
        place = f"{name}^{counts[name]}"
        if len(line) > limits.mllp_segment_bytes_max and name != "OBX":
            raise InvalidValue(place, f"longer than {limits.mllp_segment_bytes_max} bytes", err="102")
        text = _text(line, place, syntax)
        _check_counts(text, place, syntax, limits)
        segments.append(Segment(text, counts[name], syntax))
    return Message(header, segments, syntax)


def _syntax(header: Header, default: str, override: str) -> Syntax:
    encoding = header.raw(2)
    signs = [encoding[at : at + 1] for at in range(len(encoding))]
    if not signs or not all(map(_is_delimiter, signs)) or len({header.separator, *signs}) != len(signs) + 1:
        raise Unreadable("MSH^1^2", "encoding characters are signs, each another one")
    # A sender may leave out the last ones: it then has no such separator.
    component, repetition, escape, subcomponent = (sign.strip() for sign in encoding.decode("ascii")[:4].ljust(4))
    field_18 = header.raw(18).decode("latin-1")
    declared = field_18.split(repetition) if repetition else [field_18]
    terms = [override] if override else declared if any(declared) else [default]
    return Syntax(
        field=header.separator.decode("ascii"),
        component=component,
        repetition=repetition,
        escape=escape,
        subcomponent=subcomponent,
        codec=charset.codec(terms),
    )


def _lines(raw: bytes, limits: Limits, syntax: Syntax) -> list[bytes]:
    """Segments end with CR. Where there is no CR at all they end with LF; a LF elsewhere belongs to a text."""
    body = raw.lstrip(_BEFORE_MSH)
    end = b"\r" if b"\r" in body else b"\n"
    if body.count(end) > limits.mllp_segments_max:
        raise InvalidValue("MSH^1", f"more than {limits.mllp_segments_max} segments", err="102")
    if end == b"\n" or b"\r\n" in body:
        syntax.note("segments end with LF")
    return [line for part in body.split(end) if (line := part.strip(b"\n"))]


def _text(data: bytes, place: str, syntax: Syntax) -> str:
    try:
        text, vendor = charset.decode(data, syntax.codec)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start + 1} is not in the declared character set ({syntax.codec})"
        raise InvalidValue(place, reason, err="102") from None
    if _CONTROL.search(text):  # what remains of an escape sequence or of another character set
        raise InvalidValue(place, f"control characters: not in the declared character set ({syntax.codec})", err="102")
    if vendor:
        syntax.note(f"{place}: vendor extension characters kept")
    return text


def _check_counts(text: str, place: str, syntax: Syntax, limits: Limits) -> None:
    """Whole-segment counts first: only a segment that could break a limit is looked at field by field."""
    if text.count(syntax.field) > limits.mllp_fields_max:
        raise InvalidValue(place, f"more than {limits.mllp_fields_max} fields", err="102")
    if syntax.repetition and text.count(syntax.repetition) >= limits.mllp_repetitions_max:
        for number, value in enumerate(text.split(syntax.field)):
            if value.count(syntax.repetition) >= limits.mllp_repetitions_max:
                raise InvalidValue(
                    f"{place}^{number}", f"more than {limits.mllp_repetitions_max} repetitions", err="102"
                )
    if text.count(syntax.component) >= limits.mllp_components_max:
        for number, value in enumerate(text.split(syntax.field)):
            parts = value.split(syntax.repetition) if syntax.repetition else [value]
            if any(part.count(syntax.component) >= limits.mllp_components_max for part in parts):
                raise InvalidValue(f"{place}^{number}", f"more than {limits.mllp_components_max} components", err="102")
