"""HL7 characters: MSH-18 and MSH-20, escape sequences, and names by representation and script."""

import re
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.config import Limits, Site
from broker.errors import InvalidValue
from broker.ris_bridge.hl7 import charset, message, names

SITE = Site()
SIGNS = "|^~\\&"


def framed(segments: bytes, declared: str = "", signs: str = "^~\\&", switching: str = "") -> bytes:
    head = f"MSH|{signs}|A|B|C|D|20251201||OMI^O23^OMI_O23|1|P|2.5.1||||||{declared}||{switching}\r"
    return head.encode() + segments


def parse(segments: bytes | str, declared: str = "UNICODE UTF-8", override: str = "", default: str = "ASCII"):
    raw = framed(segments.encode() if isinstance(segments, str) else segments, declared)
    return message.parse(raw, Limits(), default, override)


def read(raw: bytes, declared: str, default: str = "") -> str:
    return charset.decode(raw, declared, default)[0]


def refused(raw: bytes, declared: str) -> None:
    with pytest.raises(InvalidValue) as error:
        charset.decode(raw, declared, "")
    assert (error.value.err, error.value.place) == ("102", "MSH^1^18")


def jis(text: str, escape: bytes = b"\x1b$B") -> bytes:
    """As Windows writes kanji: rows of cp932 that JIS X 0208 does not have, too, in seven bits."""
    return escape + b"".join(_seven_bits(*char.encode("cp932")) for char in text) + b"\x1b(B"


def _seven_bits(lead: int, trail: int) -> bytes:
    row = (lead - (0x81 if lead < 0xA0 else 0xC1)) * 2 + (2 if trail >= 0x9F else 1)
    cell = trail - 0x9E if trail >= 0x9F else trail - (0x3F if trail < 0x7F else 0x40)
    return bytes((row + 0x20, cell + 0x20))


# Which set


@pytest.mark.parametrize(
    ("declared", "codec", "text"),
    [("ASCII", "ascii", "Smith"), ("ISO IR6", "ascii", "Smith"), ("UNICODE", "utf_8", "山田é"), ("UNICODE UTF-8", "utf_8", "𠮷"),
     ("GB 18030-2000", "gb18030", "张伟𠮷"), ("KS X 1001", "euc_kr", "홍길동洪"), ("BIG-5", "big5", "張偉功"),
     ("8859/1", "iso8859_1", "Müller"), ("8859/2", "iso8859_2", "Łukasz"), ("8859/3", "iso8859_3", "Ġorġ"),
     ("8859/4", "iso8859_4", "Ģirts"), ("8859/5", "iso8859_5", "Иван"), ("8859/6", "iso8859_6", "محمد"),
     ("8859/7", "iso8859_7", "Νίκος"), ("8859/8", "iso8859_8", "דוד"), ("8859/9", "iso8859_9", "Işık"),
     ("8859/15", "iso8859_15", "Œuf€"), ("~ISO IR87", "iso2022_jp", "a山田b"), ("ISO IR87", "iso2022_jp", "山田"),
     ("ISO IR159", "iso2022_jp_1", "丂"), ("ASCII~8859/1", "iso8859_1", "Müller"), ("~unicode utf-8", "utf_8", "山"),
     ("ISO 2022 IR 87", "iso2022_jp", "山"), ("CP932", "cp932", "山ｱ"), ("EUC-JP", "euc_jp", "山丂ｱ")],
)  # fmt: skip
def test_a_set_is_read_by_its_name_in_msh_18(declared, codec, text):
    assert read(text.encode(codec), declared) == text


@pytest.mark.parametrize(
    "declared",
    ["CNS 11643-1992", "UNICODE UTF-16", "UNICODE UTF-32", "EBCDIC", "8859/16", "ISO IR100", "~ISO IR87~8859/1",
     "UNICODE UTF-8~8859/1"],
)  # fmt: skip
def test_a_set_that_is_not_known_is_refused_and_never_read_as_ascii(declared):
    refused(b"Smith", declared)


@pytest.mark.parametrize("declared", ["", "~", '""'])
def test_where_msh_18_names_nothing_the_sites_set_is_read(declared):
    """HL7-09"""
    assert read(jis("山"), declared, "ISO-2022-JP") == "山"


def test_the_sets_of_a_japanese_header_may_stand_in_any_order():
    raw = jis("山田") + b" \xd4\xcf " + "丂".encode("iso2022_jp_1") + b" end"
    for order in permutations(("ISO IR6", "ISO IR14", "ISO IR87", "ISO IR159")):
        assert read(raw, "~".join(order)) == "山田 ﾔﾏ 丂 end"
    assert read(raw, "ISO-2022-JP") == read(raw, "", "ISO-2022-JP") == "山田 ﾔﾏ 丂 end"


@pytest.mark.parametrize("declared", ["ISO IR14", "ISO IR13", "~ISO IR14", "ISO IR14~ISO IR87"])
def test_half_width_katakana_are_read_in_eight_bits_and_in_seven(declared):
    assert read(b"a|\xd4\xcf\xc0\xde|\\", declared) == "a|ﾔﾏﾀﾞ|\\"
    assert read(b"\x1b(ITO@^\x1b(J|x", declared) == "ﾔﾏﾀﾞ|x"
    assert read(b"\x1b)I\xd4\xcf", declared) == "ﾔﾏ"
    refused(b"\xe0", declared)


@pytest.mark.parametrize(
    ("raw", "declared"),
    [(b"\xd4\xcf", "~ISO IR87"), (b"\x1b(ITO\x1b(B", "~ISO IR87"), ("丂".encode("iso2022_jp_1"), "~ISO IR87"),
     (jis("山"), "ISO IR14"), (jis("山"), "ISO IR159"), (b"\x1b$)C\xb0\xa1", "~ISO IR87"), (b"\x1b-A\xe9", "~ISO IR87")],
)  # fmt: skip
def test_a_set_that_msh_18_does_not_name_cannot_be_switched_to(raw, declared):
    refused(raw, declared)


@pytest.mark.parametrize(
    ("raw", "declared"),
    [("山田".encode("cp932"), "~ISO IR87"), ("ﾔﾏﾀﾞ".encode("cp932"), "~ISO IR87"), ("山田".encode(), "~ISO IR87"),
     ("山田".encode("euc_jp"), "~ISO IR87"), (jis("山田"), "UNICODE UTF-8"), (jis("山田"), "ASCII"), (jis("山田"), "8859/1"),
     (jis("山田"), "CP932"), ("山田".encode("cp932"), "UNICODE UTF-8"), ("山田".encode("euc_jp"), "UNICODE UTF-8"),
     ("山田".encode(), "ASCII"), ("ヤマダ".encode(), "8859/1"), ("ヤマダ".encode("cp932"), "8859/1"), ("ヤマダ".encode(), "8859/9"),
     ("ヤマダ".encode().decode("latin_1").encode(), "UNICODE UTF-8"), ("é".encode("latin_1"), "UNICODE UTF-8"),
     (b"a\xa0\xfd", "CP932"), (b"\x80", "CP932")],
)  # fmt: skip
def test_a_message_in_another_set_than_it_says_is_refused(raw, declared):
    """HL7-06"""
    refused(raw, declared)


@pytest.mark.parametrize(
    ("raw", "declared"),
    [(b"a\x1b$B;3", "~ISO IR87"), (b"a\x1b$B;3E\x1b(B", "~ISO IR87"), (b"a\x1b$B;3\rb\x1b(B", "~ISO IR87"), (b"\x1b", "~ISO IR87"),
     (b"\x1b$", "~ISO IR87"), (b"\x1b$B", "~ISO IR87"), (b"\x1b$(D0!", "~ISO IR159"), (b"\x8e", "EUC-JP"), (b"\x8f\xb0", "EUC-JP"),
     (b"\xad", "EUC-JP"), (b"\x83", "CP932"), (b"\xe5\xb1", "UNICODE UTF-8"), (b"\xb0", "KS X 1001"), (b"\xa4", "BIG-5"),
     (b"\x81\x30\x81", "GB 18030-2000")],
)  # fmt: skip
def test_half_a_character_is_refused(raw, declared):
    refused(raw, declared)


@pytest.mark.parametrize("text", ["髙", "﨑", "①", "髙山①﨑田"])
def test_characters_of_vendor_rows_are_kept_and_flagged_in_every_japanese_encoding(text):
    assert charset.decode(b"a" + jis(text) + b"z", "~ISO IR87", "") == (f"a{text}z", True)
    euc = jis(text)[3:-3].translate(bytes(byte | 0x80 for byte in range(256)))
    assert charset.decode(b"a" + euc + b"z", "EUC-JP", "") == (f"a{text}z", True)
    assert charset.decode(f"a{text}z".encode("cp932"), "CP932", "") == (f"a{text}z", True)


def test_characters_of_the_standard_are_not_flagged():
    for raw, declared in (
        (jis("山田"), "~ISO IR87"),
        ("山田ｱ".encode("cp932"), "CP932"),
        ("山丂".encode("euc_jp"), "EUC-JP"),
    ):
        assert not charset.decode(raw, declared, "")[1]


def test_cells_of_vendor_rows_that_nobody_has_filled_are_refused():
    refused(b"\x1b$B\x2d\x7e\x1b(B", "~ISO IR87")
    refused(b"\x1b$B\x29\x21\x1b(B", "~ISO IR87")
    refused(b"\xad\xfe", "EUC-JP")


@pytest.mark.parametrize("char", "ソ表能ポ掛タ運構予十")
def test_the_second_byte_of_a_shift_jis_character_splits_no_field(char):
    """HL7-07"""
    msg = parse(f"PID|1||{char}^{char}&x|next".encode("cp932"), "~ISO IR87", override="cp932")
    pid = msg.first("PID")
    assert [pid.get(3), pid.get(3, 2), pid.get(3, 2, 2), pid.get(4)] == [char, char, "x", "next"]


def test_the_set_is_found_behind_kanji_in_msh_and_with_the_senders_own_repetition_separator():
    for declared, codec, override in (("!ISO IR87", "iso2022_jp", ""), ("", "cp932", "CP932"), ("BIG-5", "big5", "")):
        head = f"MSH|^!\\&|予運|功表|C|D|1||X|1|P|2.5||||||{declared}\rNTE|1||表|next"
        msg = message.parse(head.encode(codec), Limits(), "", override)
        assert (msg.header[3], msg.header[4], msg.header[12]) == ("予運", "功表", "2.5")
        assert (msg["NTE-3"], msg["NTE-4"]) == ("表", "next")


def test_a_byte_order_mark_says_utf_8_where_msh_18_says_nothing():
    raw = b"\xef\xbb\xbf" + framed("NTE|1||山".encode())
    msg = message.parse(raw, Limits(), "ISO-2022-JP")
    assert (msg["NTE-3"], msg.header[10], msg.header[2]) == ("山", "1", "^~\\&")
    with pytest.raises(InvalidValue):
        message.parse(b"\xef\xbb\xbf" + framed(b"NTE|1||x", "~ISO IR87"), Limits(), "")


@pytest.mark.parametrize("switching", ["", "ISO 2022-1994", "iso 2022-1994", "2.3", "2.3.1", '""'])
def test_the_way_of_switching_in_msh_20_may_be_any_of_the_table(switching):
    message.check(message.header(framed(b"", "~ISO IR87", switching=switching), ""))


def test_another_way_of_switching_is_refused_by_its_place():
    with pytest.raises(InvalidValue) as error:
        message.check(message.header(framed(b"", "~ISO IR87", switching="SCSU"), ""))
    assert (error.value.err, error.value.place) == ("102", "MSH^1^20")


def alphabet(codec: str) -> str:
    """Characters that the codec writes and reads back. The yen sign and overline of JIS X 0201 are read as `\\` and `~`,
    which senders mean."""
    blocks = ((0x20, 0x7F), (0xA0, 0x180), (0x370, 0x600), (0x3000, 0x3100), (0x4E00, 0x5400), (0x9F00, 0x9FA0),
              (0xAC00, 0xAE00), (0xFF61, 0xFFA0), (0x20BB7, 0x20BB8))  # fmt: skip
    every = (chr(number) for start, end in blocks for number in range(start, end))
    return "".join(char for char in every if char.encode(codec, "ignore").decode(codec) == char and char not in "¥‾")


ROUND = [
    ("~ISO IR87", "iso2022_jp"), ("~ISO IR87~ISO IR159", "iso2022_jp_1"), ("CP932", "cp932"), ("EUC-JP", "euc_jp"),
    ("UNICODE UTF-8", "utf_8"), ("GB 18030-2000", "gb18030"), ("KS X 1001", "euc_kr"), ("BIG-5", "big5"),
    *((f"8859/{n}", f"iso8859_{n}") for n in (*range(1, 10), 15)),
]  # fmt: skip
LETTERS = {codec: alphabet(codec) for _, codec in ROUND}


@pytest.mark.parametrize(("declared", "codec"), ROUND)
def test_every_text_of_a_set_comes_back_as_it_was_written(declared, codec):
    @given(st.text(st.sampled_from(LETTERS[codec])), st.text(st.sampled_from(LETTERS[codec])))
    def check(first: str, second: str) -> None:
        if codec in charset.LATIN:  # no run of letters with marks
            first, second = (
                re.sub("([^\x00-\x7f]{3})(?=[^\x00-\x7f])", r"\1-", text) for text in (first, f"-{second}")
            )
        assert read((first + second).encode(codec), declared) == first + second
        line = b"|".join(message.escape(text).encode(codec) for text in ("NTE", first, second))
        msg = parse(line, declared)
        assert (msg.first("NTE").text(1), msg.first("NTE").text(2)) == (first, second)

    check()


@pytest.mark.parametrize("codec", ["euc_jp", "cp932", "utf_8", "gb18030", "euc_kr", "big5"])
def test_a_text_of_many_bytes_for_a_letter_is_not_read_as_latin(codec):
    """EUC-JP under 8859/1 has no byte that is none of a Latin text."""
    with pytest.raises(InvalidValue) as refused:
        read("胸部".encode(codec), "8859/1")
    assert (refused.value.err, refused.value.place) == ("102", "MSH^1^18")
    assert read("Éèçà la créée, größer".replace("Éèçà", "Éèç").encode("latin_1"), "8859/1").startswith("Éèç")


@given(st.binary(max_size=60), st.sampled_from([*charset.CODECS, *charset.JAPANESE, "", "ASCII", "CNS 11643-1992"]))
def test_no_bytes_are_anything_but_text_or_refused(raw, declared):
    for junk in (raw, b"\x1b$B" + raw, raw + b"\x1b(I" + raw + b"\x1b(B", jis("山髙") + raw):
        try:
            text, _ = charset.decode(junk, declared, "ISO-2022-JP")
        except InvalidValue as error:
            assert error.err == "102"
        else:
            assert not charset.NO_TEXT.search(text)


# Escape sequences


@pytest.mark.parametrize(
    ("escaped", "text"),
    [(r"\F\\S\\T\\R\\E\\P\ ", "|^&~\\# "), (r"a\.br\\.br\b", "a\n\nb"), (r"a\.BR\b\.sp2\c\.ce\d", "a\nb\nc\nd"), (r"a\.in+3\b", "a b"),
     (r"\H\bold\N\ ", "bold "), (r"\X41\\X0D0a\ ", "A\r\n "), (r"\E\F\E\ ", r"\F\ "),
     (r"\XABC\ ", r"\XABC\ "), (r"\X\ ", r"\X\ "), (r"\Zabc\ ", r"\Zabc\ "), (r"\Q\ ", r"\Q\ "), (r"\f\ ", r"\f\ "),
     (r"50\ and \T\ ", r"50\ and & "), (r"C:\temp\CT\x", r"C:\temp\CT\x"), ("\\", "\\"), ("\\\\\\", "\\\\\\"), (r"\T", r"\T"),
     (r"\CAFE\ ", r"\CAFE\ ")],
)  # fmt: skip
def test_escape_sequences_are_decoded_and_all_else_stays(escaped, text):
    assert message.unescape(escaped, SIGNS) == text
    assert parse("NTE|1||" + escaped).first("NTE").text(3) == text


@pytest.mark.parametrize("escaped", [r"\C2842\x", r"\M2442\x", r"\M244299\x", r"\X00\x"])
def test_escapes_into_another_set_and_a_nul_are_refused(escaped):
    with pytest.raises(InvalidValue) as error:
        parse("NTE|1||" + escaped).first("NTE").text(3)
    assert error.value.err == "102"


def test_a_return_from_an_escape_begins_no_segment():
    msg = parse("NTE|1||a\\X0D\\PID|1\\X0D0A\\\rNTE|2||z")
    assert [segment.name for segment in msg.segments] == ["MSH", "NTE", "NTE"]
    assert msg["NTE-3"] == "a\rPID"
    assert msg.first("NTE").text(4) == "1\r\n"


@pytest.mark.parametrize(
    ("escaped", "declared", "text"),
    [(r"\XE5B1B1\ ", "UNICODE UTF-8", "山 "), (r"\XE5\\XB1\\XB1\ ", "UNICODE UTF-8", "山 "), (r"M\XFC\ller", "8859/1", "Müller"),
     (r"\X1B243B\x", "ASCII", None), (r"\X1B24423B331B2842\x", "~ISO IR87", "山x"), (r"\X8E52\x", "CP932", "山x"),
     (r"\X835C\x", "CP932", "ソx"), (r"\XE9\x", "UNICODE UTF-8", None), (r"\X8E52\x", "~ISO IR87", None),
     (r"\X7CE5B1B10D\x", "UNICODE UTF-8", "|山\rx"), (r"\E\XE9\x", "UNICODE UTF-8", r"\XE9\x")],
)  # fmt: skip
def test_hexadecimal_bytes_are_characters_of_the_messages_own_set(escaped, declared, text):
    if text is None:
        with pytest.raises(InvalidValue) as error:
            parse("NTE|1||" + escaped, declared)
        assert error.value.err == "102"
    else:
        msg = parse("NTE|1||" + escaped + "|next", declared)
        assert (msg["NTE-3"], msg["NTE-4"]) == (text, "next")


def test_escapes_are_those_of_the_messages_own_delimiters():
    msg = message.parse(b"MSH#:;!@#A#B#C#D#1##X#1#P#2.5\rNTE#1##a!F!!S!!R!!E!!T!\\F\\", Limits(), "ASCII")
    assert msg["NTE-3"] == "a#:;!@\\F\\"
    three = message.parse(b"MSH|^~\\|A|B|C|D|1||X|1|P|2.5\rNTE|1||a\\T\\b&c", Limits(), "ASCII")
    assert three["NTE-3"] == "a&b&c"
    none = message.parse(b"MSH|^|A|B|C|D|1||X|1|P|2.5\rNTE|1||a\\F\\b", Limits(), "ASCII")
    assert none["NTE-3"] == "a\\F\\b"


@given(st.text(st.one_of(st.sampled_from(r"\|^~&FSRETX.brZCM0D" + "\r\n"), st.characters(exclude_characters="\0"))),
       st.permutations(SIGNS).map("".join))  # fmt: skip
def test_what_is_escaped_for_output_is_read_as_it_was(text, signs):
    """HL7-36"""
    escaped = message.escape(text, signs)
    assert message.unescape(escaped, signs) == text
    assert not set(escaped) & ({*signs} - {signs[3]} | {chr(code) for code in range(0x20)})


@given(st.text(st.sampled_from("\\FSTXEZCM.br04é\r|^"), max_size=80))
def test_no_escape_sequence_does_more_than_be_refused(text):
    try:
        parse("NTE|1||" + text)["NTE-3"]
    except InvalidValue as error:
        assert error.err in ("100", "102")


@pytest.mark.parametrize(
    ("piece", "there"),
    [("\\", "\\"), ("\\X4", "\\X4"), ("\\XE9\\-", "é-"), ("\\XE9\\a", "éa"), ("\\F\\", "|")],
)  # fmt: skip
def test_a_megabyte_of_escapes_is_read_in_one_pass(piece, there):
    count = 2**20 // len(piece)
    msg = parse("OBX|1|ST|||" + piece * count, "8859/1")
    assert msg["OBX-5"] == there * count


# Names


def name(field: str, site: Site = SITE) -> names.Name:
    return names.read(parse(f"PID|1||1||{field}").first("PID"), 5, site)


KANJI, KANA, ROMAJI = "山田^太郎", "ヤマダ^タロウ", "YAMADA^TARO"


@pytest.mark.parametrize(
    ("field", "pn"),
    [(f"{KANJI}^^^^^L^I~{KANA}^^^^^L^P~{ROMAJI}^^^^^L^A", f"{ROMAJI}={KANJI}={KANA}"), (f"{ROMAJI}^^^^^L^A~{KANA}^^^^^L^P~{KANJI}^^^^^L^I", f"{ROMAJI}={KANJI}={KANA}"),
     (f"{KANA}~{KANJI}", f"{ROMAJI}={KANJI}={KANA}"), (f"{KANA}~{KANJI}~YAMADA^Taro", f"YAMADA^Taro={KANJI}={KANA}"), (f"ﾔﾏﾀﾞ^ﾀﾛｳ~{KANJI}", f"{ROMAJI}={KANJI}={KANA}"),
     (f"{KANA}^^^^^L^A~{KANJI}^^^^^L^P", f"{ROMAJI}={KANJI}={KANA}"), ("さくら^はな^^^^^L^I~サクラ^ハナ^^^^^L^P", "SAKURA^HANA=さくら^はな=サクラ^ハナ"),
     ("SMITH^JOHN^^^^^L^I~スミス^ジョン^^^^^L^P", "SMITH^JOHN=SMITH^JOHN=スミス^ジョン"),
     ("ＳＭＩＴＨ^ＪＯＨＮ", "SMITH^JOHN"), ("홍^길동~洪^吉洞~Hong^Gildong", "Hong^Gildong=洪^吉洞=홍^길동"),
     ("\ue000田^太郎", "=\ue000田^太郎"), ("", "")],
)  # fmt: skip
def test_a_name_is_put_into_groups_by_its_code_and_by_its_script(field, pn):
    """HL7-29"""
    assert name(field).pn == pn


def test_romaji_that_were_made_here_are_marked():
    assert name(f"{KANJI}^^^^^L^I~{KANA}^^^^^L^P").romaji_derived
    assert not name(f"{ROMAJI}~{KANJI}~{KANA}").romaji_derived
    assert not name(KANJI).romaji_derived
    assert name(KANA, Site(romanisation="TAROU")).pn == f"YAMADA^TAROU=={KANA}"
    assert name("ジョン・ポール^マリア").pn == "JON PORU^MARIA==ジョン・ポール^マリア"


def test_a_sign_that_has_no_romaji_makes_none():
    assert name("サヽキ^タロウ") == ("==サヽキ^タロウ", False)


def test_kana_are_never_half_width_in_a_name():
    assert name("ﾔﾏﾀﾞ^ﾀﾛｳ", Site(phonetic_form="hiragana")).pn == "YAMADA^TARO==やまだ^たろう"
    assert name("山ﾉ内^ﾊﾅ~ﾔﾏﾉｳﾁ^ﾊﾅ").pn == "YAMANOCHI^HANA=山ノ内^ハナ=ヤマノウチ^ハナ"


def test_a_compatibility_form_of_a_kanji_stays_what_it_is():
    assert name("神\ufa19﨑^太郎").pn == "=神\ufa19﨑^太郎"


def test_prefix_and_suffix_change_places():
    assert name("Adams^John^Q^III^Dr.").pn == "Adams^John^Q^Dr.^III"
    assert name("Adams^John^^III").pn == "Adams^John^^^III"


@pytest.mark.parametrize(
    ("field", "pn"),
    [("鈴木^花子^^^^^M^I~山田^花子^^^^^L^I", "=山田^花子"), ("山田^花子^^^^^L^I~山田^花^^^^^L^I", "=山田^花子"),
     ("鈴木^花子^^^^^M^I~ヤマダ^ハナコ^^^^^L^P~山田^花子^^^^^^I", "YAMADA^HANAKO=山田^花子=ヤマダ^ハナコ"),
     ("鈴木^花子^^^^^M^I~ハナ^ハナ^^^^^A^P", "=鈴木^花子"), ('""~山田^花子', "=山田^花子"), ('""^""', ""), ('山田^""', "=山田")],
)  # fmt: skip
def test_the_legal_name_counts_and_of_several_the_first(field, pn):
    assert name(field).pn == pn


@pytest.mark.parametrize(
    ("field", "pn"),
    [("山田　太郎~ヤマダ　タロウ", "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"), ("山田 太郎", "=山田^太郎"), ("ﾔﾏﾀﾞ ﾀﾛｳ", "YAMADA^TARO==ヤマダ^タロウ"),
     ("山田　花子　太郎", "=山田　花子　太郎"), ("山田　様^太郎", "=山田　様^太郎"), ("DE SOUZA", "DE SOUZA"), ("　山田　", "=山田")],
)  # fmt: skip
def test_one_space_in_a_japanese_name_of_one_component_parts_family_and_given(field, pn):
    assert name(field).pn == pn


@pytest.mark.parametrize(
    ("field", "pn"),
    [(r"A\S\B^C=D", "A B^C D"), ("ジャン＝ポール^マリ", "JAN PORU^MARI==ジャン ポール^マリ"), (r"A\E\B", "A/B"), (r"A\X0D\B^C\.br\D", "A B^C D")],
)  # fmt: skip
def test_no_delimiter_of_dicom_gets_into_a_name(field, pn):
    assert name(field).pn == pn


def test_a_patients_name_that_is_too_long_is_refused_and_a_doctors_is_cut():
    with pytest.raises(InvalidValue) as error:
        name("山" * 65)
    assert (error.value.err, error.value.place) == ("102", "PID^1^5")
    assert name("山" * 64).pn == "=" + "山" * 64
    pv1 = parse(f"PV1|1|O||||||D1^{'A' * 65}^B").first("PV1")
    with capture_logs() as logs:
        assert names.person(pv1, 8, SITE, names.XCN) == "A" * 64
    assert [one["event"] for one in logs] == ["hl7.name_cut"]


def test_romaji_that_would_be_too_long_are_not_made():
    assert name("シャ" * 32).pn == "==" + "シャ" * 32


def test_a_doctor_is_named_by_the_codes_of_xcn():
    field = "110^医師^一郎^^^^^^^L^^^^^I~110^イシ^イチロウ^^^^^^^L^^^^^P"
    pv1 = parse(f"PV1|1|O||||||{field}").first("PV1")
    assert names.person(pv1, 8, SITE, names.XCN) == "ISHI^ICHIRO=医師^一郎=イシ^イチロウ"


def test_no_vendor_character_is_a_sign_of_ascii():
    """Half of a pair that is no character must not become a delimiter."""
    assert not [char for char in charset.VENDOR_CHARACTERS.values() if char.isascii()]
