"""Does an item answer a query? Pure; PS3.4 C.2.2.2 and conformance.md 1.4, 1.5."""

import datetime as dt
import re
from collections.abc import Callable
from functools import lru_cache
from zoneinfo import ZoneInfo

from broker.dicom.tree import Tree, vr_of
from broker.errors import InvalidValue
from broker.mwl.texts import compared, glob, person_matches, trimmed

STEP_SEQUENCE, START_DATE, START_TIME, TIMEZONE = 0x00400100, 0x00400002, 0x00400003, 0x00080201
WILDCARD_VRS = frozenset({"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"})
BLANK_VRS = frozenset({"AE", "CS", "LO", "PN", "SH"})  # blanks around a value do not count (PS3.5 6.2)
WHOLE_VRS = frozenset({"LT", "ST", "UR", "UT"})  # a backslash is a character of theirs
DAY = 24 * 3600 * 1_000_000
EARLIEST, LATEST = "00000000", "99999999"
KEY_CHARACTERS_MAX, LONG_KEY_CHARACTERS_MAX = 256, 4096
LONG_KEY_VRS = WHOLE_VRS | {"UC", "UI"}
# PS3.5 6.2: ESC where character sets change; lines and tabs in texts of many lines alone. PostgreSQL takes no NUL.
CONTROLS = re.compile(r"[\x00-\x1A\x1C-\x1F\x7F-\x9F]")
CONTROLS_BUT_LINES = re.compile(r"[\x00-\x08\x0B\x0E-\x1A\x1C-\x1F\x7F-\x9F]")

# Optional keys that we match on (conformance.md 1.2); others of the item are returned only.
MATCHED = frozenset(
    {
        0x00100010, 0x00100020, 0x00100021, 0x00100024, 0x00100030, 0x00100040, 0x00080050, 0x00080051, 0x00401001,
        0x0020000D, 0x00380010, 0x00380014, 0x00080090, 0x00321032, 0x00380300, 0x00401003, 0x00321064, 0x00321060,
        0x00741202,
    }
)  # fmt: skip
STEP_MATCHED = frozenset(
    {
        0x00400001, START_DATE, START_TIME, 0x00080060, 0x00400006, 0x00400009, 0x00400007, 0x00400010, 0x00400011,
        0x00400020, 0x00400008,
    }
)  # fmt: skip
# Inside the other sequences: what codes and issuers are told apart by. Protocol context is never matched.
ITEM_MATCHED = frozenset(
    {0x00080100, 0x00080102, 0x00080103, 0x00080104, 0x00080119, 0x00400031, 0x00400032, 0x00400033}
)
SITE_ZONE = 0  # inside what `in_zone` makes: no tag


def matched_in(sequence: int) -> frozenset[int]:
    return STEP_MATCHED if sequence == STEP_SEQUENCE else ITEM_MATCHED


def check(query: Tree, matched: frozenset[int] = MATCHED) -> None:
    """Raises InvalidValue for a malformed key that we match on, also where there is nothing to compare it with."""
    for tag, (_, key) in query.items():
        if tag in matched or tag == STEP_SEQUENCE:
            _check_key(tag, key)


def _check_key(tag: int, key: "str | bytes | list[Tree]") -> None:
    """What several values mean is said for UIDs alone (PS3.4 C.2.2.2.2)."""
    vr = vr_of(tag)
    said = key.strip(b" \0") if isinstance(key, bytes) else key
    if said and (isinstance(key, bytes) or isinstance(key, list) != (vr == "SQ")):
        raise _malformed(tag, f"is not of VR {vr}")
    if isinstance(key, list):
        if len(key) > 1 and (tag == STEP_SEQUENCE or not is_universal(tag, key)):
            raise _malformed(tag, "has more than one item")
        for item in key:
            check(item, matched_in(tag))
    elif isinstance(key, str) and not is_universal(tag, key):
        _check_text(tag, vr, key)
        if "\\" in key and vr != "UI" and vr not in WHOLE_VRS:
            raise _malformed(tag, "has several values: ask for one")
        if vr in RANGES:
            RANGES[vr](key, tag)


def _check_text(tag: int, vr: str, key: str) -> None:
    """Its length and characters. What a name is compared by may be many times as long as it was written."""
    most = LONG_KEY_CHARACTERS_MAX if vr in LONG_KEY_VRS else KEY_CHARACTERS_MAX
    if len(key) > most or (vr == "PN" and len(compared(key)) > most):
        raise _malformed(tag, f"has more than {most} characters")
    values = [uid.rstrip("\0") for uid in key.split("\\")] if vr == "UI" else [key]  # a NUL pads a UID
    if any((CONTROLS_BUT_LINES if vr in WHOLE_VRS else CONTROLS).search(value) for value in values):
        raise _malformed(tag, "holds a control character")


def _malformed(tag: int, text: str) -> InvalidValue:
    return InvalidValue(f"({tag >> 16:04X},{tag & 0xFFFF:04X})", text, tags=(tag,))


def lenient(query: Tree) -> list[int]:
    """Dates and times that are understood although they are not written as DICOM writes them (`2025.07.05`)."""
    steps = query.get(STEP_SEQUENCE, ("SQ", []))[1]
    every = [(query, MATCHED), *((step, STEP_MATCHED) for step in steps if isinstance(step, dict))]
    return [
        tag
        for keys, matched in every
        for tag, (_, key) in keys.items()
        if tag in matched and isinstance(key, str) and set(key.strip(" ")) & SIGNS.get(vr_of(tag), set())
    ]


SIGNS = {"DA": {" ", "."}, "TM": {" ", ":"}}


def is_universal(tag: int, key: "str | bytes | list[Tree]") -> bool:
    """Zero length, or the lone `*` where wildcards are: no item can fail it."""
    if isinstance(key, list):
        matched = matched_in(tag)
        inside = [(inner, value) for item in key for inner, (_, value) in item.items() if inner in matched]
        return not _is_elsewhere(tag, key) and all(is_universal(inner, value) for inner, value in inside)
    if isinstance(key, bytes):
        return not key.strip(b" \0")
    vr = vr_of(tag)
    text = trimmed(key.strip(" ")) if vr == "PN" else key.strip(" ") if vr in BLANK_VRS else key.rstrip(" ")
    return not text or (text == "*" and vr in WILDCARD_VRS)


def _is_elsewhere(tag: int, key: "str | bytes | list[Tree]") -> bool:
    """What `in_zone` makes of a time; `check` refuses it of anybody else."""
    return tag == START_TIME and isinstance(key, list) and bool(key)


def selective(query: Tree, matched: frozenset[int] = MATCHED) -> Tree:
    """Only those keys that an item can fail: found once for a query, not once for each item."""
    chosen: Tree = {}
    for tag, (vr, key) in query.items():
        if (tag in matched or tag == STEP_SEQUENCE) and not is_universal(tag, key):
            if isinstance(key, list) and not _is_elsewhere(tag, key):
                key = [selective(item, matched_in(tag)) for item in key]
            chosen[tag] = (vr, key)
    return chosen


def matches(query: Tree, item: Tree, fuzzy: bool = False) -> bool:
    """query: keys that `check` has seen; a universal one matches everything. fuzzy: names, see `person_matches`."""
    for tag, (_, key) in query.items():
        if tag == STEP_SEQUENCE and isinstance(key, list):
            steps = item.get(tag, ("SQ", []))[1]
            assert isinstance(steps, list)
            if key and not any(_step_matches(key[0], step, fuzzy) for step in steps):
                return False
        elif tag in MATCHED and not element_matches(tag, key, item, fuzzy):
            return False
    return True


def _step_matches(query: Tree, step: Tree, fuzzy: bool) -> bool:
    combined = combined_interval(query)
    if combined is not None:
        at = _start_of(step)
        if at is None or not combined[0] <= at <= combined[1]:
            return False
    return all(
        element_matches(tag, key, step, fuzzy)
        for tag, (_, key) in query.items()
        if tag in STEP_MATCHED and not (combined is not None and tag in (START_DATE, START_TIME))
    )


def _start_of(step: Tree) -> tuple[str, int] | None:
    """Date, and microsecond of the day."""
    moment = _moment_of(_text(step, START_TIME))
    date = _text(step, START_DATE)
    return (date, moment) if date and moment is not None else None


def element_matches(tag: int, key: "str | bytes | list[Tree]", item: Tree, fuzzy: bool = False) -> bool:
    """One key against the stored element. An empty stored value fails every key but the universal ones."""
    if is_universal(tag, key):
        return True
    vr = vr_of(tag)
    stored = item.get(tag, (vr, ""))[1]
    if isinstance(key, list) and _is_elsewhere(tag, key):
        return _start_matches_elsewhere(key[0], item)
    if isinstance(key, list):
        items = stored if isinstance(stored, list) else []
        return any(_item_matches(tag, key[0], one, fuzzy) for one in items)
    if isinstance(key, bytes) or not isinstance(stored, str):
        return key == stored
    wanted = key.strip(" ") if vr in BLANK_VRS else key.rstrip(" ")
    values = [stored] if vr in WHOLE_VRS else [value.strip(" ") for value in stored.split("\\")]
    return any(_value_matches(tag, vr, wanted, value, fuzzy) for value in values if value)


def _item_matches(sequence: int, keys: Tree, item: Tree, fuzzy: bool) -> bool:
    matched = matched_in(sequence)
    return all(element_matches(tag, key, item, fuzzy) for tag, (_, key) in keys.items() if tag in matched)


def _value_matches(tag: int, vr: str, key: str, value: str, fuzzy: bool) -> bool:
    if vr == "DA":
        low, high = date_range(key, tag)
        return low <= value <= high
    if vr == "TM":
        first, last = time_range(key, tag)
        moment = _moment_of(value)
        return moment is not None and first <= moment <= last
    if vr == "UI":
        return value in [uid.strip(" \0") for uid in key.split("\\")]
    if vr == "PN":
        return person_matches(key, value, fuzzy)
    if vr in WILDCARD_VRS:
        return glob(key, value)
    return key == value


# dates and times

DATE_KEY = re.compile(r"([0-9]{4})(\.?)([0-9]{2})\2([0-9]{2})")
TIME_KEY = re.compile(r"([0-9]{2})(?:(:?)([0-9]{2})(?:\2([0-9]{2})(?:\.([0-9]{1,6}))?)?)?")
OFFSET = re.compile(r"([+-])([0-9]{2})([0-5][0-9])")
EARLIEST_OFFSET, LATEST_OFFSET = -12 * 60, 14 * 60  # minutes, PS3.3 C.12.1.1.8


@lru_cache(256)
def date_range(key: str, tag: int = START_DATE) -> tuple[str, str]:
    """Inclusive bounds, YYYYMMDD. Raises InvalidValue for what is no day of the calendar."""
    low, dash, high = (part.strip(" ") for part in key.partition("-"))
    try:
        first, last = (_day(part) if part else "" for part in (low, high))
    except ValueError:
        raise _malformed(tag, "is no date or range of dates") from None
    if not first and not last:  # `-` alone is no range
        raise _malformed(tag, "is no date or range of dates")
    return (first or EARLIEST, last or LATEST) if dash else (first, first)


def _day(text: str) -> str:
    parts = DATE_KEY.fullmatch(text)
    if parts is None:
        raise ValueError(text)
    dt.date(int(parts[1]), int(parts[3]), int(parts[4]))
    return "".join(parts.group(1, 3, 4))


@lru_cache(256)
def time_range(key: str, tag: int = START_TIME) -> tuple[int, int]:
    """Inclusive bounds in microseconds of the day. A key of lower precision names its whole interval; a range over
    midnight matches nothing (first > last)."""
    low, dash, high = (part.strip(" ") for part in key.partition("-"))
    try:
        if not dash or not (low or high):
            return _moment(low)
        return _moment(low)[0] if low else 0, _moment(high)[1] if high else DAY - 1
    except ValueError:
        raise _malformed(tag, "is no time or range of times") from None


def _moment(text: str) -> tuple[int, int]:
    """First and last microsecond that HH[MM[SS[.F]]] names. Raises ValueError."""
    parts = TIME_KEY.fullmatch(text)
    if parts is None:
        raise ValueError(text)
    said = [int(part) for part in parts.group(1, 3, 4) if part is not None]
    hours, minutes, seconds = [*said, 0, 0][:3]
    if hours > 23 or minutes > 59 or seconds > 60:  # 60: a leap second
        raise ValueError(text)
    fraction = parts[5] or ""
    micros = (hours * 3600 + minutes * 60 + seconds) * 1_000_000 + int(fraction.ljust(6, "0"))
    width = 10 ** (6 - len(fraction)) if fraction else (3600, 60, 1)[len(said) - 1] * 1_000_000
    return micros, micros + width - 1


def _moment_of(stored: str) -> int | None:
    try:
        return _moment(stored)[0]
    except ValueError:
        return None


RANGES: dict[str, Callable[[str, int], object]] = {"DA": date_range, "TM": time_range}


def combined_interval(query: Tree) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Date and time ranges of the same form are one interval (PS3.4 K.6-1), not a window on each of the days."""
    date, time = _text(query, START_DATE), _text(query, START_TIME)
    if not date or not time or _form(date) != _form(time) or _form(date) == "single":
        return None
    (first_day, last_day), (first, last) = date_range(date), time_range(time)
    return (first_day, first), (last_day, last)


def _form(key: str) -> str:
    low, dash, high = (part.strip(" ") for part in key.partition("-"))
    forms = {(True, True): "both", (True, False): "from", (False, True): "to"}
    return forms.get((bool(low), bool(high)), "") if dash else "single"


def _text(tree: Tree, tag: int) -> str:
    value = tree.get(tag, ("", ""))[1]
    return value.strip(" ") if isinstance(value, str) else ""


# another zone than the site's


def zone_of(query: Tree) -> dt.tzinfo | None:
    """Of the dates and times in the query; None: it does not say, or asks for the attribute. Raises InvalidValue."""
    key = query.get(TIMEZONE, ("SH", ""))[1]
    if not key:
        return None
    parts = OFFSET.fullmatch(key.strip(" ")) if isinstance(key, str) else None
    minutes = int(f"{parts[1]}{int(parts[2]) * 60 + int(parts[3])}") if parts else 0
    if parts is None or parts[0] == "-0000" or not EARLIEST_OFFSET <= minutes <= LATEST_OFFSET:
        raise _malformed(TIMEZONE, "is no offset from UTC, such as +0900")
    return dt.timezone(dt.timedelta(minutes=minutes))


def in_zone(query: Tree, zone: dt.tzinfo, site: ZoneInfo) -> Tree:
    """The query with its date and time in the site's zone; it has them in `zone`.

    A date is the interval from its first to its last moment there, a date with a time the interval that they name. A
    time without a date, or with dates that it makes no interval with, stays a key of its own, which is looked at
    there; the date is then what it can be here."""
    items = query.get(STEP_SEQUENCE, ("SQ", []))[1]
    step = items[0] if isinstance(items, list) and items else {}
    date, time = _text(step, START_DATE), _text(step, START_TIME)
    if not date and not time:
        return query
    keys = {tag: element for tag, element in step.items() if tag not in (START_DATE, START_TIME)}
    is_interval = bool(date) and (not time or _is_interval(step))
    if date:
        here = [_here(at, site) if at else None for at in _bounds(step, zone)]
        keys[START_DATE] = ("DA", "-".join(f"{at.year:04}{at:%m%d}" if at else "" for at in here))
        keys[START_TIME] = ("TM", "-".join(f"{at:%H%M%S.%f}" if at else "" for at in here))
    if not is_interval:
        offset = dt.datetime(2000, 1, 1, tzinfo=zone).strftime("%z")
        there: Tree = {START_DATE: ("DA", date), START_TIME: ("TM", time)}
        keys[START_TIME] = ("SQ", [{**there, TIMEZONE: ("SH", offset), SITE_ZONE: ("LO", site.key)}])
    return {**query, STEP_SEQUENCE: ("SQ", [keys])}


def _is_interval(step: Tree) -> bool:
    """Whether date and time name one: ranges of the same form, or one day."""
    first, last = date_range(_text(step, START_DATE))
    return first == last or combined_interval(step) is not None


def _bounds(step: Tree, zone: dt.tzinfo) -> tuple[dt.datetime | None, dt.datetime | None]:
    """First and last moment that a start can have; None: open."""
    time = _text(step, START_TIME)
    first, last = time_range(time) if time else (0, DAY - 1)
    low, high = date_range(_text(step, START_DATE))
    return _at(low, first, zone) if low != EARLIEST else None, _at(high, last, zone) if high != LATEST else None


def _at(date: str, moment: int, zone: dt.tzinfo) -> dt.datetime:
    day = dt.datetime(int(date[:4]), int(date[4:6]), int(date[6:]), tzinfo=zone)
    return day + dt.timedelta(microseconds=min(moment, DAY - 1))


def _here(at: dt.datetime, zone: dt.tzinfo) -> dt.datetime:
    """On the first and the last day of the calendar the clocks do not matter."""
    try:
        return at.astimezone(zone)
    except OverflowError:
        return at.replace(tzinfo=zone)


def _start_matches_elsewhere(keys: Tree, step: Tree) -> bool:
    start, zone = _start_of(step), zone_of(keys)
    if start is None or zone is None:
        return False
    there = _here(_at(*start, ZoneInfo(_text(keys, SITE_ZONE))), zone)
    at: Tree = {
        START_DATE: ("DA", f"{there.year:04}{there:%m%d}"),
        START_TIME: ("TM", f"{there:%H%M%S.%f}"),
    }
    return all(element_matches(tag, keys[tag][1], at) for tag in at)
