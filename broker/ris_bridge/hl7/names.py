"""Person names: HL7 XPN and XCN repetitions to a DICOM PN of three groups `alphabetic=ideographic=phonetic`.

Source: conformance.md 1.5 and 5.9. HL7 orders suffix before prefix, DICOM prefix before suffix (PS3.5 6.2.1.2)."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from broker.errors import InvalidValue

Script = Literal["A", "I", "P"]
Romanisation = Literal["TARO", "TAROU"]
GROUP_CHARACTERS_MAX = 64
LEGAL_TYPES = ("", "L", "D")  # table 0200: legal, display; not alias, maiden name, nickname

_HALF_KANA = re.compile(r"[\uff61-\uff9f]+")
_KANA = re.compile(r"[\u3041-\u309f\u30a0-\u30ff\s\-‐－・･.]+")
_IDEOGRAPH = re.compile(r"[\u2e80-\u2fdf\u3005-\u3007\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]")
_NOT_IN_PN = re.compile(r"[\^=\\\s]+")


@dataclass(frozen=True)
class Name:
    """One repetition. representation: XPN.8 / XCN.15 (table 0465), empty where the sender does not say."""

    family: str = ""
    given: str = ""
    middle: str = ""
    prefix: str = ""
    suffix: str = ""
    representation: str = ""
    type: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        return self.family, self.given, self.middle, self.prefix, self.suffix


def person_name(
    names: Iterable[Name], *, place: str, phonetic_form: str, romanisation: Romanisation, note: Callable[[str], None]
) -> str:
    """DICOM PN of all repetitions; empty where none has a name. The first repetition of each script counts."""
    named = [name for name in names if any(name.parts)]
    legal = [name for name in named if name.type in LEGAL_TYPES] or named
    groups: dict[Script, tuple[str, ...]] = {}
    for name in legal:
        groups.setdefault(script_of(name), tuple(widen(part) for part in name.parts))
    if "A" not in groups and "P" in groups and (derived := _all_romanised(groups["P"], romanisation)):
        groups["A"] = derived
        note("alphabetic name derived from the phonetic one")
    convert = {"A": _plain, "I": str, "P": hiragana if phonetic_form == "hiragana" else str}
    texts = ["^".join(_part(convert[s](part)) for part in groups.get(s, ())).rstrip("^") for s in ("A", "I", "P")]
    if any(len(text) > GROUP_CHARACTERS_MAX for text in texts):
        raise InvalidValue(place, f"a name group is longer than {GROUP_CHARACTERS_MAX} characters", err="102")
    return "=".join(texts).rstrip("=")


def script_of(name: Name) -> Script:
    """Which PN group it belongs to: what the sender says, else what it is written in."""
    text = widen("".join(name.parts))
    written: Script = "I" if _IDEOGRAPH.search(text) else "P" if _KANA.fullmatch(text) else "A"
    if name.representation == "I" or (name.representation == "P" and written != "I"):
        return "I" if name.representation == "I" else "P"
    return written


def widen(text: str) -> str:
    """Half-width katakana as full-width: DICOM group 3 is never half-width (conformance.md 5.9)."""
    return _HALF_KANA.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)


def _plain(text: str) -> str:
    """Full-width letters as ASCII: group 1 is single-byte."""
    return unicodedata.normalize("NFKC", text)


def _part(text: str) -> str:
    """Delimiters of PN, and `\\`, cannot stand in a component."""
    return _NOT_IN_PN.sub(" ", text).strip()


def katakana(text: str) -> str:
    return "".join(chr(ord(sign) + 0x60) if "\u3041" <= sign <= "\u3096" else sign for sign in text)


def hiragana(text: str) -> str:
    return "".join(chr(ord(sign) - 0x60) if "\u30a1" <= sign <= "\u30f6" else sign for sign in text)


# Hepburn, as Japanese passports use it. One row: katakana, then its romaji.
_HEPBURN = dict(
    pair.split(":")
    for pair in (
        "ア:A イ:I ウ:U エ:E オ:O カ:KA キ:KI ク:KU ケ:KE コ:KO サ:SA シ:SHI ス:SU セ:SE ソ:SO "
        "タ:TA チ:CHI ツ:TSU テ:TE ト:TO ナ:NA ニ:NI ヌ:NU ネ:NE ノ:NO ハ:HA ヒ:HI フ:FU ヘ:HE ホ:HO "
        "マ:MA ミ:MI ム:MU メ:ME モ:MO ヤ:YA ユ:YU ヨ:YO ラ:RA リ:RI ル:RU レ:RE ロ:RO ワ:WA ヰ:I ヱ:E ヲ:O ン:N "
        "ガ:GA ギ:GI グ:GU ゲ:GE ゴ:GO ザ:ZA ジ:JI ズ:ZU ゼ:ZE ゾ:ZO ダ:DA ヂ:JI ヅ:ZU デ:DE ド:DO "
        "バ:BA ビ:BI ブ:BU ベ:BE ボ:BO パ:PA ピ:PI プ:PU ペ:PE ポ:PO ヴ:VU "
        "ァ:A ィ:I ゥ:U ェ:E ォ:O ャ:YA ュ:YU ョ:YO ヮ:WA "
        "キャ:KYA キュ:KYU キョ:KYO シャ:SHA シュ:SHU ショ:SHO シェ:SHE チャ:CHA チュ:CHU チョ:CHO チェ:CHE "
        "ニャ:NYA ニュ:NYU ニョ:NYO ヒャ:HYA ヒュ:HYU ヒョ:HYO ミャ:MYA ミュ:MYU ミョ:MYO "
        "リャ:RYA リュ:RYU リョ:RYO ギャ:GYA ギュ:GYU ギョ:GYO ジャ:JA ジュ:JU ジョ:JO ジェ:JE "
        "ビャ:BYA ビュ:BYU ビョ:BYO ピャ:PYA ピュ:PYU ピョ:PYO ティ:TI ディ:DI デュ:DYU トゥ:TU ドゥ:DU "
        "ファ:FA フィ:FI フェ:FE フォ:FO フュ:FYU ウィ:WI ウェ:WE ウォ:WO ヴァ:VA ヴィ:VI ヴェ:VE ヴォ:VO "
        "ツァ:TSA クァ:KWA グァ:GWA"
    ).split()
)
# ノ + ウエ, not ノウ + エ: here ウ begins a word and is no long vowel (井上 INOUE, 山之内 YAMANOUCHI, 松浦 MATSUURA).
_SHORT_BEFORE_U = re.compile(r"(?<=ノ)ウ(?=[エチラ])|(?<=ツ)ウ(?=ラ)")


def romanise(kana: str, form: Romanisation) -> str | None:
    """Kana as romaji. TARO: long vowels as one letter, as in a passport; TAROU: as the kana are written.

    None where something in it is no kana (a letter, space or hyphen passes)."""
    text = katakana(widen(kana))
    kept = {match.start() for match in _SHORT_BEFORE_U.finditer(text)}
    out: list[str] = []
    at, doubled, lengthened = 0, False, False
    while at < len(text):
        sign = text[at]
        if sign == "ッ":
            doubled, at = True, at + 1
            continue
        vowel = out[-1][-1:] if out else ""
        if sign == "ー":
            out.append(vowel if form == "TAROU" else "")
            at += 1
            continue
        if form == "TARO" and not lengthened and at not in kept and _lengthens(text, at, vowel):
            lengthened, at = True, at + 1
            continue
        length = 2 if text[at : at + 2] in _HEPBURN and len(text) > at + 1 else 1
        romaji = _HEPBURN.get(text[at : at + length]) or _passing(sign)
        if romaji is None:
            return None
        out.append(_double(romaji) if doubled else romaji)
        at, doubled, lengthened = at + length, False, False
    return re.sub("N(?=[BMP])", "M", "".join(out))


def _lengthens(text: str, at: int, vowel: str) -> bool:
    """ウ after O or U, オ after O (but not at the end: 妹尾 SENOO)."""
    return (text[at] == "ウ" and vowel in ("O", "U")) or (text[at] == "オ" and vowel == "O" and at + 1 < len(text))


def _double(romaji: str) -> str:
    return ("T" if romaji.startswith("CH") else romaji[0]) + romaji


def _passing(sign: str) -> str | None:
    if sign in "・　":
        return " "
    return sign.upper() if sign.isascii() and sign not in "^=\\" else None


def _all_romanised(parts: Iterable[str], form: Romanisation) -> tuple[str, ...] | None:
    romanised = [romanise(part, form) for part in parts]
    return None if None in romanised else tuple(part or "" for part in romanised)
