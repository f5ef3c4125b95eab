"""Bytes of the journal for a person to read: as text, and segment by segment with the names of the fields."""

import base64
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from broker.errors import BrokerError
from broker.ris_bridge.hl7 import ack, charset, fields, message
from broker.ris_bridge.hl7.message import Segment

# What a terminal obeys or hides: controls, marks of direction and of no width, halves of characters; not the line end.
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
# Of the view by segments, also of a message that was refused because it has more. The text has it whole.
CHARACTERS_MAX = 2_000  # of one value
FIELDS_MAX = 500  # of one segment
VALUES_MAX = 200  # repetitions of a field, components of each, subcomponents of each


def show(raw: bytes, protocol: str, default_set: str, override: str, language: str, limit: int) -> dict[str, Any]:
    """`""`: the text; `_base64`: the bytes; `_segments`: what is HL7, at most `limit` segments; `_segments_left`: how
    many more there are. Bytes that are no text in their set stand as \\xhh."""
    texts: list[str] = []
    shown: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
    left = 0
    for one in raw.split(ack.BETWEEN) if protocol == "hl7" else [raw]:
        text, delimiters = _read(one, default_set, override) if protocol == "hl7" else (_plain(one), "")
        texts.append(text)
        for line in _lines(text) if delimiters else ():
            if len(shown) == limit:
                left += 1
                continue
            segment = _split_up(line, delimiters)
            seen[segment.name] += 1
            segment.position = seen[segment.name]
            shown.append(_segment(segment, language))
    return {
        "": "\n".join(texts),
        "_base64": base64.b64encode(raw).decode("ascii"),
        "_segments": shown,
        "_segments_left": left,
    }


def _read(raw: bytes, default_set: str, override: str) -> tuple[str, str]:
    """Text and delimiters; no delimiters where it is no HL7."""
    try:
        head = message.header(raw, default_set, override)
    except BrokerError:
        return _plain(raw), ""
    try:
        return charset.decode(raw, override or head[18], default_set)[0], head.delimiters
    except BrokerError:
        return _plain(raw), head.delimiters


def _plain(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _lines(text: str) -> Iterator[str]:
    return filter(None, (line.strip("\n") for line in text.split("\r" if "\r" in text else "\n")))


def _split_up(line: str, delimiters: str) -> Segment:
    """As it stands, also where it could not be taken."""
    values = line.split(delimiters[0], FIELDS_MAX)[:FIELDS_MAX]
    if values[0] in ("MSH", "FHS", "BHS"):  # the first field of these is the separator itself
        values.insert(1, delimiters[0])
    return Segment(values[0][:CHARACTERS_MAX], values, delimiters)


def _segment(segment: Segment, language: str) -> dict[str, Any]:
    return {
        "segment": segment.name,
        "position": segment.position,
        "name": fields.segment_name(segment.name, language),
        "fields": [
            {"field": f"{segment.name}-{number}", "number": number,
             "name": fields.field_name(segment.name, number, language), "repetitions": _values(segment, number)}
            for number in range(1, len(segment.fields))
            if segment.field(number)
        ],
    }  # fmt: skip


def _values(segment: Segment, number: int) -> list[list[Any]]:
    """Repetitions of components; a component of several subcomponents is a list of them."""
    if segment.name in ("MSH", "FHS", "BHS") and number <= 2:
        return [[segment.field(number)]]
    _, component, repetition, _, subcomponent = [*segment.delimiters]
    return [
        [
            parts[0] if len(parts := [_text(part, segment) for part in _split(one, subcomponent)]) == 1 else parts
            for one in _split(whole, component)
        ]
        for whole in _split(segment.field(number), repetition)
    ]


def _split(text: str, delimiter: str) -> list[str]:
    return text.split(delimiter, VALUES_MAX)[:VALUES_MAX] if delimiter != "\0" else [text]


def _text(value: str, segment: Segment) -> str:
    try:
        text = message.unescape(value, segment.delimiters)
    except BrokerError:
        text = value
    return text if len(text) <= CHARACTERS_MAX else text[:CHARACTERS_MAX] + "…"


def visible(text: str) -> str:
    """As it may stand on a terminal: whoever sends a message must not write there."""
    return UNSEEN.sub(lambda found: _written(found, "\\x"), text)


def visible_json(text: str) -> str:
    """The same of JSON, which it stays."""
    return UNSEEN.sub(lambda found: _written(found, ""), text)


def _written(found: re.Match[str], short: str) -> str:
    number = ord(found[0])
    return f"{short}{number:02x}" if short and number < 0x100 else f"\\u{number:04x}"


def lines(segments: list[dict[str, Any]]) -> list[str]:
    """The view as text: one line for each field."""
    shown = []
    for segment in segments:
        shown.append(f"{segment['segment']} {segment['position']} {segment['name']}".rstrip())
        for one in segment["fields"]:
            values = " ~ ".join(
                " ^ ".join(" & ".join(part) if isinstance(part, list) else part for part in repetition)
                for repetition in one["repetitions"]
            )
            shown.append(f"  {one['field']} {one['name']}: ".replace(" : ", ": ") + values.replace("\n", "\n    "))
    return [visible(line) for line in shown]
