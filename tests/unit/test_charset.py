"""Specific Character Set: byte-exact escapes, and nothing ever becomes a question mark."""

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


def test_with_half_width_kana_in_group_1_the_way_back_is_romaji():
    """MWL-17"""
    data = charset.encode("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう", IR13, "PN")
    assert data.startswith(bytes.fromhex("D4CFC0DE5EC0DBB33D1B2442"))
    assert b"\x1b(J" in data
    assert b"\x1b(B" not in data
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


PN, ID, TEXT = 0x00100010, 0x00100020, 0x00321060


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
        (TEXT, "LO", "鷗外①10²", "外110", {"variant", "characters"}),
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


def test_a_device_that_is_shown_romaji_alone_lacks_nothing_else_of_a_name():
    assert variants.fit({PN: ("PN", NAME)}, ("",), groups=1) == ({PN: ("PN", "Yamada^Tarou")}, frozenset())
