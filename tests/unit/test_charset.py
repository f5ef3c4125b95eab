"""Specific Character Set: byte-exact escapes, and nothing ever becomes a question mark."""

import unicodedata

import pytest

from broker.dicom import charset, variants
from broker.errors import Unreadable

IR87 = ("", "ISO 2022 IR 87")
IR13 = ("ISO 2022 IR 13", "ISO 2022 IR 87")
NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"
REFERENCE = bytes.fromhex(  # PS3.5 H.3.1
    "59616D6164615E5461726F753D1B24423B3345441B28425E1B244242404F3A1B28423D1B2442246424"
    "5E24401B28425E1B2442243F246D2426"
    "1B2842"
)


def test_the_reference_name_has_the_bytes_of_the_standard():
    assert charset.encode(NAME, IR87, "PN") == REFERENCE
    assert charset.decode(REFERENCE, IR87, "PN") == NAME


@pytest.mark.parametrize(
    ("name", "charsets", "written"),
    [
        ("Hong^Gildong=洪^吉洞=홍^길동", ("", "ISO 2022 IR 149"),  # PS3.5 I.2
         "486F6E675E47696C646F6E673D1B242943FBF35E1B242943D1CED4D73D1B242943C8AB5E1B242943B1E6B5BF"),
        ("Zhang^XiaoDong=张^小东=", ("", "ISO 2022 IR 58"),  # PS3.5 K.2
         "5A68616E675E5869616F446F6E673D1B242941D5C55E1B242941D0A1B6AB3D"),
        ("Wang^XiaoDong=王^小东", ("GB18030",), "57616E675E5869616F446F6E673DCDF55ED0A1B6AB"),  # PS3.5 J.3
        ("Wang^XiaoDong=王^小東", ("ISO_IR 192",), "57616E675E5869616F446F6E673DE78E8B5EE5B08FE69DB1"),  # PS3.5 J.1
        ("Wang^XiaoDong=王^小东", ("GBK",), "57616E675E5869616F446F6E673DCDF55ED0A1B6AB"),
        ("ﾔﾏﾀﾞ^ﾀﾛｳ", ("ISO_IR 13",), "D4CFC0DE5EC0DBB3"),
        ("Kusanagi=草彅^剛", ("", "ISO 2022 IR 87", "ISO 2022 IR 159"),
         "4B7573616E6167693D1B24424170 1B242844 3C74 1B2842 5E 1B2442 3964 1B2842"),
        ("Buc^Jérôme", ("ISO_IR 100",), "4275635E4AE972F46D65"),  # PS3.5 H.3 of Latin-1
        ("Buc^Jérôme", ("", "ISO 2022 IR 100"), "4275635E4A1B2D41E972F46D65"),
        ("Διονυσιος", ("ISO_IR 126",), "C4E9EFEDF5F3E9EFF2"),
        ("Люкceмбypг", ("ISO_IR 144",), "BBEEDA6365DCD17970D3"),
    ],
)  # fmt: skip
def test_names_of_the_other_sets_have_the_bytes_of_the_standard(name, charsets, written):
    assert charset.encode(name, charsets, "PN") == bytes.fromhex(written)
    assert charset.decode(bytes.fromhex(written), charsets, "PN") == name


def test_with_half_width_kana_in_group_1_the_way_back_is_romaji():
    """MWL-17"""
    data = charset.encode("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", IR13, "PN")
    assert data.startswith(bytes.fromhex("D4CFC0DE5EC0DBB33D1B2442"))
    assert b"\x1b(J" in data
    assert b"\x1b(B" not in data
    assert data.hex().upper().endswith("1B2442243F246D24261B284A")  # PS3.5 H.3.2
    assert charset.decode(data, IR13, "PN") == "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"


@pytest.mark.parametrize(
    ("text", "charsets"),
    [
        ("山田^太郎", ("ISO_IR 192",)), ("Müller^Jörg", ("ISO_IR 100",)), ("Müller^Jörg", ("", "ISO 2022 IR 100")),
        ("김^희중", ("", "ISO 2022 IR 149")), ("王^小东", ("", "ISO 2022 IR 58")), ("王^小东", ("GB18030",)),
        ("草彅^剛", ("", "ISO 2022 IR 87", "ISO 2022 IR 159")), ("ﾔﾏﾀﾞ", ("ISO_IR 13",)), ("Люк", ("ISO_IR 144",)),
        ("百万本日春京表五", IR87), ("", IR87),
    ],
)  # fmt: skip
def test_what_is_encoded_can_be_decoded_again(text, charsets):
    assert charset.decode(charset.encode(text, charsets, "PN"), charsets, "PN") == text


@pytest.mark.parametrize("text", ["髙橋", "𠮷野", "宮﨑", "①", "a¥b"])
def test_a_character_that_does_not_fit_is_an_error_and_never_a_question_mark(text):
    """MWL-19"""
    with pytest.raises(ValueError):
        charset.encode(text, IR13, "LO")


@pytest.mark.parametrize("data", [b"\x1b$B;3E", b"\x1b$Bzz\x1b(B", b"\xff\xfe", b"\x1bZabc", b"\x1b"])
def test_bytes_that_are_no_text_are_refused(data):
    with pytest.raises(Unreadable):
        charset.decode(data, IR87, "LO")


def test_a_two_byte_code_that_looks_like_a_delimiter_does_not_split():
    for char in "本五京万日春":
        data = charset.encode(char, IR87, "PN")
        assert len(data) == 8
        assert charset.decode(data, IR87, "PN") == char


def test_the_overline_of_jis_roman_is_a_tilde_to_those_who_say_so():
    assert charset.decode(b"A\x1b(J~\x1b(B", IR13, "LO") == "A‾"
    assert charset.decode(b"A\x1b(J~\x1b(B", IR13, "LO", jis_roman_as_ascii=True) == "A~"


def test_a_set_that_needs_an_escape_comes_after_ascii_even_where_it_is_written_alone():
    """PS3.3 C.12.1.1.2 does not allow it; devices in Japan write it."""
    alone = ("ISO 2022 IR 87",)
    assert charset.encode(NAME, alone, "PN") == REFERENCE
    assert charset.decode(REFERENCE, alone, "PN") == NAME


PN, ID, TEXT, STEPS = 0x00100010, 0x00100020, 0x00321060, 0x00400100


@pytest.mark.parametrize(
    ("tag", "vr", "value", "shown", "lost"),
    [
        (PN, "PN", "TAKAHASHI=髙橋^一郎=タカハシ", "TAKAHASHI=高橋^一郎=タカハシ", {"variant"}),
        (PN, "PN", "TSUJITA=𠀋田^太郎=ツジタ", "TSUJITA==ツジタ", {"group"}),
        (PN, "PN", "TSUJITA=𠀋髙^太郎", "TSUJITA", {"group"}),
        (PN, "PN", "=𠀋田^太郎", "", {"group"}),
        (PN, "PN", "A=山田\\B=𠀋田", "A=山田\\B", {"group"}),
        (PN, "PN", "Müller^Zoë=葛\U000e0100城", "Muller^Zoe=葛城", {"variant"}),
        (PN, "PN", "AINU==ヷ", "AINU", {"group"}),  # ワ is another letter
        (TEXT, "LO", "鷗外①10²㊧膝㎡", "鴎外(1)10(左)膝m2", {"variant", "characters"}),  # 10² is not 102
        (TEXT, "LO", "ﾊﾟﾉﾗﾏか\u3099～¥—", "パノラマが〜￥―", {"variant"}),
        (PN, "PN", "A=神\ufe00山^\ufa1a=B", "A=神山^祥=B", {"variant"}),
        (PN, "PN", "Łukasz^Groß", "Lukasz^Gross", {"variant"}),
        (TEXT, "LO", "胸部CT", "胸部CT", set()),
        (ID, "LO", "髙1", "", {"identifier"}),
    ],
)
def test_what_a_set_lacks_is_shown_in_its_variant_or_left_out_and_told(tag, vr, value, shown, lost):
    """conformance.md 1.6: of a name the whole group, of an identifier everything, of other texts the character."""
    item = {0x00321064: ("SQ", [{tag: (vr, value)}])}
    made, found = variants.fit(item, IR87)
    assert made[0x00321064][1][0][tag] == (vr, shown)
    assert found == lost


@pytest.mark.parametrize("pair", variants.KANJI.split())
def test_what_stands_for_a_kanji_is_in_the_set_that_lacks_it(pair):
    lacking, instead = pair
    with pytest.raises(ValueError):
        charset.encode(lacking, IR87, "LO")
    assert charset.encode(instead, IR87, "LO")


def test_no_kanji_has_two_variants_and_none_is_a_chain():
    pairs = variants.KANJI.split()
    assert len({pair[0] for pair in pairs}) == len(pairs)
    assert not {pair[0] for pair in pairs} & {pair[1] for pair in pairs}


NO_PLACE = "﨎﨏﨓﨔﨟﨡﨧﨨" + "\ufa49\ufa5d\ufa5e\ufa66"  # parts of kanji stand there as well


@pytest.mark.parametrize("char", [chr(code) for code in (*range(0xFA0E, 0xFA2E), *range(0xFA30, 0xFA6B), 0xF9DC)])
def test_a_compatibility_ideograph_is_shown_as_the_ideograph_that_it_is_one_of(char):
    """Unicode says which; twelve of them are ideographs of their own and have a place in the table, or none."""
    shown, lost = variants.fit({TEXT: ("LO", char)}, IR87)
    meant = unicodedata.normalize("NFKC", char)
    if char in NO_PLACE:
        assert shown[TEXT][1] == ""
        assert "characters" in lost
    else:
        assert shown[TEXT][1] == meant.translate(variants.SUBSTITUTE)
        assert lost == {"variant"}


def test_signs_that_ascii_lacks_are_shown_in_its_own():
    shown, lost = variants.fit({TEXT: ("LO", "CT〜MR−①、℃（²）")}, ("",))
    assert shown[TEXT][1] == "CT~MR-(1), degC()"
    assert lost == {"variant", "characters"}


@pytest.mark.parametrize(
    ("vr", "value", "shown"),
    [
        ("LO", "abcd\\ef", "abc\\ef"), ("LT", "ab\\cd", "ab\\"), ("PN", "AB^CD=E\\FGHI=ABC", "AB=E\\FGH=ABC"),
        ("PN", "A=B=CDEF", "A=B=CDE"), ("LO", "葛\U000e0100城山谷", "葛\U000e0100城"), ("LO", "ab葛\U000e0100", "ab"),
        ("CS", "ABCD", "ABCD"),
    ],
)  # fmt: skip
def test_each_value_and_each_group_of_a_name_is_cut_by_itself(vr, value, shown):
    made, lost = variants.cut({TEXT: (vr, value)}, ((TEXT, 3),))
    assert made[TEXT][1] == shown
    assert lost == (set() if shown == value else {"length"})


def test_all_names_of_a_value_are_changed_alike():
    item = {STEPS: ("SQ", [{PN: ("PN", "A=B\\C=D"), TEXT: ("LO", "A=B")}])}
    assert variants.map_names(item, lambda name: name.split("=")[0]) == {
        STEPS: ("SQ", [{PN: ("PN", "A\\C"), TEXT: ("LO", "A=B")}])
    }


def test_a_device_that_is_shown_romaji_alone_lacks_nothing_else_of_a_name():
    assert variants.fit({PN: ("PN", NAME)}, ("",), groups=1) == ({PN: ("PN", "Yamada^Tarou")}, frozenset())
