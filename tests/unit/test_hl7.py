"""HL7 by position: sets, escapes, limits, times, and what an order message becomes."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config import Limits, Site
from broker.errors import BrokerError, InvalidValue, MissingField
from broker.ris_bridge.hl7 import ack, charset, message, orders_in, values
from broker.sim.ris import omi
from tests.world import order, today

SITE = Site()


def parse(text: str, declared: str = "UNICODE UTF-8") -> message.Message:
    head = f"MSH|^~\\&|A|B|C|D|20251201||OMI^O23^OMI_O23|1|P|2.5.1||||||{declared}\r"
    return message.parse((head + text).encode(), Limits(), "ASCII")


def test_fields_components_and_repetitions_are_read_by_position():
    msg = parse("PID|1||1^^^HOSP&1.2.3&ISO~2^^^X||A^B|x")
    assert (msg["PID-3"], msg["PID-3.4"], msg["PID-3.4.2"], msg["PID-5.2"], msg["PID-30"]) == (
        "1",
        "HOSP",
        "1.2.3",
        "B",
        "",
    )
    assert msg.first("PID").get(3, 4, repetition=2) == "X"
    assert msg["MSH-10"] == "1"
    assert msg["ZZZ-1"] == ""


@pytest.mark.parametrize(
    ("escaped", "text"),
    [(r"a\F\b", "a|b"), (r"a\S\b", "a^b"), (r"a\T\b", "a&b"), (r"a\R\b", "a~b"), (r"a\E\b", "a\\b"), (r"a\.br\b", "a\nb"),
     (r"a\X0D\b", "a\rb"), (r"\H\bold\N\ ", "bold "), ("50\\", "50\\")],
)  # fmt: skip
def test_escapes_are_decoded_and_a_decoded_return_starts_no_segment(escaped, text):
    """HL7-36"""
    msg = parse(f"NTE|1||{escaped}\rNTE|2||z")
    assert msg.first("NTE").text(3) == text
    assert len(msg.all("NTE")) == 2


def test_windows_kanji_of_the_vendor_rows_are_kept_and_flagged():
    raw = "髙橋﨑①".encode("cp932")
    pairs = b"".join(jis_of(raw[n : n + 2]) for n in range(0, len(raw), 2))
    text, vendor = charset.decode(b"a\x1b$B" + pairs + b"\x1b(Bz", "~ISO IR87", "")
    assert text == "a髙橋﨑①z"
    assert vendor


def jis_of(sjis: bytes) -> bytes:
    """The row and cell of a Shift_JIS character, in seven bits, as Windows writes it after ESC $B."""
    lead, trail = sjis
    row = (lead - (0x81 if lead < 0xA0 else 0xC1)) * 2 + (2 if trail >= 0x9F else 1)
    cell = trail - 0x9E if trail >= 0x9F else trail - (0x3F if trail < 0x7F else 0x40)
    return bytes((row + 0x20, cell + 0x20))


@pytest.mark.parametrize(
    ("raw", "declared"),
    [("山田".encode("cp932"), "~ISO IR87"), (b"\xff", "UNICODE UTF-8"), (b"\xe5\xb1", "ASCII"), (b"a", "EBCDIC"),
     (b"\x1b$B;3", "~ISO IR87"), ("山".encode("iso2022_jp"), "ASCII")],
)  # fmt: skip
def test_bytes_that_are_not_in_the_declared_set_are_error_102(raw, declared):
    with pytest.raises(InvalidValue) as refused:
        charset.decode(raw, declared, "")
    assert refused.value.err == "102"


def test_a_delimiter_inside_a_two_byte_code_does_not_split():
    for char in "百万本日春京五表能":
        msg = message.parse(
            f"MSH|^~\\&|A|B|C|D|1||X|1|P|2.5||||||~ISO IR87\rNTE|1||{char}|next".encode("iso2022_jp"), Limits(), ""
        )
        assert (msg["NTE-3"], msg["NTE-4"]) == (char, "next")


def test_a_message_over_a_limit_is_refused_by_name():
    for text in (
        "NTE|1\r" * 20_001,
        "NTE|" + "a|" * 300,
        "NTE|" + "a~" * 300,
        "NTE|" + "a^" * 300,
        "NTE|" + "a" * 70_000,
    ):
        with pytest.raises(InvalidValue):
            parse(text)


def test_an_explicit_null_is_kept_apart_from_nothing():
    assert parse('PID|1||1||A^B||""|').first("PID").get(7) == '""'
    assert values.null('""', str) == ""
    assert values.null("", str) is None


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("20251201093000", ("20251201", "093000")),
        ("20251201003000+0000", ("20251201", "093000")),
        ("202512010930", ("20251201", "093000")),
    ],
)
def test_times_are_shown_in_the_sites_zone(text, there):
    raw = omi(order(start=today())).decode("iso2022_jp")
    line = next(line for line in raw.split("\r") if line.startswith("TQ1"))
    raw = raw.replace(line, f"TQ1|1||||||{text}||R")
    msg = message.parse(raw.encode("iso2022_jp"), Limits(), "")
    step = orders_in.to_commands(msg, SITE)[0].procedures[0].steps[0]
    assert (step.start_date, step.start_time) == there


def test_a_jj1017_code_of_32_characters_is_split_into_code_and_context():
    raw = omi(order()).decode("iso2022_jp").replace("6000000200000000", "60000002000000000000000000000000")
    msg = message.parse(raw.encode("iso2022_jp"), Limits(), "")
    (code,) = orders_in.to_commands(msg, SITE)[0].procedures[0].steps[0].attributes["ScheduledProtocolCodeSequence"]
    assert (len(code["CodeValue"]), code["CodingSchemeDesignator"]) == (16, "JJ1017-16M")
    context = code["ProtocolContextSequence"][0]
    assert context["ConceptNameCodeSequence"][0]["CodeValue"] == "123016"
    assert context["ConceptCodeSequence"][0]["CodingSchemeDesignator"] == "JJ1017-16S"


@pytest.mark.parametrize(
    ("old", "new", "code", "place"),
    [
        ("IPC|ACC001^RIS", "IPC|ACC00112345678901^RIS", "102", "IPC^1^1^1"), ("IPC|ACC001^RIS", "IPC|^RIS", "101", "IPC^1^1"),
        ("ORC|NW", "ORC|ZZ", "103", "ORC^1^1"), ("|0000012345^", "|^", "101", "PID^1^3"),
        ("TQ1|1||||||", "TQ1|1||||||soon", "102", "TQ1^1^7"),
    ],
)  # fmt: skip
def test_an_error_names_segment_field_and_code(old, new, code, place):
    raw = omi(order()).decode("iso2022_jp").replace(old, new, 1)
    msg = message.parse(raw.encode("iso2022_jp"), Limits(), "")
    with pytest.raises(BrokerError) as refused:
        orders_in.to_commands(msg, SITE)
    assert (refused.value.err, refused.value.place) == (code, place)


def test_an_acknowledgement_parses_in_a_foreign_library_in_both_forms():
    from hl7apy.parser import parse_message

    for version, kind in (("2.5.1", "OMI^O23^OMI_O23"), ("2.3.1", "ORM^O01")):
        head = message.header(f"MSH|^~\\&|HIS|HOSP|BROKER|X|1||{kind}|ID7|P|{version}\r".encode(), "ASCII")
        for error in (None, InvalidValue("IPC^1^3", "is no UID", err="102")):
            raw = ack.build(head, error, now=today())
            parsed = parse_message(raw.decode(), find_groups=False)
            assert parsed.msa.msa_1.value == ("AE" if error else "AA")
            assert parsed.msa.msa_2.value == "ID7"
            assert parsed.msh.msh_5.value == "HIS"
            assert b"102" in raw if error else b"ERR" not in raw


def answer_to(msg: message.Message, place: str) -> str:
    """The ERR segment that speaks of a place."""
    raw = ack.build(msg.header, InvalidValue(place, "is wrong", err="102"), now=today(), msg=msg)
    return raw.decode().split("\r")[2]


@pytest.mark.parametrize(
    ("place", "location"),
    [("IPC^1^3", "IPC^1^3"), ("IPC^2^1^1", "IPC^2^1"), ("PID", "PID^^"), ("message", "^^"), ("order", "ORC^1^2")],
)
def test_an_older_version_names_segment_sequence_field_and_code_in_one_field(place, location):
    msg = parse("PID|1||1\rORC|NW|P1")
    old = message.Message(replace(msg.header, fields=(*msg.header.fields[:12], "2.3.1")), msg.segments)
    assert answer_to(old, place) == f"ERR|{location}^102&Data type error&HL70357"


@pytest.mark.parametrize(
    ("place", "location"),
    [("IPC^2^1^1", "IPC^2^1^1"), ("accession number", "IPC^1^1"), ("procedure R1", "IPC^1^2"), ("step S2", "IPC^2^4"),
     ("step S3", ""), ("step", ""), ("patient.identifiers", "PID^1^3"), ("patient.prior", ""), ("weather", "")],
)  # fmt: skip
def test_what_a_service_speaks_of_is_found_in_the_message_where_that_is_certain(place, location):
    msg = parse("PID|1||1^^^HOSP\rORC|NW\rIPC|A1^RIS|R1|1.2|S1^X\rIPC|A1^RIS|R1|1.2|S2^X")
    assert answer_to(msg, place).split("|")[2] == location


@given(st.binary(max_size=300), st.integers(0, 600), st.integers(0, 600))
def test_no_bytes_make_the_parser_fail_in_another_way_than_by_refusing(junk, at, until):
    raw = omi(order())
    mutated = raw[:at] + junk + raw[max(at, until) :]
    try:
        msg = message.parse(mutated, Limits(), "ISO-2022-JP")
        message.check(msg.header)
        orders_in.to_commands(msg, SITE)
    except BrokerError as error:
        assert "山田" not in str(error)
        assert "0000012345" not in str(error)


@pytest.mark.parametrize("blank", ["", " ", "   "])
def test_a_message_without_a_control_id_is_refused_as_nobody_could_tell_it_from_its_repeat(blank):
    head = f"MSH|^~\\&|HIS|HOSP|BROKER|RAD|20251201||ADT^A04|{blank}|P|2.5"
    with pytest.raises(MissingField) as refused:
        message.check(message.header(head.encode(), "ASCII"))
    assert refused.value.place == "MSH^1^10"
