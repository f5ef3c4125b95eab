"""Kanji variants for devices whose character set lacks them (conformance.md 1.6). The record keeps the original."""

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
