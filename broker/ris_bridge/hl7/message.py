"""An HL7 v2 message read by position. The raw bytes are the truth; nothing is written back (architecture.md 8)."""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import AnyStr

from broker.config import Limits
from broker.errors import InvalidValue, MissingField, Unreadable, Unsupported
from broker.ris_bridge.hl7 import charset

SEGMENT = re.compile(r"[A-Z][A-Z0-9]{2}")
PATH = re.compile(r"([A-Z][A-Z0-9]{2})-(\d+)(?:\.(\d+))?(?:\.(\d+))?")
VERSIONS = ("2.2", "2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8", "2.8.1", "2.8.2")
SIGN = r"[!-/:-@\[-`{-~]"
USUAL_SIGNS = "^~\\&"
HEADER_BYTES_MAX = 64 * 1024
SWITCHING = re.compile(r'(?:""|ISO[ -]?2022(?:[ -]?1994)?|2\.\d(?:\.\d)?)?')  # table 0356 in MSH-20
REMEMBERED_CHARACTERS_MAX = 200
PIECES = ("ADD", "DSC")  # a segment, or a message, that goes on (HL7 2.5.1 2.10.2): half of it would look whole
TYPE = re.compile(r"[A-Z0-9]{2,8}(?:\^[A-Z0-9]{0,8})?")
UNTYPED = "?"


@dataclass(frozen=True)
class Header:
    """MSH, readable before the rest is. delimiters: field, component, repetition, escape, subcomponent. raw: the fields
    as they came, for an answer in the same character set."""

    delimiters: str
    fields: tuple[str, ...]  # MSH-1 is fields[1]
    raw: tuple[bytes, ...]

    def __getitem__(self, number: int) -> str:
        return self.fields[number] if number < len(self.fields) else ""

    @property
    def sender(self) -> str:
        return f"{self[3]}|{self[4]}"

    @property
    def type(self) -> str:
        """`OMI^O23`: message code and trigger event. What is none is not repeated, in log, journal and list."""
        code = "^".join(self[9].split(self.delimiters[1])[:2])
        return code if not code or TYPE.fullmatch(code) else UNTYPED


@dataclass
class Segment:
    name: str
    fields: list[str]
    delimiters: str
    position: int = 1  # the how-manieth of its name in the message

    def field(self, number: int) -> str:
        return self.fields[number] if number < len(self.fields) else ""

    def repetitions(self, number: int) -> list[str]:
        """Without the empty ones at the end, which say nothing."""
        value = self.field(number).rstrip(self.delimiters[2])
        return value.split(self.delimiters[2]) if value else []

    def get(self, number: int, component: int = 1, subcomponent: int = 1, repetition: int = 1) -> str:
        """Unescaped text; empty where absent. `""` (explicit null) stays `""`."""
        repetitions = self.repetitions(number)
        return (
            part(repetitions[repetition - 1], self.delimiters, component, subcomponent)
            if len(repetitions) >= repetition
            else ""
        )

    def text(self, number: int) -> str:
        """A whole field, unescaped."""
        return unescape(self.field(number), self.delimiters)

    def place(self, number: int) -> str:
        """`IPC^1^3`: as ERR-2 says it."""
        return f"{self.name}^{self.position}^{number}"


@dataclass
class Message:
    header: Header
    segments: list[Segment]
    vendor_characters: bool = False
    _index: dict[str, list[Segment]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for segment in self.segments:
            known = self._index.setdefault(segment.name, [])
            known.append(segment)
            segment.position = len(known)

    def all(self, name: str) -> list[Segment]:
        return self._index.get(name, [])

    def first(self, name: str) -> Segment | None:
        return next(iter(self.all(name)), None)

    def __getitem__(self, path: str) -> str:
        """`OBR-18`, `PID-3.4`, `PID-5.1.1` of the first segment of that name; empty where absent."""
        match = PATH.fullmatch(path)
        assert match, path
        segment = self.first(match[1])
        return segment.get(int(match[2]), int(match[3] or 1), int(match[4] or 1)) if segment else ""


def header(raw: bytes, default_set: str, override: str = "") -> Header:
    """MSH alone, in the set that it names (conformance.md 5.7). Whatever else is wrong, MSH-10 must be found for the
    answer: what is not text is read as Latin-1, and signs that are none as the usual ones; `check` refuses those.

    Raises Unreadable where there is no MSH."""
    if raw.startswith(charset.MARK):
        raw, default_set = raw.removeprefix(charset.MARK), "UTF-8"
    line = raw.lstrip()[:HEADER_BYTES_MAX].split(b"\r" if b"\r" in raw else b"\n", 1)[0]
    return _header(line, default_set, override)


@lru_cache(64)
def _header(line: bytes, default_set: str, override: str) -> Header:
    separator = line[3:4]
    if not line.startswith(b"MSH") or not re.fullmatch(SIGN, separator.decode("latin_1")):
        raise Unreadable("MSH", "the message does not begin with MSH")
    fields = charset.split(line[4:], separator, override)
    declared = override or b"".join(fields[16:17]).decode("latin_1")
    fields = [b"MSH", separator, *charset.split(line[4:], separator, declared or default_set)]
    signs = fields[2][:4].decode("latin_1")
    if not re.fullmatch(SIGN + "+", signs) or len(set(signs)) < len(signs):
        signs = USUAL_SIGNS
    texts = tuple(_header_text(value, declared, default_set) for value in fields)
    return Header(separator.decode() + signs.ljust(4, "\0"), texts, tuple(fields))


def _header_text(value: bytes, declared: str, default_set: str) -> str:
    text = ""
    if not value.isascii() or b"\x1b" in value:
        with contextlib.suppress(InvalidValue):
            text, _ = charset.decode(value, declared, default_set)
    text = text or value.decode("latin_1")
    return text.replace("\0", "")  # a refusal is kept, too, and no text of PostgreSQL holds a NUL


def parse(raw: bytes, limits: Limits, default_set: str, override: str = "") -> Message:
    """override: a sender's character set, in place of MSH-18. Raises the error that the acknowledgement says."""
    head = header(raw, default_set, override)
    declared = override or head[18]
    text, vendor = charset.decode(raw, declared, default_set)
    text = _hexadecimal(text, head.delimiters, lambda data: charset.decode(data, declared, default_set)[0])
    lines = segment_lines(_without_nul(text).strip("\r\n"))
    if len(lines) > limits.mllp_segments_max:
        raise InvalidValue("message", f"has more than {limits.mllp_segments_max} segments", err="100")
    segments = [_segment(line, head.delimiters, limits, n) for n, line in enumerate(lines)]
    for segment in segments:
        if segment.name in PIECES and segment.field(1):
            raise InvalidValue(f"{segment.name}^1", "says that there is more of it elsewhere; send it whole", err="100")
    return Message(replace(head, fields=tuple(segments[0].fields)), segments, vendor)


def segment_lines(text: AnyStr) -> list[AnyStr]:
    """CR ends a segment, an LF after it says nothing. Only where there is no CR at all does LF end one: an LF inside a
    field stays there, and what somebody typed never becomes a segment (conformance.md 5.6)."""
    if isinstance(text, bytes):
        return [line for line in text.replace(b"\r\n", b"\r").split(b"\r" if b"\r" in text else b"\n") if line]
    return [line for line in text.replace("\r\n", "\r").split("\r" if "\r" in text else "\n") if line]


def _without_nul(text: str) -> str:
    """PostgreSQL keeps no NUL in a text: refused as content, before it looks like trouble with the database."""
    if "\0" in text:
        raise InvalidValue("message", "holds a NUL character", err="102")
    return text


def _segment(line: str, delimiters: str, limits: Limits, number: int) -> Segment:
    name = line[:3]
    if not SEGMENT.fullmatch(name) or line[3:4] not in (delimiters[0], ""):
        raise InvalidValue(f"segment {number + 1}", "has no segment name", err="100")
    if name != "OBX" and len(line) > limits.mllp_segment_bytes_max:
        raise InvalidValue(name, f"is longer than {limits.mllp_segment_bytes_max} bytes", err="102")
    if line.count(delimiters[0]) >= limits.mllp_fields_max:  # before it costs anything to split it
        raise InvalidValue(name, f"has more than {limits.mllp_fields_max} fields", err="102")
    fields = line.split(delimiters[0])
    if name == "MSH":
        fields.insert(1, delimiters[0])
    elif name != "OBX":
        for sign, limit, what in (
            (delimiters[2], limits.mllp_repetitions_max, "repetitions"),
            (delimiters[1], limits.mllp_components_max, "components"),
        ):
            if line.count(sign) >= limit and max(field.count(sign) for field in fields) >= limit:
                raise InvalidValue(name, f"has more than {limit} {what}", err="102")
    return Segment(name, fields, delimiters)


def check(head: Header) -> None:
    """Version and processing ID (errors 203 and 202); MSH-9 and MSH-10 are there, and delimiters to read with."""
    if head.delimiters[1:].rstrip("\0") != head[2][:4]:
        raise Unreadable("MSH^1^2", "the encoding characters are not up to four different signs")
    for number, what in ((9, "message type"), (10, "message control ID")):
        if not head[number].strip():
            raise MissingField(f"MSH^1^{number}", f"{what} is required")
    version = head[12].split(head.delimiters[1])[0]
    if version not in VERSIONS:
        raise Unsupported("MSH^1^12", "versions 2.2 to 2.8 are supported", err="203")
    if not SWITCHING.fullmatch(head[20].strip().upper()):
        raise InvalidValue("MSH^1^20", "is no way to switch character sets that is known: ISO 2022-1994", err="102")
    if head[11].split(head.delimiters[1])[0] not in ("P", ""):
        raise Unsupported("MSH^1^11", "only production messages (P) are taken here", err="202")


def part(value: str, delimiters: str, component: int = 1, subcomponent: int = 1) -> str:
    """One component's subcomponent of a repetition, unescaped."""
    read = _remembered_part if len(value) <= REMEMBERED_CHARACTERS_MAX else _part
    return read(value, delimiters, component, subcomponent)


def _part(value: str, delimiters: str, component: int, subcomponent: int) -> str:
    components = value.split(delimiters[1])
    if len(components) < component:
        return ""
    inner = components[component - 1].split(delimiters[4]) if delimiters[4] != "\0" else [components[component - 1]]
    return unescape(inner[subcomponent - 1], delimiters) if len(inner) >= subcomponent else ""


_remembered_part = lru_cache(2048)(_part)  # of one order some eighty are asked for, and many are the same


def unescape(text: str, delimiters: str) -> str:
    r"""\F\ \S\ \T\ \R\ \E\ \P\ \.br\ \Xhh..\ and highlighting. A decoded CR stays inside its value; what is no escape
    sequence is text."""
    mark = delimiters[3]
    if mark == "\0" or mark not in text:
        return text
    return _escapes(mark).sub(lambda found: _escape(found["code"], delimiters), text)


def _escape(code: str, delimiters: str) -> str:
    if (sign := _signs(delimiters).get(code)) is not None:
        return sign
    if code.startswith("."):
        return "\n" if code[:3].lower() in (".br", ".sp", ".ce") else " "
    if code.startswith("X") and len(code) % 2 == 1 and len(code) > 1:
        data = bytes.fromhex(code[1:])
        if data.isascii():
            return _without_nul(data.decode("ascii"))
    if code[0] in ("C", "M"):
        raise InvalidValue("message", "character set escapes are not supported; declare the set in MSH-18", err="102")
    return delimiters[3] + code + delimiters[3]


@lru_cache(64)
def _signs(delimiters: str) -> dict[str, str]:
    named = {name: sign for name, sign in zip("FSRET", delimiters, strict=True) if sign != "\0"}
    return {"T": "&", "P": "#", "H": "", "N": "", **named}


@lru_cache(64)
def _escapes(mark: str) -> re.Pattern[str]:
    """One escape sequence, its inside in `code`. Never longer than up to the next mark: linear on any text."""
    m, h = re.escape(mark), "[0-9A-Fa-f]"
    inside = rf"[FSRETPHN]|\.[A-Za-z]{{2}}[ +-]?\d*|X{h}*|C{h}{{4}}|M{h}{{4}}(?:{h}{{2}})?|Z[0-9A-Za-z]*"
    return re.compile(f"{m}(?P<code>{inside}){m}")


def escape(text: str, delimiters: str = "|" + USUAL_SIGNS) -> str:
    """For output; `unescape` gives the same text again. delimiters: all five. No control character stays, which would
    end a segment or a frame."""
    mark = delimiters[3]
    table = {code: f"{mark}X{code:02X}{mark}" for code in range(1, 0x20)}
    table |= {ord(sign): f"{mark}{name}{mark}" for name, sign in zip("FSRET", delimiters, strict=True)}
    return text.translate(table | {0x0A: f"{mark}.br{mark}"})


def _hexadecimal(text: str, delimiters: str, read: Callable[[bytes], str]) -> str:
    r"""`\Xhh..\` beyond ASCII as the characters that these bytes are in the message's own set: one character may take
    several bytes, and several sequences. What is ASCII in them stays escaped: it delimits nothing."""
    mark = delimiters[3]
    m, h = re.escape(mark), "[0-9A-Fa-f]"
    if mark == "\0" or not re.search(f"{m}X(?:{h}{h})*?(?:[89A-Fa-f]{h}|1[Bb])", text):
        return text

    def characters(found: re.Match[str]) -> str:
        data = bytes.fromhex(found["bytes"].replace(mark + "X", "").replace(mark, "")) if found["bytes"] else b""
        if data.isascii() and b"\x1b" not in data:
            return found[0]
        return "".join(char if char > "\x7f" else f"{mark}X{ord(char):02X}{mark}" for char in read(data))

    several = f"(?P<bytes>(?:{m}X(?:{h}{h})++{m})++)"
    return re.sub(f"{several}|{_escapes(mark).pattern}", characters, text)


def groups(segments: list[Segment], starts: str) -> Iterator[list[Segment]]:
    """Runs that begin with a segment of that name; what comes before the first is left out."""
    current: list[Segment] = []
    for segment in segments:
        if segment.name == starts:
            if current:
                yield current
            current = [segment]
        elif current:
            current.append(segment)
    if current:
        yield current
