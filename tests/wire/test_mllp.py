"""HL7 over MLLP as a RIS sends it, and what became of it."""

import asyncio
import contextlib
import datetime as dt
import gc
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import TimeoutError as NoTurn

from broker import clock, config, db, site
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.ris_bridge import effects, inbox
from broker.ris_bridge.hl7 import message, road
from broker.ris_bridge.hl7.mllp import MllpServer
from broker.ris_bridge.turns import TURNS
from broker.sim.ris import code_of, omi
from tests.house import eventually
from tests.world import SATO, YAMADA, order, today

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
    assert re.search(rb"\rERR\|.*[|^]" + code + rb"[\^&]", answer)


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
    """HL7-34"""
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


# Character sets (conformance.md 5.7)


@pytest.mark.parametrize("declared", [b"~ISO IR87", b"ISO IR14~ISO IR87", b"ISO-2022-JP", b"~ISO IR87~"])
def test_names_that_return_to_jis_roman_keep_their_repetitions(broker, declared):
    raw = omi(order()).replace(b"\x1b(B", b"\x1b(J").replace(b"~ISO IR87", declared)
    assert code_of(broker.ris().send(raw)) == "AA"
    (item,) = broker.modality().worklist()
    assert str(item.PatientName).split("=")[1:] == ["山田^太郎", "ヤマダ^タロウ"]


def test_a_repetition_mark_at_the_end_of_a_field_says_nothing(broker):
    raw = omi(order()).replace(b"^^^HOSP^PI|", b"^^^HOSP^PI~|").replace(b"^^^^^L^P|", b"^^^^^L^P~|")
    assert raw.count(b"~|") == 2
    assert code_of(broker.ris().send(raw)) == "AA"
    assert [row.value for row in broker.rows(PatientIdentifier)] == [YAMADA.id]
    (item,) = broker.modality().worklist()
    assert str(item.PatientName).split("=")[1:] == ["山田^太郎", "ヤマダ^タロウ"]


@pytest.mark.parametrize(
    ("codec", "declared"),
    [("iso2022_jp", "~ISO IR87"), ("iso2022_jp", ""), ("utf_8", "UNICODE UTF-8"), ("gb18030", "GB 18030-2000")],
)
def test_a_facility_in_kanji_stays_in_its_field_and_comes_back_as_it_was(broker, codec, declared):
    raw = omi(order(), control_id="ID7").decode("iso2022_jp").replace("HIS|HOSP", "HIS|万代日本病院", 1)
    answer = broker.ris().send(raw.replace("~ISO IR87", declared).encode(codec))
    assert code_of(answer) == "AA"
    assert b"|ID7\r" in answer
    assert answer.decode(codec).split("|")[2:6] == ["BROKER", "HOSP", "HIS", "万代日本病院"]
    assert [row.sender for row in broker.rows(Message)] == ["HIS|万代日本病院"]


def test_a_facility_in_shift_jis_is_known_by_the_set_of_its_sender(broker):
    """ポ and ソ end in the bytes of | and of the escape character."""
    add_sender(broker, "RIS", facility="ポート病院ソ", character_set="CP932")
    raw = omi(order(), control_id="ID7").decode("iso2022_jp").replace("HIS|HOSP", "HIS|ポート病院ソ", 1).encode("cp932")
    answer = broker.ris().send(raw)
    assert code_of(answer) == "AA"
    assert b"|ID7\r" in answer
    assert "|ポート病院ソ|".encode("cp932") in answer
    (item,) = broker.modality().worklist()
    assert "山田^太郎" in str(item.PatientName)


# Who sends


def add_sender(broker, name, **fields):
    """From now on only registered senders are heard."""
    broker.settings.hl7.unknown_sender = "reject"
    db.run(site.add_sender, name, now=clock.now(), actor="test", **fields)


def test_a_sender_may_be_registered_by_host_name(broker):
    raw = omi(order())
    add_sender(broker, "ELSEWHERE", address="no-such-host.invalid")
    assert code_of(broker.ris().send(raw)) == "AR"
    add_sender(broker, "RIS", address="localhost")
    assert code_of(broker.ris().send(raw)) == "AA"


def test_who_comes_from_another_address_than_he_is_registered_with_is_told_what_mends_it(broker):
    add_sender(broker, "RIS", application="HIS", facility="HOSP", address="192.0.2.5")
    answer = broker.ris().send(omi(order()))
    assert code_of(answer) == "AR"
    assert b"registered with another address or certificate; broker sender change NAME --address" in answer


@pytest.mark.parametrize(
    ("general", "particular"),
    [({}, {"facility": "HOSP"}), ({"facility": "HOSP"}, {"application": "HIS"}),
     ({"application": "HIS", "facility": "HOSP"}, {"address": "127.0.0.1"})],
)  # fmt: skip
def test_the_most_specific_entry_of_a_sender_counts(broker, general, particular):
    add_sender(broker, "ANY", messages=["ADT"], **general)
    assert code_of(broker.ris().send(omi(order()))) == "AR"
    add_sender(broker, "RIS", messages=["OMI"], **particular)
    assert code_of(broker.ris().send(omi(order("ACC002")))) == "AA"


# The same bytes again (conformance.md 5.8)


def test_a_sender_that_is_registered_later_sends_the_same_bytes_again(broker):
    broker.settings.hl7.unknown_sender = "reject"
    ris, raw = broker.ris(), omi(order())
    refused = ris.send(raw)
    assert (code_of(refused), ris.send(raw)) == ("AR", refused), "nothing was mended"
    add_sender(broker, "RIS", application="HIS")
    accepted = ris.send(raw)
    assert (code_of(accepted), ris.send(raw)) == ("AA", accepted)
    (row,) = broker.rows(Message)
    assert (row.state, row.error_code, row.answer) == ("APPLIED", "", accepted)
    assert [one.message_pk for one in broker.rows(ImagingOrder)] == [row.pk]


def test_the_same_bytes_twice_at_once_are_taken_once_after_a_refusal(broker):
    broker.settings.hl7.unknown_sender = "reject"
    senders, raw = [broker.ris() for _ in range(4)], omi(order())
    assert code_of(senders[0].send(raw)) == "AR"
    add_sender(broker, "RIS", application="HIS")
    with ThreadPoolExecutor() as pool:
        answers = set(pool.map(lambda ris: ris.send(raw), senders))
    assert [code_of(answer) for answer in answers] == ["AA"]
    assert [row.version for row in broker.rows(ScheduledStep)] == [1]


def test_bytes_in_an_undeclared_set_are_read_when_the_senders_set_is_corrected(broker):
    raw = omi(order()).decode("iso2022_jp").encode("cp932")
    ris = broker.ris()
    refused = ris.send(raw)
    assert b"|MSH^1^18|102^" in refused
    assert ris.send(raw) == refused
    add_sender(broker, "RIS", application="HIS", character_set="CP932")
    assert code_of(ris.send(raw)) == "AA"
    assert [row.state for row in broker.rows(Message)] == ["APPLIED"]


def test_a_message_that_failed_by_our_fault_is_tried_again(broker, monkeypatch):
    ris, raw = broker.ris(), omi(order())
    with monkeypatch.context() as patch:
        patch.setitem(road.READERS, "OMI^O23", lambda *_: 1 / 0)
        failed = ris.send(raw)
    assert code_of(failed) == "AE"
    assert b"|207^" in failed
    assert code_of(ris.send(raw)) == "AA"
    assert [row.state for row in broker.rows(Message)] == ["APPLIED"]


def test_a_refusal_for_the_content_is_final(broker):
    ris, wrong = broker.ris(), omi(order()).replace(b"|19700101|", b"|19701332|")
    refused = ris.send(wrong)
    assert code_of(refused) == "AE"
    assert ris.send(wrong) == refused
    assert [row.state for row in broker.rows(Message)] == ["REJECTED"]


def test_a_cancel_that_overtook_its_order_is_taken_when_it_comes_again(broker):
    ris, placed, cancel = broker.ris(), omi(order()), omi(order(), "CA")
    assert b"|204^" in ris.send(cancel)
    assert [code_of(ris.send(raw)) for raw in (placed, cancel)] == ["AA", "AA"]
    assert [row.status for row in broker.rows(ScheduledStep)] == ["CANCELED"]


# Acknowledgements (conformance.md 5.5)


def test_an_answer_to_a_message_without_control_id_has_none(broker):
    answer = broker.ris().send(omi(order(), control_id="ID7").replace(b"|ID7|", b"||"))
    assert b"\rMSA|AE||MSH 1 10: message control ID is required\r" in answer
    assert [(row.control_id, row.state) for row in broker.rows(Message)] == [("", "REJECTED")]


def test_an_error_of_a_service_points_at_the_field(broker):
    broker.place(order())
    answer = broker.ris().send(omi(order(patient=SATO)))
    assert code_of(answer) == "AE"
    assert b"\rERR||IPC^1^1|205^Duplicate key identifier^HL70357|E|||accession number: is another patient's|" in answer


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [(b"|^~\\&|", b"|^^\\&|", b"100"), (b"HIS|HOSP", b"HIS|HO\0SP", b"102"), (b"|ID7|", b"|ID\x007|", b"102"),
     (b"|0000012345^", b"|00000\x0012345^", b"102"), (b"|0000012345^", b"|00000\\X00\\12345^", b"102"),
     (b"\rPV1|", b"\rpv|", b"100")],
)  # fmt: skip
def test_a_message_that_cannot_be_read_is_answered_and_journalled(broker, old, new, code):
    raw = omi(order(), control_id="ID7").replace(old, new, 1)
    answer = broker.ris().send(raw)
    assert code_of(answer) == "AE"
    assert b"\rMSA|AE|" + (b"ID\x007|" if b"|ID\x00" in new else b"ID7|") in answer
    assert b"|" + code + b"^" in answer
    assert [(row.raw, row.control_id, row.answer) for row in broker.rows(Message)] == [(raw, "ID7", answer)]


def test_a_control_id_of_any_length_is_answered_and_journalled(broker):
    name = "".join(chr(33 + n * n % 61) for n in range(9_000)).translate({ord(sign): "x" for sign in "|^~\\&"})
    raw = omi(order(), control_id=name)
    answer = broker.ris().send(raw)
    assert (code_of(answer), broker.ris().send(raw)) == ("AA", answer)
    assert f"|{name}\r".encode() in answer
    assert len(broker.rows(Message)) == 1


def test_two_order_groups_of_one_message_are_two_orders(broker):
    first, second = omi(order("ACC001")), omi(order("ACC002"))
    assert code_of(broker.ris().send(first + second[second.index(b"ORC|") :])) == "AA"
    assert [row.accession_number for row in broker.rows(ImagingOrder)] == ["ACC001", "ACC002"]
    assert len(broker.modality().worklist()) == 2


# Enhanced mode, order responses, batches (conformance.md 5.5, 5.8)


def asking(raw: bytes, accept: str, application: str) -> bytes:
    return raw.replace(b"|2.5.1|||||JPN", f"|2.5.1|||{accept}|{application}|JPN".encode())


def test_a_sender_in_enhanced_mode_hears_that_it_is_kept_and_then_what_became_of_it(broker):
    """HL7-32"""
    ris = broker.ris()
    kept = ris.send(asking(omi(order(), control_id="ID7"), "AL", "AL"))
    answered = ris.receive()
    assert [code_of(kept), code_of(answered)] == ["CA", "AA"]
    assert all(b"|ID7\r" in one for one in (kept, answered))
    ris.put(b"MSH|^~\\&|HIS|HOSP|BROKER|HOSP|1||ACK^O23^ACK|A1|P|2.5.1\rMSA|CA|X\r")
    assert code_of(ris.send(omi(order("ACC002")))) == "AA", "what acknowledges an answer is not answered"
    rows = broker.rows(Message)
    assert [row.type for row in rows] == ["OMI^O23", "OMI^O23"]
    assert rows[0].answer == kept + b"\x1c\r\x0b" + answered
    assert eventually(lambda: all(row.answer_sent for row in broker.rows(Message)))


def test_a_sender_that_wants_to_hear_nothing_is_told_nothing_and_its_order_is_taken(broker):
    ris = broker.ris()
    ris.put(asking(omi(order("ACC001")), "NE", "NE"))
    ris.put(asking(omi(order("ACC002", study_uid="abc")), "NE", "NE"))
    assert code_of(ris.send(omi(order("ACC003")))) == "AA"
    assert [row.state for row in broker.rows(Message)] == ["APPLIED", "REJECTED", "APPLIED"]


@pytest.mark.parametrize(("application", "codes"), [("AL", ["CA", "AE"]), ("NE", ["CE"])])
def test_what_is_wrong_with_a_message_is_told_in_enhanced_mode_too(broker, application, codes):
    ris = broker.ris()
    ris.put(asking(omi(order(study_uid="abc")), "AL", application))
    answers = [ris.receive() for _ in codes]
    assert [code_of(answer) for answer in answers] == codes
    assert b"|IPC^1^3|102^" in answers[-1]


def test_a_sender_gets_order_responses_where_its_entry_says_so(broker):
    add_sender(broker, "RIS", application="HIS", order_responses=True)
    answer = broker.ris().send(omi(order())).decode("iso2022_jp").split("\r")
    assert "|ORI^O24^ORI_O24|" in answer[0]
    assert [line[:3] for line in answer] == ["MSH", "MSA", "ORC", "OBR", "IPC", ""]
    assert answer[2].startswith("ORC|OK|PACC001^HIS|FACC001^RIS")


def batch_of(*messages: bytes, count: int) -> bytes:
    return b"BHS|^~\\&|HIS|HOSP|BROKER|HOSP|1||||B7\r" + b"".join(messages) + f"BTS|{count}\r".encode()


def test_each_message_of_a_batch_is_taken_by_itself_and_all_are_answered_in_one(broker):
    well, wrong = omi(order("ACC001"), control_id="M1"), omi(order("ACC002", study_uid="abc"), control_id="M2")
    ris, raw = broker.ris(), batch_of(well, wrong, omi(order("ACC003"), control_id="M3"), count=4)
    answer = ris.send(raw)
    assert re.findall(rb"\rMSA\|(..)\|(\w+)", answer) == [
        (b"AA", b"M1"), (b"AE", b"M2"), (b"AA", b"M3"), (b"AE", b"B7"),
    ]  # fmt: skip
    assert answer.endswith(b"\rBTS|4\r")
    rows = broker.rows(Message)
    assert [(row.raw, row.control_id, row.state) for row in rows[:2]] == [
        (well, "M1", "APPLIED"),
        (wrong, "M2", "REJECTED"),
    ]
    assert all(row.answer in answer for row in rows)
    assert eventually(lambda: all(row.answer_sent for row in broker.rows(Message)))
    assert re.findall(rb"\rMSA[^\r]+", ris.send(raw)) == re.findall(rb"\rMSA[^\r]+", answer), "the same again"
    assert len(broker.rows(Message)) == 3


def test_a_batch_that_begins_with_an_answer_waits_for_nobody(broker):
    """Nobody answers an answer, and the messages behind it do not wait for its turn."""
    broker.settings.limits.database_wait_seconds_max = 2
    said = omi(order()).split(b"\r")[0].replace(b"OMI^O23^OMI_O23", b"ACK^O23^ACK") + b"\rMSA|AA|X\r"
    answer = broker.ris().send(batch_of(said, omi(order("ACC001")), count=2))
    assert [line.split(b"|")[1] for line in answer.split(b"\r") if line.startswith(b"MSA")] == [b"AA"]
    assert [row.accession_number for row in broker.rows(ImagingOrder)] == ["ACC001"]


def test_a_batch_over_its_limit_is_refused_before_anything_of_it_is_taken(broker):
    broker.settings.limits.mllp_batch_messages_max = 1
    answer = broker.ris().send(batch_of(omi(order("ACC001")), omi(order("ACC002")), count=2))
    assert b"\rMSA|AE|B7|" in answer
    assert broker.rows(Message) == []


# Our own trouble (durability.md 1.7)


def away(*_args, **_kwargs):
    raise NoTurn("the database is away")


@pytest.mark.parametrize(("setting", "entry"), [("AE", ""), ("close", "AE")])
def test_a_sender_may_be_told_of_our_trouble_instead_of_being_hung_up_on(broker, monkeypatch, setting, entry):
    """HL7-22"""
    add_sender(broker, "RIS", application="HIS", on_trouble=entry)
    broker.settings.hl7.on_trouble = setting
    ris, raw = broker.ris(), omi(order("ACC002"), control_id="ID7")
    assert code_of(ris.send(omi(order("ACC001")))) == "AA"
    with monkeypatch.context() as patch:
        patch.setattr(inbox.db, "run", away)
        patch.setattr(inbox.db, "read", away)
        answer = ris.send(raw)
        several = ris.send(batch_of(raw, omi(order("ACC003")), count=2))
    assert code_of(answer) == "AE"
    assert b"\rERR|||207^" in answer
    assert several.count(b"|AE|") == 2
    assert code_of(ris.send(raw)) == "AA"


@pytest.mark.parametrize(("setting", "entry"), [("close", ""), ("AE", "close")])
def test_else_the_connection_is_closed_and_the_same_bytes_are_taken_later(broker, monkeypatch, setting, entry):
    """HL7-22"""
    add_sender(broker, "RIS", application="HIS", on_trouble=entry)
    broker.settings.hl7.on_trouble = setting
    raw = omi(order("ACC002"))
    assert code_of(broker.ris().send(omi(order("ACC001")))) == "AA"
    for frame in (raw, batch_of(raw, count=1)):
        with monkeypatch.context() as patch, pytest.raises(ConnectionError):
            patch.setattr(inbox.db, "run", away)
            broker.ris().send(frame)
    assert code_of(broker.ris().send(raw)) == "AA"


# The order of what came, whatever connection it came by (conformance.md 5.8)


def test_changes_of_one_order_by_eight_connections_are_applied_as_they_came(broker, monkeypatch):
    """The first is read slowly, and the others are ready long before it."""
    broker.settings.limits.database_wait_seconds_max = 60  # a message's for the one in front of it
    broker.place(order("ACC001"))
    carry_out, wait, parse = effects.carry_out, TURNS.wait, message.parse
    ready, applied, release = [], [], threading.Event()

    def slow(*args):
        if not ready:
            ready.append("the first")
            assert release.wait(30)
        return parse(*args)

    def waiting(*args):
        ready.append(args[0])
        wait(*args)

    def seen(session, command, cause):
        applied.append(command.procedures[0].steps[0].start_time)
        return carry_out(session, command, cause)

    monkeypatch.setattr(message, "parse", slow)
    monkeypatch.setattr(TURNS, "wait", waiting)
    monkeypatch.setattr(effects, "carry_out", seen)
    connections = [broker.ris() for _ in range(8)]
    start, sent = today(9, 0) + dt.timedelta(days=1), dt.datetime.now(dt.UTC)
    times = [start + dt.timedelta(minutes=n) for n in range(len(connections))]
    for n, (ris, at) in enumerate(zip(connections, times, strict=True)):
        ris.put(omi(order("ACC001", start=at), "XO", sent=sent + dt.timedelta(seconds=n)))
        assert eventually(lambda n=n: len(ready) == n + 1), "the first is read before the second comes"
    assert eventually(lambda: applied, 0.3) == [], "each waits for the one in front of it"
    release.set()
    assert {code_of(ris.receive()) for ris in connections} == {"AA"}
    assert applied == [at.strftime("%H%M%S") for at in times]
    (step,) = broker.rows(ScheduledStep)
    assert step.start_time == applied[-1]


def test_a_slow_message_about_one_patient_keeps_no_other_patient_waiting(broker, monkeypatch):
    """More of them than a small pool of threads would have."""
    broker.settings.limits.database_wait_seconds_max = 60
    slow = threading.Event()
    wait = TURNS.wait

    def held_up(number, about, seconds):
        wait(number, about, seconds)
        if ("patient", SATO.id) in about:
            assert slow.wait(30)

    monkeypatch.setattr(TURNS, "wait", held_up)
    waiting = [broker.ris() for _ in range(10)]
    for n, ris in enumerate(waiting):
        ris.put(omi(order(f"ACC{n}", SATO)))
    assert code_of(broker.ris().send(omi(order("ACC900")))) == "AA"
    assert [row.accession_number for row in broker.rows(ImagingOrder)] == ["ACC900"]
    slow.set()
    assert {code_of(ris.receive()) for ris in waiting} == {"AA"}


# Frames (conformance.md 5.6)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_segments_may_end_in_line_feeds(broker, end):
    """HL7-34"""
    assert code_of(broker.ris().send(omi(order()).replace(b"\r", end))) == "AA"
    assert len(broker.rows(ScheduledStep)) == 1


def test_a_line_feed_inside_a_field_is_part_of_it_and_begins_no_segment(broker):
    raw = omi(order("ACC001")) + "NTE|1||first\nORC|CA|PACC001^HIS|FACC001^RIS".encode("iso2022_jp") + b"\r"
    assert code_of(broker.ris().send(raw)) == "AA"
    assert [step.status for step in broker.rows(ScheduledStep)] == ["SCHEDULED"]


def test_a_frame_that_was_broken_off_is_no_part_of_the_next(broker):
    """A sender whose program failed halfway begins anew on the same connection."""
    half = omi(order("ACC001", SATO))
    half = half[: half.index(b"ORC|")]
    with socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.sendall(b"\x0b" + half + b"\x0b" + omi(order("ACC002")) + b"\x1c\x0d")
        (answer,) = receive(sock, 1)
    assert code_of(answer) == "AA"
    assert [row.value for row in broker.rows(PatientIdentifier)] == [YAMADA.id]


def test_two_messages_in_one_frame_without_a_batch_around_them_are_refused(broker):
    answer = broker.ris().send(omi(order("ACC001")) + omi(order("ACC002")))
    assert code_of(answer) == "AE"
    assert broker.rows(ImagingOrder) == []


# How many may be connected (durability.md 1.8)


def closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.mark.parametrize("limit", ["mllp_connections_max", "mllp_connections_per_address_max"])
def test_who_never_said_anything_gives_way_and_who_sends_messages_does_not(broker, limit):
    setattr(broker.settings.limits, limit, 3)
    speaker = broker.ris()
    assert code_of(speaker.send(omi(order("ACC001")))) == "AA"
    silent = [socket.create_connection(("127.0.0.1", broker.ports["hl7"])) for _ in range(3)]
    try:
        assert eventually(lambda: [closed(sock) for sock in silent] == [True, False, False])
        speakers = [broker.ris(), broker.ris()]
        for n, ris in enumerate(speakers):
            assert code_of(ris.send(omi(order(f"ACC01{n}")))) == "AA"
        assert eventually(lambda: all(closed(sock) for sock in silent))
        with pytest.raises(ConnectionError):
            broker.ris().send(omi(order("ACC002")))
        assert code_of(speaker.send(omi(order("ACC003")))) == "AA"
    finally:
        for sock in silent:
            sock.close()


IDLE = 1_000


def left() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), sum(type(one) is asyncio.StreamReader for one in gc.get_objects())


def test_an_order_goes_through_beside_a_thousand_idle_connections_which_leave_nothing(broker):
    """HL7-34, issue 3.10"""
    broker.settings.limits.mllp_connections_max = broker.settings.limits.mllp_connections_per_address_max = IDLE + 10
    (server,) = broker._parts[MllpServer]
    assert code_of(broker.ris().send(omi(order("ACC001")))) == "AA"
    descriptors, readers = left()
    idle = [socket.create_connection(("127.0.0.1", broker.ports["hl7"])) for _ in range(IDLE)]
    assert eventually(lambda: len(server._open) == IDLE + 1)
    assert code_of(broker.ris().send(omi(order("ACC002")))) == "AA"
    assert not any(closed(sock) for sock in idle)
    for sock in idle:
        sock.close()
    assert eventually(lambda: len(server._open) <= 2)
    assert left()[0] <= descriptors + IDLE // 20, "the database's connections may have become more"
    assert left()[1] <= readers + 1


# Whether the answer went out


@contextlib.contextmanager
def held(monkeypatch):
    """A message in work gets no further than here: (it is in work, let it go on)."""
    begun, go_on, parse = threading.Event(), threading.Event(), message.parse

    def slow(*args):
        begun.set()
        assert go_on.wait(30)
        return parse(*args)

    with monkeypatch.context() as patch:
        patch.setattr(message, "parse", slow)
        yield begun, go_on
        go_on.set()


def test_an_answer_that_went_out_is_noted_and_the_next_message_does_not_wait_for_it(broker):
    ris = broker.ris()
    answers = [ris.send(omi(order(f"ACC{n}"))) for n in range(5)]
    assert {code_of(answer) for answer in answers} == {"AA"}
    assert eventually(lambda: all(row.answer_sent for row in broker.rows(Message)))


def test_an_order_whose_answer_was_lost_shows_it_until_the_sender_asks_again(broker, monkeypatch):
    raw = omi(order())
    with held(monkeypatch) as (begun, go_on):
        sock = socket.create_connection(("127.0.0.1", broker.ports["hl7"]))
        sock.sendall(b"\x0b" + raw + b"\x1c\x0d")
        assert begun.wait(30)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        sock.close()
        go_on.set()
        (row,) = eventually(lambda: broker.rows(Message, state="APPLIED"))
    assert eventually(lambda: not any(broker._under_way()))
    assert not broker.rows(Message)[0].answer_sent
    assert broker.ris().send(raw) == row.answer
    assert eventually(lambda: broker.rows(Message)[0].answer_sent)


def test_an_order_that_is_in_work_when_the_broker_stops_is_still_answered(broker, monkeypatch):
    idle = socket.create_connection(("127.0.0.1", broker.ports["hl7"]))
    with held(monkeypatch) as (begun, go_on), socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.sendall(b"\x0b" + omi(order()) + b"\x1c\x0d\x0b" + omi(order("ACC002")) + b"\x1c\x0d")
        assert begun.wait(30)
        stopping = threading.Thread(target=broker.close)
        stopping.start()
        idle.settimeout(30)
        assert idle.recv(10) == b"", "who only waits is not waited for"
        assert stopping.is_alive()
        go_on.set()
        (answer,) = receive(sock, 1)
        stopping.join()
        assert sock.recv(10) == b"", "the next one was not begun"
    assert code_of(answer) == "AA"
    broker.restart()
    (row,) = broker.rows(Message)
    assert (row.state, row.answer, row.answer_sent) == ("APPLIED", answer, True)


def test_a_stop_waits_for_an_answer_no_longer_than_its_limit():
    settings = config.Settings()
    settings.hl7.port, settings.limits.stop_seconds_max = 0, 0.5
    begun, go_on = threading.Event(), threading.Event()

    def stuck(_raw, _peer, _turn):
        begun.set()
        go_on.wait(30)

    async def story():
        server = MllpServer(settings, stuck)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x0bMSH|\x1c\x0d")
        await asyncio.to_thread(begun.wait, 30)
        before = time.monotonic()
        await server.stop()
        assert time.monotonic() - before < settings.limits.stop_seconds_max
        assert await reader.read() == b""
        go_on.set()

    asyncio.run(story())
