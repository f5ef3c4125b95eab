"""Texts by their meaning: wildcards, and names of persons (conformance.md 1.4, 1.5). Pure."""

import re
import unicodedata
from functools import lru_cache
from itertools import zip_longest

from broker.dicom import variants

NAMES_FOLDED_MAX, KEYS_FOLDED_MAX = 16_384, 256
# NFKC makes a delimiter or a wildcard of these: a `＊` that somebody wrote is no `*`, in a key or in a name.
LOOKALIKES = re.compile("([⁇⁈⁉⁼₌≠⩴⩵⩶︖﹖﹡﹦﹨＊＝？＼＾])")
UNIVERSAL = ("", "*")
# Names are stored as they are compared (scheduled_step.name_key): a change here, or of the table, needs a migration.
SHOWN_AS = {
    char: form for char, form in variants.SUBSTITUTE.items() if len(form) == 1 and unicodedata.category(form) == "Lo"
}


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


def person_matches(key: str, name: str, fuzzy: bool = False) -> bool:
    """A key without `=` is tried against each group and the whole; with `=`, group by group, empty = universal.

    fuzzy: the beginnings of components are enough, and family and given name may stand for each other."""
    wanted, known = _wanted(key), _known(name)
    fits = _fits_fuzzily if fuzzy else glob
    groups = [group.rstrip("^") for group in known.split("=")]
    if "=" not in wanted:
        return glob(wanted, known) or any(fits(wanted, group) for group in groups)
    asked = [group.rstrip("^") for group in wanted.split("=")]
    pairs = zip_longest(asked, groups, fillvalue="")
    return all(want in UNIVERSAL or (bool(have) and fits(want, have)) for want, have in pairs)


def _fits_fuzzily(wanted: str, group: str) -> bool:
    if glob(wanted, group):
        return True
    asked = wanted.split("^")
    family, given, *others = [*group.split("^"), ""][: max(2, group.count("^") + 1)]
    return any(
        all(not want or glob(f"{want}*", have) for want, have in zip_longest(asked, components, fillvalue=""))
        for components in ((family, given, *others), (given, family, *others))
    )


@lru_cache(KEYS_FOLDED_MAX)
def _wanted(key: str) -> str:
    return trimmed(compared(key))


@lru_cache(NAMES_FOLDED_MAX)
def _known(name: str) -> str:
    return trimmed(compared(name))


def trimmed(name: str) -> str:
    """Trailing empty groups and components may be dropped (PS3.5 6.2.1): `^` is the empty name."""
    return name.rstrip("^= ")


def compared(name: str) -> str:
    """A name as keys meet it: a device that is shown 高橋 for 髙橋 finds him by it, and so does one that has both."""
    return fold(name).translate(SHOWN_AS)


def fold(text: str) -> str:
    """Without width, case, accents and the difference of hiragana and katakana; long vowels and small kana stay."""
    return "".join(part if n % 2 else _folded(part) for n, part in enumerate(LOOKALIKES.split(text)))


def _folded(text: str) -> str:
    if text.isascii():
        return text.lower()
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    # The marks of が and ぱ are combining too, but they are no accents.
    kept = "".join(c for c in plain if unicodedata.category(c) != "Mn" or c in "\u3099\u309a")
    composed = unicodedata.normalize("NFC", kept)
    return "".join(chr(ord(c) + 0x60) if "ぁ" <= c <= "ゖ" or c in "ゝゞ" else c for c in composed)
