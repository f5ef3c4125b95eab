"""How alike two names are: grades of reconciliation.md 3.3, the same from both sides."""

import pytest

from broker.mwl import kana, names


@pytest.mark.parametrize(
    ("a", "b", "grade"),
    [
        ("YAMADA^TARO", "YAMADA^TARO", "N0"),
        ("YAMADA^TARO", "yamada^taro", "N1"), ("MÜLLER^JÖRG", "MULLER^JORG", "N1"), ("YAMADA^TARO", "YAMADA TARO", "N1"),
        ("=山田^太郎=やまだ^たろう", "=山田^太郎=ﾔﾏﾀﾞ^ﾀﾛｳ", "N1"), ("=山田", "=山田^太郎", "N1"), ("DOE^JOHN^A", "DOE^JOHN", "N1"),
        ("DOE^JOHN^^DR^JR", "DOE^JOHN", "N1"), ("YAMADA^TARO=山田^太郎", "山田^太郎", "N2"),
        ("YAMADA^TARO", "==ヤマダ^タロウ", "N2"), ("YAMADA^TAROH", "YAMADA^TAROU", "N2"), ("TARO^YAMADA", "YAMADA^TARO", "N2"),
        ("=髙橋^一郎", "=高橋^一郎", "N2"), ("=渡邊^花", "=渡辺^花", "N2"), ("SYUZI^KEI", "SHUJI^KEI", "N2"),
        ("SATO^HANAKO", "SUZUKI^HANAKO", "N3"), ("SATO^HANAKO", "SATO^HANAKA", "N3"), ("=山田^太郎", "=山田^次郎", "N3"),
        ("SMITH^ANNA", "SMIHT^ANNA", "N3"),
        ("YAMADA^TARO", "YAMADA^JIRO", "N4"), ("YAMADA^TARO", "SUZUKI^ICHIRO", "N4"), ("ITO^KO", "ITO^YU", "N4"),
        ("", "A^B", "missing"), ("A^B", "==", "missing"),
    ],
)  # fmt: skip
def test_two_names_have_one_grade_from_both_sides(a, b, grade):
    assert names.grade(a, b) == grade
    assert names.grade(b, a) == grade


@pytest.mark.parametrize(
    ("text", "romaji"),
    [("ヤマダ", "YAMADA"), ("タロウ", "TARO"), ("シュンイチ", "SHUNICHI"), ("イッチョウ", "ITCHO"), ("ナンバ", "NAMBA"),
     ("やまだ", "YAMADA"), ("ﾔﾏﾀﾞ", "YAMADA"), ("キョウコ", "KYOKO"), ("ユウコ", "YUKO"), ("ジェーン", "JEN")],
)  # fmt: skip
def test_kana_become_passport_romaji(text, romaji):
    assert kana.romanise(text) == romaji


def test_a_site_may_keep_long_vowels():
    assert kana.romanise("タロウ", long_vowels=True) == "TAROU"


@pytest.mark.parametrize(("text", "script"), [("山田", "I"), ("ヤマダ", "P"), ("やまだ", "P"), ("ﾔﾏﾀﾞ", "P"), ("Yamada", "A"),
                                             ("佐々木", "I"), ("𠮷野", "I"), ("", "")])  # fmt: skip
def test_the_script_tells_which_group_a_name_belongs_to(text, script):
    assert kana.script(text) == script


def test_a_name_with_other_kanji_of_the_same_reading_is_not_quite_the_same():
    assert names.grade("YAMADA^TARO=山田^太郎", "YAMADA^TARO=山田^太郎") == "N0"
    assert names.grade("YAMADA^TARO=山田^太郎", "yamada^taro=山田^太郎") == "N1"
    assert names.grade("YAMADA^TARO=山田^太郎", "YAMADA^TARO=山田^太朗") == "N2"


def test_a_long_text_is_romanised_and_not_kept_in_memory():
    kana._remembered.cache_clear()
    assert kana.romanise("タロウ") == kana.romanise("タロウ") == "TARO"
    assert kana.romanise("タ" * 1_000) == "TA" * 1_000
    assert kana._remembered.cache_info()[::3] == (1, 1), "one hit, one text"
