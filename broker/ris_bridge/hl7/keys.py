"""What a message is about, from its bytes alone: for one that was refused before it could be read (nobody knows its
sender, or its character set), so that it is found by its numbers all the same. A best effort: it never fails, and
proves nothing."""

import re
from collections.abc import Iterator
from itertools import islice

from broker.ris_bridge.inbox import KEY_CHARACTERS_MAX
from broker.ris_bridge.turns import Keys

# Where a message names what it is about. Repetitions and component 1.
KEYS = (
    ("patient", "PID", 3), ("patient", "MRG", 1), ("accession", "IPC", 1), ("accession", "OBR", 18),
    ("placer", "ORC", 2), ("placer", "OBR", 2), ("filler", "ORC", 3), ("filler", "OBR", 3),
    ("placer", "SCH", 26), ("filler", "SCH", 27), ("appointment", "SCH", 1), ("appointment", "SCH", 2),
    ("study", "IPC", 3), ("study", "ZDS", 1),
)  # fmt: skip
KEYS_MAX = 200  # of one message
BYTES_MAX = 256 * 1024  # looked at
REPETITIONS_MAX = 200  # of one field
FIELDS = {
    name: [(kind, number) for kind, segment, number in KEYS if segment == name] for name in {one for _, one, _ in KEYS}
}
FIELDS_MAX = max(number for _, _, number in KEYS)
HEAD = re.compile(r"(?:^|[\r\n])MSH([^\w\s])(.)(.?)(.?)")
# Two-byte text of ISO 2022, whose bytes look like delimiters; it ends with the segment at the latest (RFC 1468).
TWO_BYTES = re.compile(rb"\x1b\$\(?[@BD][^\x1b\r\n]*|\x1b\([A-Z]")
CODECS = ("utf-8", "euc_jp", "cp932")  # in which a byte of a character looks like no delimiter, once it is decoded


def of(raw: bytes) -> Keys:
    """Those that are ASCII, as numbers are."""
    return frozenset(islice(dict.fromkeys(_said(_text(raw[:BYTES_MAX]))), KEYS_MAX))


def _text(raw: bytes) -> str:
    raw = TWO_BYTES.sub(b"", raw)
    for codec in CODECS:
        try:
            return raw.decode(codec)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def _said(text: str) -> Iterator[tuple[str, str]]:
    head = HEAD.search(text)
    if head is None:
        return
    field, component, repetition, escape = head.groups()
    for segment in re.split(r"[\r\n]+", text[head.start() :]):
        name, *values = segment.split(field, FIELDS_MAX + 1)
        for kind, number in FIELDS.get(name, ()):
            value = values[number - 1] if number <= len(values) else ""
            for one in value.split(repetition, REPETITIONS_MAX)[:REPETITIONS_MAX] if repetition else [value]:
                key = one.partition(component)[0].strip()
                if key and key != '""' and key.isascii() and key.isprintable() and not (escape and escape in key):
                    yield kind, key[:KEY_CHARACTERS_MAX]
