"""A coerced rendition: what it says differently, what it keeps, and the record of what was there before."""

import datetime as dt
import hashlib
import io
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from broker.archive import rendition
from broker.archive.changes import Identity, Target, changes_for
from broker.archive.coerce import Record, coerce
from broker.archive.part10 import file_meta
from broker.dicom.service import Command
from broker.errors import Unsupported

NOW = dt.datetime(2025, 12, 1, 1, 2, 3, 456789, tzinfo=dt.UTC)
RECORD = Record("COERCE", "CT1", "BROKER BROKER 0.1.0", NOW, "Asia/Tokyo")
YAMADA = Identity("0000012345", "HOSP", "YAMADA^TARO=山田^太郎=ヤマダ^タロウ", "19700101", "M")
REQUEST = {
    "AccessionNumber": "ACC001", "RequestedProcedureID": "RP001", "ScheduledProcedureStepID": "SPS001",
    "RequestedProcedureDescription": "胸部CT", "IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": "RIS"}],
}  # fmt: skip
PIXELS = bytes(range(256)) * 8


def image(charset: str | None = "\\ISO 2022 IR 87", **values: object) -> Dataset:
    """A small CT image as a Japanese device writes it."""
    ds = Dataset()
    if charset is not None:
        ds.SpecificCharacterSet = charset.split("\\")
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.392.99999.1.1.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.392.99999.1.1", "1.2.392.99999.1.2"
    ds.PatientName, ds.PatientID = "YAMADA^TARO=山田^太郎" if charset else "YAMADA^TARO", "0000012345"
    ds.PatientBirthDate, ds.PatientSex, ds.Modality = "19700101", "M", "CT"
    ds.AccessionNumber = "ACC001"
    ds.SeriesDescription = "胸部" if charset else "CHEST"
    ds.Rows = ds.Columns = 32
    ds.BitsAllocated, ds.PixelRepresentation = 16, 0
    ds.SmallestImagePixelValue = 0
    ds.add_new(0x00090010, "LO", "MAKER")
    ds.add_new(0x00091001, "OB", b"\x01\xff\x00\x7f")
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def encoded(ds: Dataset, syntax: str = ExplicitVRLittleEndian, pixels: bytes = PIXELS) -> bytes:
    """A Part 10 file as staging writes it. The pixels go in as they are."""
    buffer = io.BytesIO()
    writer = DicomFileLike(buffer)
    writer.is_implicit_VR, writer.is_little_endian = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    ds = Dataset(ds)
    ds.add_new(0x7FE00010, "OB" if syntax == JPEGLSLossless else "OW", pixels)
    ds[0x7FE00010].is_undefined_length = syntax == JPEGLSLossless
    write_dataset(writer, ds)
    return file_meta(Command(1, 1, ds.SOPClassUID, ds.SOPInstanceUID), syntax, "CT1") + buffer.getvalue()


@pytest.fixture
def rendered(tmp_path: Path):
    """Render a file with changes through the real path: bytes in, file out, read again."""

    def render(data: bytes, changes: dict, syntax: str = ExplicitVRLittleEndian, record: Record = RECORD) -> Dataset:
        target = tmp_path / "rendition.dcm"
        target.unlink(missing_ok=True)
        sha = rendition.render(
            io.BytesIO(data), target, syntax, lambda ds: coerce(ds, changes, record), header_bytes_max=1_000_000
        )
        assert sha == hashlib.sha256(target.read_bytes()).hexdigest()
        return pydicom.dcmread(target)

    return render


def original(ds: Dataset, number: int = -1) -> Dataset:
    return ds.OriginalAttributesSequence[number]


def test_a_changed_name_stands_in_the_rendition_and_the_old_one_in_original_attributes(rendered):
    """STO-09: (0400,0561) item with reason COERCE and the previous name inside (0400,0550)."""
    ds = rendered(encoded(image(PatientName="YAMADA^TAROU=山田^太郎")), {"PatientName": YAMADA.name})
    assert str(ds.PatientName) == YAMADA.name
    item = original(ds)
    assert item.ReasonForTheAttributeModification == "COERCE"
    assert item.SourceOfPreviousValues == "CT1"
    assert item.ModifyingSystem == "BROKER BROKER 0.1.0"
    assert item.AttributeModificationDateTime == "20251201100203.456789+0900"
    assert ds.InstanceCoercionDateTime == "20251201100203.456789+0900"
    (previous,) = item.ModifiedAttributesSequence
    assert str(previous.PatientName) == "YAMADA^TAROU=山田^太郎"
    assert [element.keyword for element in previous] == ["PatientName"]


def test_items_of_earlier_changes_are_kept_and_the_new_one_is_appended(rendered):
    """STO-11."""
    once = rendered(encoded(image()), {"PatientSex": "F"}, record=Record("COERCE", "GW", "OTHER", NOW, "UTC"))
    buffer = io.BytesIO()
    once.save_as(buffer)
    twice = rendered(buffer.getvalue(), {"PatientSex": "M"})
    assert [item.ModifyingSystem for item in twice.OriginalAttributesSequence] == ["OTHER", "BROKER BROKER 0.1.0"]
    assert original(twice, 0).ModifiedAttributesSequence[0].PatientSex == "M"
    assert original(twice, 1).ModifiedAttributesSequence[0].PatientSex == "F"


def test_an_attribute_that_was_absent_is_recorded_with_zero_length(rendered):
    data = image()
    del data.AccessionNumber
    ds = rendered(encoded(data), {"AccessionNumber": "ACC001"})
    assert original(ds).ModifiedAttributesSequence[0]["AccessionNumber"].is_empty


def test_a_changed_sequence_is_recorded_whole(rendered):
    item = Dataset()
    item.ScheduledProcedureStepID, item.ScheduledProcedureStepDescription = "SPS001", "単純"
    new = Dataset()
    new.ScheduledProcedureStepID, new.RequestedProcedureID = "SPS001", "RP001"
    ds = rendered(encoded(image(RequestAttributesSequence=[item])), {"RequestAttributesSequence": [new]})
    assert ds.RequestAttributesSequence[0].RequestedProcedureID == "RP001"
    (before,) = original(ds).ModifiedAttributesSequence[0].RequestAttributesSequence
    assert before.ScheduledProcedureStepDescription == "単純"


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
def test_a_uid_that_others_refer_to_is_never_changed(keyword):
    with pytest.raises(ValueError, match=keyword):
        coerce(image(), {keyword: "1.2.3"}, RECORD)


def test_without_changes_there_is_no_rendition(tmp_path):
    target = tmp_path / "none.dcm"
    same = rendition.render(io.BytesIO(encoded(image())), target, ExplicitVRLittleEndian, lambda ds: ds, 1_000_000)
    assert same is None
    assert not target.exists()


@pytest.mark.parametrize(
    ("syntax", "pixels"),
    [
        (ImplicitVRLittleEndian, PIXELS),
        (ExplicitVRLittleEndian, PIXELS),
        (ExplicitVRBigEndian, PIXELS),
        (JPEGLSLossless, encapsulate([b"\xff\xd8first\x00", b"second"])),
    ],
)
def test_the_transfer_syntax_and_every_byte_from_the_pixels_on_stay(tmp_path, syntax, pixels):
    data = encoded(image(), syntax, pixels)
    target = tmp_path / "rendition.dcm"
    changes = {"PatientName": "佐藤^花子", "AccessionNumber": "ACC002"}
    rendition.render(io.BytesIO(data), target, syntax, lambda ds: coerce(ds, changes, RECORD), 1_000_000)
    written = target.read_bytes()
    marker = b"\x7f\xe0\x00\x10" if syntax == ExplicitVRBigEndian else b"\xe0\x7f\x10\x00"
    assert written[written.rindex(marker) :] == data[data.rindex(marker) :]
    ds = pydicom.dcmread(target)
    assert ds.file_meta.TransferSyntaxUID == syntax
    assert str(ds.PatientName) == "佐藤^花子"
    assert ds.PixelData.startswith(pixels)


def test_what_does_not_change_keeps_its_bytes_even_where_it_breaks_the_standard(rendered):
    """Private elements, an impossible date and a decimal that is none: not ours to mend."""
    data = encoded(image(PatientComments="x")).replace(b"DA\x08\x0019700101", b"DA\x08\x001970 1 1")
    assert b"1970 1 1" in data
    ds = rendered(data, {"AccessionNumber": "ACC002"})
    assert ds.get_item("PatientBirthDate").value == b"1970 1 1"
    assert ds[0x00091001].value == b"\x01\xff\x00\x7f"


def test_text_that_fits_keeps_the_character_set_and_is_escaped_as_the_standard_wants(rendered):
    ds = rendered(encoded(image()), {"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう"})
    assert ds.SpecificCharacterSet == ["", "ISO 2022 IR 87"]
    raw = ds.get_item("PatientName").value
    # PS3.5 H.3.1
    assert raw.hex().startswith("59616d6164615e5461726f753d1b24423b3345441b28425e1b24424240")


def test_text_that_does_not_fit_moves_the_whole_object_to_utf_8_and_says_so(rendered):
    item = Dataset()
    item.ScheduledProcedureStepDescription = "単純"
    ds = rendered(
        encoded(image(RequestAttributesSequence=[item], InstitutionName="中央病院")), {"PatientName": "髙橋^一郎"}
    )
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert str(ds.PatientName) == "髙橋^一郎"
    assert ds.InstitutionName == "中央病院"
    assert ds.SeriesDescription == "胸部"
    assert ds.RequestAttributesSequence[0].ScheduledProcedureStepDescription == "単純"
    previous = original(ds).ModifiedAttributesSequence[0]
    assert previous.SpecificCharacterSet == ["", "ISO 2022 IR 87"]
    assert str(previous.PatientName) == "YAMADA^TARO=山田^太郎"


def test_an_object_without_a_character_set_gets_one_when_kanji_come_in(rendered):
    ds = rendered(encoded(image(charset=None)), {"PatientName": YAMADA.name})
    assert ds.SpecificCharacterSet == "ISO_IR 192"
    assert str(ds.PatientName) == YAMADA.name
    previous = original(ds).ModifiedAttributesSequence[0]
    assert previous["SpecificCharacterSet"].is_empty
    assert str(previous.PatientName) == "YAMADA^TARO"


def test_text_that_was_none_in_its_character_set_is_kept_as_bytes_in_the_nonconforming_sequence(rendered):
    """PS3.3 C.12.1.1.9: the previous value is empty in (0400,0550) and stands raw in (0400,0551)."""
    shift_jis = "胸部検査".encode("cp932")
    item = Dataset()
    item.ScheduledProcedureStepDescription = "ZZZZZZXX"
    data = encoded(image(charset=None, InstitutionName="YYYYYYYY", RequestAttributesSequence=[item]))
    data = data.replace(b"YYYYYYYY", shift_jis).replace(b"ZZZZZZXX", shift_jis)
    ds = rendered(data, {"PatientName": YAMADA.name})
    record = original(ds)
    assert record.ModifiedAttributesSequence[0]["InstitutionName"].is_empty
    assert record.ModifiedAttributesSequence[0]["RequestAttributesSequence"].is_empty
    top, nested = record.NonconformingModifiedAttributesSequence
    assert (top.SelectorAttribute, top.NonconformingDataElementValue) == (0x00080080, shift_jis)
    assert (nested.SelectorAttribute, nested.NonconformingDataElementValue) == (0x00400007, shift_jis)
    assert nested.SelectorSequencePointer == 0x00400275
    assert nested.SelectorSequencePointerItems == 1
    assert "\ufffd" in ds.InstitutionName


def test_a_header_over_the_limit_is_refused_before_it_is_loaded(tmp_path):
    ds = image()
    ds.add_new(0x00091002, "OB", bytes(60_000))
    data = encoded(ds)
    with pytest.raises(Unsupported, match="50000 bytes"):
        rendition.render(io.BytesIO(data), tmp_path / "x", ExplicitVRLittleEndian, lambda ds: ds, 50_000)


# What changes


def changed(ds: Dataset, identity: Identity = YAMADA, requests: tuple = (REQUEST,), **how: bool) -> dict:
    how = {"only_name": False, "by_person": False} | how
    return changes_for(ds, Target(identity, requests), **how)


def linked(**values: object) -> Dataset:
    item = Dataset()
    item.RequestedProcedureID, item.ScheduledProcedureStepID = "RP001", "SPS001"
    item.AccessionNumber, item.RequestedProcedureDescription = "ACC001", "CT"
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = "RIS"
    item.IssuerOfAccessionNumberSequence = [issuer]
    agreed = {
        "PatientName": YAMADA.name, "IssuerOfPatientID": "HOSP", "RequestAttributesSequence": [item],
        "IssuerOfAccessionNumberSequence": [issuer],
    }  # fmt: skip
    return image(**(agreed | values))


def test_an_object_that_agrees_is_not_changed():
    assert changed(linked()) == {}


def test_after_outcome_a_only_a_name_in_another_spelling_changes():
    assert changed(image(PatientName="YAMADA^TAROU", AccessionNumber=""), only_name=True) == {
        "PatientName": YAMADA.name
    }


@pytest.mark.parametrize("name", ["YAMADA^TARO", "YAMADA^TARO^^", "=山田^太郎", "", YAMADA.name])
def test_a_device_that_knows_fewer_groups_has_no_variant_of_the_name(name):
    assert changed(image(PatientName=name), only_name=True) == {}


def test_empty_attributes_are_filled_from_the_order():
    ds = linked(AccessionNumber="", PatientBirthDate="", PatientSex="O")
    assert changed(ds) == {"AccessionNumber": "ACC001", "PatientBirthDate": "19700101", "PatientSex": "M"}


def test_what_the_order_does_not_know_stays_as_the_device_wrote_it():
    assert changed(linked(), Identity("0000012345", name="YAMADA^TARO")) == {}


def test_a_padded_patient_id_is_replaced_together_with_its_issuer():
    changes = changed(linked(PatientID="12345"))
    assert changes == {"PatientID": "0000012345", "IssuerOfPatientID": "HOSP"}


def test_an_identifier_that_a_merge_retired_becomes_an_other_patient_id():
    """reconciliation.md row 36."""
    ds = linked(PatientID="OLD7")
    survivor = Identity("0000012345", "HOSP", YAMADA.name, "19700101", "M", retired=frozenset({"OLD7"}))
    changes = changed(ds, survivor)
    assert changes["PatientID"] == "0000012345"
    (other,) = changes["OtherPatientIDsSequence"]
    assert (other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID) == ("OLD7", "HOSP", "TEXT")


def test_when_a_person_gives_the_object_to_another_patient_nothing_of_the_first_one_stays():
    ds = linked(PatientID="999", PatientName="SATO^HANAKO=佐藤^花子", PatientSex="F", PatientBirthDate="19850315",
                PatientAddress="X", PatientAge="040Y", AdmissionID="V9")  # fmt: skip
    ds.ReferencedPatientSequence = [Dataset()]
    changes = changed(ds, Identity("0000012345", name="YAMADA^TARO"), by_person=True)
    assert changes == {
        "PatientName": "YAMADA^TARO", "PatientID": "0000012345", "IssuerOfPatientID": "", "PatientBirthDate": "",
        "PatientSex": "", "PatientAddress": "", "PatientAge": "", "AdmissionID": "", "ReferencedPatientSequence": [],
    }  # fmt: skip


def test_request_attributes_are_added_where_the_device_sent_none():
    changes = changed(image(PatientName=YAMADA.name, IssuerOfPatientID="HOSP"))
    (item,) = changes["RequestAttributesSequence"]
    assert (item.RequestedProcedureID, item.ScheduledProcedureStepID) == ("RP001", "SPS001")
    assert item.RequestedProcedureDescription == "胸部CT"
    assert changes["IssuerOfAccessionNumberSequence"][0].LocalNamespaceEntityID == "RIS"


def test_an_item_of_the_device_is_completed_and_one_of_another_order_goes():
    mine, other = Dataset(), Dataset()
    mine.ScheduledProcedureStepID, mine.ReasonForTheRequestedProcedure = "SPS001", "pain"
    other.ScheduledProcedureStepID, other.RequestedProcedureID = "SPS900", "RP900"
    (item,) = changed(image(RequestAttributesSequence=[other, mine]))["RequestAttributesSequence"]
    assert (item.ScheduledProcedureStepID, item.RequestedProcedureID) == ("SPS001", "RP001")
    assert item.ReasonForTheRequestedProcedure == "pain"


def test_in_the_group_case_there_is_an_item_for_each_request_and_the_number_of_one_of_them_stays():
    second = {**REQUEST, "AccessionNumber": "ACC002", "RequestedProcedureID": "RP002", "ScheduledProcedureStepID": "S2"}
    changes = changed(linked(AccessionNumber="ACC002"), requests=(REQUEST, second))
    assert [item.RequestedProcedureID for item in changes["RequestAttributesSequence"]] == ["RP001", "RP002"]
    assert "AccessionNumber" not in changes


def test_an_unscheduled_object_gets_no_request():
    assert changed(linked(), requests=()) == {}


def test_looking_for_changes_leaves_the_data_set_as_it_was():
    raw = pydicom.dcmread(io.BytesIO(encoded(image())))
    before = raw.get_item("PatientName")
    changed(raw)
    assert raw.get_item("PatientName") is before
