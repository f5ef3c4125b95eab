"""MSH-18 to text, before anything is split: two-byte codes contain delimiters (conformance.md 5.6, 5.7)."""

import re
from itertools import pairwise

from broker.dicom import charset as dicom_charset
from broker.errors import InvalidValue, Unreadable

# Table 0211 and what senders write; values are codec names, or the DICOM terms of an ISO 2022 combination.
CODECS = {
    "": "ascii", "ASCII": "ascii", "UNICODE UTF-8": "utf_8", "UNICODE": "utf_8", "UTF-8": "utf_8",
    "GB 18030-2000": "gb18030", "KS X 1001": "euc_kr", "BIG-5": "big5", "CP932": "cp932", "SHIFT_JIS": "cp932",
    "EUC-JP": "euc_jp", "EUCJP": "euc_jp",
    **{f"8859/{n}": f"iso8859_{n}" for n in (*range(1, 10), 15)},
}  # fmt: skip
JAPANESE = {
    "ASCII": "ISO 2022 IR 6", "": "ISO 2022 IR 6", "ISO IR6": "ISO 2022 IR 6", "ISO IR14": "ISO 2022 IR 13",
    "ISO IR13": "ISO 2022 IR 13", "ISO IR87": "ISO 2022 IR 87", "ISO IR159": "ISO 2022 IR 159",
}  # fmt: skip
ISO_2022_JP = ("ISO 2022 IR 6", "ISO 2022 IR 13", "ISO 2022 IR 87", "ISO 2022 IR 159")
PLACE = "MSH^1^18"
# Where a delimiter's byte is half a character: runs of ISO 2022, and pairs whose second byte may be ASCII.
RUNS = rb"\x1b\$[^\x1b]*(?=\x1b)"
PAIRS = {"cp932": rb"[\x81-\x9f\xe0-\xfc][\x40-\xfc]", "big5": rb"[\x81-\xfe][\x40-\xfe]",
         "gb18030": rb"[\x81-\xfe][\x40-\xfe]"}  # fmt: skip
KANJI_RUN = re.compile(rb"\x1b\$[@B]((?:[\x21-\x7e]{2})*)")
VENDOR_ROWS = {13, *range(89, 93)}  # NEC and IBM extensions: 髙, 﨑, ①


def decode(raw: bytes, declared: str, default: str) -> tuple[str, bool]:
    """Text, and whether vendor rows were in it. declared: MSH-18 as it stands. default: where that is empty.

    Raises InvalidValue (error 102) where the bytes are not valid in the set, or the set is unknown."""
    names = [_name(name) for name in (declared.rstrip("~") or default).split("~")]
    if names in (["ISO-2022-JP"], ["ISO2022-JP"]):
        return _japanese(raw, ISO_2022_JP)
    if len(names) > 1 or names[0] in ("ISO IR87", "ISO IR14", "ISO IR13", "ISO IR159"):
        unknown = [name for name in names if name not in JAPANESE]
        if unknown:
            raise InvalidValue(PLACE, "names a character set that is not supported", err="102")
        return _japanese(raw, ("ISO 2022 IR 6", *(JAPANESE[name] for name in names)))
    codec = CODECS.get(names[0])
    if codec is not None and b"\x1b" in raw:  # ISO 2022 under another name would read as other text
        raise InvalidValue(PLACE, "the message holds escape sequences that this set does not have", err="102")
    if codec is None:
        raise InvalidValue(PLACE, "names a character set that is not supported", err="102")
    try:
        return raw.decode(codec), False
    except UnicodeDecodeError:
        raise InvalidValue(PLACE, "the message holds bytes that are not valid in this set", err="102") from None


def _name(name: str) -> str:
    return name.strip().upper().replace("ISO IR ", "ISO IR")


def _japanese(raw: bytes, terms: tuple[str, ...]) -> tuple[str, bool]:
    """ISO-2022-JP as Windows senders write it: rows 13 and 89 to 92 are decoded by cp932, kept, and flagged.

    ESC ( J is ESC ( B here: senders return to either, and the overline of JIS X 0201 would be no delimiter (5.7)."""
    raw = raw.replace(b"\x1b$@", b"\x1b$B").replace(b"\x1b(J", b"\x1b(B")
    parts, at, vendor = [], 0, False
    kanji_allowed = "ISO 2022 IR 87" in terms
    try:
        for run in KANJI_RUN.finditer(raw):
            if not kanji_allowed:
                raise Unreadable("")
            parts.append(_plain(raw[at : run.start()], terms))
            pairs = [run.group(1)[n : n + 2] for n in range(0, len(run.group(1)), 2)]
            vendor = vendor or any(pair[0] - 0x20 in VENDOR_ROWS for pair in pairs)
            parts.append("".join(map(_kanji, pairs)))
            at = run.end()
            if not raw.startswith(b"\x1b", at):
                raise Unreadable("")  # the run ends in half a character, or the message inside it
        parts.append(_plain(raw[at:], terms))
    except (Unreadable, UnicodeDecodeError):
        raise InvalidValue(PLACE, "the message holds bytes that are not valid in this set", err="102") from None
    return "".join(parts), vendor


def _plain(data: bytes, terms: tuple[str, ...]) -> str:
    return dicom_charset.decode(data, terms, "ST")


def _kanji(pair: bytes) -> str:
    row, cell = pair[0] - 0x20, pair[1] - 0x20
    if row not in VENDOR_ROWS:
        return (b"\x1b$B" + pair + b"\x1b(B").decode("iso2022_jp")
    lead = (row - 1) // 2 + (0x81 if row < 63 else 0xC1)
    trail = cell + (0x9E if row % 2 == 0 else 0x3F if cell < 64 else 0x40)
    return bytes((lead, trail)).decode("cp932")


def split(line: bytes, separator: bytes, declared: str) -> list[bytes]:
    """`line` at the separators that are not half a character: for MSH, which names the set of all the rest."""
    half = PAIRS.get(CODECS.get(_name(declared), ""), RUNS)
    masked = re.sub(half, lambda found: bytes(len(found[0])), line)
    cuts = [-1, *(found.start() for found in re.finditer(re.escape(separator), masked)), len(line)]
    return [line[a + 1 : b] for a, b in pairwise(cuts)]
