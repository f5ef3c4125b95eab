"""Specific Character Set (0008,0005), PS3.5 6.1.2, strict both ways: what does not fit is an error, never `?`."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from broker.errors import Unreadable

ESC = 0x1B
UNKNOWN = "\ufffd"
# Without code extensions: the whole value in one codec.
ALONE = {
    "": "ascii", "ISO_IR 6": "ascii", "ISO_IR 100": "latin_1", "ISO_IR 101": "iso8859_2", "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4", "ISO_IR 144": "iso8859_5", "ISO_IR 127": "iso8859_6", "ISO_IR 126": "iso8859_7",
    "ISO_IR 138": "iso8859_8", "ISO_IR 148": "iso8859_9", "ISO_IR 203": "iso8859_15", "ISO_IR 166": "tis_620",
    "ISO_IR 192": "utf_8", "GB18030": "gb18030", "GBK": "gbk",
}  # fmt: skip
# Single-byte sets that can be designated to G1 by an escape.
G1_ESCAPES = {
    "100": b"\x1b-A", "101": b"\x1b-B", "109": b"\x1b-C", "110": b"\x1b-D", "144": b"\x1b-L", "127": b"\x1b-G",
    "126": b"\x1b-F", "138": b"\x1b-H", "148": b"\x1b-M", "203": b"\x1b-b", "166": b"\x1b-T",
}  # fmt: skip
ASCII_IN, ROMAJI_IN, KANJI_IN, KANJI2_IN = b"\x1b(B", b"\x1b(J", b"\x1b$B", b"\x1b$(D"
KANA_IN, KOREAN_IN, CHINESE_IN = b"\x1b)I", b"\x1b$)C", b"\x1b$)A"
# After these the sets of value 1 are active again (6.1.2.5.3). PN adds its component delimiters.
DELIMITERS, PN_DELIMITERS = "\\\r\n\f\t", "\\\r\n\f\t^="


def terms(value: str) -> tuple[str, ...]:
    """The values of (0008,0005): `\\ISO 2022 IR 87` is ('', 'ISO 2022 IR 87')."""
    return tuple(term.strip(" \0") for term in value.split("\\"))


def supported(charsets: Sequence[str]) -> bool:
    if len(charsets) == 1:
        return charsets[0] in ALONE or charsets[0] == "ISO_IR 13" or bool(_sets(charsets[0]))
    return all(_sets(term) and (term or n == 0) for n, term in enumerate(charsets))


def decode(value: bytes, charsets: Sequence[str], vr: str, *, jis_roman_as_ascii: bool = False) -> str:
    """Raises Unreadable where the bytes are not text in these sets.

    jis_roman_as_ascii: 7E of JIS X 0201 Roman is the `~` that HL7 senders mean, not the overline of the standard."""
    try:
        if value.isascii() and ESC not in value and (len(charsets) > 1 or charsets[0] != "ISO_IR 13"):
            return value.decode("ascii")
        if len(charsets) == 1 and charsets[0] in ALONE:
            return value.decode(ALONE[charsets[0]])
        text = _decode(value, charsets, PN_DELIMITERS if vr == "PN" else DELIMITERS)
        return text.replace("‾", "~") if jis_roman_as_ascii else text
    except (UnicodeError, KeyError, IndexError):
        raise Unreadable("(0008,0005)", "a value is not text in the character set that it declares") from None


def default_repertoire(value: bytes) -> str:
    """Of text in a set that we do not know: its ASCII characters (PS3.5 6.1.1). Any other byte is a character that no
    text has, and not a `?`: that is a wildcard, and would widen an answer."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F or byte in b"\t\n\f\r" else UNKNOWN for byte in value)


def encode(text: str, charsets: Sequence[str], vr: str) -> bytes:
    """Byte-exact escapes. Raises ValueError where a character does not fit."""
    if text.isascii():
        return text.encode("ascii")
    if len(charsets) == 1 and charsets[0] in ALONE:
        return text.encode(ALONE[charsets[0]])
    return _encode(text, charsets, PN_DELIMITERS if vr == "PN" else DELIMITERS)


# How one character is written in a set; None where it is not in it.


def _ascii(char: str) -> bytes | None:
    return char.encode("ascii") if char.isascii() else None


def _romaji(char: str) -> bytes | None:
    """JIS X 0201 G0: 5C is the yen sign, which in DICOM would be the value delimiter; 7E the overline, which is as near
    to `~` as it gets."""
    return {"‾": b"\x7e"}.get(char) or (char.encode("ascii") if char.isascii() else None)


def _kana(char: str) -> bytes | None:
    return bytes([ord(char) - 0xFEC0]) if "｡" <= char <= "ﾟ" else None


def _codec(name: str, lead: bytes, trail: bytes = b"") -> Callable[[str], bytes | None]:
    def encoder(char: str) -> bytes | None:
        try:
            data = char.encode(name)
        except UnicodeEncodeError:
            return None
        if not data.startswith(lead) or (not lead and (len(data) != len(trail) or data[0] < 0x80)):
            return None
        return data[len(lead) : -3] if lead else data

    return encoder


Set = tuple[int, bytes, Callable[[str], bytes | None]]  # G0 or G1, escape into it, writes one character
ASCII: Set = (0, ASCII_IN, _ascii)
ROMAJI: Set = (0, ROMAJI_IN, _romaji)
KANA: Set = (1, KANA_IN, _kana)
SETS: dict[str, tuple[Set, ...]] = {
    "": (ASCII,), "6": (ASCII,), "13": (ROMAJI, KANA),
    "87": ((0, KANJI_IN, _codec("iso2022_jp", KANJI_IN)),),
    # iso2022_jp_1 adds only JIS X 0212; iso2022_jp_2 would silently take other sets (conformance.md 1.6).
    "159": ((0, KANJI2_IN, _codec("iso2022_jp_1", KANJI2_IN)),),
    "149": ((1, KOREAN_IN, _codec("euc_kr", b"", b"..")),), "58": ((1, CHINESE_IN, _codec("gb2312", b"", b"..")),),
}  # fmt: skip
for _number, _escape in G1_ESCAPES.items():
    SETS[_number] = (ASCII, (1, _escape, _codec(ALONE[f"ISO_IR {_number}"], b"", b".")))


@lru_cache(256)
def _sets(term: str) -> tuple[Set, ...]:
    for prefix in ("ISO 2022 IR ", "ISO_IR "):
        if term.startswith(prefix) and term[len(prefix) :] in SETS:
            return SETS[term[len(prefix) :]]
    return SETS[""] if term == "" else ()


def _first(charsets: Sequence[str]) -> tuple[Set, ...]:
    """Sets of value 1. Devices that write there what needs an escape mean it after ASCII (PS3.3 C.12.1.1.2)."""
    first = _sets(charsets[0])
    return first if not first or first[0] in (ASCII, ROMAJI) else (ASCII, *first)


def _encode(text: str, charsets: Sequence[str], delimiters: str) -> bytes:
    first = _first(charsets)
    if not first:
        raise ValueError(f"character set {charsets[0]}")
    every = [*first, *(one for term in charsets[1:] for one in _sets(term))]
    initial = {slot: escape for slot, escape, _ in reversed(first)} | {0: first[0][1]}
    active, out = dict(initial), bytearray()
    for char in text:
        if char in delimiters:
            if active[0] != initial[0]:
                out += initial[0]
            active = dict(initial)
            out += char.encode("ascii")
            continue
        for slot, escape, encoder in sorted(every, key=lambda one: active.get(one[0]) != one[1]):  # noqa: B007
            if (data := encoder(char)) is not None:
                break
        else:
            raise ValueError("a character is in none of the sets")
        if active.get(slot) != escape:
            out += escape
            active[slot] = escape
        out += data
    return bytes(out + (initial[0] if active[0] != initial[0] else b""))


def _decode(value: bytes, charsets: Sequence[str], delimiters: str) -> str:
    first = _first(charsets)
    if not first:
        raise KeyError(charsets[0])
    initial = {slot: escape for slot, escape, _ in reversed(first)} | {0: first[0][1]}
    active, out, at = dict(initial), [], 0
    while at < len(value):
        byte = value[at]
        if byte == ESC:
            escape = next((known for known in _ESCAPES if value.startswith(known, at)), b"")
            if not escape:
                raise KeyError("an escape that no set has")
            active[1 if escape in _G1 else 0] = escape
            at += len(escape)
            continue
        escape = active[1] if byte >= 0x80 else active[0]
        if byte < 0x80 and escape in (ASCII_IN, ROMAJI_IN):
            char = chr(byte)
            if char in delimiters:
                active = dict(initial)
            out.append("‾" if escape == ROMAJI_IN and byte == 0x7E else char)
            at += 1
        elif byte < 0x20:
            active = dict(initial)
            out.append(chr(byte))
            at += 1
        else:
            char, width = _character(value, at, escape)
            out.append(char)
            at += width
    return "".join(out)


def _character(value: bytes, at: int, escape: bytes) -> tuple[str, int]:
    if escape == KANA_IN:
        return chr(value[at] + 0xFEC0) if 0xA1 <= value[at] <= 0xDF else bytes([value[at]]).decode("ascii"), 1
    if escape == KANJI_IN:
        return (escape + value[at : at + 2] + ASCII_IN).decode("iso2022_jp"), 2
    if escape == KANJI2_IN:
        return (escape + value[at : at + 2] + ASCII_IN).decode("iso2022_jp_1"), 2
    if escape == KOREAN_IN:
        return value[at : at + 2].decode("euc_kr"), 2
    if escape == CHINESE_IN:
        return value[at : at + 2].decode("gb2312"), 2
    return value[at : at + 1].decode(_CODEC_OF[escape]), 1


_CODEC_OF = {escape: ALONE[f"ISO_IR {number}"] for number, escape in G1_ESCAPES.items()}
_G1 = {KANA_IN, KOREAN_IN, CHINESE_IN, *G1_ESCAPES.values()}
_ESCAPES = sorted({ASCII_IN, ROMAJI_IN, KANJI_IN, KANJI2_IN, *_G1}, key=len, reverse=True)
