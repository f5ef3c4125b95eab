"""How alike two person names are: grades N0 to N4 of reconciliation.md 3.3. Pure, with versioned tables."""

import re
from typing import Literal

from broker.dicom.variants import SUBSTITUTE
from broker.dicom.variants import VERSION as VARIANTS_VERSION
from broker.mwl import kana
from broker.mwl.texts import fold as plain

TABLES_VERSION = f"variants {VARIANTS_VERSION}, kana {kana.VERSION}"
Grade = Literal["N0", "N1", "N2", "N3", "N4", "missing"]
# Forms of one kanji that both stand in JIS X 0208: common in names, never told apart at the desk.
FORMS = str.maketrans(
    "邊邉齋齊斎澤廣國櫻嶋島曾條濱龍瀧黒禮惠榮壽藏萬與圓會學實眞凜",
    "辺辺斉斉斉沢広国桜島島曽条浜竜滝黒礼恵栄寿蔵万与円会学実真凛",
)
# Other romanisations (Kunrei, long vowels) -> passport style.
SPELLINGS = [
    (re.compile(pattern), short)
    for pattern, short in (
        ("OH(?![AIUEO])|OU|OO", "O"), ("UU", "U"), ("SI", "SHI"), ("TI", "CHI"), ("TU", "TSU"), ("(?<![SC])HU", "FU"),
        ("ZI", "JI"), ("SY", "SH"), ("TY", "CH"), ("[ZJ]Y", "J"), ("M(?=[BMP])", "N"),
    )
]  # fmt: skip
LONG = re.compile(r"[ー－―‐\-~〜ｰ]")


def fold(text: str) -> str:
    """One part of a name without width, case, accents, kana script, long-vowel and hyphen signs."""
    return LONG.sub("", plain(text)).strip(" ,.")


def grade(a: str, b: str) -> Grade:
    """`missing` where either has no name at all. A given name that only one side has is missing, not different."""
    if not _groups(a) or not _groups(b):
        return "missing"
    if a.strip() == b.strip():
        return "N0"
    pairs = [(x, y) for x in _groups(a) for y in _groups(b)]
    same = [(x, y) for x, y in zip(_all_groups(a), _all_groups(b), strict=True) if x[0] and y[0]]
    if same and all(_equal(x, y) for x, y in same):
        return "N1"
    if any(_equal(_loose(x), _loose(y)) or _swapped(x, y) for x, y in pairs):
        return "N2"
    if any(_near(x, y) for x, y in pairs):
        return "N3"
    return "N4"


def lacks_given(a: str, b: str) -> bool:
    """Whether one of two names has no given name in any group while the other has one."""
    has_a, has_b = (any(group[1] for group in _groups(name)) for name in (a, b))
    return bool(_groups(a) and _groups(b)) and has_a != has_b


Parts = tuple[str, str, str]  # family, given, middle; prefix and suffix do not count


def _all_groups(name: str) -> list[Parts]:
    groups = []
    for group in [*name.split("="), "", "", ""][:3]:
        text = plain(group)
        parts = [fold(part) for part in (text.split("^") if "^" in text else re.split(r"[ ,　]+", text.strip()))]
        groups.append((*parts, "", "", "")[:3])
    return groups  # type: ignore[return-value]


def _groups(name: str) -> list[Parts]:
    return [group for group in _all_groups(name) if group[0]]


def _equal(x: Parts, y: Parts) -> bool:
    if x[0] != y[0]:
        return False
    if x[1] and y[1] and x[1] != y[1]:
        return False
    return not x[2] or not y[2] or x[2] == y[2] or (x[2][0] == y[2][:1] and 1 in (len(x[2]), len(y[2])))


def _loose(parts: Parts) -> Parts:
    family, given, middle = (_romaji(part.translate(SUBSTITUTE).translate(FORMS)) for part in parts)
    return family, given, middle


def _romaji(part: str) -> str:
    """Kana in romaji and romaji in its shortest spelling, so that タロウ, Tarou, Taroh and TARO meet."""
    text = kana.romanise(part).upper()
    if not text.isascii():
        return text
    for spelling, short in SPELLINGS:
        text = spelling.sub(short, text)
    return text


def _swapped(x: Parts, y: Parts) -> bool:
    x, y = _loose(x), _loose(y)
    return bool(x[1] and y[1]) and (x[0], x[1]) == (y[1], y[0])


def _near(x: Parts, y: Parts) -> bool:
    """One edit in a part of four letters or more, one kanji different, or given equal and family different."""
    if x[1] and x[1] == y[1]:
        return True
    if not (x[1] and y[1]):
        return _one_edit(x[0], y[0])
    return (x[0] == y[0] and _one_edit(x[1], y[1])) or (x[1] == y[1] and _one_edit(x[0], y[0]))


def _one_edit(a: str, b: str) -> bool:
    """Damerau: one insertion, deletion, substitution or swap of neighbours."""
    if kana.script(a) == "I" and kana.script(b) == "I":
        return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1
    if max(len(a), len(b)) < 4 or abs(len(a) - len(b)) > 1:
        return False
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    rest_a, rest_b = a[at:], b[at:]
    return (
        rest_a[1:] == rest_b[1:]
        or rest_a[1:] == rest_b
        or rest_a == rest_b[1:]
        or (rest_a[:2] == rest_b[1::-1] and rest_a[2:] == rest_b[2:])
    )
