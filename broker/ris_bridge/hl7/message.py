"""An HL7 v2 message read by position. The raw bytes are the truth; nothing is written back (architecture.md 8)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from broker.config import Limits
from broker.errors import InvalidValue, MissingField, Unreadable, Unsupported
from broker.ris_bridge.hl7 import charset

SEGMENT = re.compile(r"[A-Z][A-Z0-9]{2}")
PATH = re.compile(r"([A-Z][A-Z0-9]{2})-(\d+)(?:\.(\d+))?(?:\.(\d+))?")
VERSIONS = ("2.2", "2.3", "2.3.1", "2.4", "2.5", "2.5.1", "2.6", "2.7", "2.7.1", "2.8", "2.8.1", "2.8.2")
LINE_END = re.compile(rb"\r\n|\r|\n")
SIGN = r"[!-/:-@\[-`{-~]"
USUAL_SIGNS = "^~\\&"
HEADER_BYTES_MAX = 64 * 1024
TYPE_CHARACTERS_MAX = 32  # of a stranger's MSH-9 in log and journal; a real one has 7


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
        """`OMI^O23`: message code and trigger event."""
        return "^".join(self[9].split(self.delimiters[1])[:2])[:TYPE_CHARACTERS_MAX]


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
    line = LINE_END.split(raw.lstrip()[:HEADER_BYTES_MAX], maxsplit=1)[0]
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
    try:
        text, _ = charset.decode(value, declared, default_set)
    except InvalidValue:
        text = value.decode("latin_1")
    return text.replace("\0", "")  # a refusal is kept, too, and no text of PostgreSQL holds a NUL


def parse(raw: bytes, limits: Limits, default_set: str, override: str = "") -> Message:
    """override: a sender's character set, in place of MSH-18. Raises the error that the acknowledgement says."""
    head = header(raw, default_set, override)
    text, vendor = charset.decode(raw, override or head[18], default_set)
    lines = [line for line in re.split(r"\r\n|\r|\n", _without_nul(text).strip("\r\n")) if line]
    if len(lines) > limits.mllp_segments_max:
        raise InvalidValue("message", f"has more than {limits.mllp_segments_max} segments", err="100")
    segments = [_segment(line, head.delimiters, limits, n) for n, line in enumerate(lines)]
    return Message(replace(head, fields=tuple(segments[0].fields)), segments, vendor)


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
    fields = line.split(delimiters[0])
    if name == "MSH":
        fields.insert(1, delimiters[0])
    for limit, what, found in (
        (limits.mllp_fields_max, "fields", len(fields)),
        (limits.mllp_repetitions_max, "repetitions", max(f.count(delimiters[2]) for f in fields) + 1),
        (limits.mllp_components_max, "components", max(f.count(delimiters[1]) for f in fields) + 1),
    ):
        if found > limit and not (name == "OBX" or (name == "MSH" and what != "fields")):
            raise InvalidValue(name, f"has more than {limit} {what}", err="102")
    return Segment(name, fields, delimiters)


def check(head: Header) -> None:
    """Version and processing ID (errors 203 and 202); MSH-9 and MSH-10 are there, and delimiters to read with."""
    if head.delimiters[1:].rstrip("\0") != head[2][:4]:
        raise Unreadable("MSH^1^2", "the encoding characters are not up to four different signs")
    for number, what in ((9, "message type"), (10, "message control ID")):
        if not head[number]:
            raise MissingField(f"MSH^1^{number}", f"{what} is required")
    version = head[12].split(head.delimiters[1])[0]
    if version not in VERSIONS:
        raise Unsupported("MSH^1^12", "versions 2.2 to 2.8 are supported", err="203")
    if head[11].split(head.delimiters[1])[0] not in ("P", ""):
        raise Unsupported("MSH^1^11", "only production messages (P) are taken here", err="202")


def part(value: str, delimiters: str, component: int = 1, subcomponent: int = 1) -> str:
    """One component's subcomponent of a repetition, unescaped."""
    components = value.split(delimiters[1])
    if len(components) < component:
        return ""
    inner = components[component - 1].split(delimiters[4]) if delimiters[4] != "\0" else [components[component - 1]]
    return unescape(inner[subcomponent - 1], delimiters) if len(inner) >= subcomponent else ""


def unescape(text: str, delimiters: str) -> str:
    r"""\F\ \S\ \T\ \R\ \E\ \.br\ \Xhh..\ and highlighting. A decoded CR stays inside its value."""
    mark = delimiters[3]
    if mark == "\0" or mark not in text:
        return text
    pieces = text.split(mark)
    out, at = [pieces[0]], 1
    while at < len(pieces):
        if at + 1 == len(pieces):  # an escape without its end: text
            out.append(mark + pieces[at])
            break
        out.append(_escape(pieces[at], delimiters))
        out.append(pieces[at + 1])
        at += 2
    return "".join(out)


def _escape(code: str, delimiters: str) -> str:
    simple = {"F": delimiters[0], "S": delimiters[1], "R": delimiters[2], "E": delimiters[3], "T": delimiters[4]}
    if code in simple:
        return simple[code]
    if code in ("H", "N"):
        return ""
    if code.startswith("."):
        return "\n" if code in (".br", ".sp") else " "
    if code.startswith("X") and len(code) % 2 == 1 and re.fullmatch(r"[0-9A-Fa-f]+", code[1:]):
        return _without_nul(bytes.fromhex(code[1:]).decode("latin_1"))
    if code[:1] in ("C", "M"):
        raise InvalidValue("message", "character set escapes are not supported; declare the set in MSH-18", err="102")
    return delimiters[3] + code + delimiters[3]


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
