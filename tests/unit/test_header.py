"""The walk to the last byte, and what is read on the way."""

import json
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1

from broker.archive.digest import canonical_digest, difference
from broker.archive.header import check_command, read_header
from broker.archive.part10 import file_meta, read_meta
from broker.archive.walk import Walk
from broker.config import Limits
from broker.dicom.service import C_STORE_RQ, Command
from broker.errors import BrokerError, InvalidValue, MissingUid, OtherInstance, Unreadable
from tests.objects import NATIVE, ct, encoded

LIMITS = Limits()


def image() -> Dataset:
    return ct(SOPInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1")


@pytest.fixture
def put(tmp_path: Path):
    """A Part 10 file of ours around these bytes."""

    def write(data: bytes, transfer_syntax: str = ExplicitVRLittleEndian) -> Path:
        path = tmp_path / f"{random.getrandbits(64):x}.dcm"
        path.write_bytes(file_meta(Command(C_STORE_RQ, 1, CTImageStorage, "1.2.3.4"), transfer_syntax, "CT1") + data)
        return path

    return write


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Explicit VR Little Endian; `length` where it is to lie."""
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    return (
        head
        + (struct.pack("<HL", 0, size) if vr in (b"OB", b"OW", b"SQ", b"UN", b"UT") else struct.pack("<H", size))
        + value
    )


def item(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(value) if length is None else length) + value


ITEM_END, SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0), struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
UNDEFINED = 0xFFFFFFFF


@pytest.mark.parametrize("transfer_syntax", NATIVE)
def test_the_facts_are_the_same_in_every_native_transfer_syntax(put, transfer_syntax):
    header = read_header(put(encoded(image(), transfer_syntax), transfer_syntax), transfer_syntax, LIMITS)
    facts = header.facts
    assert (header.study_instance_uid, header.series_instance_uid, header.modality) == ("1.2.3", "1.2.3.1", "CT")
    assert facts["patient_name"] == "YAMADA^TARO=山田^太郎"
    assert (facts["patient_id"], facts["birth_date"], facts["sex"]) == ("0000012345", "19700101", "")
    assert (facts["accession_number"], facts["accession_issuer"]) == ("ACC001", "RIS")
    assert facts["performed_steps"] == ["1.2.9"]
    assert facts["image_type"] == ["ORIGINAL", "PRIMARY"]
    (request,) = facts["request_attributes"]
    assert (request["requested_procedure_id"], request["sps_id"]) == ("RP001", "SPS001")
    assert (facts["rows"], facts["columns"], facts["frames"]) == (4, 4, "")
    assert facts["pixels"]["length"] == 32
    assert (facts["undecodable"], facts["facts_cut"]) == ([], [])


def test_encapsulated_pixels_are_walked_fragment_by_fragment(put):
    ds = image()
    ds.PixelData = encapsulate([b"frame one!", b"frame two!"])
    data = encoded(ds, JPEGLosslessSV1)
    assert read_header(put(data), JPEGLosslessSV1, LIMITS).facts["pixels"]["length"] is None
    for cut in range(1, 40):
        with pytest.raises(Unreadable):
            read_header(put(data[:-cut]), JPEGLosslessSV1, LIMITS)


@pytest.mark.parametrize("transfer_syntax", NATIVE)
def test_a_cut_anywhere_inside_an_element_is_found(put, transfer_syntax):
    data = encoded(image(), transfer_syntax)
    path = put(data, transfer_syntax)
    with path.open("rb") as file:
        offset = len(path.read_bytes()) - len(data)
        starts = {0, len(data)}
        for one in Walk(file, offset, transfer_syntax, LIMITS):
            if one.depth == 0 and one.vr != "SQ":
                starts.add(one.offset + one.length)
            elif one.depth == 0:
                starts.add(one.offset + one.length if one.length != UNDEFINED else len(data))
    for cut in range(len(data)):
        with put(data[:cut], transfer_syntax).open("rb") as file:
            walk = Walk(file, offset, transfer_syntax, LIMITS)
            if cut in starts:
                assert list(walk) or cut == 0
            else:
                with pytest.raises(Unreadable):
                    list(walk)


@pytest.mark.parametrize("garbage", [b"\0", b"\0\0", b"\0" * 8, b"garbage that is no element"])
def test_anything_behind_the_last_element_is_refused(put, garbage):
    with pytest.raises(Unreadable):
        read_header(put(encoded(image()) + garbage), ExplicitVRLittleEndian, LIMITS)


def test_a_length_far_beyond_the_end_is_refused_without_reading_or_allocating_it(put):
    """durability.md 0.8: pydicom takes this one without a word."""
    data = encoded(image()) + element(0x7FE10010, b"OB", b"abc", 0xFFFFFFF0)
    with pytest.raises(Unreadable) as refused:
        read_header(put(data), ExplicitVRLittleEndian, LIMITS)
    assert "(7FE1,0010) announces 4294967280 bytes, 3 are left" in str(refused.value)


def test_a_huge_value_is_skipped_not_loaded(put):
    path = put(encoded(image())[:-32][:-4] + struct.pack("<L", 2**31))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**31)  # a sparse file: nothing is written
    tracemalloc.start()
    assert read_header(path, ExplicitVRLittleEndian, LIMITS).facts["pixels"]["length"] == 2**31
    assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    tracemalloc.stop()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_bytes_come_the_answer_is_a_header_or_a_refusal(put, seed):
    chance = random.Random(seed)
    for transfer_syntax in NATIVE:
        data = encoded(image(), transfer_syntax)
        for _ in range(150):
            broken = bytearray(data)
            for _ in range(chance.choice((1, 2, 8))):
                broken[chance.randrange(len(broken))] = chance.choice((0, 1, 0xFF, chance.randrange(256)))
            try:
                read_header(put(bytes(broken), transfer_syntax), transfer_syntax, LIMITS)
            except BrokerError:
                continue


@pytest.mark.parametrize(
    ("what", "refused_for"),
    [
        (element(0x00020010, b"UI", b"1.2.840.10008.1.2.1.99"), "cannot stand here"),
        (element(0x00000002, b"UI", b"1.2"), "cannot stand here"),
        (item(b""), "cannot stand here"),
        (ITEM_END, "cannot stand here"),
        (element(0x00091001, b"zz", b"ab"), "no value representation"),
        (element(0x00091001, b"OB", b"ab", UNDEFINED), "has no length"),
        (element(0x00091001, b"SQ", element(0x00091002, b"LO", b"")), "(0009,1002) where an item is expected"),
        (element(0x00091001, b"SQ", item(b"", 4)), "announces 4 bytes, 0 are left"),
        (element(0x00091001, b"SQ", item(b"", UNDEFINED), UNDEFINED), "0 bytes are left"),
        (element(0x00091001, b"SQ", item(element(0x00091002, b"LO", b"ab", 9))), "announces 9 bytes, 2 are left"),
        (element(0x00091001, b"SQ", item(b"")[:5]), "bytes are left where an element begins"),
    ],
)
def test_an_odd_structure_is_refused_with_its_place(put, what, refused_for):
    with put(what).open("rb") as file, pytest.raises(Unreadable) as refused:
        list(Walk(file, read_meta_end(file), ExplicitVRLittleEndian, LIMITS))
    assert refused_for in str(refused.value)
    assert refused.value.place.startswith("byte ")


def read_meta_end(file) -> int:
    read_meta(file)
    return file.tell()


def test_group_lengths_are_read_over_as_ps3_5_7_2_demands(put):
    data = element(0x00080000, b"UL", b"\0\0\0\0") + encoded(image())
    assert read_header(put(data), ExplicitVRLittleEndian, LIMITS).facts["patient_id"] == "0000012345"


def test_a_sequence_of_unknown_vr_is_read_as_implicit_little_endian(put):
    """PS3.5 6.2.2: also with a defined length where the dictionary knows that it is one."""
    inner = struct.pack("<HHL", 0x0040, 0x1001, 2) + b"R1"
    undefined = element(0x00400275, b"UN", item(inner, UNDEFINED) + ITEM_END + SEQUENCE_END, UNDEFINED)
    defined = element(0x00400275, b"UN", item(inner))
    for sequence in (undefined, defined):
        ds = image()
        del ds.RequestAttributesSequence
        data = encoded(ds)
        at = data.index(b"\xe0\x7f\x10\x00")
        facts = read_header(put(data[:at] + sequence + data[at:]), ExplicitVRLittleEndian, LIMITS).facts
        assert [request["requested_procedure_id"] for request in facts["request_attributes"]] == ["R1"]


def nested(depth: int) -> Dataset:
    ds = Dataset()
    if depth:
        ds.ContentSequence = [nested(depth - 1)]
    return ds


def many(count: int) -> bytes:
    return b"".join(element(0x00110000 + n, b"LO", b"x") for n in range(1, count + 1))


def test_each_cap_of_the_walk_has_a_name_in_the_refusal(put):
    limits = Limits(header_depth_max=3, header_elements_max=2000, header_text_bytes_max=100, header_seconds_max=5)
    deep = nested(4)
    deep.PixelData = b""
    for data, name in (
        (encoded(deep), "header_depth_max"),
        (many(2001), "header_elements_max"),
        (element(0x00091001, b"UT", b"x" * 101), "header_text_bytes_max"),
    ):
        with put(data).open("rb") as file, pytest.raises(Unreadable) as refused:
            list(Walk(file, read_meta_end(file), ExplicitVRLittleEndian, limits))
        assert name in str(refused.value)
    limits = limits.model_copy(update={"header_seconds_max": -1})
    with put(many(2000)).open("rb") as file, pytest.raises(Unreadable) as refused:
        list(Walk(file, read_meta_end(file), ExplicitVRLittleEndian, limits))
    assert "header_seconds_max" in str(refused.value)


def test_elements_of_frames_count_to_their_own_limit(put):
    frame = element(0x00209111, b"SQ", item(element(0x00209157, b"UL", b"\1\0\0\0")))
    frames = element(0x52009230, b"SQ", item(frame) * 100)
    for limits, fits in (
        (Limits(header_elements_max=10), True),
        (Limits(header_frame_elements_max=399), False),
        (Limits(header_frame_elements_max=400), True),
    ):
        with put(frames).open("rb") as file:
            walk = Walk(file, read_meta_end(file), ExplicitVRLittleEndian, limits)
            if fits:
                assert len(list(walk)) == 401
            else:
                with pytest.raises(Unreadable):
                    list(walk)


def test_an_identity_said_twice_is_refused(put):
    data = element(0x00100020, b"LO", b"OTHER ") + encoded(image())
    with pytest.raises(Unreadable) as refused:
        read_header(put(data), ExplicitVRLittleEndian, LIMITS)
    assert refused.value.place == "patient_id"


def test_a_text_that_its_character_set_does_not_explain_is_kept_escaped_and_flagged(put):
    ds = image()
    ds.SpecificCharacterSet = "ISO_IR 6"
    ds.PatientName = "X"
    data = encoded(ds).replace(element(0x00100010, b"PN", b"X "), element(0x00100010, b"PN", b"\x8eR^T"))
    facts = read_header(put(data), ExplicitVRLittleEndian, LIMITS).facts
    assert facts["patient_name"] == "\\x8eR^T"
    assert facts["undecodable"] == ["patient_name"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("keyword", "value", "name", "kept"),
    [
        ("Modality", "C\0TX", "modality", "C\\x00TX"),
        ("Modality", "\0CT", "modality", "\\x00CT"),
        ("PatientID", "1\x002", "patient_id", "1\\x002"),
        ("PatientName", "YAMADA\x01^TARO", "patient_name", "YAMADA\\x01^TARO"),
        ("AccessionNumber", "A\nC", "accession_number", "A\\x0aC"),
        ("StationName", "CT\x7f1", "station_name", "CT\\x7f1"),
    ],
)
def test_a_control_character_inside_a_text_is_kept_escaped_and_flagged(put, keyword, value, name, kept):
    facts = read_header(put(encoded(ct(**{keyword: value}))), ExplicitVRLittleEndian, LIMITS).facts
    assert (facts[name], facts["undecodable"]) == (kept, [name])


def test_nul_at_the_end_of_a_text_is_padding(put):
    ds = image()
    ds.Modality = "X"
    data = encoded(ds).replace(element(0x00080060, b"CS", b"X "), element(0x00080060, b"CS", b"CT\0\0\0\0"))
    facts = read_header(put(data), ExplicitVRLittleEndian, LIMITS).facts
    assert (facts["modality"], facts["undecodable"]) == ("CT", [])


def requests(count: int, value: bytes) -> bytes:
    return element(0x00400275, b"SQ", item(element(0x00401001, b"SH", value)) * count)


def with_requests(count: int, value: bytes) -> bytes:
    ds = image()
    del ds.RequestAttributesSequence
    data = encoded(ds)
    at = data.index(b"\xe0\x7f\x10\x00")
    return data[:at] + requests(count, value) + data[at:]


def test_more_items_than_the_limit_are_not_kept_and_that_is_told(put):
    limits = Limits(header_items_max=3)
    for count, cut in ((3, []), (4, ["request_attributes"])):
        facts = read_header(put(with_requests(count, b"R1")), ExplicitVRLittleEndian, limits).facts
        assert [one["requested_procedure_id"] for one in facts["request_attributes"]] == ["R1"] * 3
        assert facts["facts_cut"] == cut


def test_more_text_than_the_limit_is_not_kept_and_that_is_told(put):
    """What the object is filed by is kept whatever else it says."""
    for limits in (Limits(header_facts_bytes_max=1000), Limits(header_facts_bytes_max=0)):
        header = read_header(put(with_requests(5, b"R" * 400)), ExplicitVRLittleEndian, limits)
        assert (header.study_instance_uid, header.series_instance_uid) == ("1.2.3", "1.2.3.1")
        assert "requested_procedure_id" in header.facts["facts_cut"]
        kept = [one["requested_procedure_id"] for one in header.facts["request_attributes"]]
        assert len("".join(kept)) <= limits.header_facts_bytes_max
        assert len(kept) == 5


def test_a_header_that_says_far_too_much_costs_little_memory(put):
    """durability.md I10"""
    data = with_requests(9_500, b"A" * 4000)
    path = put(data)
    tracemalloc.start()
    facts = read_header(path, ExplicitVRLittleEndian, LIMITS).facts
    assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    tracemalloc.stop()
    assert len(json.dumps(facts)) < 2 * LIMITS.header_facts_bytes_max
    assert facts["facts_cut"] == ["request_attributes", "requested_procedure_id"]


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", [None, "", "abc", "1.2/../3", "1." * 33])
def test_an_object_without_usable_uids_is_refused_with_c001(put, keyword, value):
    ds = image()
    if value is None:
        delattr(ds, keyword)
    else:
        ds.add_new(keyword, "LO", value)
        ds[keyword].VR = "UI"
    with pytest.raises(MissingUid) as refused:
        read_header(put(encoded(ds)), ExplicitVRLittleEndian, LIMITS)
    assert refused.value.wire.dimse_c == 0xC001


def test_command_and_data_set_must_mean_the_same_instance(put):
    header = read_header(put(encoded(image())), ExplicitVRLittleEndian, LIMITS)
    check_command(header, CTImageStorage, "1.2.3.4")
    with pytest.raises(InvalidValue) as refused:
        check_command(header, "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4")
    assert refused.value.wire.dimse_c == 0xA900
    with pytest.raises(OtherInstance) as refused:
        check_command(header, CTImageStorage, "1.2.3.5")
    assert refused.value.wire.dimse_c == 0xA901


def test_no_error_carries_a_value_of_the_data_set(put):
    ds = image()
    for broken in (encoded(ds)[:-1], encoded(ds) + b"\0", element(0x00100020, b"LO", b"X") + encoded(ds)):
        with pytest.raises(Unreadable) as refused:
            read_header(put(broken), ExplicitVRLittleEndian, LIMITS)
        assert not any(secret in str(refused.value) for secret in ("YAMADA", "0000012345", "1970"))


def digest_of(put, ds: Dataset, transfer_syntax: str = ExplicitVRLittleEndian):
    with put(encoded(ds, transfer_syntax), transfer_syntax).open("rb") as file:
        return canonical_digest(file, transfer_syntax, LIMITS)


def test_the_canonical_digest_is_the_same_in_every_native_transfer_syntax(put):
    first, *others = [digest_of(put, image(), transfer_syntax) for transfer_syntax in NATIVE]
    assert others == [first, first]


def test_padding_group_lengths_and_defined_or_undefined_lengths_make_no_difference(put):
    ds = image()
    plain = encoded(ds)
    for sequence in (ds["RequestAttributesSequence"], ds["IssuerOfAccessionNumberSequence"]):
        sequence.is_undefined_length = True
        sequence.value[0].is_undefined_length_sequence_item = True
    other = encoded(ds)
    assert other != plain
    padded = element(0x00080000, b"UL", b"\0\0\0\0") + other + element(0xFFFCFFFC, b"OB", bytes(10))
    padded = padded.replace(element(0x00080060, b"CS", b"CT"), element(0x00080060, b"CS", b"CT  "))
    digests = set()
    for data in (plain, other, padded):
        with put(data).open("rb") as file:
            digests.add(canonical_digest(file, ExplicitVRLittleEndian, LIMITS))
    assert len(digests) == 1


def test_encapsulated_frames_count_by_their_bytes_whatever_the_offset_table_says(put):
    frames = [b"frame one!", b"frame two!"]
    ds, other, changed = image(), image(), image()
    ds.PixelData, other.PixelData = encapsulate(frames, has_bot=True), encapsulate(frames, has_bot=False)
    changed.PixelData = encapsulate([b"frame one!", b"frame 2!!!"])
    first, second, third = (digest_of(put, one, JPEGLosslessSV1) for one in (ds, other, changed))
    assert first == second
    assert first.pixels != third.pixels


def test_what_differs_is_told_apart_worst_first(put):
    """reconciliation.md rows 29b and 30."""
    ds = image()
    first, facts = digest_of(put, ds), read_header(put(encoded(ds)), ExplicitVRLittleEndian, LIMITS).facts
    seen = {}
    for name, keyword, value in (
        ("attributes", "StudyDate", "20251202"),
        ("identity", "PatientID", "0000012346"),
        ("pixels", "PixelData", bytes(32)),
    ):
        other = image()
        setattr(other, keyword, value)
        second = digest_of(put, other)
        assert second.whole != first.whole
        other_facts = read_header(put(encoded(other)), ExplicitVRLittleEndian, LIMITS).facts
        seen[name] = difference(facts, other_facts, first.pixels == second.pixels)
    assert seen == {name: name for name in seen}
