"""What a device whose character set lacks something is shown (conformance.md 1.6). The record keeps the original."""

import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

from broker.dicom import charset, tree
from broker.dicom.tree import Tree

VERSION = "1"
# Left: not in JIS X 0208. Right: the form that stands there for the same name.
SUBSTITUTE = str.maketrans(
    {
        "髙": "高", "﨑": "崎", "𠮷": "吉", "德": "徳", "濵": "浜", "瀨": "瀬", "栁": "柳", "桒": "桑",
        "侊": "光", "凜": "凛", "增": "増", "寬": "寛", "敎": "教", "昻": "昴", "橫": "横",
        "淸": "清", "綠": "緑", "緖": "緒", "薰": "薫", "賴": "頼",
        "靑": "青", "黑": "黒", "①": "1", "②": "2", "③": "3", "④": "4", "⑤": "5", "Ⅰ": "I", "Ⅱ": "II", "Ⅲ": "III",
        "㈱": "(株)", "㎜": "mm", "㎝": "cm", "㎏": "kg", "～": "〜", "－": "−", "∥": "‖", "￠": "¢",
        "￡": "£", "￢": "¬",
    }
)  # fmt: skip
# The marks of が and ぱ are combining too, but without them it is another letter.
KANA_MARKS = "\u3099\u309a"
# Values that name something: one that is changed names something else, so they are shown as they are or not at all.
IDENTIFIERS = frozenset(
    {
        0x00080050, 0x00080100, 0x00080102, 0x00080103, 0x00100020, 0x00100021, 0x00200010, 0x00380010, 0x00400009,
        0x00400031, 0x00400032, 0x00401001, 0x00402016, 0x00402017,
    }
)  # fmt: skip
VARIANT, CHARACTERS, GROUP, IDENTIFIER = "variant", "characters", "group", "identifier"


def fit(item: Tree, charsets: Sequence[str], groups: int = 3) -> tuple[Tree, frozenset[str]]:
    """The item as these sets can write it, and what that cost: `variant`, `group` of a name, `identifier`, `characters`
    of another text.

    groups: how many of a name are shown. One that does not fit is left out as a whole: a surname without one of its
    kanji is another surname."""
    lost: set[str] = set()

    def shown(tag: int, vr: str, value: str) -> str:
        if vr not in tree.TEXT_VRS:
            return value
        fits = partial(_fits, charsets, vr)
        if tag in IDENTIFIERS:
            return _whole(value, fits, lost)
        if vr == "PN":
            return "\\".join(_name(name, groups, fits, lost) for name in value.split("\\"))
        return _text(value, fits, lost)

    return _map(item, shown), frozenset(lost)


def _map(item: Tree, shown: Callable[[int, str, str], str]) -> Tree:
    made: Tree = {}
    for tag, (vr, value) in item.items():
        if isinstance(value, list):
            made[tag] = (vr, [_map(one, shown) for one in value])
        else:
            made[tag] = (vr, shown(tag, vr, value) if isinstance(value, str) else value)
    return made


def _fits(charsets: Sequence[str], vr: str, text: str) -> bool:
    try:
        charset.encode(text, charsets, vr)
    except ValueError:
        return False
    return True


Fits = Callable[[str], bool]


def _whole(value: str, fits: Fits, lost: set[str]) -> str:
    if fits(value):
        return value
    lost.add(IDENTIFIER)
    return ""


def _name(name: str, groups: int, fits: Fits, lost: set[str]) -> str:
    return "=".join(_text(group, fits, lost, lacking=GROUP) for group in name.split("=")[:groups]).rstrip("=")


def _text(text: str, fits: Fits, lost: set[str], lacking: str = CHARACTERS) -> str:
    """lacking: what a character is that nothing stands for."""
    forms = [_nearest(char, fits) for char in text]
    if None in forms:
        lost.add(lacking)
        if lacking == GROUP:
            return ""
    if any(form not in (char, None) for char, form in zip(text, forms, strict=True)):
        lost.add(VARIANT)
    return "".join(form for form in forms if form)


def _nearest(char: str, fits: Fits) -> str | None:
    """The character, else what stands for it; None where neither fits."""
    return next((form for form in (char, _variant(char)) if fits(form)), None)


def _variant(char: str) -> str:
    """From the table; else a letter or digit without width, accent and selector of its form; else the same."""
    if ord(char) in SUBSTITUTE:
        return str(SUBSTITUTE[ord(char)])
    if unicodedata.category(char) not in ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Mn"):
        return char
    plain = unicodedata.normalize("NFKD", char)
    return "".join(c for c in plain if unicodedata.category(c) != "Mn" or c in KANA_MARKS)
