"""XPN and XCN to DICOM person names of three groups (conformance.md 5.4, 5.9)."""

from broker import log
from broker.config import Site
from broker.mwl import kana
from broker.ris_bridge.hl7.message import Segment, part

UNSAFE = str.maketrans("\\^=¥", "/  /")
CHARACTERS_MAX = 64  # of one component group (PS3.5 6.2)
# XPN: (family, given, middle, suffix, prefix, name type, representation) by component; XCN shifts by one.
XPN, XCN = (1, 2, 3, 4, 5, 7, 8), (2, 3, 4, 5, 6, 10, 15)
LEGAL = ("L", "")  # table 0200: before a maiden name, an alias, a display name


def person(segment: Segment, number: int, site: Site, components: tuple[int, ...] = XPN) -> str:
    """`alphabetic=ideographic=phonetic`. HL7 says suffix, prefix; DICOM prefix, suffix. Without a representation code
    the script decides. No romaji: made from the kana by the site's table."""
    said = []
    for repetition in segment.repetitions(number):
        family, given, middle, suffix, prefix, kind, code = (
            part(repetition, segment.delimiters, component) for component in components
        )
        said.append((kind not in LEGAL, code, _joined(family, given, middle, prefix, suffix)))
    legal = [one for one in said if not one[0]]
    return _groups([(code, name) for _, code, name in (legal or said)], site)


def technician(obr: Segment, number: int, site: Site) -> str | None:
    """OBR-34 NDL: its first component is a CNN, `id&family&given&middle&suffix&prefix`."""
    if not obr.field(number):
        return None
    family, given, middle, suffix, prefix = (obr.get(number, 1, n) for n in (2, 3, 4, 5, 6))
    return _groups([("", _joined(family, given, middle, prefix, suffix))], site)


def _joined(*components: str) -> str:
    """No delimiter of DICOM's inside a component (conformance.md 1.6)."""
    return "^".join(component.translate(UNSAFE).strip() for component in components).rstrip("^")


def _cut(name: str) -> str:
    if len(name) > CHARACTERS_MAX:
        log.get().info("hl7.name_cut", characters_max=CHARACTERS_MAX)
    return name[:CHARACTERS_MAX]


def _groups(said: list[tuple[str, str]], site: Site) -> str:
    """said: (representation code, name)."""
    groups = {"A": "", "I": "", "P": ""}
    for code, name in said:
        kind = code if code in groups else kana.script(name)
        if name and not groups.get(kind or "A"):
            groups[kind or "A"] = _cut(name)
    phonetic = (kana.hiragana if site.phonetic_form == "hiragana" else kana.katakana)(groups["P"])
    alphabetic = groups["A"]
    if not alphabetic and phonetic:
        romaji = kana.romanise(phonetic, long_vowels=site.romanisation == "TAROU")
        alphabetic = romaji if romaji.isascii() else ""
    return "=".join((alphabetic, groups["I"], phonetic)).rstrip("=")
