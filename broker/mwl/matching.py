"""Does an item answer a query? Pure; PS3.4 C.2.2.2 and conformance.md 1.4, 1.5."""

import unicodedata
from collections.abc import Callable, Iterator

from broker.dicom.tree import Tree, vr_of
from broker.errors import InvalidValue

STEP_SEQUENCE, START_DATE, START_TIME = 0x00400100, 0x00400002, 0x00400003
WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
BLANK_VRS = frozenset({"AE", "CS", "LO", "PN", "SH"})  # blanks around a value do not count (PS3.5 6.2)
DAY = 24 * 3600 * 1_000_000
EARLIEST, LATEST = "00000000", "99999999"

# Optional keys that we match on (conformance.md 1.2); others of the item are returned only.
MATCHED = frozenset(
    {
        0x00100010, 0x00100020, 0x00100021, 0x00100030, 0x00100040, 0x00080050, 0x00080051, 0x00401001, 0x0020000D,
        0x00380010, 0x00080090, 0x00321032, 0x00380300, 0x00401003, 0x00321064, 0x00321060,
    }
)  # fmt: skip
STEP_MATCHED = frozenset(
    {
        0x00400001, START_DATE, START_TIME, 0x00080060, 0x00400006, 0x00400009, 0x00400007, 0x00400010, 0x00400011,
        0x00400020, 0x00400008,
    }
)  # fmt: skip


def check(query: Tree) -> None:
    """Raises InvalidValue for a malformed date or time key, also where there is nothing to compare it with."""
    steps = query.get(STEP_SEQUENCE, ("SQ", []))[1]
    for keys, matched in ((query, MATCHED), *((step, STEP_MATCHED) for step in steps if isinstance(step, dict))):
        for tag, (_, key) in keys.items():
            read = RANGES.get(vr_of(tag)) if tag in matched else None
            if read and isinstance(key, str) and key:
                read(key, tag)


def selective(query: Tree, matched: frozenset[int] = MATCHED) -> Tree:
    """Only those keys that an item can fail: found once for a query, not once for each item."""
    chosen: Tree = {}
    for tag, (vr, key) in query.items():
        if tag == STEP_SEQUENCE and isinstance(key, list):
            steps = [selective(step, STEP_MATCHED) for step in key]
            if any(steps):
                chosen[tag] = (vr, steps)
        elif tag in matched and (any(value for _, value in key[0].values()) if isinstance(key, list) and key else key):
            chosen[tag] = (vr, key)
    return chosen


def matches(query: Tree, item: Tree) -> bool:
    """query: keys that `check` has seen; a zero-length one matches everything."""
    for tag, (vr, key) in query.items():
        if tag == STEP_SEQUENCE and isinstance(key, list):
            steps = item.get(tag, ("SQ", []))[1]
            assert isinstance(steps, list)
            if key and not any(_step_matches(key[0], step) for step in steps):
                return False
        elif tag in MATCHED and not element_matches(tag, vr, key, item):
            return False
    return True


def _step_matches(query: Tree, step: Tree) -> bool:
    combined = combined_interval(query)
    if combined is not None:
        date, time = _text(step, START_DATE), _text(step, START_TIME)
        if not date or not combined[0] <= (date, _moment(time)[0]) <= combined[1]:
            return False
    return all(
        element_matches(tag, vr, key, step)
        for tag, (vr, key) in query.items()
        if tag in STEP_MATCHED and not (combined is not None and tag in (START_DATE, START_TIME))
    )


def element_matches(tag: int, vr: str, key: "str | bytes | list[Tree]", item: Tree) -> bool:
    """One key against the stored element. An empty stored value fails every key but the universal ones."""
    if isinstance(key, str) and vr in BLANK_VRS:
        key = key.strip(" ")
    if not key or (key == "*" and vr in WILDCARD_VRS):
        return True
    stored = item.get(tag, (vr, ""))[1]
    if isinstance(key, list):
        wanted = key[0]
        items = stored if isinstance(stored, list) else []
        return not any(value for _, value in wanted.values()) or any(
            all(element_matches(inner, inner_vr, value, one) for inner, (inner_vr, value) in wanted.items())
            for one in items
        )
    if isinstance(key, bytes) or isinstance(stored, bytes):
        return key == stored
    assert isinstance(stored, str)
    values = [value.strip() for value in stored.split("\\")] if stored else []
    return any(_value_matches(tag, vr, key, value) for value in values if value)


def _value_matches(tag: int, vr: str, key: str, value: str) -> bool:
    if vr == "DA":
        low, high = date_range(key, tag)
        return low <= value <= high
    if vr == "TM":
        first, last = time_range(key, tag)
        return first <= _moment(value)[0] <= last
    if vr == "UI":
        return value in key.split("\\")
    if vr == "PN":
        return person_matches(key, value)
    if vr in WILDCARD_VRS:
        return glob(key, value)
    return key == value


# dates and times


def date_range(key: str, tag: int = START_DATE) -> tuple[str, str]:
    """Inclusive bounds, YYYYMMDD."""
    text = key.replace(" ", "").replace(".", "")
    low, dash, high = text.partition("-")
    for part in (low, high) if low and high else (low or high,):  # `-` alone is no range
        if not (len(part) == 8 and part.isascii() and part.isdigit()):
            raise InvalidValue(f"({tag >> 16:04X},{tag & 0xFFFF:04X})", "is no date or range of dates", tags=(tag,))
    if not dash:
        return low, low
    return low or EARLIEST, high or LATEST


def time_range(key: str, tag: int = START_TIME) -> tuple[int, int]:
    """Inclusive bounds in microseconds of the day. A key of lower precision names its whole interval; a range over
    midnight matches nothing (first > last)."""
    text = key.replace(" ", "").replace(":", "")
    low, dash, high = text.partition("-")
    try:
        if not dash or not (low or high):
            return _moment(low)
        return _moment(low)[0] if low else 0, _moment(high)[1] if high else DAY - 1
    except ValueError:
        raise InvalidValue(
            f"({tag >> 16:04X},{tag & 0xFFFF:04X})", "is no time or range of times", tags=(tag,)
        ) from None


RANGES: dict[str, Callable[[str, int], object]] = {"DA": date_range, "TM": time_range}


def _moment(text: str) -> tuple[int, int]:
    """First and last microsecond that HH[MM[SS[.F]]] names."""
    whole, _, fraction = text.partition(".")
    if not (whole.isascii() and whole.isdigit() and len(whole) in (2, 4, 6) and (not fraction or fraction.isdigit())):
        raise ValueError(text)
    parts = [int(whole[at : at + 2]) for at in range(0, len(whole), 2)]
    if parts[0] > 23 or any(part > 59 for part in parts[1:2]) or (len(parts) == 3 and parts[2] > 60):
        raise ValueError(text)
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    micros = seconds * 1_000_000 + int(fraction[:6].ljust(6, "0") or 0)
    width = 10 ** (6 - len(fraction[:6])) if fraction else (3600, 60, 1)[len(parts) - 1] * 1_000_000
    return micros, micros + width - 1


def combined_interval(query: Tree) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Date and time ranges of the same form are one interval (PS3.4 K.6-1), not a window on each of the days."""
    date, time = _text(query, START_DATE).replace(" ", ""), _text(query, START_TIME).replace(" ", "")
    if not date or not time or _form(date) != _form(time) or _form(date) == "single":
        return None
    (first_day, last_day), (first, last) = date_range(date), time_range(time)
    return (first_day, first), (last_day, last)


def _form(key: str) -> str:
    low, dash, high = key.partition("-")
    return (
        {(True, True): "both", (True, False): "from", (False, True): "to"}.get((bool(low), bool(high)), "")
        if dash
        else "single"
    )


def _text(tree: Tree, tag: int) -> str:
    value = tree.get(tag, ("", ""))[1]
    return value if isinstance(value, str) else ""


# text and names


def glob(pattern: str, text: str) -> bool:
    """`*` any run, `?` one character; linear in both, so that no pattern is expensive."""
    if "*" not in pattern and "?" not in pattern:
        return pattern == text
    at = star = mark = 0
    star = -1
    position = 0
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, mark = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[position]):
            at, position = at + 1, position + 1
        elif star >= 0:
            mark += 1
            at, position = star + 1, mark
        else:
            return False
    return all(char == "*" for char in pattern[at:])


def person_matches(key: str, name: str) -> bool:
    """A key without `=` is tried against each group and the whole; with `=`, group by group, empty = universal."""
    wanted, known = fold(key), fold(name)
    groups = [group.rstrip("^") for group in known.split("=")]
    if "=" not in wanted:
        plain = wanted.rstrip("^")
        return glob(plain, known) or any(glob(plain, group) for group in groups if group)
    pairs = _pairs(wanted.split("="), groups)
    return all(not want or (have and glob(want.rstrip("^"), have)) for want, have in pairs)


def _pairs(wanted: list[str], groups: list[str]) -> Iterator[tuple[str, str]]:
    for n, want in enumerate(wanted):
        yield want, groups[n] if n < len(groups) else ""


def fold(text: str) -> str:
    """Without width, case, accents and the difference of hiragana and katakana."""
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    # The marks of が and ぱ are combining too, but they are no accents.
    kept = "".join(c for c in plain if unicodedata.category(c) != "Mn" or c in "\u3099\u309a")
    composed = unicodedata.normalize("NFC", kept)
    return "".join(chr(ord(c) + 0x60) if "ぁ" <= c <= "ゖ" else c for c in composed)
