"""MSH-18 to text, before anything is split: two-byte codes contain delimiters (conformance.md 5.6, 5.7)."""

import codecs
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

from broker.errors import InvalidValue

PLACE = "MSH^1^18"
MARK = codecs.BOM_UTF8
ASCII = ("", "ASCII", "ISO IR6")
# Table 0211 and what senders write, each with its codec. CNS 11643 has none, and UTF-16 and 32 no ASCII delimiters.
CODECS = {
    **dict.fromkeys(("UNICODE UTF-8", "UNICODE", "UTF-8"), "utf_8_sig"),
    "GB 18030-2000": "gb18030", "KS X 1001": "euc_kr", "BIG-5": "big5",
    **dict.fromkeys(("CP932", "SHIFT_JIS", "SHIFT-JIS", "SJIS", "WINDOWS-31J"), "cp932"),
    **dict.fromkeys(("EUC-JP", "EUCJP"), "euc_jp"),
    **{f"8859/{n}": f"iso8859_{n}" for n in (*range(1, 10), 15)},
}  # fmt: skip
# The parts of ISO 2022 by their registration. JIS X 0201 has one name for each half; senders mean both.
JAPANESE = {
    "ISO IR13": {13}, "ISO IR14": {13}, "ISO IR87": {87}, "ISO IR159": {159},
    "ISO-2022-JP": {13, 87, 159}, "ISO2022-JP": {13, 87, 159},
}  # fmt: skip
# Letters with a mark stand alone or in pairs: a run of bytes beyond ASCII is a text in another set, mostly Japanese.
LATIN = {f"iso8859_{n}" for n in (1, 2, 3, 4, 9, 15)}
NOT_LATIN = re.compile(rb"[\x80-\xff]{4}")
BETWEEN_NAMES = re.compile(r"[^\w /.:-]")  # any repetition separator
REGISTERED = re.compile(r"ISO[ _-]?(?:2022[ _-]?)?IR[ _-]?(\d+)")
ESCAPE = re.compile(rb"(\x1b[\x20-\x2f]+[\x30-\x7e])")
# Where a delimiter's byte is half a character: runs of ISO 2022, and pairs whose second byte may be ASCII.
RUNS = rb"\x1b(?:\$|\(I)[^\x1b]*(?=\x1b)"
PAIRS = {"cp932": rb"[\x81-\x9f\xe0-\xfc][\x40-\xfc]", "big5": rb"[\x81-\xfe][\x40-\xfe]",
         "gb18030": rb"[\x81-\xfe][\x40-\xfe]"}  # fmt: skip
VENDOR_ROWS = {13, *range(89, 93)}  # NEC and IBM extensions: 髙, 﨑, ①
VENDOR_LEADS = {0x87, 0xED, 0xEE, *range(0xF0, 0xFD)}  # the same in Shift_JIS, and a site's own characters
VENDOR = "hl7_vendor_rows"
TO_EUC = bytes(byte | 0x80 for byte in range(256))
# Controls of C1, and what cp932 makes of A0 and FD to FF. No text has them; they come of bytes that belong to another
# set: of UTF-8 or Shift_JIS in 8859/x, of UTF-8 made twice.
NO_TEXT = re.compile("[\x80-\x9f\uf8f0-\uf8f3]")


def decode(raw: bytes, declared: str, default: str) -> tuple[str, bool]:
    """Text, and whether vendor rows were in it. declared: MSH-18 as it stands. default: where that is empty.

    Raises InvalidValue (error 102) where the bytes are not valid in the set, or the set is unknown."""
    codec, registered = _set(declared, "UTF-8" if raw.startswith(MARK) else default)
    try:
        text, vendor = _iso_2022(raw, registered) if registered else _read(raw, codec)
        if NO_TEXT.search(text):
            raise UnicodeError
    except UnicodeError:
        raise InvalidValue(PLACE, "the message holds bytes that are not valid in this set", err="102") from None
    return text, vendor


def split(line: bytes, separator: bytes, declared: str) -> list[bytes]:
    """`line` at the separators that are not half a character: for MSH, which names the set of all the rest."""
    try:
        half = PAIRS.get(_set(declared, "")[0], RUNS)
    except InvalidValue:
        half = RUNS
    masked = re.sub(half, lambda found: bytes(len(found[0])), line)
    cuts = [-1, *(found.start() for found in re.finditer(re.escape(separator), masked)), len(line)]
    return [line[a + 1 : b] for a, b in pairwise(cuts)]


@lru_cache(256)
def _set(declared: str, default: str) -> tuple[str, frozenset[int]]:
    """A codec; or, of ISO 2022, what may be designated. ASCII beside another set says nothing more."""
    said = BETWEEN_NAMES.split(declared)
    names = {_name(name) for name in (said if any(said) else BETWEEN_NAMES.split(default))} - {*ASCII}
    if names and names <= JAPANESE.keys():
        return "", frozenset(number for name in names for number in JAPANESE[name])
    found = {CODECS.get(name, "") for name in names} or {"ascii"}
    if len(found) > 1 or "" in found:
        raise InvalidValue(PLACE, "names a character set that is not supported; UNICODE UTF-8 is", err="102")
    return found.pop(), frozenset()


def _name(name: str) -> str:
    name = name.strip().upper()
    registered = REGISTERED.fullmatch(name)
    return f"ISO IR{registered[1]}" if registered else name


def _read(raw: bytes, codec: str) -> tuple[str, bool]:
    if b"\x1b" in raw:  # ISO 2022 under another name would read as other text
        raise UnicodeError
    if codec == "euc_jp":
        return _euc(raw)
    if codec in LATIN and NOT_LATIN.search(raw):
        raise UnicodeError
    vendor = codec == "cp932" and any(pair[0][0] in VENDOR_LEADS for pair in re.finditer(PAIRS[codec], raw))
    return raw.decode(codec), vendor


# ISO 2022

Reader = Callable[[bytes, frozenset[int]], tuple[str, bool]]


def _iso_2022(raw: bytes, registered: frozenset[int]) -> tuple[str, bool]:
    """Each run in the set that was designated before it; a set that MSH-18 does not name is none. At the end, as before
    each delimiter, ASCII is active again."""
    first, *rest = ESCAPE.split(raw)
    read: Reader = _single
    texts, vendor = [_single(first, registered)[0]], False
    for escape, run in zip(rest[::2], rest[1::2], strict=True):
        if escape == KANA_RIGHT and 13 in registered:  # is there without saying, and G0 stays as it is
            needed = 0
        else:
            needed, read = DESIGNATED.get(escape, (-1, _single))
        if needed and needed not in registered:
            raise UnicodeError
        text, is_vendor = read(run, registered)
        texts.append(text)
        vendor |= is_vendor
    if read is not _single:
        raise UnicodeError
    return "".join(texts), vendor


def _single(run: bytes, registered: frozenset[int]) -> tuple[str, bool]:
    """ASCII, with half-width katakana in the right half where they are declared."""
    if b"\x1b" in run or (13 in registered and re.search(rb"[^\x00-\x7f\xa1-\xdf]", run)):
        raise UnicodeError
    return run.decode("cp932" if 13 in registered else "ascii"), False


def _kana(run: bytes, _registered: frozenset[int]) -> tuple[str, bool]:
    if re.search(rb"[^ \x21-\x5f]", run):
        raise UnicodeError
    return run.translate(TO_EUC).replace(b"\xa0", b" ").decode("cp932"), False


def _kanji(run: bytes, _registered: frozenset[int]) -> tuple[str, bool]:
    _check_pairs(run)
    return _euc(run.translate(TO_EUC))


def _more_kanji(run: bytes, _registered: frozenset[int]) -> tuple[str, bool]:
    _check_pairs(run)
    euc = bytearray(b"\x8f" * (len(run) // 2 * 3))
    euc[1::3], euc[2::3] = run[::2].translate(TO_EUC), run[1::2].translate(TO_EUC)
    return euc.decode("euc_jp"), False


def _check_pairs(run: bytes) -> None:
    if len(run) % 2 or re.search(rb"[^\x21-\x7e]", run):
        raise UnicodeError


KANA_RIGHT = b"\x1b)I"
# ESC ( J is ESC ( B here: senders return to either, and the overline of JIS X 0201 would be no delimiter (5.7).
DESIGNATED = {
    b"\x1b(B": (0, _single), b"\x1b(J": (0, _single), b"\x1b(I": (13, _kana),
    b"\x1b$B": (87, _kanji), b"\x1b$@": (87, _kanji), b"\x1b$(D": (159, _more_kanji),
}  # fmt: skip


# Rows 13 and 89 to 92, as Windows senders write them: decoded by cp932, kept, and flagged


def _euc(data: bytes) -> tuple[str, bool]:
    try:
        return data.decode("euc_jp"), False
    except UnicodeDecodeError:
        return data.decode("euc_jp", VENDOR), True


def _in_cp932(row: int, cell: int) -> str:
    """Empty where that cell has no character: half of a pair must not become a delimiter."""
    lead = (row - 1) // 2 + (0x81 if row < 63 else 0xC1)
    trail = cell + (0x9E if row % 2 == 0 else 0x3F if cell < 64 else 0x40)
    text = bytes((lead, trail)).decode("cp932", "ignore")
    return "" if text.isascii() else text


VENDOR_CHARACTERS = {
    bytes((row + 0xA0, cell + 0xA0)): char
    for row in VENDOR_ROWS
    for cell in range(1, 95)
    if (char := _in_cp932(row, cell))
}


def _vendor_row(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    char = VENDOR_CHARACTERS.get(error.object[error.start : error.start + 2])
    if char is None:
        raise error
    return char, error.start + 2


codecs.register_error(VENDOR, _vendor_row)
