"""XPN and XCN to DICOM person names of three groups (conformance.md 5.4, 5.9)."""

import re
from typing import NamedTuple

from broker import log
from broker.config import Site
from broker.errors import InvalidValue
from broker.mwl import kana
from broker.ris_bridge.hl7.message import Segment, part
from broker.ris_bridge.hl7.values import CONTROL, NULL

UNSAFE = str.maketrans("\\^=¥", "/  /")
SPACES = re.compile("[ \u3000]+")
CHARACTERS_MAX = 64  # of one component group (PS3.5 6.2)
# XPN: (family, given, middle, suffix, prefix, name type, representation) by component; XCN shifts by one.
XPN, XCN = (1, 2, 3, 4, 5, 7, 8), (2, 3, 4, 5, 6, 10, 15)
LEGAL = ("L", "")  # table 0200: before a maiden name, an alias, a display name
# Representations (table 0465) that are believed, by the script of the text. Kana may be all there is of a written name.
BELIEVED = {"A": ("A", "I", "P"), "P": ("P", "I"), "I": ("I",)}

LATIN = "latin"  # of another repetition than A
WIDTH = {"A": kana.latin, LATIN: kana.latin, "I": kana.wide, "P": kana.katakana}


class Name(NamedTuple):
    """pn: `alphabetic=ideographic=phonetic`. romaji_derived: the alphabetic group was made here from the kana."""

    pn: str
    romaji_derived: bool = False


def person(segment: Segment, number: int, site: Site, components: tuple[int, ...] = XPN) -> str:
    return read(segment, number, site, components).pn


def read(segment: Segment, number: int, site: Site, components: tuple[int, ...] = XPN) -> Name:
    """The legal name, the first one of each representation. Without a code, the script decides. No romaji: made from
    the kana by the site's table.

    Raises InvalidValue for a patient's name (XPN) that is too long: half a name is another's."""
    said = []
    for repetition in segment.repetitions(number):
        *parts, kind, code = (part(repetition, segment.delimiters, component) for component in components)
        if any(one and one != NULL for one in parts):
            said.append((kind.strip('" ').upper(), code.strip().upper(), parts))
    kinds = LEGAL if any(kind in LEGAL for kind, _, _ in said) else [kind for kind, _, _ in said[:1]]
    return grouped(
        [(code, parts) for kind, code, parts in said if kind in kinds], site, segment.place(number), components
    )


def technician(obr: Segment, number: int, site: Site) -> str | None:
    """OBR-34 NDL: its first component is a CNN, `id&family&given&middle&suffix&prefix`."""
    if not obr.field(number):
        return None
    parts = [obr.get(number, 1, n) for n in (2, 3, 4, 5, 6)]
    return grouped([("", parts)], site, obr.place(number), XCN).pn


def grouped(said: list[tuple[str, list[str]]], site: Site, place: str, components: tuple[int, ...]) -> Name:
    """said: (representation code, [family, given, middle, suffix, prefix])."""
    groups: dict[str, str] = {}
    for code, parts in said:
        script = kana.script("".join(parts)) or "A"
        group = code if code in BELIEVED[script] else script
        # A foreigner's name may stand in Latin letters where the kanji are: better than romaji of its kana.
        for one in (group, LATIN) if script == "A" != group else (group,):
            if not groups.get(one):
                groups[one] = _fitting(_joined(parts, one, site), place, components)
    ideographic, phonetic = groups.get("I", ""), groups.get("P", "")
    alphabetic = groups.get("A") or groups.get(LATIN, "")
    derived = "" if alphabetic else _romaji(phonetic, site)
    return Name("=".join((alphabetic or derived, ideographic, phonetic)).rstrip("="), bool(derived))


def _romaji(phonetic: str, site: Site) -> str:
    romaji = kana.romanise(phonetic.replace("・", " "), long_vowels=site.romanisation == "TAROU")
    return romaji if romaji.isascii() and len(romaji) <= CHARACTERS_MAX else ""


def _joined(parts: list[str], group: str, site: Site) -> str:
    """HL7 says suffix, prefix; DICOM prefix, suffix. No delimiter of DICOM's inside a component (1.6)."""
    wide = kana.hiragana if group == "P" and site.phonetic_form == "hiragana" else WIDTH[group]
    family, given, middle, suffix, prefix = (
        CONTROL.sub(" ", wide("" if one == NULL else one).translate(UNSAFE)).strip() for one in parts
    )
    halves = SPACES.split(family)
    if group in ("I", "P") and len(halves) == 2 and not (given or middle):  # 山田　太郎 in one component
        family, given = halves
    return "^".join((family, given, middle, prefix, suffix)).rstrip("^")


def _fitting(name: str, place: str, components: tuple[int, ...]) -> str:
    if len(name) > CHARACTERS_MAX:
        if components is XPN:
            raise InvalidValue(place, f"a name is longer than {CHARACTERS_MAX} characters", err="102")
        log.get().info("hl7.name_cut", place=place, characters_max=CHARACTERS_MAX)
    return name[:CHARACTERS_MAX]
