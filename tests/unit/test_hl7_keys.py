"""A message that nobody could read is found by its numbers all the same."""

import time

import pytest

from broker.config import Limits
from broker.ris_bridge.hl7 import keys, message, road
from tests import roads

NAMES = "ポ表能万五京俑"  # bytes of these are | ^ ~ and \ in Shift_JIS, EUC-JP or ISO-2022-JP
HEAD = "MSH|^~\\&|HIS|HOSP|BROKER|HOSP|20251201085500||OMI^O23|1|P|2.5.1\r"
ORDER = (
    f"{HEAD}PID|1||0000012345^^^HOSP^PI~X77||{NAMES}^{NAMES}\rORC|NW|P1^HIS|F1^RIS\r"
    f"OBR|1|P1^HIS|F1^RIS|CT^{NAMES}^L|||||||||||||{NAMES}|ACC001\rIPC|ACC001^RIS|RP|1.2.3^RIS\r"
)
WANTED = {
    ("patient", "0000012345"), ("patient", "X77"), ("placer", "P1"), ("filler", "F1"), ("accession", "ACC001"),
    ("study", "1.2.3"),
}  # fmt: skip


def test_the_names_hold_what_looks_like_delimiters():
    for codec, byte in (("cp932", b"|"), ("cp932", b"\\"), ("iso2022_jp", b"|"), ("iso2022_jp", b"^")):
        assert byte in NAMES.encode(codec), (codec, byte)


@pytest.mark.parametrize("codec", ["utf-8", "cp932", "euc_jp", "iso2022_jp"])
@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_whatever_its_character_set_is(codec, end):
    assert keys.of(ORDER.replace("\r", end).encode(codec)) == WANTED


@pytest.mark.parametrize("of_road", [roads.omi, roads.orm])
def test_they_are_those_of_a_message_that_can_be_read(of_road):
    raw = of_road()
    assert keys.of(raw) == road._keys(message.parse(raw, Limits(), "ASCII"))


def test_other_delimiters_are_those_that_its_header_names():
    other = ORDER.replace(NAMES, "X").translate(str.maketrans("|^~\\&", "#@*%$"))
    assert keys.of(other.encode()) == WANTED


@pytest.mark.parametrize(
    "raw",
    [b"", b"MSH", b"MSH|", b"MSH|^", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 99, b"MSH|^~\\&\rPID|\rOBR\rZDS|\0|1\r"],
)
def test_what_is_no_message_has_none(raw):
    assert keys.of(raw) == frozenset()


def test_what_is_no_number_is_none():
    said = ["", '""', " ", "\x01", "山田", "a\\T\\b"]
    assert keys.of((HEAD + "".join(f"PID|||{one}\r" for one in said) + "PID|||" + "9" * 999).encode()) == {
        ("patient", "9" * 256)
    }


HOSTILE = {
    "escapes": b"\x1b$B" * 99_999, "segments": b"PID|||1\r" * 99_999, "empty lines": b"\r" * 999_999,
    "fields": b"OBR" + b"|" * 999_999, "repetitions": b"PID|||" + b"~".join(b"%d" % n for n in range(99_999)),
    "no end": b"PID|||" + b"\xe5" * 999_999, "halves": b"\x81" * 999_999 + b"|",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_it_takes_milliseconds_whatever_it_is_given(name):
    begun = time.thread_time()
    found = keys.of(HEAD.encode() + HOSTILE[name] * 3)
    assert time.thread_time() - begun < 0.2
    assert len(found) <= keys.KEYS_MAX
