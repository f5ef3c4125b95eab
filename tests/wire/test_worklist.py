"""The worklist as scanners ask for it: pynetdicom and DCMTK against a running broker."""

import contextlib
import datetime as dt
import re
import socket
import subprocess
import tempfile
import warnings
from functools import partial
from pathlib import Path

import pynetdicom
import pytest
import structlog.testing
from pydicom import dcmread, dcmwrite
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.pdu_primitives import SOPClassExtendedNegotiation
from pynetdicom.sop_class import ModalityWorklistInformationFind

from broker import clock, db, site
from broker.dicom import association
from broker.model.images import ReconciliationCase
from broker.model.orders import OfferedItem, ScheduledStep
from broker.sim.modality import Refused
from broker.sim.ris import Patient, code_of, omi
from tests.house import eventually
from tests.world import SATO, SMITH, TAKAHASHI, TOKYO, YAMADA, order, today


def query(step: dict | None = None, **keys) -> Dataset:
    """An identifier with just these keys. step: keys of the SPS item, None = no sequence."""
    made = Dataset()
    for keyword, value in keys.items():
        setattr(made, keyword, value)
    if step is not None:
        item = Dataset()
        for keyword, value in step.items():
            setattr(item, keyword, value)
        made.ScheduledProcedureStepSequence = [item]
    return made


def connect(broker, ae_title: str = "CT1", syntax: str = "1.2.840.10008.1.2"):
    ae = AE(ae_title)
    ae.add_requested_context(ModalityWorklistInformationFind, syntax)
    connection = ae.associate("127.0.0.1", broker.ports["dicom"], ae_title="BROKER")
    assert connection.is_established
    return connection


def find(broker, identifier: Dataset, ae_title: str = "CT1", syntax: str = "1.2.840.10008.1.2"):
    """(statuses, identifiers) of one C-FIND."""
    connection = connect(broker, ae_title, syntax)
    answers = list(connection.send_c_find(identifier, ModalityWorklistInformationFind))
    connection.release()
    return [status.Status for status, _ in answers], [found for _, found in answers if found is not None], answers


def by_pynetdicom(broker, identifier: Dataset, ae_title: str = "CT1"):
    return find(broker, identifier, ae_title)[:2]


def by_dcmtk(broker, identifier: Dataset, ae_title: str = "CT1"):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "query.dcm"
        dcmwrite(file, with_meta(identifier), enforce_file_format=True)
        said = findscu(broker, "-d", "-aet", ae_title, "-X", "-od", folder, str(file))
        statuses = [int(found, 16) for found in re.findall(r"DIMSE Status +: 0x([0-9a-f]{4})", said)]
        items = [dcmread(path) for path in sorted(Path(folder).glob("rsp*.dcm"))]
    return statuses, items


def with_meta(identifier: Dataset) -> Dataset:
    made = Dataset(identifier)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1"), UID("2.25.2")
    return made


@pytest.fixture(params=[by_pynetdicom, by_dcmtk])
def ask(request, broker):
    """(identifier, AE title) -> (statuses, identifiers) of one C-FIND, as each of two devices sends it."""
    return partial(request.param, broker)


def findscu(broker, *arguments: str) -> str:
    address = ("127.0.0.1", str(broker.ports["dicom"]))
    split = next((n for n, word in enumerate(arguments) if word.endswith(".dcm")), len(arguments))
    command = ["findscu", "-v", "-W", "-aet", "CT1", "-aec", "BROKER", *arguments[:split], *address, *arguments[split:]]
    ran = subprocess.run(command, capture_output=True, timeout=60)
    return (ran.stdout + ran.stderr).decode("utf-8", "replace")


def negotiating(broker, asked: bytes, ae_title: str = "CT1"):
    """An association with SOP class extended negotiation."""
    item = SOPClassExtendedNegotiation()
    item.sop_class_uid, item.service_class_application_information = UID(ModalityWorklistInformationFind), asked
    ae = AE(ae_title)
    ae.add_requested_context(ModalityWorklistInformationFind)
    connection = ae.associate("127.0.0.1", broker.ports["dicom"], ae_title="BROKER", ext_neg=[item] if asked else [])
    assert connection.is_established
    return connection


@contextlib.contextmanager
def questions_to(connection):
    """For many questions one after the other: the library's own thread wakes between two of them, and may take an
    answer of the second for a message that nobody waits for."""
    checkpoint = connection._reactor_checkpoint
    checkpoint.clear()
    assert eventually(lambda: connection._is_paused)
    checkpoint.set, go_on = lambda: None, checkpoint.set
    # Otherwise each question waits 40 ms for the acknowledgement of its first packet.
    connection.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield connection
    finally:
        checkpoint.set = go_on
        connection.release()


def found_by(connection, identifier: Dataset) -> list[Dataset]:
    answers = connection.send_c_find(identifier, ModalityWorklistInformationFind)
    return [item for _, item in answers if item is not None]


def slots(broker, *times: dt.datetime) -> None:
    for n, at in enumerate(times):
        broker.place(order(f"T{n}", start=at))


def test_an_empty_schedule_answers_with_one_final_success(ask):
    """MWL-01"""
    statuses, items = ask(query({"Modality": ""}, PatientName=""))
    assert statuses == [0x0000]
    assert items == []


def test_two_steps_come_as_two_items_with_one_step_each(broker, ask):
    """MWL-02"""
    broker.place(order("ACC002", steps=2))
    day = today().strftime("%Y%m%d")
    asked = {"ScheduledProcedureStepID": "", "Modality": "CT", "ScheduledProcedureStepStartDate": day}
    statuses, items = ask(query(asked, PatientName=""))
    assert statuses == [0xFF00, 0xFF00, 0x0000]
    assert [len(item.ScheduledProcedureStepSequence) for item in items] == [1, 1]
    assert {item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for item in items} == {
        "S1ACC002", "S2ACC002",
    }  # fmt: skip


def test_only_what_was_asked_for_comes_back(broker, ask):
    """MWL-04"""
    broker.place(order())
    _, (item,) = ask(query({"Modality": ""}, PatientName=""))
    assert {element.keyword for element in item} == {
        "SpecificCharacterSet", "PatientName", "ScheduledProcedureStepSequence",
    }  # fmt: skip
    assert [element.keyword for element in item.ScheduledProcedureStepSequence[0]] == ["Modality"]


def test_a_query_without_the_step_sequence_gets_items_without_it(broker, ask):
    """MWL-06"""
    broker.place(order(steps=2))
    _, items = ask(query(PatientID=YAMADA.id, AccessionNumber=""))
    assert len(items) == 2
    assert all("ScheduledProcedureStepSequence" not in item for item in items)


JULY = [
    dt.datetime(2035, 7, day, hour, tzinfo=TOKYO) for day in (5, 6, 7) for hour in (8, 12, 20)
]  # far enough: nothing here is ever late


def test_dates_and_times_select_by_meaning(broker, ask):
    """MWL-07, MWL-09; all the other forms: tests/unit/test_matching.py"""
    slots(broker, *JULY)
    for date, time, count in (
        ("20350705-20350707", "1000-1800", 7),  # one interval, not a window on each day
        ("20350706-", "", 6), ("-20350706", "", 6), ("20350706", "2200-0200", 0), ("20350706", "12", 1),
    ):  # fmt: skip
        step = {"ScheduledProcedureStepStartDate": date, "ScheduledProcedureStepStartTime": time}
        statuses, items = ask(query(step))
        assert (len(items), statuses[-1]) == (count, 0x0000), (date, time)


def test_a_time_key_of_lower_precision_names_its_whole_interval(broker, ask):
    """MWL-11"""
    slots(broker, dt.datetime(2035, 7, 5, 9, 30, tzinfo=TOKYO))
    for time, count in (("0930", 1), ("093000", 1), ("09", 1), ("0900-0959", 1), ("0931", 0)):
        assert len(ask(query({"ScheduledProcedureStepStartTime": time}))[1]) == count, time


def test_names_match_without_case_and_with_wildcards(broker, ask):
    """MWL-12"""
    broker.place(order())
    for key in ("YAMADA^TARO", "yamada^taro", "YAMADA*", "*TARO", "YAMAD?^TARO"):
        assert len(ask(query(PatientName=key))[1]) == 1, key
    assert ask(query(PatientName="YAMAD?TARO"))[1] == []


def test_japanese_keys_match_by_group(broker, ask):
    """MWL-14"""
    broker.place(order())
    broker.place(order("ACC009", SATO))
    for key in ("=山田*", "山田^太郎", "==やまだ*", "ヤマダ*", "Yamada^Taro=山田^太郎"):
        asked = query(PatientName=key, PatientID="")
        asked.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        assert [item.PatientID for item in ask(asked)[1]] == [YAMADA.id], key


def test_half_width_kana_find_the_name_too(broker, ask):
    broker.place(order())
    asked = query(PatientName="ﾔﾏﾀﾞ^ﾀﾛｳ=山田*", PatientID="")
    asked.SpecificCharacterSet = ["ISO 2022 IR 13", "ISO 2022 IR 87"]
    assert ask(asked)[1] == [], "group 1 of the record is romaji"
    asked.PatientName = "==ﾔﾏﾀﾞ*"
    assert [item.PatientID for item in ask(asked)[1]] == [YAMADA.id]


def test_a_device_gets_kanji_in_iso_2022_with_escapes_back_before_each_delimiter(broker, ask):
    """MWL-16"""
    broker.place(order())
    _, (item,) = ask(query(PatientName=""))
    assert list(item.SpecificCharacterSet) == ["", "ISO 2022 IR 87"]
    raw = item.PatientName.original_string
    assert raw.startswith(b"YAMADA^TARO=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B")
    assert raw.endswith(b"\x1b(B")


@pytest.mark.parametrize(
    ("setting", "declared"), [("ISO_IR 192", "ISO_IR 192"), ("ISO 2022 IR 13\\ISO 2022 IR 87", "ISO 2022 IR 13")]
)
def test_each_device_is_answered_in_its_own_character_set(broker, ask, setting, declared):
    """MWL-17"""
    add_device(broker, "CT9", setting)
    broker.place(order())
    _, (item,) = ask(query(PatientName=""), "CT9")
    first = item.SpecificCharacterSet
    assert (first if isinstance(first, str) else first[0]) == declared
    assert str(item.PatientName) == "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"


def add_device(broker, ae_title: str, character_set: str) -> None:
    db.run(site.add_node, ae_title, host="127.0.0.1", port=11999, character_set=character_set, actor="test",
           now=clock.now())  # fmt: skip


def test_a_name_that_does_not_fit_is_shown_in_its_variant_and_the_record_keeps_it(broker, ask):
    """MWL-19"""
    add_device(broker, "CT9", "ISO_IR 192")
    kept = Patient(TAKAHASHI.id, "髙橋^一郎", TAKAHASHI.kana, TAKAHASHI.birth_date, "M")
    broker.place(order("ACC019", Patient(kept.id, "高橋^一郎", kept.kana, kept.birth_date, "M")))
    db.run(lambda session: rename(session, "TAKAHASHI^ICHIRO=髙橋^一郎=タカハシ^イチロウ"))
    with structlog.testing.capture_logs() as logs:
        _, (item,) = ask(query(PatientName=""))
        assert str(item.PatientName) == "TAKAHASHI^ICHIRO=高橋^一郎=タカハシ^イチロウ"
        _, (item,) = ask(query(PatientName=""), "CT9")
        assert str(item.PatientName) == "TAKAHASHI^ICHIRO=髙橋^一郎=タカハシ^イチロウ"
        ask(query(PatientName=""))
    (step,) = broker.rows(ScheduledStep)
    assert told(logs) == [("CT1", step.pk, step.version, ["variant"], "")], "once for each device and version"
    assert "髙" not in str(logs)


def told(logs) -> list[tuple]:
    return [
        (event["ae_title"], event["step"], event["version"], event["lost"], event["withheld"])
        for event in logs
        if event["event"] == "worklist.characters"
    ]


def place_unicode(broker, placed, **texts: str) -> None:
    """The order in UTF-8. texts: a text of the simulator's message -> what stands there instead."""
    message = omi(placed).decode("iso2022_jp").replace("~ISO IR87||ISO 2022-1994", "UNICODE UTF-8")
    for old, new in texts.items():
        message = message.replace(old, new)
    answer = broker.ris().send(message.encode())
    assert code_of(answer) == "AA", answer


def test_a_name_never_loses_a_single_kanji_for_a_device(broker):
    """𠀋田 without 𠀋 is 田, another surname: the group goes as a whole. Other texts lose what does not fit."""
    place_unicode(broker, order(), 山田="𠀋田", ヤマダ="ツジタ", 胸部="𠀋胸部")
    with structlog.testing.capture_logs() as logs:
        _, (item,), _ = find(broker, query(PatientName="", RequestedProcedureDescription=""))
    _, ideographic, phonetic = str(item.PatientName).split("=")
    assert (ideographic, phonetic) == ("", "ツジタ^タロウ")
    assert item.RequestedProcedureDescription == "胸部CT"
    assert [event[3] for event in told(logs)] == [["characters", "group"]]
    assert broker.rows(ReconciliationCase) == []


def test_an_accent_that_a_device_lacks_is_left_out_of_the_letter_and_flagged(broker):
    place_unicode(broker, order(patient=SMITH), SMITH="SMÎTH")
    with structlog.testing.capture_logs() as logs:
        _, (item,), _ = find(broker, query(PatientName=""))
    assert str(item.PatientName) == "SMITH^ANNA"
    assert [event[3] for event in told(logs)] == [["variant"]]


def test_an_identifier_is_shown_as_it_is_or_not_at_all(broker):
    """A Patient ID without one of its characters is another patient's."""
    add_device(broker, "CT9", "ISO_IR 192")
    place_unicode(broker, order(), **{f"||{YAMADA.id}^^^": "||髙0001^^^"})
    statuses, items, _ = find(broker, query(PatientID="", PatientName=""))
    assert (statuses, items) == ([0x0000], [])
    (case,) = broker.rows(ReconciliationCase, kind="worklist_characters")
    assert case.reasons[0].endswith("is not offered to CT1: an identifier does not fit into its character set")
    assert find(broker, query(PatientID=""), "CT9")[1][0].PatientID == "髙0001"


def test_a_patient_whose_name_a_device_cannot_show_is_not_offered_to_it_and_a_person_is_asked(broker):
    """Patient's Name is of type 1: an empty one is never sent."""
    add_device(broker, "CT9", "ISO_IR 192")
    place_unicode(broker, order(steps=2), **{"山田^太郎^^^^^L^I~ヤマダ^タロウ^^^^^L^P": "𠀋田^太郎^^^^^L^I"})
    broker.place(order("ACC002", SATO))
    db.run(lambda session: rename(session, "=𠀋田^太郎", YAMADA))
    asked = query(PatientName="", PatientID="")
    for _ in range(2):
        statuses, items, _ = find(broker, asked)
        assert statuses == [0xFF00, 0x0000]
        assert [item.PatientID for item in items] == [SATO.id]
    assert len(find(broker, asked, "CT9")[1]) == 3
    (case,) = broker.rows(ReconciliationCase, kind="worklist_characters")
    assert (case.level, case.state, len(case.reasons)) == ("amber", "OPEN", 2)
    assert case.reasons[0].startswith("step S1ACC001 of RACC001, version ")
    assert case.reasons[0].endswith("is not offered to CT1: no group of Patient's Name fits into its character set")
    assert "CT1" not in {
        row.ae_title for row in broker.rows(OfferedItem) if row.step_pk == broker.rows(ScheduledStep)[0].pk
    }


def test_a_patient_without_romaji_is_left_out_for_an_ascii_device_until_somebody_types_it(broker):
    add_device(broker, "CT9", "ASCII")
    broker.place(order())
    db.run(lambda session: rename(session, "=山田^太郎=ヤマダ^タロウ", YAMADA))
    assert find(broker, query(PatientName=""), "CT9")[1] == []
    (case,) = broker.rows(ReconciliationCase, kind="worklist_characters")
    assert case.reasons[0].endswith("is not offered to CT9: romaji missing")
    assert len(find(broker, query(PatientName=""))[1]) == 1
    db.run(lambda session: rename(session, "YAMADA^TARO=山田^太郎=ヤマダ^タロウ", YAMADA))
    _, (item,), _ = find(broker, query(PatientName=""), "CT9")
    assert str(item.PatientName) == "YAMADA^TARO"
    assert "SpecificCharacterSet" not in item
    (case,) = broker.rows(ReconciliationCase, kind="worklist_characters")
    assert case.state == "RESOLVED"


@pytest.mark.parametrize(
    ("declared", "answered"), [("ISO_IR 192", "ISO_IR 192"), (["", "ISO 2022 IR 87"], ["", "ISO 2022 IR 87"]),
                               ("ISO 2022 IR 87", "ISO 2022 IR 87"), ("FOO", "ISO_IR 192")],
)  # fmt: skip
def test_a_device_that_wants_it_is_answered_in_the_set_of_its_query(broker, declared, answered):
    add_device(broker, "CT9", "REQUEST")
    broker.place(order())
    asked = query(PatientName="")
    asked.SpecificCharacterSet = declared
    _, (item,), _ = find(broker, asked, "CT9")
    assert item.SpecificCharacterSet == answered
    assert str(item.PatientName) == "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"


def rename(session, name: str, patient: Patient = TAKAHASHI) -> None:
    from broker.mwl import patients
    from broker.mwl.commands import Identifier, PatientCommand, PersonCommand

    person = PersonCommand((Identifier(patient.id, "HOSP"),), name=name)
    patients.apply(session, PatientCommand("update", person, cause="ADT^A08"), now=clock.now(), actor="test")


@pytest.mark.parametrize("declared", ["ISO_IR 58", "FOO"])
def test_a_query_in_a_set_that_we_do_not_know_is_still_answered(broker, ask, declared):
    """MWL-21"""
    broker.place(order())
    asked = query(PatientID=YAMADA.id, AccessionNumber="")
    asked.SpecificCharacterSet = declared
    assert [item.AccessionNumber for item in ask(asked)[1]] == ["ACC001"]


def test_in_a_set_that_we_do_not_know_other_bytes_than_ascii_match_nothing_and_never_widen_the_answer(broker):
    """Else `林` in a set that a device declares wrongly would be any two characters: somebody else's exam."""
    broker.place(order("ACC1", SMITH))
    asked = query(PatientName="", AccessionNumber="")
    asked.SpecificCharacterSet = "FOO"
    for raw, count in ((b"SM\xceTH*", 0), (b"SM*", 1), (b"\xff\xff\xff\xff\xff*", 0)):
        asked[0x00100010] = RawDataElement(Tag(0x00100010), "PN", len(raw), raw, 0, True, True)
        with structlog.testing.capture_logs() as logs:
            statuses, items, _ = find(broker, asked)
        assert statuses[-1] == 0x0000
        assert len(items) == count, raw
        assert [event["ae_title"] for event in logs if event["event"] == "worklist.unknown_character_set"] == ["CT1"]


def test_an_unknown_optional_key_is_told_by_ff01_and_not_returned(broker, ask):
    """MWL-22"""
    broker.place(order())
    statuses, (item,) = ask(query(PatientID="", AdmittingDiagnosesDescription=""))
    assert statuses == [0xFF01, 0x0000]
    assert "AdmittingDiagnosesDescription" not in item
    assert item.PatientID == YAMADA.id


def test_a_query_retrieve_level_is_refused_and_named(broker, ask):
    """MWL-24"""
    asked = query(PatientID="", QueryRetrieveLevel="STUDY")
    assert ask(asked) == ([0xA900], [])
    assert find(broker, asked)[2][0][0].OffendingElement == 0x00080052


def test_bytes_that_are_no_data_set_get_an_error_and_the_association_goes_on(broker, monkeypatch):
    """MWL-26"""
    broker.place(order())
    with questions_to(connect(broker)) as connection:
        for garbage in (b"\xff" * 64, b"\x10\x00\x20\x00\xff\xff\x00\x00abc", b"\x08\x00", b"\x00" * 7):
            with monkeypatch.context() as patch:
                patch.setattr(pynetdicom.association, "encode", lambda *_, garbage=garbage: garbage)
                answers = list(connection.send_c_find(Dataset(), ModalityWorklistInformationFind))
            assert [(status.Status, item) for status, item in answers] == [(0xC001, None)]
            assert [item.PatientID for item in found_by(connection, query(PatientID=""))] == [YAMADA.id]


@pytest.mark.parametrize(
    ("keyword", "key"),
    [
        ("ScheduledProcedureStepStartDate", "20350231"),
        ("ScheduledProcedureStepStartTime", "1200-25"),
        ("Modality", "CT\\MR"),
    ],
)
@pytest.mark.parametrize("station", ["CT1", "NONE"])
def test_a_malformed_value_narrows_to_an_error_and_never_widens(broker, keyword, key, station):
    """Also where no item is a candidate: the device is told the same on a quiet day."""
    broker.place(order())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        statuses, items, answers = find(broker, query({"ScheduledStationAETitle": station, keyword: key}))
    assert statuses == [0xA900]
    assert items == []
    assert answers[0][0].OffendingElement == tag_for_keyword(keyword)


def test_blanks_around_an_identifier_do_not_count(broker):
    """PS3.5 6.2"""
    broker.place(order())
    for keys in ({"PatientID": f" {YAMADA.id} "}, {"AccessionNumber": " ACC001"}, {"IssuerOfPatientID": " HOSP"},
                 {"RequestedProcedureID": " RACC001"}, {"PatientName": " YAMADA*"}):  # fmt: skip
        assert len(find(broker, query(**keys))[1]) == 1, keys
    assert len(find(broker, query({"ScheduledProcedureStepID": " S1ACC001"}))[1]) == 1


def test_a_key_inside_an_item_that_has_no_value_comes_back_empty(broker):
    """conformance.md 1.3, 8: never omitted"""
    broker.place(order())
    asked = query({"ScheduledProtocolCodeSequence": [code("CodeValue", "CodingSchemeVersion")]})
    asked.RequestedProcedureCodeSequence = [code("CodeValue", "CodingSchemeVersion", "CodeMeaning")]
    statuses, (item,), _ = find(broker, asked)
    assert statuses == [0xFF00, 0x0000]
    for found in (
        item.RequestedProcedureCodeSequence[0],
        item.ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence[0],
    ):
        assert found.CodeValue
        assert found["CodingSchemeVersion"].VM == 0
        assert "CodingSchemeDesignator" not in found, "not asked for"


def code(*keywords: str) -> Dataset:
    made = Dataset()
    for keyword in keywords:
        setattr(made, keyword, "")
    return made


def test_the_offset_from_utc_is_that_of_the_day_of_the_exam(broker):
    """(0008,0201): asked for in winter, an exam in July has summer time."""
    broker.settings.site.timezone = "America/New_York"
    broker.restart()
    slots(broker, dt.datetime(2035, 1, 5, 9, 30, tzinfo=TOKYO), dt.datetime(2035, 7, 5, 9, 30, tzinfo=TOKYO))
    _, items, _ = find(broker, query(TimezoneOffsetFromUTC="+0900", AccessionNumber=""))
    assert {item.AccessionNumber: item.TimezoneOffsetFromUTC for item in items} == {"T0": "-0500", "T1": "-0400"}


@pytest.mark.parametrize(
    "keys", [{"PatientID": "0000012345x"}, {"AccessionNumber": "acc001"}, {"StudyInstanceUID": "1.2.3"}]
)
def test_a_value_that_fits_nothing_finds_nothing(broker, keys):
    broker.place(order())
    assert find(broker, query(**keys))[1] == []


def test_the_keys_that_a_barcode_gives_find_the_one_step(broker):
    broker.place(order("ACC001", steps=2))
    broker.place(order("ACC002", SATO))
    for keys, count in (
        ({"AccessionNumber": "ACC001"}, 2), ({"RequestedProcedureID": "RACC002"}, 1),
        ({"StudyInstanceUID": order("ACC001").study_uid}, 2), ({"PatientID": SATO.id}, 1),
    ):  # fmt: skip
        assert len(find(broker, query(**keys))[1]) == count, keys
    assert len(find(broker, query({"ScheduledProcedureStepID": "S2ACC001"}))[1]) == 1
    assert len(find(broker, query({"ScheduledStationAETitle": "CT1"}))[1]) == 3
    assert len(find(broker, query({"ScheduledStationAETitle": "MR1"}))[1]) == 0


def test_a_cancel_ends_the_answers_and_the_next_query_works(broker, monkeypatch):
    """MWL-27"""
    monkeypatch.setattr(association, "CANCEL_SECONDS", 10)  # for a device that the test machine lets wait
    for n in range(50):
        broker.place(order(f"C{n:03}"))
    said = findscu(broker, "--cancel", "3", "-k", "PatientName", "-k", "ScheduledProcedureStepSequence[0].Modality")
    assert "Received Final Find Response (Cancel: MatchingTerminatedDueToCancelRequest)" in said, said
    assert said.count("(Pending)") == association.FIRST_ANSWERS
    connection = connect(broker)
    statuses = []
    for status, _ in connection.send_c_find(query(PatientName=""), ModalityWorklistInformationFind):
        statuses.append(status.Status)
        if len(statuses) == 3:
            connection.send_c_cancel(1, query_model=ModalityWorklistInformationFind)
    assert statuses == [0xFF00] * association.FIRST_ANSWERS + [0xFE00]
    monkeypatch.undo()
    again = list(connection.send_c_find(query(PatientName=""), ModalityWorklistInformationFind))
    assert [status.Status for status, _ in again] == [0xFF00] * 50 + [0x0000]
    connection.release()


def test_over_the_cap_the_scanner_is_told_and_nothing_is_cut_silently(broker, ask):
    """MWL-29"""
    broker.settings.limits.worklist_matches_max = 4
    broker.restart()
    for n in range(5):
        broker.place(order(f"C{n:03}"))
    assert ask(query(PatientName="")) == ([0xA700], [])
    assert find(broker, query(PatientName=""))[2][0][0].ErrorComment == "too many matches, refine query"


@pytest.mark.parametrize(
    ("asked", "fuzzy", "zones", "answered"),
    [
        (b"\1\1\1\1", False, True, b"\1\1\0\1"), (b"\1\1\1\1", True, False, b"\1\1\1\0"),
        (b"\1\1\1", True, True, b"\1\1\1"), (b"\1\1\1", False, True, b"\1\1\0"), (b"\1\1\0\0", True, True, b"\1\1\0\0"),
        (b"\1\1\1\1\1", True, True, b"\1\1\1\1"), (b"\1\1", True, True, b"\1\1\0"), (b"", True, True, None),
    ],
)  # fmt: skip
def test_extended_negotiation_is_answered_in_the_length_that_was_asked(broker, asked, fuzzy, zones, answered):
    """MWL-31"""
    change(broker, fuzzy_names=fuzzy, timezone_adjustment=zones)
    connection = negotiating(broker, asked)
    replies = connection.acceptor.sop_class_extended
    connection.release()
    assert replies == ({ModalityWorklistInformationFind: answered} if answered else {})


def change(broker, **settings: bool) -> None:
    for name, value in settings.items():
        setattr(broker.settings.worklist, name, value)
    broker.restart()


def test_names_are_fuzzy_for_a_device_that_negotiates_it_alone(broker):
    change(broker, fuzzy_names=True)
    broker.place(order())
    for asked, count in ((b"\1\1\1\0", 1), (b"\1\1\0\0", 0), (b"", 0)):
        connection = negotiating(broker, asked)
        assert len(found_by(connection, query(PatientName="TARO^YAM"))) == count, asked
        connection.release()


def test_of_several_stations_any_finds_the_step_and_all_are_shown(broker, ask):
    """MWL-32"""
    place_unicode(broker, order(), **{"|CT1|CT室1|CT1": "|CT1|CT室1|CT1~CT2"})
    for key, count in (("CT2", 1), ("CT1", 1), ("CT3", 0)):
        _, items = ask(query({"ScheduledStationAETitle": key}), "CT2")
        assert [list(item.ScheduledProcedureStepSequence[0].ScheduledStationAETitle) for item in items] == [
            ["CT1", "CT2"]
        ] * count


def test_a_step_that_begins_is_started_that_ends_is_gone_and_that_was_a_mistake_is_back(broker, ask):
    """MWL-34"""
    broker.place(order(steps=2))
    scanner = broker.modality("CT1")
    asked = query({"ScheduledProcedureStepID": "", "ScheduledProcedureStepStatus": ""})
    by_status = query({"ScheduledProcedureStepID": "", "ScheduledProcedureStepStatus": "STARTED"})
    uids = [scanner.start([item]) for item in ask(scanner.query())[1]]
    assert shown(ask(asked)) == {}, "hidden from who does not ask for it"
    assert shown(ask(by_status)) == {"S1ACC001": "STARTED", "S2ACC001": "STARTED"}
    scanner.finish(uids[0], [])
    scanner.finish(uids[1], [], status="DISCONTINUED", reason=("110514", "DCM", "Incorrect worklist entry selected"))
    assert shown(ask(by_status)) == {}
    assert shown(ask(asked)) == {"S2ACC001": "SCHEDULED"}


def shown(answered) -> dict[str, str]:
    steps = [item.ScheduledProcedureStepSequence[0] for item in answered[1]]
    return {step.ScheduledProcedureStepID: step.ScheduledProcedureStepStatus for step in steps}


def test_a_query_is_read_in_its_own_zone_where_that_was_negotiated(broker):
    """MWL-36: 08:30 in Tokyo is 23:30 UTC of the day before."""
    slots(broker, dt.datetime(2035, 7, 6, 8, 30, tzinfo=TOKYO))
    there = {"ScheduledProcedureStepStartDate": "20350705", "ScheduledProcedureStepStartTime": "2330"}
    here = {"ScheduledProcedureStepStartDate": "20350706", "ScheduledProcedureStepStartTime": "0830"}
    for asked, offset, step, count in (
        (b"\1\1\0\1", "+0000", there, 1), (b"\1\1\0\1", "+0000", here, 0), (b"\1\1\0\1", "+0900", here, 1),
        (b"\1\1\0\1", "", here, 1), (b"\1\1\0\1", None, here, 1), (b"\1\1\0\1", "+0000", {"ScheduledProcedureStepStartTime": "2330"}, 1),
        (b"\1\1\0\0", "+0000", there, 0), (b"\1\1\0", "+0000", here, 1), (b"", "+0000", there, 0), (b"", "+0000", here, 1),
    ):  # fmt: skip
        connection = negotiating(broker, asked)
        keys = {} if offset is None else {"TimezoneOffsetFromUTC": offset}
        items = found_by(connection, query(step, **keys))
        connection.release()
        assert len(items) == count, (asked, offset, step)
        if items:
            assert items[0].ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime == "083000"
            assert items[0].get("TimezoneOffsetFromUTC") == (None if offset is None else "+0900")


def test_an_offset_that_is_none_is_refused_and_named(broker, ask):
    broker.place(order())
    asked = query({"Modality": ""}, TimezoneOffsetFromUTC="JST")
    assert ask(asked) == ([0xA900], [])
    assert find(broker, asked)[2][0][0].OffendingElement == 0x00080201


@pytest.mark.parametrize("whole", [True, False])
def test_a_jj1017_code_comes_as_16m_with_its_16s_as_protocol_context(broker, ask, whole):
    """MWL-37. whole: the sequence is asked for without naming what is in it."""
    place_unicode(
        broker, order(), **{"6000000200000000^胸部1^JJ1017-16M": "6000000200000000A00000000000000B^胸部1^JJ1017-32"}
    )
    inner = code("CodeValue", "CodingSchemeDesignator")
    context = code("ValueType")
    context.ConceptNameCodeSequence, context.ConceptCodeSequence = [inner], [inner]
    named = code("CodeValue", "CodingSchemeDesignator", "CodeMeaning")
    named.ProtocolContextSequence = [context]
    statuses, (item,) = ask(query({"ScheduledProtocolCodeSequence": [] if whole else [named]}))
    assert statuses == [0xFF00, 0x0000]
    (protocol,) = item.ScheduledProcedureStepSequence[0].ScheduledProtocolCodeSequence
    assert (protocol.CodeValue, protocol.CodingSchemeDesignator) == ("6000000200000000", "JJ1017-16M")
    (condition,) = protocol.ProtocolContextSequence
    assert condition.ValueType == "CODE"
    values = [
        (found.CodeValue, found.CodingSchemeDesignator)
        for found in (condition.ConceptNameCodeSequence[0], condition.ConceptCodeSequence[0])
    ]
    assert values == [("123016", "DCM"), ("A00000000000000B", "JJ1017-16S")]


def test_a_cancelled_order_leaves_the_worklist(broker):
    placed = order()
    broker.place(placed)
    broker.place(placed, "CA")
    assert find(broker, query(PatientName=""))[1] == []


def test_what_a_device_was_shown_is_recorded(broker):
    broker.place(order(steps=2))
    find(broker, query(PatientName=""))
    find(broker, query(PatientName=""))
    rows = eventually(lambda: [row for row in broker.rows(OfferedItem) if row.times == 2])
    assert {(row.ae_title, row.version) for row in rows} == {("CT1", 1)}
    assert {row.step_pk for row in rows} == {step.pk for step in broker.rows(ScheduledStep)}


def test_a_device_without_the_right_is_told_so(broker):
    db.run(site.add_node, "WS1", host="127.0.0.1", port=1, rights=["store"], actor="test", now=clock.now())
    statuses, _, _ = find(broker, query(PatientName=""), "WS1")
    assert statuses == [0x0124]


def test_an_unknown_device_is_refused_and_listed(broker):
    from broker.model.site import UnknownPeer

    with pytest.raises(Refused):
        broker.modality("STRANGER").worklist()
    (row,) = eventually(lambda: broker.rows(UnknownPeer))
    assert (row.ae_title, row.address, row.reason) == ("STRANGER", "127.0.0.1", "unknown AE title")
