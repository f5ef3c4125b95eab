"""XPN and XCN to DICOM person names of three groups (conformance.md 5.4, 5.9)."""

from broker.config import Site
from broker.mwl import kana
from broker.ris_bridge.hl7.message import Segment, part

UNSAFE = str.maketrans("\\^=¥", "/  /")
# XPN: (family, given, middle, suffix, prefix, representation) by component; XCN shifts by one, its code is XCN.15.
XPN, XCN = (1, 2, 3, 4, 5, 8), (2, 3, 4, 5, 6, 15)


def person(segment: Segment, number: int, site: Site, components: tuple[int, ...] = XPN) -> str:
    """`alphabetic=ideographic=phonetic`. HL7 says suffix, prefix; DICOM prefix, suffix. Without a representation code
    the script decides. No romaji: made from the kana by the site's table."""
    groups = {"A": "", "I": "", "P": ""}
    for repetition in segment.repetitions(number):
        family, given, middle, suffix, prefix, code = (part(repetition, segment.delimiters, c) for c in components)
        name = "^".join(_clean(value) for value in (family, given, middle, prefix, suffix)).rstrip("^")
        kind = code if code in groups else kana.script(name)
        if name and not groups.get(kind or "A"):
            groups[kind or "A"] = name
    phonetic = (kana.hiragana if site.phonetic_form == "hiragana" else kana.katakana)(groups["P"])
    alphabetic = groups["A"]
    if not alphabetic and phonetic:
        romaji = kana.romanise(phonetic, long_vowels=site.romanisation == "TAROU")
        alphabetic = romaji if romaji.isascii() else ""
    return "=".join((alphabetic, groups["I"], phonetic)).rstrip("=")


def _clean(value: str) -> str:
    """No delimiter of DICOM's inside a component (conformance.md 1.6)."""
    return value.translate(UNSAFE).strip()
