"""What a device whose character set lacks something is shown (conformance.md 1.6). The record keeps the original."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial

from broker.dicom import charset, tree
from broker.dicom.tree import Tree

VERSION = "2"
# Left: not in JIS X 0208. Right: the form that stands there for the same name. A kanji that is only alike is not here.
# Names are compared by it (mwl/texts.py): a change wants a migration (CONTRIBUTING.md).
KANJI = """
    髙高 﨑崎 㟢崎 𠮷吉 濵浜 栁柳 桒桑 枽桑 槗橋 𣘺橋 㐂喜 憘喜 圡土 𡈽土 嶹嶋 隯島 隝島 㠀島 靏鶴 靎鶴
    靍鶴 閒間 魲鱸 贒賢 秊年 柗松 俁俣 曺曹 裵裴 羡羨 柹柿 寗寧 甯寧 澔浩 甁瓶 竫靖 昻昂 曻昇 昰是 旹時
    旾春 暒晴 朢望 榘矩 榦幹 檆杉 沗添 湻淳 溙湊 湏須 琹琴 畞畝 碻確 祏祐 稺稚 窻窓 粦燐 糓穀
    羗羌 肈肇 芲花 葊菴 蔴麻 蕐華 蘒萩 藳稿 虵蛇 訷伸 諬啓 鈆鉛 鉃鉄 鐮鎌 鎋轄 霛霊 馰駒 鴼鷺 鵾鶤
    麽麼 龢和 冝宜 勛勲 叅参 囶国 壳殻 嵓岩 彛彝 斅学 椉乗 眀明 穪称 壄野 埸場 姊姉 宷審 凬風 凮風 凞熙
    刘劉 吴呉 荣栄 惞欣 皡皓 盌碗 莭節 廽廻 徤健 捿棲 滙匯
    德徳 瀨瀬 增増 寬寛 敎教 橫横 淸清 綠緑 緖緒 薰薫 賴頼 靑青 黑黒 黃黄 郞郎 鄕郷 錄録 鍊錬 步歩 歷歴
    曆暦 擊撃 揭掲 悅悦 戾戻 每毎 溫温 渴渇 涉渉 淚涙 狀状 硏研 緣縁 虛虚 巢巣 徵徴 卽即 戶戸 內内 吳呉
    姬姫 娛娯 彥彦 產産 說説 稅税 銳鋭 閱閲 脫脱 晚晩 减減 凑湊 彔録 淥緑 敭揚 雞鶏 揷挿 摠総 擕携 輭軟
    轝輿 餚肴 饍膳 駞駝 駡罵 玆茲 畱留 笇算 筭算 鏁鎖 頥頤 酧酬 阬坑 郒郎 缽鉢 鱉鼈 鵶鴉 𣳾泰 𦚰脇
    﨣赳 﨤返 﨩搗
    鷗鴎 驒騨 啞唖 頰頬 瘦痩 剝剥 塡填 顚顛 吞呑 噓嘘 姸妍 嚙噛 囊嚢 潑溌 瀆涜 焰焔 禱祷 簞箪 繡繍 蔣蒋
    蠟蝋 軀躯 醬醤 醱醗 鹼鹸 麴麹 麵麺 俠侠 倂併 屛屏 幷并 摑掴 搔掻 攢攅 蟬蝉 繫繋 萊莱 荆荊 𠮟叱
"""
SUBSTITUTE = str.maketrans(
    {pair[0]: pair[1] for pair in KANJI.split()}
    | {
        "～": "〜", "－": "−", "∥": "‖", "￠": "¢", "￡": "£", "￢": "¬", "¥": "￥", "—": "―", "–": "‐", "‑": "‐",
        "•": "・", "·": "・", "¦": "|", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss",
        "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i",
    }
)  # fmt: skip
# And where a set lacks the signs of JIS X 0208 as well.
PLAIN = str.maketrans(
    {
        "〜": "~", "−": "-", "‐": "-", "―": "-", "‖": "||", "、": ",", "。": ".", "・": " ", "「": "[", "」": "]",
        "『": "[", "』": "]", "【": "[", "】": "]", "〔": "[", "〕": "]", "‘": "'", "’": "'", "“": '"', "”": '"',
        "×": "x", "÷": "/", "±": "+-", "→": "->", "←": "<-", "≦": "<=", "≧": ">=", "°": " deg", "μ": "u",
    }
)  # fmt: skip
# Forms of Unicode that are only another way to write the same. Not those that change it: 10² is not 102.
FORMS = frozenset({"<compat", "<square", "<wide", "<narrow", "<font", "<noBreak", "<vertical", "<small"})
LETTERS = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Mn"})
HALF_WIDTH_KANA, SPACES = re.compile("[｡-ﾟ]+"), re.compile(" {2,}")
# The marks of が and ぱ are combining too, but without them it is another letter.
KANA_MARKS = "\u3099\u309a"
# Values that name something: one that is changed names something else, so they are shown as they are or not at all.
IDENTIFIERS = frozenset(
    {
        0x00080050, 0x00080100, 0x00080102, 0x00080103, 0x00080119, 0x00100020, 0x00100021, 0x00200010, 0x00380010,
        0x00380060, 0x00400009, 0x00400031, 0x00400032, 0x00400512, 0x00400551, 0x00401001, 0x00402016, 0x00402017,
        0x22000005,
    }
)  # fmt: skip
VARIANT, CHARACTERS, GROUP, IDENTIFIER, LENGTH = "variant", "characters", "group", "identifier", "length"
ONE_VALUE = frozenset({"LT", "ST", "UT"})  # a backslash in these separates nothing (PS3.5 6.2)


def fit(
    item: Tree, charsets: Sequence[str], groups: int = 3, spell: Callable[[str], str] | None = None
) -> tuple[Tree, frozenset[str]]:
    """The item as these sets can write it, and what that cost: `variant`, `group` of a name, `identifier`, `characters`
    of another text.

    groups: how many of a name are shown. One that does not fit is left out as a whole: a surname without one of its
    kanji is another surname. spell: other texts that do not fit, in other letters."""
    lost: set[str] = set()

    def shown(tag: int, vr: str, value: str) -> str:
        if vr not in tree.TEXT_VRS:
            return value
        fits = partial(_fits, charsets, vr)
        if tag in IDENTIFIERS:
            return _whole(value, fits, lost)
        if vr == "PN":
            return "\\".join(_name(name, groups, fits, lost) for name in value.split("\\"))
        return _text(value, fits, lost, spell=spell)

    return _map(item, shown), frozenset(lost)


def cut(item: Tree, lengths: Sequence[tuple[int, int]]) -> tuple[Tree, frozenset[str]]:
    """The item as a device shows it that takes so many characters, and what that cost: `length`, or `identifier`: one
    that is cut names something else.

    lengths: tag -> characters of a value; of a name, of each of its groups."""
    if not lengths:
        return item, frozenset()
    limits, lost = dict(lengths), set[str]()

    def shown(tag: int, vr: str, value: str) -> str:
        if vr not in tree.TEXT_VRS or len(value) <= (limit := limits.get(tag, len(value))):
            return value
        if tag in IDENTIFIERS:
            lost.add(IDENTIFIER)
            return ""
        made = _cut(vr, value, limit)
        if made != value:
            lost.add(LENGTH)
        return made

    return _map(item, shown), frozenset(lost)


def _cut(vr: str, value: str, limit: int) -> str:
    if vr in ONE_VALUE:
        return _head(value, limit)
    return "\\".join(
        "=".join(_head(group, limit).rstrip("^") for group in one.split("=")).rstrip("=") if vr == "PN"
        else _head(one, limit)
        for one in value.split("\\")
    )  # fmt: skip


def _head(text: str, limit: int) -> str:
    """Nothing is cut from its accent, or from the selector of its form."""
    while 0 < limit < len(text) and unicodedata.category(text[limit]) == "Mn":
        limit -= 1
    return text[:limit].rstrip(" ") if len(text) > limit else text


def map_names(item: Tree, change: Callable[[str], str]) -> Tree:
    """With every name changed."""

    def shown(_tag: int, vr: str, value: str) -> str:
        return "\\".join(change(name) for name in value.split("\\")) if vr == "PN" else value

    return _map(item, shown)


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


def _text(
    text: str, fits: Fits, lost: set[str], *, lacking: str = CHARACTERS, spell: Callable[[str], str] | None = None
) -> str:
    """lacking: what a character is that nothing stands for."""
    if fits(text):
        return text
    # Marks that stand apart from their letters belong to them before one looks for what a letter becomes.
    joined = HALF_WIDTH_KANA.sub(lambda run: unicodedata.normalize("NFKC", run[0]), unicodedata.normalize("NFC", text))
    if not fits(joined) and spell:
        joined = spell(joined)
    forms = [_nearest(char, fits) for char in joined]
    if None in forms:
        lost.add(lacking)
        if lacking == GROUP:
            return ""
    if joined != text or any(form not in (char, None) for char, form in zip(joined, forms, strict=True)):
        lost.add(VARIANT)
    shown = "".join(form for form in forms if form)
    return SPACES.sub(" ", shown).strip(" ") if spell else shown


def _nearest(char: str, fits: Fits) -> str | None:
    """The character, else what stands for it; None where neither fits."""
    instead = variant(char)
    return next((form for form in (char, instead, instead.translate(PLAIN)) if fits(form)), None)


def variant(char: str) -> str:
    """From the table; else what Unicode has of it without width, ring, square, accent and selector of its form; else
    the same."""
    if ord(char) in SUBSTITUTE:
        return str(SUBSTITUTE[ord(char)])
    kind, category = unicodedata.decomposition(char).partition(">")[0], unicodedata.category(char)
    if kind == "<circle":
        return f"({unicodedata.normalize('NFKD', char)})"
    if category in LETTERS or (kind in FORMS and category != "Sk"):
        plain = unicodedata.normalize("NFKD", char)
        return "".join(c for c in plain if unicodedata.category(c) != "Mn" or c in KANA_MARKS)
    return char
