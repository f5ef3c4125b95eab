"""Kana to romaji (Hepburn) and between the scripts; which script a text is in."""

import re
import unicodedata
from functools import lru_cache
from typing import Literal

VERSION = "2"
REMEMBERED_CHARACTERS_MAX = 64  # of one text: a name has no more, and a long one must not fill the memory
PAIRS = dict(
    pair.split(":")
    for pair in (
        "キャ:KYA キュ:KYU キョ:KYO シャ:SHA シュ:SHU ショ:SHO チャ:CHA チュ:CHU チョ:CHO ニャ:NYA ニュ:NYU "
        "ニョ:NYO ヒャ:HYA ヒュ:HYU ヒョ:HYO ミャ:MYA ミュ:MYU ミョ:MYO リャ:RYA リュ:RYU リョ:RYO ギャ:GYA "
        "ギュ:GYU ギョ:GYO ジャ:JA ジュ:JU ジョ:JO ビャ:BYA ビュ:BYU ビョ:BYO ピャ:PYA ピュ:PYU ピョ:PYO "
        "ファ:FA フィ:FI フェ:FE フォ:FO ティ:TI ディ:DI ウィ:WI ウェ:WE ヴァ:VA ヴィ:VI ヴェ:VE ヴォ:VO "
        "シェ:SHE ジェ:JE チェ:CHE デュ:DYU トゥ:TU ドゥ:DU ヂャ:JA ヂュ:JU ヂョ:JO "
    ).split()
)
SINGLE = dict(
    pair.split(":")
    for pair in (
        "ア:A イ:I ウ:U エ:E オ:O カ:KA キ:KI ク:KU ケ:KE コ:KO サ:SA シ:SHI ス:SU セ:SE ソ:SO タ:TA "
        "チ:CHI ツ:TSU テ:TE ト:TO ナ:NA ニ:NI ヌ:NU ネ:NE ノ:NO ハ:HA ヒ:HI フ:FU ヘ:HE ホ:HO マ:MA "
        "ミ:MI ム:MU メ:ME モ:MO ヤ:YA ユ:YU ヨ:YO ラ:RA リ:RI ル:RU レ:RE ロ:RO ワ:WA ヰ:I ヱ:E ヲ:O "
        "ン:N ガ:GA ギ:GI グ:GU ゲ:GE ゴ:GO ザ:ZA ジ:JI ズ:ZU ゼ:ZE ゾ:ZO ダ:DA ヂ:JI ヅ:ZU デ:DE ド:DO "
        "バ:BA ビ:BI ブ:BU ベ:BE ボ:BO パ:PA ピ:PI プ:PU ペ:PE ポ:PO ヴ:VU ァ:A ィ:I ゥ:U ェ:E ォ:O "
        "ャ:YA ュ:YU ョ:YO ヮ:WA "
    ).split()
)


HALF_WIDTH = re.compile("[｡-ﾟ]+")
FULL_WIDTH = str.maketrans({0xFEE0 + code: chr(code) for code in range(0x21, 0x7F)} | {"\u3000": " "})
# Ideographs with their marks (々〆〇), and the characters that a site made itself: nearly all are kanji of names.
IDEOGRAPH = re.compile("[\u3005-\u3007\u3400-\u9fff\ue000-\uf8ff\uf900-\ufaff\U00020000-\U0003ffff]")
# Kana, and Hangul, whose place is the phonetic group (PS3.5 I.2).
PHONETIC = re.compile("[\u3040-\u30ff｡-ﾟ\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")


def wide(text: str) -> str:
    """Half-width katakana in full width; all else stays, above all the forms of kanji."""
    return HALF_WIDTH.sub(lambda run: unicodedata.normalize("NFKC", run[0]), text)


def latin(text: str) -> str:
    """Full-width Latin letters as ASCII."""
    return text.translate(FULL_WIDTH)


def katakana(text: str) -> str:
    """Full-width katakana; what is no kana stays."""
    wide = unicodedata.normalize("NFKC", text)
    return "".join(chr(ord(c) + 0x60) if "ぁ" <= c <= "ゖ" else c for c in wide)


def hiragana(text: str) -> str:
    return "".join(chr(ord(c) - 0x60) if "ァ" <= c <= "ヶ" else c for c in katakana(text))


def romanise(text: str, *, long_vowels: bool = False) -> str:
    """タロウ -> TARO, with long_vowels TAROU. What is no kana stays."""
    return (_remembered if len(text) <= REMEMBERED_CHARACTERS_MAX else _romanised)(text, long_vowels)


def _romanised(text: str, long_vowels: bool) -> str:
    source = katakana(text)
    out: list[str] = []
    double, at = False, 0
    while at < len(source):
        char, pair = source[at], source[at : at + 2]
        if char == "ッ":
            double, at = True, at + 1
            continue
        if char == "ー":
            at += 1
            continue
        sound = PAIRS.get(pair) or SINGLE.get(char, char)
        at += 2 if pair in PAIRS else 1
        if double:
            sound = ("T" if sound.startswith("CH") else sound[:1]) + sound
            double = False
        if sound[:1] in ("B", "M", "P") and out and out[-1] == "N":
            out[-1] = "M"  # Hepburn as in passports: NAMBA
        out.append(sound)
    joined = "".join(out)
    return joined if long_vowels else _short(joined)


_remembered = lru_cache(1024)(_romanised)  # family and given names repeat


def _short(text: str) -> str:
    """Passport style: long O and U are written once."""
    for long, short in (("OU", "O"), ("OO", "O"), ("UU", "U")):
        text = text.replace(long, short)
    return text


def script(text: str) -> Literal["A", "I", "P", ""]:
    """XPN.8 by content: an ideograph makes it I, kana without one P, anything else A."""
    if not any(not c.isspace() and c not in "^=&" for c in text):
        return ""
    return "I" if IDEOGRAPH.search(text) else "P" if PHONETIC.search(text) else "A"
