"""HL7 over MLLP as a RIS sends it, and what became of it."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from broker.model.messages import Message
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.sim.ris import code_of, omi
from tests.world import SATO, YAMADA, order

GOLDEN = Path(__file__).parent.parent / "fixtures" / "hl7"


def golden(name: str) -> bytes:
    """A golden order of conformance.md 8.1, as the bytes that a Japanese sender writes."""
    text = (GOLDEN / name).read_text("utf-8").replace("\n", "\r")
    return text.encode("iso2022_jp")


def test_the_golden_imaging_order_passes_through_whole(broker):
    """HL7-01"""
    answer = broker.ris().send(golden("omi1.hl7"))
    assert code_of(answer) == "AA"
    assert b"|MSG0001\r" in answer
    assert len(broker.rows(ImagingOrder)) == len(broker.rows(RequestedProcedure)) == 1
    assert len(broker.rows(ScheduledStep)) == 2
    items = broker.modality().worklist()
    assert [item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for item in items] == ["SPS001", "SPS002"]
    item, step = items[0], items[0].ScheduledProcedureStepSequence[0]
    assert str(item.PatientName) == "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"
    assert (item.PatientID, item.IssuerOfPatientID, item.PatientBirthDate, item.PatientSex) == (
        "0000012345", "HOSP", "19700101", "M",
    )  # fmt: skip
    assert (item.AccessionNumber, item.RequestedProcedureID, item.StudyInstanceUID) == (
        "ACC001", "RP001", "1.2.392.99999.1.1",
    )  # fmt: skip
    assert item.RequestedProcedureDescription == "胸部CT"
    assert item.RequestedProcedureCodeSequence[0].CodeValue == "CTCHEST"
    assert item.AdmissionID == "V0001"
    assert (step.Modality, step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == (
        "CT", "20251201", "093000",
    )  # fmt: skip
    assert step.ScheduledProcedureStepDescription == "胸部単純CT"
    assert step.ScheduledProtocolCodeSequence[0].CodingSchemeDesignator == "JJ1017-16M"
    assert step.ScheduledStationName == "CT1"


def test_the_golden_order_of_the_older_version_gives_the_same_kind_of_item(broker):
    """HL7-02"""
    assert code_of(broker.ris().send(golden("orm1.hl7"))) == "AA"
    (item,) = broker.modality().worklist()
    step = item.ScheduledProcedureStepSequence[0]
    assert (item.AccessionNumber, item.RequestedProcedureID, item.StudyInstanceUID) == (
        "ACC002", "RP002", "1.2.392.99999.1.2",
    )  # fmt: skip
    assert (step.ScheduledProcedureStepID, step.Modality, step.ScheduledStationAETitle) == ("SPS003", "CT", "CT1")
    assert (step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime) == ("20251201", "093000")
    assert step.ScheduledProcedureStepDescription == "胸部単純CT"


def test_a_message_is_journalled_byte_for_byte_with_the_answer_that_was_sent(broker):
    raw = omi(order())
    answer = broker.ris().send(raw)
    (row,) = broker.rows(Message)
    assert row.raw == raw
    assert row.answer == answer
    assert (row.state, row.became) == ("APPLIED", f"NW order {broker.rows(ImagingOrder)[0].pk}")


def test_the_same_message_again_gets_the_stored_answer_and_has_no_effect(broker):
    raw = omi(order())
    assert broker.ris().send(raw) == broker.ris().send(raw)
    assert len(broker.rows(Message)) == 1
    assert [step.version for step in broker.rows(ScheduledStep)] == [1]


def test_a_control_id_with_another_body_is_refused(broker):
    """HL7-04"""
    raw = omi(order(), control_id="SAME")
    assert code_of(broker.ris().send(raw)) == "AA"
    answer = broker.ris().send(raw.replace(b"|R^Routine", b"|S^Stat"))
    assert code_of(answer) == "AE"
    assert b"205" in answer
    assert [row.state for row in broker.rows(Message)] == ["APPLIED", "REJECTED"]


@pytest.mark.parametrize("uid", ["1.2.03.4", "1." + "2" * 64, "abc"])
def test_a_study_uid_that_is_none_is_refused(broker, uid):
    """HL7-11"""
    answer = broker.ris().send(omi(order(study_uid=uid)))
    assert code_of(answer) == "AE"
    assert b"|IPC^1^3|102^" in answer
    assert broker.rows(ImagingOrder) == []


def test_an_imaging_order_without_ipc_or_with_ipc_in_front_is_refused(broker):
    """HL7-12"""
    lines = omi(order()).split(b"\r")
    without = b"\r".join(line for line in lines if not line.startswith(b"IPC"))
    answer = broker.ris().send(without)
    assert code_of(answer) == "AE"
    assert b"|100^" in answer
    ipc = next(line for line in lines if line.startswith(b"IPC"))
    moved = [line for line in lines if not line.startswith(b"IPC")]
    moved.insert(next(n for n, line in enumerate(moved) if line.startswith(b"OBR")), ipc)
    assert b"|100^" in broker.ris().send(b"\r".join(moved).replace(b"MSH|^~\\&|HIS", b"MSH|^~\\&|HIS2"))
    assert broker.rows(ImagingOrder) == []


def test_a_change_moves_the_time_and_leaves_the_patient_alone(broker):
    """HL7-14"""
    first = order()
    broker.place(first)
    later = order(start=first.start.replace(year=first.start.year + 1))
    raw = omi(later, "XO").replace("山田".encode("iso2022_jp"), "鈴木".encode("iso2022_jp"))
    assert code_of(broker.ris().send(raw)) == "AA"
    (item,) = broker.modality().worklist()
    assert item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate == later.start.strftime("%Y%m%d")
    assert "山田" in str(item.PatientName)


def test_a_cancel_takes_the_step_off_the_worklist(broker):
    """HL7-16"""
    broker.place(order())
    broker.place(order(), "CA")
    assert [step.status for step in broker.rows(ScheduledStep)] == ["CANCELED"]
    assert broker.status("ACC001", "CANCELLED")["steps"][0]["state"] == "CANCELLED"


def test_a_change_of_an_order_that_is_not_known_is_refused(broker):
    """HL7-19"""
    answer = broker.ris().send(omi(order(), "XO"))
    assert code_of(answer) == "AE"
    assert b"204" in answer


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"OMI^O23^OMI_O23", b"MFN^M02^MFN_M02", b"200"), (b"OMI^O23^OMI_O23", b"ADT^A99^ADT_A01", b"201"),
        (b"|P|2.5.1|", b"|P|2.1|", b"203"), (b"|P|2.5.1|", b"|T|2.5.1|", b"202"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_rejected_with_its_code(broker, old, new, code):
    """HL7-21"""
    answer = broker.ris().send(omi(order()).replace(old, new))
    assert code_of(answer) == "AR"
    assert b"|" + code + b"^" in answer or b"^" + code + b"^" in answer


def test_shift_jis_under_a_jis_header_is_an_error_and_stores_nothing(broker):
    """HL7-06"""
    raw = omi(order()).decode("iso2022_jp").encode("cp932")
    answer = broker.ris().send(raw)
    assert code_of(answer) == "AE"
    assert b"102" in answer
    assert broker.rows(Patient) == []


def test_an_order_without_assigning_authority_takes_the_sites(broker):
    """HL7-39"""
    broker.settings.site.patient_id_issuer = "SITE"
    broker.ris().send(omi(order()).replace(b"^^^HOSP^PI", b"^^^^PI"))
    assert [(row.value, row.issuer) for row in broker.rows(PatientIdentifier)] == [(YAMADA.id, "SITE")]


def test_an_order_never_overwrites_a_known_patient(broker):
    """reconciliation.md 3.3: the order is taken, its items are not offered, a person is asked."""
    broker.place(order("ACC001"))
    impostor = type(YAMADA)(YAMADA.id, SATO.kanji, SATO.kana, SATO.birth_date, SATO.sex)
    broker.place(order("ACC002", impostor))
    assert [patient.birth_date for patient in broker.rows(Patient)] == [YAMADA.birth_date]
    assert [item.AccessionNumber for item in broker.modality().worklist()] == ["ACC001"]


def test_a_merge_lets_both_numbers_lead_to_one_patient(broker):
    broker.place(order("ACC001"))
    broker.place(order("ACC002", SATO))
    merge = (
        "MSH|^~\\&|HIS|HOSP|BROKER|HOSP|20351201085500||ADT^A40^ADT_A39|M1|P|2.5.1\r"
        "EVN|A40|20351201085500\r"
        f"PID|1||{YAMADA.id}^^^HOSP^PI||YAMADA^TARO||19700101|M\rMRG|{SATO.id}^^^HOSP^PI\r"
    ).encode()
    assert code_of(broker.ris().send(merge)) == "AA"
    items = broker.modality().worklist()
    assert {item.PatientID for item in items} == {YAMADA.id}
    assert len(items) == 2


def test_two_frames_in_one_segment_junk_before_and_single_bytes_all_work(broker):
    first, second = omi(order("ACC001")), omi(order("ACC002", SATO)).replace(b"\r", b"\r\n")
    with socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.sendall(b"junk\r\n\x0b" + first + b"\x1c\x0d\x0b" + second + b"\x1c\x0d")
        answers = receive(sock, 2)
        for byte in b"\x0b" + omi(order("ACC003")) + b"\x1c\x0d":
            sock.sendall(bytes([byte]))
        answers += receive(sock, 1)
    assert [code_of(answer) for answer in answers] == ["AA", "AA", "AA"]
    assert len(broker.rows(ImagingOrder)) == 3


def receive(sock: socket.socket, frames: int) -> list[bytes]:
    sock.settimeout(30)
    data = b""
    while data.count(b"\x1c\x0d") < frames:
        more = sock.recv(65536)
        assert more, data
        data += more
    return [frame.lstrip(b"\x0b") for frame in data.split(b"\x1c\x0d")[:frames]]


def test_bytes_without_msh_are_answered_by_closing(broker):
    with socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.sendall(b"\x0bhello\x1c\x0d")
        assert sock.recv(10) == b""
    assert broker.rows(Message) == []


def test_a_foreign_client_sends_an_order(broker, tmp_path):
    """python-hl7's mllp_send."""
    file = tmp_path / "order.hl7"
    file.write_bytes(b"\x0b" + omi(order()) + b"\x1c\x0d")
    tool = Path(sys.executable).parent / "mllp_send"
    ran = subprocess.run(
        [tool, "--file", file, "--port", str(broker.ports["hl7"]), "127.0.0.1"], capture_output=True, timeout=60
    )
    assert b"MSA|AA|" in ran.stdout, ran
    assert len(broker.rows(ImagingOrder)) == 1
