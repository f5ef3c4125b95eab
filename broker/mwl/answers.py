"""How an item looks to the device that asks: what it asked for, in its own characters (conformance.md 1.3, 1.6)."""

import contextlib
import datetime as dt
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import tag_for_keyword

from broker.config import Limits, Settings
from broker.dicom import charset, tree, variants
from broker.dicom.habits import NO_HABITS, Habits
from broker.dicom.service import NodeInfo
from broker.dicom.tree import Tree
from broker.errors import InvalidValue, Unreadable
from broker.mwl import kana, matching
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.keys import RETURNED, STATUS, TIMEZONE, Shape, can_answer_in, known_in, plain, step_keys

PATIENT_NAME, STATIONS, CODE_VALUE, CODE_MEANING = 0x00100010, 0x00400001, 0x00080100, 0x00080104
TYPE_1_TEXTS = (PATIENT_NAME, 0x00100020, 0x00401001, 0x00400009)
# What an item of another sequence is nothing without: code value, patient, container and specimen identifier.
NAMED_BY = (CODE_VALUE, 0x00100020, 0x00400512, 0x00400551)
# A description and the codes that may stand beside it (type 1C, conformance.md 1.2).
CODES_OF = {0x00321060: 0x00321064, 0x00400007: 0x00400008}
LIMITS = Limits()
ROMAJI_ONLY, UTF_8, EXTENSION = "ASCII", "ISO_IR 192", "ISO 2022 IR "
HALF_WIDTH = {unicodedata.normalize("NFKC", char): char for char in map(chr, range(0xFF61, 0xFFA0))}
# Kana without a half-width form: those that it is written with there.
HALF_WIDTH |= {"ヮ": "ﾜ", "ヰ": "ｲ", "ヱ": "ｴ", "ヵ": "ｶ", "ヶ": "ｹ", "゛": "ﾞ", "゜": "ﾟ", "\u3000": " "}
CANNOT = "cannot be encoded:"
KANA = re.compile("[ぁ-ゖァ-ヶー｡-ﾟ]+")


@dataclass(frozen=True)
class Look:
    """What of a device changes how items look to it; made once for a query, so that answers are kept by it.

    character_sets: values of (0008,0005) or `ASCII`, tried one after the other. lengths: tag -> characters."""

    character_sets: tuple[str, ...]
    lengths: tuple[tuple[int, int], ...] = ()
    omit_empty: bool = False
    no_inner_sequences: bool = False
    half_width_kana: bool = False


def look_of(node: NodeInfo | None, settings: Settings, query: Tree) -> Look:
    """node: None = not configured, the site's set."""
    habits = node.habits if node else NO_HABITS
    setting = habits.character_set or (node.character_set if node else "") or settings.worklist_character_set
    if setting == "REQUEST":
        setting = _requested(query, settings)
    return Look(
        character_sets=_tried(setting, habits),
        lengths=tuple((tag, length) for word, length in habits.lengths if (tag := tag_for_keyword(word)) is not None),
        omit_empty="omit_empty" in habits.quirks,
        no_inner_sequences="no_inner_sequences" in habits.quirks,
        half_width_kana="half_width_kana" in habits.quirks,
    )


def _requested(query: Tree, settings: Settings) -> str:
    """Who declares nothing may well read more than ASCII: keys rarely need more."""
    declared = plain(query, tree.CHARSET)
    if not declared and settings.worklist_character_set != "REQUEST":
        return settings.worklist_character_set
    return declared if can_answer_in(declared) else UTF_8


def _tried(setting: str, habits: Habits) -> tuple[str, ...]:
    """The order of conformance.md 1.6: its set, then with what may be added, then what may stand in for it."""
    tried = [setting]
    for added in habits.character_sets_also:
        if added.startswith(EXTENSION) and (extended := _extended(tried[-1], added)):
            tried.append(extended)
    tried += [other for other in habits.character_sets_also if not other.startswith(EXTENSION)]
    return tuple(dict.fromkeys(tried))


def _extended(setting: str, added: str) -> str:
    """Empty where the set takes no code extensions (PS3.3 C.12.1.1.2)."""
    first, *others = charset.terms(setting)
    if not others:
        first = first.replace("ISO_IR ", EXTENSION) if first != "ISO_IR 6" else ""
    extended = "\\".join((first, *others, added))
    return extended if added not in others and can_answer_in(extended) else ""


@lru_cache(8192)
def item_of(dataset: bytes, status: str) -> Tree:
    item = tree.read(dataset, tree.EXPLICIT_LE, LIMITS)
    steps = item[STEP_SEQUENCE][1]
    assert isinstance(steps, list)
    steps[0][STATUS] = ("CS", status)
    return item


@dataclass(frozen=True)
class Answer:
    """The identifier that one device gets. lost: what its character set and lengths cost (variants). withheld: why it
    cannot be offered the item; the data set is then empty. character_set: what it is in."""

    dataset: bytes
    lost: frozenset[str] = frozenset()
    withheld: str = ""
    character_set: str = ""


@lru_cache(32768)
def answer(
    dataset: bytes,
    status: str,
    wanted: Shape,
    syntax: str,
    look: Look,
    zone: dt.tzinfo | None = None,
    stations: tuple[str, ...] | None = None,
) -> Answer:
    """zone: of Timezone Offset From UTC, None = not asked for. stations: of (0040,0001), None = as stored.

    An item of which something cannot be written costs the device that item, and not its list."""
    try:
        item = item_of(dataset, status)
    except Unreadable:
        return Answer(b"", withheld="cannot be read")
    if stations is not None:
        step = {**step_keys(item), STATIONS: ("AE", "\\".join(stations))}
        item = {**item, STEP_SEQUENCE: ("SQ", [step])}
    picked = _pick(item, wanted, RETURNED, flat=look.no_inner_sequences)
    if zone is not None:
        try:
            picked[TIMEZONE] = ("SH", offset_of(zone, step_keys(item)))
        except (ValueError, OverflowError, InvalidValue):
            return Answer(b"", withheld=f"{CANNOT} {_named(TIMEZONE)}")
    return encode(picked, item, syntax, look)


def _pick(item: Tree, wanted: Shape, known: frozenset[int], *, flat: bool) -> Tree:
    """What was asked for, zero-length where we have no value (conformance.md 1.3, 8); unknown keys are left out.

    flat: of a sequence that was asked for as a whole, without the sequences inside its items."""
    picked: Tree = {}
    for tag, inner in wanted:
        if tag not in known or tag == TIMEZONE:
            continue
        vr, value = item.get(tag, (tree.vr_of(tag), [] if tree.vr_of(tag) == "SQ" else ""))
        if isinstance(value, list) and inner:
            value = [_pick(one, inner, known_in(tag), flat=flat) for one in value]
        elif isinstance(value, list) and flat:
            value = [{key: one[key] for key in one if one[key][0] != "SQ"} for one in value]
        picked[tag] = (vr, value)
    return picked


def encode(picked: Tree, item: Tree, syntax: str, look: Look) -> Answer:
    """In a set of the device; else with what the record's characters become for it (conformance.md 1.6). Never a `?`.

    item: the whole of it, for the codes of descriptions that cannot be written."""
    meant = variants.map_names(picked, _in_kana) if look.half_width_kana else picked
    short, cut = variants.cut(meant, look.lengths)
    if _gone(picked, short):
        return Answer(b"", cut, "an identifier is longer than it takes")
    if made := _in_first_set(_told_by_code(short, meant, item, look) if cut else short, cut, syntax, look):
        return made
    romaji = look.character_sets[-1] == ROMAJI_ONLY
    spell = _spelled if romaji else None
    fitting, lost = variants.fit(meant, _sets(look.character_sets[-1]), 1 if romaji else 3, spell)
    shown, cut = variants.cut(fitting, look.lengths)
    lost |= cut
    if gone := _gone(picked, shown):
        return Answer(b"", lost, _unwritable(gone, romaji))
    told = _told_by_code(shown, meant, item, look)
    if made := _in_first_set(told, lost, syntax, look):
        return made
    return Answer(b"", lost, f"{CANNOT} {_unwritable_in(told, syntax, _sets(look.character_sets[-1]))}".strip())


def _in_first_set(item: Tree, lost: frozenset[str], syntax: str, look: Look) -> Answer | None:
    """In the first of its sets that has all the characters."""
    full = _without_empty(item) if look.omit_empty else item
    for setting in look.character_sets:
        shown = {**full, tree.CHARSET: ("CS", setting)}
        if setting == ROMAJI_ONLY:
            shown = variants.map_names(full, _group_1)
            if _gone(full, shown):
                continue
        with contextlib.suppress(ValueError):
            return Answer(tree.write(shown, syntax, _sets(setting)), lost, "", setting)
    return None


def _unwritable_in(item: Tree, syntax: str, sets: Sequence[str]) -> str:
    """The tag of the first element that cannot be written, also inside sequences."""
    for tag, (vr, value) in sorted(item.items()):
        inside = [_unwritable_in(one, syntax, sets) for one in value] if isinstance(value, list) else []
        if named := next(filter(None, inside), ""):
            return named
        try:
            tree.write({tag: (vr, value)}, syntax, sets)
        except ValueError:
            return _named(tag)
    return ""


def _named(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _sets(setting: str) -> Sequence[str]:
    return ("",) if setting == ROMAJI_ONLY else charset.terms(setting)


def _gone(before: Tree, after: Tree) -> list[int]:
    """Those texts of type 1 that have no value any more."""
    return [
        tag
        for was, now in ((before, after), (step_keys(before), step_keys(after)))
        for tag in TYPE_1_TEXTS
        if plain(was, tag) and not plain(now, tag)
    ]


def _unwritable(gone: Sequence[int], romaji: bool) -> str:
    if gone != [PATIENT_NAME]:
        return "an identifier does not fit into its character set"
    return "romaji missing" if romaji else "no group of Patient's Name fits into its character set"


def _group_1(name: str) -> str:
    return name.split("=")[0]


def _in_kana(name: str) -> str:
    """The phonetic group as group 1, where it is kana."""
    groups = [*name.split("="), "", ""][:3]
    kana_only = unicodedata.normalize("NFD", kana.katakana(groups[2]))
    short = "".join(HALF_WIDTH.get(char, char) for char in kana_only)
    fits = short and all(char in HALF_WIDTH.values() or char.isascii() for char in short)
    return "=".join((short, *groups[1:])).rstrip("=") if fits else name


def _spelled(text: str) -> str:
    """Kana in romaji, apart from what stands beside it."""
    return KANA.sub(lambda run: f" {kana.romanise(run[0], long_vowels=True)} ", text)


def _told_by_code(shown: Tree, before: Tree, item: Tree, look: Look) -> Tree:
    """A code without its value is none and goes as a whole, and so do other items without their identifier; a
    description or meaning of which nothing is left is told by the value of its code (type 1C or 1, conformance.md
    1.2)."""
    made: Tree = {}
    for tag, (vr, value) in shown.items():
        was, known = before[tag][1], item.get(tag, (vr, ""))[1]
        if isinstance(value, list) and isinstance(was, list) and isinstance(known, list):
            made[tag] = (vr, [
                _told_by_code(one, old, record, look)
                for one, old, record in zip(value, was, known, strict=True)
                if all(plain(one, key) or not plain(old, key) for key in NAMED_BY)
            ])  # fmt: skip
        elif was and not value:
            made[tag] = (vr, _code_of(tag, item, dict(look.lengths)))
        else:
            made[tag] = (vr, value)
    return made


def _code_of(tag: int, item: Tree, lengths: Mapping[int, int]) -> str:
    """Empty where there is none, or the device cannot take it."""
    codes = [item] if tag == CODE_MEANING else item.get(CODES_OF.get(tag, 0), ("SQ", []))[1]
    value = plain(codes[0], CODE_VALUE) if isinstance(codes, list) and codes else ""
    return value if value.isascii() and len(value) <= lengths.get(tag, len(value)) else ""


def _without_empty(item: Tree) -> Tree:
    full: Tree = {}
    for tag, (vr, value) in item.items():
        left = [kept for one in value if (kept := _without_empty(one))] if isinstance(value, list) else value
        if left:
            full[tag] = (vr, left)
    return full


def offset_of(zone: dt.tzinfo, step: Tree) -> str:
    """Timezone Offset From UTC (0008,0201) at the start of the step, which may lie beyond a change of the clocks."""
    date, time = (plain(step, tag) for tag in (matching.START_DATE, matching.START_TIME))
    day = dt.datetime.strptime(date, "%Y%m%d").replace(tzinfo=zone)
    return (day + dt.timedelta(microseconds=matching.time_range(time)[0])).strftime("%z")
