"""Other providers' worklists: real providers, and everything that may go wrong between them and us."""

import datetime as dt
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from pydicom.dataset import Dataset
from sqlmodel import Session, select

from broker import clock, config, db, site
from broker.archive import status
from broker.dicom import find_client, pdu
from broker.dicom.find_client import REJECTIONS
from broker.dicom.service import Command
from broker.errors import BrokerError
from broker.model.images import ReconciliationCase
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.model.upstream import Upstream, UpstreamEntry
from broker.model.work import AuditEvent
from broker.mwl import items, orders, steps
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand
from broker.mwl.steps import move_step
from broker.ris_bridge import http_road, replay, upstream
from broker.ris_bridge.hl7 import road
from broker.sim.ris import omi
from tests import commands
from tests.house import eventually
from tests.intakes import numbers, rows
from tests.providers import Scripted, final, item, pending, pynetdicom_provider, wlmscpfs
from tests.service.exam import YAMADA as PERSON
from tests.world import SATO, YAMADA, Order, order, today


class Lists:
    """The broker's side."""

    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings

    def add(self, name: str, port: int, **fields: object) -> None:
        said = {"host": "127.0.0.1", "port": port, "ae_title": "WLM", **fields}
        assert db.run(site.add_upstream, name, now=clock.now(), actor="test", **said) == "added"

    def work(self) -> None:
        """One pass, as if all were due."""

        def due(session: Session) -> None:
            for row in session.exec(select(Upstream)):
                row.next_at = None

        db.run(due)
        upstream.work(self.settings)

    def row(self, name: str = "north") -> dict:
        found = db.read(upstream.rows, self.settings.limits, clock.now())
        return next(one for one in found if one["name"] == name)

    def hl7(self, message: bytes) -> None:
        road.receive(message, "127.0.0.1", self.settings)


@pytest.fixture
def lists(database, settings) -> Lists:
    status.configure(settings)
    settings.limits.upstream_seconds_max = 3
    return Lists(settings)


@pytest.fixture
def provider() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


@pytest.fixture
def other() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


def step() -> ScheduledStep:
    """The only one."""
    (found,) = rows(ScheduledStep)
    return found


def move(event: str, accession: str = "ACC001") -> None:
    def write(session: Session) -> None:
        found = session.exec(select(ScheduledStep).where(ScheduledStep.accession_number == accession)).one()
        move_step(session, found, event, now=clock.now(), actor="test", cause="test")

    db.run(write)


def told(name: str) -> None:
    """Somebody says of the only step that it has none."""

    def write(session: Session) -> None:
        found = session.exec(select(ScheduledStep)).one()
        found.said = {**found.said, name: clock.iso(clock.now())}

    db.run(write)


def meanwhile(provider: Scripted, happens: Callable[[], object]) -> None:
    """That happens between its next question and its answer."""

    def play(wire: pdu.Wire, command: Command, context: int) -> None:
        provider.play, listed = None, provider.entries
        happens()
        for entry in listed:
            wire.send(pending(command, context, entry))
        wire.send(final(command, context, 0))

    provider.play = play


def changed(**fields: object) -> None:
    db.run(site.change_upstream, "north", now=clock.now(), actor="test", **fields)


def cases(kind: str) -> list[ReconciliationCase]:
    return [one for one in rows(ReconciliationCase) if one.kind == kind and one.state != "RESOLVED"]


def messages(state: str = "APPLIED") -> list[Message]:
    return [one for one in rows(Message) if one.state == state]


# What becomes of an entry


def test_an_entry_becomes_an_order_with_all_that_it_says(lists, provider):
    provider.entries = [
        item("ACC001", ReferringPhysicianName="IGARASHI^JIRO=五十嵐^次郎", PatientWeight="61.5", PregnancyStatus=1,
             Allergies=["Iodine", "Latex"], AdmissionID="V1", RequestedProcedurePriority="STAT",
             PlacerOrderNumberImagingServiceRequest="P1", OrderPlacerIdentifierSequence=[{"LocalNamespaceEntityID": "HIS"}],
             RequestedProcedureCodeSequence=[{"CodeValue": "CTC", "CodingSchemeDesignator": "99L", "CodeMeaning": "胸部"}],
             step={"ScheduledProtocolCodeSequence": [{"CodeValue": "6000", "CodingSchemeDesignator": "99J",
                   "CodeMeaning": "胸部単純"}], "ScheduledProcedureStepLocation": "ROOM 3", "ScheduledStationName": "CT-3",
                   "ScheduledStationAETitle": "CT1\\CT2"}),
    ]  # fmt: skip
    lists.add("north", provider.port, calling_ae_title="GATEWAY", modality="CT", days_before=1, days_after=2)
    lists.work()
    (made,), (patient,), (procedure,) = rows(ImagingOrder), rows(Patient), rows(RequestedProcedure)
    assert (made.accession_number, made.accession_issuer, made.priority) == ("ACC001", "RIS", "STAT")
    assert made.attributes["ReferringPhysicianName"] == "IGARASHI^JIRO=五十嵐^次郎"
    assert {"PatientWeight": "61.5", "PregnancyStatus": 1, "AdmissionID": "V1"}.items() <= made.attributes.items()
    assert (patient.name, patient.birth_date, patient.sex) == ("YAMADA^TARO=山田^太郎=ヤマダ^タロウ", "19700101", "M")
    assert (procedure.placer_number, procedure.placer_issuer, procedure.code_value) == ("P1", "HIS", "CTC")
    assert (step().sps_id, step().modality, step().start_time, step().offerable) == ("SACC001", "CT", "093000", True)
    assert step().attributes["ScheduledProtocolCodeSequence"][0]["CodeMeaning"] == "胸部単純"
    assert db.read(items.stations, step().key) == ["CT1", "CT2"]
    (message,) = messages()
    assert (message.raw, message.protocol, message.sender) == (provider.entries[0], "dicom", "upstream:north")
    (asked,) = provider.asked
    inner = asked[0x00400100][1][0]
    first, last = (f"{today() + dt.timedelta(days=days):%Y%m%d}" for days in (-1, 2))
    assert (inner[0x00080060][1], inner[0x00400002][1], provider.calling) == ("CT", f"{first}-{last}", ["GATEWAY"])


def test_what_is_unchanged_is_not_journalled_again_and_a_change_is_a_message_of_its_own(lists, provider):
    lists.add("north", provider.port)
    for start in ("0930", "0930", "1100", "0930"):  # it may come to say again what it said first
        provider.entries = [item(step={"ScheduledProcedureStepStartTime": start})]
        lists.work()
    assert len(messages()) == 3
    assert step().start_time == "093000"
    assert lists.row()["counts"] == {"answers": 1, "beside": 0, "unreadable": 0, "changed": 1, "gone": 0}


def test_what_an_entry_says_no_more_is_taken_back_where_nobody_else_said_it(lists, provider):
    provider.entries = [item(step={"ScheduledProcedureStepLocation": "ROOM 3"})]
    lists.add("north", provider.port)
    lists.work()
    provider.entries = [item()]
    lists.work()
    assert "ScheduledProcedureStepLocation" not in step().attributes


@pytest.mark.parametrize(
    ("said", "outcome", "why"),
    [
        ({"PatientID": None}, "REJECTED", "(0010,0020)"),
        ({"AccessionNumber": None, "StudyInstanceUID": None}, "REJECTED", "(0008,0050)"),
        ({"StudyInstanceUID": "1.2.x"}, "REJECTED", "(0020,000D)"),
        ({"step": {"Modality": "ct-1"}}, "REJECTED", "(0008,0060)"),
        ({"step": {"ScheduledProcedureStepStartDate": "20251301"}}, "REJECTED", "(0040,0002)"),
        ({"AccessionNumber": "A" * 17}, "REJECTED", "(0008,0050)"),
        ({"step": {"ScheduledStationAETitle": None}}, "APPLIED", "ScheduledStationAETitle"),
        ({"PatientName": None}, "APPLIED", "PatientName"),
    ],
)
def test_an_entry_that_lacks_something_is_refused_or_stands_as_an_exception(lists, provider, said, outcome, why):
    provider.entries = [item("ACC001", **{"AccessionNumber": "ACC001", **said})]
    lists.add("north", provider.port, days_before=-1, days_after=-1)
    lists.work()
    lists.work()
    (message,) = rows(Message)
    assert message.state == outcome
    if outcome == "REJECTED":
        assert message.error_place == why
        assert rows(ImagingOrder) == []
        assert (lists.row()["refused"], lists.row()["counts"]["refused"]) == (1, 1)
    else:
        assert why in cases("incomplete_order")[0].reasons[0]
        assert not step().offerable


def test_a_refused_entry_can_be_replayed_when_its_reason_is_mended(lists, provider):
    provider.entries = [item(character_set="", PatientName="x", RequestedProcedureDescription="x",
                             step={"ScheduledProcedureStepDescription": "x"}).replace(b"x ", b"\x8eR")]  # fmt: skip
    lists.add("north", provider.port)
    lists.work()
    (refused,) = messages("REJECTED")
    assert (refused.error_place, lists.row()["counts"]["unreadable"]) == ("(0008,0005)", 1)
    db.run(site.change_upstream, "north", now=clock.now(), actor="test", character_set="ISO_IR 100")
    assert replay.replay(refused.key, lists.settings, actor="test")["outcome"] == "applied"
    assert numbers() == ["ACC001"]


def test_a_new_character_set_of_the_provider_has_its_entries_read_again(lists, tmp_path):
    entries = [item("ACC001"), item("ACC002", patient=SATO)]
    with wlmscpfs(tmp_path, entries) as port:  # as DCMTK has it by default: text with escapes, and no (0008,0005)
        lists.add("north", port)
        lists.work()
        assert {one.error_place for one in messages("REJECTED")} != set()
        db.run(site.change_upstream, "north", now=clock.now(), actor="test", character_set="\\ISO 2022 IR 87")
        lists.work()
    assert numbers() == ["ACC001", "ACC002"]
    assert {one.name.split("=")[1] for one in rows(Patient)} == {"山田^太郎", "佐藤^花子"}


def test_of_what_cannot_be_read_the_journal_keeps_some(lists, provider):
    lists.settings.limits.upstream_unreadable_max = 2
    provider.entries = [b"\xff" * 9 + bytes([n]) for n in range(5)]
    lists.add("north", provider.port)
    lists.work()
    assert (lists.row()["counts"]["unreadable"], len(messages("REJECTED"))) == (5, 2)


def test_a_running_broker_asks_by_itself_and_a_device_is_shown_what_was_listed(broker, provider):
    provider.entries = [item(PatientName="YAMADA^TARO=山田^太郎=ヤマダ^タロウ")]
    said = {"host": "127.0.0.1", "port": provider.port, "ae_title": "WLM", "every_seconds": 1}
    db.run(site.add_upstream, "north", now=clock.now(), actor="test", **said)
    (shown,) = eventually(broker.modality("CT1").worklist)
    assert shown.SpecificCharacterSet == ["", "ISO 2022 IR 87"]
    assert shown.PatientName == "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"
    assert shown.AccessionNumber == "ACC001"
    assert eventually(lambda: len(provider.asked) > 1), "and again"


def test_a_label_that_no_device_can_name_is_not_taken_and_told(lists, provider):
    provider.entries = [item(WorklistLabel="HEART,LUNG")]
    lists.add("north", provider.port)
    lists.work()
    assert step().label == ""
    assert messages()[0].became.endswith("left out: WorklistLabel")


# Two lists, and other roads


def test_two_real_providers_that_list_the_same_exam_make_one_order(lists, tmp_path):
    same = Dataset()
    same.SpecificCharacterSet = "ISO_IR 192"
    same.AccessionNumber, same.PatientID, same.PatientName = "ACC001", YAMADA.id, "YAMADA^TARO=山田^太郎"
    same.IssuerOfPatientID, same.PatientBirthDate = "HOSP", "19700101"
    same.StudyInstanceUID, same.RequestedProcedureID = f"1.2.3.{int.from_bytes(b'ACC001', 'big')}", "RACC001"
    same.ConfidentialityConstraintOnPatientDataDescription = "VIP"
    same.RequestingService = "内科"
    inner = Dataset()
    inner.ScheduledStationAETitle, inner.Modality, inner.ScheduledProcedureStepID = "CT1", "CT", "SACC001"
    inner.ScheduledProcedureStepStartDate, inner.ScheduledProcedureStepStartTime = f"{today():%Y%m%d}", "093000"
    same.ScheduledProcedureStepSequence = [inner]
    with (
        wlmscpfs(tmp_path, [item("ACC001"), item("ACC002")], "-csk") as dcmtk,
        pynetdicom_provider([same]) as pynetdicom,
    ):
        lists.add("north", dcmtk)
        lists.add("south", pynetdicom, ae_title="PYNET")
        lists.work()
    assert (lists.row("north")["last_error"], lists.row("south")["last_error"]) == ("", "")
    assert numbers() == ["ACC001", "ACC002"]
    first = min(rows(ImagingOrder), key=lambda one: one.accession_number)
    assert first.attributes["RequestingService"] == "内科"
    assert len(rows(ScheduledStep)) == 2


def test_one_number_of_two_issuers_is_two_exams(lists, provider, other):
    provider.entries = [item("ACC001")]
    other.entries = [item("ACC001", patient=SATO, StudyInstanceUID="1.2.4", IssuerOfPatientID="CLINIC",
                          IssuerOfAccessionNumberSequence=None)]  # fmt: skip
    lists.add("north", provider.port)
    lists.add("south", other.port, accession_issuer="CLINIC")
    lists.work()
    assert sorted((one.accession_number, one.accession_issuer) for one in rows(ImagingOrder)) == [
        ("ACC001", "CLINIC"), ("ACC001", "RIS"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other_says",
    [{"IssuerOfAccessionNumberSequence": None}, {"AccessionNumber": None}, {"RequestedProcedureID": None}],
)
@pytest.mark.parametrize("whole_first", [True, False])
def test_one_study_is_one_exam_although_one_of_two_lists_leaves_out_a_number(
    lists, provider, other, other_says, whole_first
):
    provider.entries, other.entries = [item()], [item(**{"AccessionNumber": "ACC001", **other_says})]
    for one in (provider, other) if whole_first else (other, provider):
        lists.add(f"at {one.port}", one.port)
        lists.work()
    refused = [one.error_text for one in messages("REJECTED")]
    if other_says == {"AccessionNumber": None} and not whole_first:
        assert refused == ["is the study of an order with another accession number or issuer"], "ours was made up"
    elif other_says == {"RequestedProcedureID": None} and not whole_first:
        assert refused == ["belongs to another requested procedure"], "ours was made up"
    else:
        assert refused == []
    assert (len(rows(ImagingOrder)), len(rows(ScheduledStep))) == (1, 1)


@pytest.mark.parametrize(("priority", "shown"), [(50, "110000"), (100, "093000"), (200, "093000")])
def test_of_two_lists_that_differ_the_one_with_more_weight_counts_and_a_person_is_asked(
    lists, provider, other, priority, shown
):
    provider.entries = [item()]
    other.entries = [item(step={"ScheduledProcedureStepStartTime": "1100"})]
    lists.add("north", provider.port)
    lists.work()
    lists.add("south", other.port, priority=priority)
    lists.work()
    assert step().start_time == shown
    found = [one.reasons for one in cases("upstream_conflict")]
    reason = "the list of south has step RACC001/SACC001 with another start time than is known; nothing was changed"
    assert found == ([] if priority == 50 else [[reason]])
    other.entries = [item()]
    lists.work()
    assert cases("upstream_conflict") == []


def test_what_a_list_does_not_mention_is_not_taken_from_another(lists, provider, other):
    provider.entries, other.entries = [item(step={"PreMedication": "なし"})], [item()]
    lists.add("north", provider.port, priority=200)
    lists.work()
    lists.add("south", other.port)
    lists.work()
    assert step().attributes["PreMedication"] == "なし"
    assert "differs" not in messages()[-1].became


def test_of_a_step_that_has_ended_a_list_tells_nothing(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port)
    lists.work()
    for event in ("start", "complete"):
        move(event)
    provider.entries = [item(step={"ScheduledProcedureStepDescription": "他", "PreMedication": "なし"})]
    lists.work()
    assert (step().description, step().attributes.get("PreMedication")) == ("胸部単純", None)
    assert cases("late_change") == []


def test_what_others_have_deleted_a_list_does_not_fill(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port)
    lists.work()
    told("PreMedication")
    provider.entries = [item(step={"PreMedication": "なし"})]
    lists.work()
    assert "PreMedication" not in step().attributes
    assert messages()[-1].became.endswith("differs from what is known: PreMedication")


def test_an_older_entry_that_is_replayed_changes_nothing_that_is_newer(lists, provider):
    provider.entries = [item(character_set="", PatientName="YAMADA^TARO", RequestedProcedureDescription="胸部",
                             step={"ScheduledProcedureStepDescription": "A"}, raw_as="\\ISO 2022 IR 87")]  # fmt: skip
    lists.add("north", provider.port)
    lists.work()
    provider.entries = [item(PatientName="YAMADA^TARO", step={"ScheduledProcedureStepDescription": "B"})]
    lists.work()
    db.run(site.change_upstream, "north", now=clock.now(), actor="test", character_set="\\ISO 2022 IR 87")
    assert replay.replay(messages("REJECTED")[0].key, lists.settings, actor="test")["outcome"] == "applied"
    assert step().description == "B"
    assert "differs" not in messages()[0].became


def test_an_order_known_by_hl7_is_completed_and_not_rewritten(lists, provider):
    known = order("ACC001", study_uid=f"1.2.3.{int.from_bytes(b'ACC001', 'big')}")
    lists.hl7(omi(known))
    before = step()
    provider.entries = [item(RequestedProcedureID="RACC001", RequestingService="内科", RequestedProcedureDescription="他",
                             step={"ScheduledProcedureStepID": before.sps_id, "PreMedication": "なし",
                                   "ScheduledProcedureStepDescription": "他", "Modality": "MR"})]  # fmt: skip
    lists.add("north", provider.port)
    lists.work()
    after, (made,) = step(), rows(ImagingOrder)
    assert (after.start_time, after.description, after.modality) == (before.start_time, before.description, "CT")
    assert (after.attributes["PreMedication"], made.attributes["RequestingService"]) == ("なし", "内科")
    assert "another modality, start time" in cases("upstream_conflict")[0].reasons[0]
    assert "differs from what is known: " in messages()[-1].became
    provider.entries = []
    lists.work()
    lists.hl7(omi(known, "XO"))  # others may still say what they know better
    assert messages()[-1].type.startswith("OMI")


@pytest.mark.parametrize(
    "said",
    [
        {"PatientID": "9999"}, {"PatientBirthDate": "19991231"}, {"StudyInstanceUID": "1.2.9"},
        {"AccessionNumber": "ACC777"}, {"IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": "ELSE"}]},
    ],
)  # fmt: skip
def test_an_entry_that_gives_a_known_exam_to_somebody_else_is_refused_and_the_exam_stays(lists, provider, said):
    lists.hl7(omi(order("ACC001", study_uid=f"1.2.3.{int.from_bytes(b'ACC001', 'big')}")))
    provider.entries = [item(RequestedProcedureID="RACC001", **{"AccessionNumber": "ACC001", **said})]
    lists.add("north", provider.port)
    lists.work()
    assert [one.error_code for one in messages("REJECTED")] == ["205"]
    assert (len(rows(ImagingOrder)), step().offerable) == (1, True)


def test_what_began_or_ended_there_is_not_taken_and_counts_as_listed(lists, provider):
    provider.entries = [item(), item("ACC002", step={"ScheduledProcedureStepStatus": "STARTED"})]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()
    provider.entries = [item(step={"ScheduledProcedureStepStatus": "COMPLETED"})]
    lists.work()
    assert (numbers(), step().status) == (["ACC001"], "SCHEDULED")
    provider.entries = [item("ACC003", step={"ScheduledProcedureStepStatus": "ARRIVED"})]
    lists.work()
    assert [one.status for one in rows(ScheduledStep) if one.sps_id == "SACC003"] == ["ARRIVED"]


@pytest.mark.parametrize(("gone", "ends"), [("cancel", "CANCELED"), ("keep", "SCHEDULED")])
@pytest.mark.parametrize("word", ["CANCELED", "CANCELLED"])
def test_what_is_cancelled_there_counts_as_not_listed_any_more(lists, provider, word, gone, ends):
    provider.entries = [item(), item("ACC002")]
    lists.add("north", provider.port, gone=gone, gone_after=2)
    lists.work()
    provider.entries = [item(step={"ScheduledProcedureStepStatus": word}), item("ACC002")]
    lists.work()
    assert {one.status for one in rows(ScheduledStep)} == {"SCHEDULED"}, "not at its first word"
    lists.work()
    assert [one.status for one in rows(ScheduledStep)] == [ends, "SCHEDULED"]
    assert upstream.attempt("north", lists.settings)["counts"]["over"] == 1


def test_one_step_listed_twice_is_one_where_it_differs_in_the_station_alone(lists, provider):
    provider.entries = [item(), item(), item(step={"ScheduledStationAETitle": "CT2"})]
    lists.add("north", provider.port)
    lists.work()
    provider.entries.reverse()
    lists.work()
    assert sorted(db.read(items.stations, step().key)) == ["CT1", "CT2"]
    assert len(messages()) == 1
    provider.entries = [item(), item(step={"Modality": "MR"})]
    lists.work()
    assert [one.error_place for one in messages("REJECTED")] == ["(0040,0100)"]


def test_what_was_not_asked_for_is_left_aside(lists, provider):
    provider.entries = [item(), item("ACC002", step={"Modality": "MR"}), item("ACC003", InstitutionName="SOUTH")]
    lists.add("north", provider.port, modality="CT", keys={"PatientSex": "M"})
    lists.work()
    assert (numbers(), lists.row()["counts"]["beside"]) == (["ACC001", "ACC003"], 1)


def test_a_list_that_makes_somebody_else_of_its_own_patient_has_the_exam_withheld_until_a_person_has_looked(
    lists, provider
):
    provider.entries = [item()]
    lists.add("north", provider.port)
    lists.work()
    provider.entries = [item(PatientBirthDate="19991231")]
    lists.work()
    assert (len(messages()), len(cases("patient_conflict")), step().offerable) == (2, 1, False)
    assert rows(Patient)[0].birth_date == "19700101"


@pytest.mark.parametrize("minutes", [-60, 0, 1])
def test_what_a_list_was_first_to_say_does_not_stand_against_the_order_itself(lists, provider, minutes):
    known = order("ACC001", study_uid=f"1.2.3.{int.from_bytes(b'ACC001', 'big')}", start=today(15, 30))
    provider.entries = [
        item(RequestedProcedureID="RACC001", RequestedProcedureDescription="他", RequestedProcedurePriority="LOW",
             step={"ScheduledProcedureStepID": known.steps[0].sps_id, "PreMedication": "なし"})
    ]  # fmt: skip
    lists.add("north", provider.port)
    lists.work()
    lists.hl7(omi(known, sent=clock.now() + dt.timedelta(minutes=minutes)))
    assert [one.state for one in rows(Message)] == ["APPLIED", "APPLIED"], rows(Message)[-1].error_text
    (procedure,) = rows(RequestedProcedure)
    assert (procedure.description, step().start_time) == ("胸部CT", "153000")
    assert step().attributes["PreMedication"] == "なし"
    provider.entries = [item(RequestedProcedureID="RACC001", RequestedProcedureDescription="別",
                             step={"ScheduledProcedureStepID": known.steps[0].sps_id})]  # fmt: skip
    lists.work()
    (procedure,) = rows(RequestedProcedure)
    assert (procedure.description, step().start_time) == ("胸部CT", "153000")
    assert rows(ImagingOrder)[0].priority == "ROUTINE"
    lists.hl7(omi(replace(known, code="OTHER"), sent=clock.now() + dt.timedelta(minutes=2)))
    assert messages("REJECTED")[0].error_code == "205", "it is ordered now, and changed by a change (XO)"


# The order itself, before its list or after


UID = f"1.2.3.{int.from_bytes(b'ACC001', 'big')}"  # as tests/providers.py makes it


def ordered() -> Order:
    return order("ACC001", study_uid=UID)


def as_ordered(**said: object) -> bytes:
    """The entry of a list that calls all of it as its order does."""
    return item(RequestedProcedureID="RACC001", step={"ScheduledProcedureStepID": ordered().steps[0].sps_id}, **said)


def say(control: str) -> None:
    """A person, of the whole order."""

    def write(session: Session) -> None:
        known = http_road.known(session, session.exec(select(ImagingOrder)).one().key)
        orders.carry_out(session, known.command(control), now=clock.now(), actor="test", site=config.Site())

    db.run(write)


def soon(seconds: float = 1) -> dt.datetime:
    return clock.now() + dt.timedelta(seconds=seconds)


def test_a_priority_that_a_change_has_said_stays_whatever_a_list_says(lists, provider):
    provider.entries = [as_ordered(RequestedProcedurePriority="ROUTINE")]
    lists.add("north", provider.port)
    lists.work()
    lists.hl7(omi(ordered(), "XO", sent=soon()).replace(b"R^Routine", b"S^Stat"))
    assert rows(ImagingOrder)[0].priority == "STAT"
    provider.entries = [as_ordered(RequestedProcedurePriority="ROUTINE", RequestingService="X")]
    lists.work()
    assert rows(ImagingOrder)[0].priority == "STAT"
    assert "differs from what is known: ordered_priority" in messages()[-1].became


@pytest.mark.parametrize("sps_id", [ordered().steps[0].sps_id, "88"])
@pytest.mark.parametrize("seconds", [2, -120])
def test_what_a_list_alone_has_cancelled_is_on_the_worklist_when_it_is_ordered(lists, provider, seconds, sps_id):
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for provider.entries in ([item(step={"ScheduledProcedureStepID": sps_id})], []):
        lists.work()
    assert step().status == "CANCELED"
    lists.hl7(omi(ordered(), sent=soon(seconds)))
    assert (step().status, step().offerable) == ("SCHEDULED", True)


@pytest.mark.parametrize("names_the_step", [True, False])
@pytest.mark.parametrize("seconds", [1, -300])
def test_what_a_list_and_others_have_cancelled_stays_so_whoever_was_first(lists, provider, seconds, names_the_step):
    there = as_ordered(
        PlacerOrderNumberImagingServiceRequest="PACC001", OrderPlacerIdentifierSequence=[{"LocalNamespaceEntityID": "HIS"}],
        FillerOrderNumberImagingServiceRequest="FACC001", OrderFillerIdentifierSequence=[{"LocalNamespaceEntityID": "RIS"}],
    )  # fmt: skip
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for provider.entries in ([there], []):
        lists.work()
    cancel = omi(ordered(), "CA", sent=soon(seconds)).split(b"\r")
    lists.hl7(b"\r".join(one for one in cancel if names_the_step or not one.startswith(b"IPC")))
    assert messages("REJECTED") == []
    provider.entries = [there]
    lists.work()
    assert step().status == "CANCELED"
    lists.hl7(omi(ordered(), sent=soon(2)))
    assert step().status == "CANCELED"


def test_a_list_adds_no_step_to_what_others_have_ordered(lists, provider):
    lists.hl7(omi(ordered()))
    provider.entries = [item(step={"ScheduledProcedureStepID": one}) for one in ("88", "89")]
    lists.add("north", provider.port)
    lists.work()
    assert [one.error_text for one in messages("REJECTED")] == [
        "others have ordered this exam, without such a procedure or step"
    ]
    assert step().sps_id == ordered().steps[0].sps_id


def test_an_entry_that_is_gone_does_not_keep_out_the_one_that_follows_it(lists, provider):
    lists.hl7(omi(ordered()))
    lists.add("north", provider.port, gone_after=1)
    for number in ("88", "", "89"):
        said = {"ScheduledProcedureStepID": number}
        provider.entries = [item(RequestedProcedureID="RACC001", step=said)] if number else []
        lists.work()
    assert messages("REJECTED") == []


@pytest.mark.parametrize("is_ordered", [True, False])
def test_what_a_list_has_cancelled_and_then_a_person_stays_so(lists, provider, is_ordered):
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for provider.entries in ([as_ordered()], []):
        lists.work()
    say("CA")
    provider.entries = [] if is_ordered else [as_ordered()]
    lists.work()
    if is_ordered:
        lists.hl7(omi(ordered(), sent=soon(2)))
    assert step().status == "CANCELED"


def test_what_is_listed_again_comes_back_although_its_entry_is_forgotten_or_another_list_has_it(lists, provider, other):
    lists.settings.limits.upstream_keep_seconds = 0
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for provider.entries in ([item()], [], [], [item()]):
        lists.work()
    assert step().status == "SCHEDULED"
    provider.entries = []
    lists.work()
    assert step().status == "CANCELED"
    other.entries = [item()]
    lists.add("south", other.port)
    lists.work()
    assert step().status == "SCHEDULED"


def test_what_a_person_has_brought_back_no_list_cancels_again(lists, provider):
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for provider.entries in ([item()], []):
        lists.work()
    say("reinstate")
    for provider.entries in ([item()], []):
        lists.work()
    assert step().status == "SCHEDULED"
    assert "a person has brought" in messages()[-1].became


def test_a_new_study_uid_in_each_answer_does_not_cancel_the_exam(lists, provider):
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for n in range(2):
        provider.entries = [item(StudyInstanceUID=f"1.2.9.{n}")]
        lists.work()
    assert (step().status, len(rows(UpstreamEntry))) == ("SCHEDULED", 1)


@pytest.mark.parametrize(
    "said",
    [
        {"RequestedProcedureID": "77", "StudyInstanceUID": None, "step": {"ScheduledProcedureStepID": "88"}},
        {"RequestedProcedureID": "RACC001", "step": {"ScheduledProcedureStepID": "88"}},
        {"RequestedProcedureID": "77"},
    ],
)
def test_an_exam_that_a_list_knows_by_other_ids_is_one_whoever_was_first(lists, provider, said):
    provider.entries = [item(**said)]
    lists.add("north", provider.port)
    for is_last in (False, True):  # HL7 first, then the list
        if is_last:
            lists.work()
        else:
            lists.hl7(omi(ordered()))
    assert messages("REJECTED") == []
    assert [one.sps_id for one in rows(ScheduledStep)] == [ordered().steps[0].sps_id]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({"StudyInstanceUID": None, "step": {"ScheduledProcedureStepID": "88"}}, 1),
        ({"RequestedProcedureID": "RACC001", "step": {"ScheduledProcedureStepID": "88"}}, 0),
        ({"step": {"ScheduledProcedureStepID": "88"}}, 0),
    ],
)
@pytest.mark.parametrize("control", ["NW", "XO"])
def test_what_a_list_was_first_to_tell_of_by_other_ids_has_those_of_its_order(lists, provider, said, asked, control):
    provider.entries = [item(**{"RequestedProcedureID": "77", **said})]
    lists.add("north", provider.port)
    lists.work()
    lists.hl7(omi(ordered(), control, sent=soon()))
    provider.entries = [item(**{"RequestedProcedureID": "77", **said}, RequestingService="X")]
    lists.work()
    assert messages("REJECTED") == []
    (procedure,) = rows(RequestedProcedure)
    assert (procedure.requested_procedure_id, procedure.study_instance_uid) == ("RACC001", UID)
    assert (step().sps_id, step().offerable) == (ordered().steps[0].sps_id, True)
    assert sum("Study Instance UID" in one.reasons[0] for one in cases("upstream_conflict")) == asked


def test_it_is_so_too_on_a_road_where_an_order_may_be_said_twice(lists, provider):
    """A CSV, for one: what it says of an order that is known counts as a change."""
    provider.entries = [item(RequestedProcedureID="77", step={"ScheduledProcedureStepID": "88"})]
    lists.add("north", provider.port)
    lists.work()
    scheduled = StepCommand("S1ACC001", "CT", ("CT1",), f"{today():%Y%m%d}", "093000", "単純")
    command = OrderCommand(
        "NW", accession_number="ACC001", accession_issuer="RIS", patient=PERSON, at=soon(), known="change",
        procedures=(ProcedureCommand(requested_procedure_id="RACC001", study_instance_uid=UID, steps=(scheduled,)),),
    )  # fmt: skip
    db.run(orders.apply, command, now=clock.now(), actor="test", site=lists.settings.site)
    assert (step().sps_id, step().status, step().offerable) == ("S1ACC001", "SCHEDULED", True)


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_study_uid_that_a_list_has_made_up_does_not_keep_the_order_out_before_it_has_begun(
    lists, provider, has_begun
):
    provider.entries = [as_ordered(StudyInstanceUID="1.2.9")]
    lists.add("north", provider.port)
    lists.work()
    if has_begun:
        move("start")
    lists.hl7(omi(ordered(), sent=soon()))
    assert len(messages("REJECTED")) == has_begun
    assert [one.study_instance_uid for one in rows(RequestedProcedure)] == ["1.2.9" if has_begun else UID]
    assert len(cases("upstream_conflict")) == (not has_begun)


@pytest.mark.parametrize("has_begun", [True, False])
def test_where_it_is_not_plain_which_of_a_lists_steps_was_ordered_a_person_is_asked(lists, provider, has_begun):
    ids = ["88"] if has_begun else ["88", "89"]
    provider.entries = [item(RequestedProcedureID="RACC001", step={"ScheduledProcedureStepID": one}) for one in ids]
    lists.add("north", provider.port)
    lists.work()
    if has_begun:
        move("start")
    lists.hl7(omi(ordered(), sent=soon()))
    assert messages("REJECTED") == []
    assert len(rows(ScheduledStep)) == len(ids) + 1
    (case,) = cases("upstream_conflict")
    assert "than were ordered" in case.reasons[-1]
    provider.entries.append(item(RequestedProcedureID="RACC001", step={"ScheduledProcedureStepID": "90"}))
    lists.work()
    assert len(rows(ScheduledStep)) == len(ids) + 1, "it is ordered now, and no list adds to it"


def test_a_list_says_once_that_the_patient_is_here(lists, provider):
    lists.add("north", provider.port)
    provider.entries = [item(step={"ScheduledProcedureStepStatus": "ARRIVED"})]
    lists.work()

    def leave(session: Session) -> None:
        found = session.exec(select(ImagingOrder)).one()
        why = steps.Cause(clock.now(), "test", lists.settings.site)
        steps.happen(session, found, [found], "unarrive", clock.iso(clock.now()), "test", why)

    db.run(leave)
    provider.entries = [item(RequestingService="X", step={"ScheduledProcedureStepStatus": "ARRIVED"})]
    lists.work()
    assert step().status == "SCHEDULED"


def test_a_case_of_one_step_is_not_closed_by_another_whose_number_begins_alike(lists, provider, other):
    start = {"ScheduledProcedureStepStartTime": "1500"}
    provider.entries = [item(step={"ScheduledProcedureStepID": one}) for one in ("1", "10")]
    lists.add("north", provider.port)
    lists.work()
    lists.add("south", other.port)
    for service in ("X", "Y"):
        other.entries = [item(RequestingService=service, step={"ScheduledProcedureStepID": "1"}),
                         item(step={"ScheduledProcedureStepID": "10", **start})]  # fmt: skip
        lists.work()
        assert len(cases("upstream_conflict")) == 1


def test_what_a_list_has_said_that_is_not_asked_any_more_another_may_replace(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port)
    lists.work()
    db.run(site.remove_upstream, "north", now=clock.now(), actor="test")
    lists.add("south", provider.port)
    provider.entries = [item(step={"ScheduledProcedureStepStartTime": "1500"})]
    lists.work()
    assert (step().start_time, cases("upstream_conflict")) == ("150000", [])


# What is listed no more


def test_a_list_that_is_suddenly_few_cancels_nothing_until_a_person_takes_it(lists, provider):
    provider.entries = [item(f"ACC00{n}") for n in range(7)]
    name = "my north; list"
    lists.add(name, provider.port, gone="cancel", gone_after=1)
    lists.work()
    provider.entries = provider.entries[:1]
    lists.work()
    assert {one.status for one in rows(ScheduledStep)} == {"SCHEDULED"}
    few = "lists suddenly few: broker upstream now 'my north; list' --gone takes it"
    assert (lists.row(name)["last_error"], lists.row(name)["failures"], lists.row(name)["entries"]) == (few, 0, 7)
    assert upstream.attempt(name, lists.settings)["error"] == few
    upstream.ask_now(name, lists.settings, takes_gone=True)
    assert [one.status for one in rows(ScheduledStep)].count("CANCELED") == 6
    assert (lists.row(name)["last_error"], lists.row(name)["entries"]) == ("", 1)


@pytest.mark.parametrize("change", [{"modality": "MR"}, {"gone": "keep"}])
def test_what_is_not_asked_for_any_more_is_not_missing_nor_what_stays_in_any_case(lists, provider, change):
    provider.entries = [item(f"ACC00{n}") for n in range(7)]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()
    db.run(site.change_upstream, "north", now=clock.now(), actor="test", **change)
    provider.entries = []
    lists.work()
    assert (lists.row()["last_error"], lists.row()["entries"]) == ("", 0)
    assert {one.status for one in rows(ScheduledStep)} == {"SCHEDULED"}


def test_what_could_not_be_read_is_forgotten_although_it_is_never_gone(lists, provider):
    lists.settings.limits.upstream_keep_seconds = 0
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for n in range(3):
        provider.entries = [item(), b"\x08\0\x05\0\xff\xff\0\0" + bytes([n])]
        lists.work()
    assert len(rows(UpstreamEntry)) == 2


def test_of_what_has_ended_no_entry_stays_although_no_answer_is_ever_complete(lists, provider):
    lists.settings.limits.upstream_keep_seconds = 0
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for n in range(4):
        provider.entries = [item(f"ACC00{n}"), b"\x08\0\x05\0\xff\xff\0\0"]
        lists.work()
        move("hold" if n == 0 else "cancel", f"ACC00{n}")
    provider.entries = [b"\x08\0\x05\0\xff\xff\0\0"]
    lists.work()
    assert [one.step_pk for one in rows(UpstreamEntry) if one.step_pk] == [1], "who waits is still known"


def test_what_no_order_carries_is_not_journalled_at_each_answer(lists, provider):
    lists.add("north", provider.port)
    for n in range(3):
        provider.entries = [item(InstanceCreationTime=f"10000{n}")]
        lists.work()
    assert len(rows(Message)) == 1


def test_what_is_listed_no_more_stays_or_is_cancelled_after_as_many_complete_answers(lists, provider, other):
    for name, one in (("north", provider), ("south", other)):
        one.entries = [item(f"{name}1", StudyInstanceUID=None), item(f"{name}2", StudyInstanceUID=None)]
    lists.add("north", provider.port, gone="cancel", gone_after=2)
    lists.add("south", other.port)
    lists.work()
    for one in (provider, other):
        one.entries = one.entries[1:]

    def ended() -> list[str]:
        return [one.accession_number for one in rows(ScheduledStep) if one.status == "CANCELED"]

    provider.status = 0xA700  # not all of it
    for _ in range(3):
        lists.work()
    assert ended() == []
    provider.status = 0
    lists.work()
    assert ended() == []
    lists.work()
    lists.work()
    assert ended() == ["north1"]
    assert messages()[-1].type == "C-FIND gone"
    provider.entries.append(item("north1", StudyInstanceUID=None))
    lists.work()
    assert ended() == [], "listed again: it was cancelled for no other reason"
    said = len(messages())
    lists.work()
    assert len(messages()) == said


@pytest.mark.parametrize(("control", "status_"), [("HD", "CANCELED"), ("XO", "SCHEDULED")])
def test_a_word_of_others_leaves_an_exam_its_lists_and_what_they_know_of_it_does_not(lists, provider, control, status_):
    known = order("ACC001", study_uid=f"1.2.3.{int.from_bytes(b'ACC001', 'big')}")
    there = item(RequestedProcedureID="RACC001", step={"ScheduledProcedureStepID": known.steps[0].sps_id})
    provider.entries = [there]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()
    lists.hl7(omi(known, control, sent=clock.now() + dt.timedelta(minutes=1)))
    provider.entries = []
    lists.work()
    assert step().status == status_


def test_what_others_have_cancelled_does_not_come_back_with_a_list(lists, provider):
    known = order("ACC001", study_uid=f"1.2.3.{int.from_bytes(b'ACC001', 'big')}")
    there = item(RequestedProcedureID="RACC001", step={"ScheduledProcedureStepID": known.steps[0].sps_id})
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for entries in ([there], []):
        provider.entries = entries
        lists.work()
    assert step().status == "CANCELED"
    lists.hl7(omi(known, "CA", sent=clock.now() + dt.timedelta(minutes=1)))
    provider.entries = [there]
    lists.work()
    assert step().status == "CANCELED"
    assert messages("REJECTED")[0].error_code == "205"


def test_an_exam_from_before_there_were_times_is_not_a_lists(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()

    def forget(session: Session) -> None:
        session.exec(select(ScheduledStep)).one().said = {}

    db.run(forget)
    provider.entries = []
    lists.work()
    assert step().status == "SCHEDULED"


def test_only_answers_in_a_row_count(lists, provider):
    lists.add("north", provider.port, gone="cancel", gone_after=2)
    for entries in ([item()], [], [item()], []):
        provider.entries = entries
        lists.work()
    assert step().status == "SCHEDULED"


@pytest.mark.parametrize(("seconds", "known"), [(60, 1), (0, 0)])
def test_what_is_gone_for_long_is_forgotten_and_its_order_is_not(lists, provider, seconds, known):
    lists.settings.limits.upstream_keep_seconds = seconds
    provider.entries = [item()]
    lists.add("north", provider.port, gone_after=1)
    lists.work()
    assert len(rows(UpstreamEntry)) == 1
    provider.entries = []
    lists.work()
    assert (len(rows(UpstreamEntry)), lists.row()["entries"], numbers()) == (known, 0, ["ACC001"])
    assert step().status == "SCHEDULED"


@pytest.mark.parametrize("event", ["expire", "no_show"])
def test_who_did_not_come_is_not_cancelled_although_an_order_could_be(lists, provider, event):
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    provider.entries = [item()]
    lists.work()
    move(event)
    provider.entries = []
    lists.work()
    assert step().status == {"expire": "EXPIRED", "no_show": "NO_SHOW"}[event]


def test_what_was_refused_is_not_cancelled(lists, provider):
    provider.entries = [item(PatientID=None)]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()
    provider.entries = []
    lists.work()
    assert len(rows(Message)) == 1


def test_what_began_is_never_cancelled_by_a_list_nor_what_others_know_of(lists, provider, other):
    known = order("ACC003", study_uid=f"1.2.3.{int.from_bytes(b'ACC003', 'big')}")
    lists.hl7(omi(known))
    provider.entries = [
        item("ACC001"), item("ACC002"), item("ACC003", step={"ScheduledProcedureStepID": known.steps[0].sps_id})
    ]  # fmt: skip
    other.entries = [item("ACC002")]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.add("south", other.port)
    lists.work()

    move("start")
    provider.entries = []
    lists.work()
    assert sorted((one.accession_number, one.status) for one in rows(ScheduledStep)) == [
        ("ACC001", "STARTED"), ("ACC002", "SCHEDULED"), ("ACC003", "SCHEDULED"),
    ]  # fmt: skip
    assert cases("late_cancel") == []
    words = [one.became for one in messages() if one.type == "C-FIND gone"]
    assert len(words) == 3
    assert all(one.startswith("nothing: ") for one in words)


@pytest.mark.parametrize(
    "question", [{"modality": "MR"}, {"station_ae_title": "CT9"}, {"days_before": 9, "days_after": -1}]
)
def test_another_question_cancels_nothing(lists, provider, question):
    provider.entries = [item()]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()
    db.run(site.change_upstream, "north", now=clock.now(), actor="test", **question)
    provider.entries = []
    lists.work()
    lists.work()
    assert step().status == ("CANCELED" if "days_before" in question else "SCHEDULED"), "today is still asked for"


# Whose turn it is


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(lists, provider):
    def at(start: str) -> list[bytes]:
        return [item(step={"ScheduledProcedureStepStartTime": start})]

    def ask_now() -> None:
        provider.entries = at("1100")
        upstream.ask_now("north", lists.settings)

    lists.add("north", provider.port)
    provider.entries = at("0930")
    lists.work()
    provider.entries = at("1000")
    meanwhile(provider, ask_now)
    lists.work()
    assert step().start_time == "110000"
    assert len(messages()) == 2
    upstream.work(lists.settings)
    assert len(provider.asked) == 3, "the newer one has said when it is asked next"


def test_what_was_said_since_the_question_stands_and_the_next_answer_is_looked_at_again(lists, provider):
    known = ordered()
    lists.hl7(omi(known, sent=soon(-60)))
    other = {"ScheduledProcedureStepID": known.steps[0].sps_id, "ScheduledProcedureStepStartTime": "1600"}
    provider.entries = [item(RequestedProcedureID="RACC001", step=other)]
    moved = order("ACC001", study_uid=UID, start=today(15, 30))
    lists.add("north", provider.port)

    def move_it() -> None:
        lists.hl7(omi(moved, "XO", sent=soon()))  # to the second
        time.sleep(1.1)

    meanwhile(provider, move_it)
    for asked in (0, 1, 1):
        lists.work()
        assert (step().start_time, len(cases("upstream_conflict"))) == ("153000", asked)
    assert sum(one.protocol == "dicom" for one in messages()) == 2, "it agrees, and is not said a third time"


@pytest.mark.parametrize("first", ["north", "south"])
def test_of_two_lists_that_are_asked_at_once_the_word_of_more_weight_counts_whoever_answers_first(
    lists, provider, other, first
):
    provider.entries = [item(RequestingService="A", step={"ScheduledProcedureStepStartTime": "1100"})]
    other.entries = [item(RequestingService="B")]
    provider.delay, other.delay = (0, 0.3) if first == "north" else (0.3, 0)
    lists.add("north", provider.port, priority=50)
    lists.add("south", other.port)
    for _ in range(2):
        lists.work()
        assert (rows(ImagingOrder)[0].attributes["RequestingService"], step().start_time) == ("A", "110000")


def test_a_word_of_more_weight_that_comes_late_counts_from_the_next_answer_on(lists, provider, other):
    provider.entries, other.entries = [item(RequestingService="A")], [item(RequestingService="B")]
    lists.add("north", provider.port, priority=50)
    lists.add("south", other.port)
    meanwhile(provider, lambda: upstream.ask_now("south", lists.settings))
    lists.work()
    lists.work()
    assert rows(ImagingOrder)[0].attributes["RequestingService"] == "A"


def test_the_answer_of_a_provider_that_was_removed_since_is_not_taken(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port)
    meanwhile(provider, lambda: db.run(site.remove_upstream, "north", now=clock.now(), actor="test"))
    lists.work()
    assert (len(provider.asked), rows(Message), rows(ImagingOrder)) == (1, [], [])


def test_an_answer_that_lacks_all_counts_for_nothing_when_its_provider_was_changed_since(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port, gone="cancel", gone_after=2)
    lists.work()
    provider.entries = []
    meanwhile(provider, lambda: changed(host="localhost"))
    lists.work()
    assert [one.missed for one in rows(UpstreamEntry)] == [0]
    assert db.read(upstream.the, "north").next_at is None, "and it is due"


def test_a_provider_that_is_to_keep_what_is_gone_cancels_no_more_from_then_on(lists, provider, monkeypatch):
    provider.entries = [item(f"ACC00{n}") for n in range(3)]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()
    say = upstream._say

    def and_change(*what: object, **more: object) -> Message:
        said = say(*what, **more)
        changed(gone="keep")
        return said

    monkeypatch.setattr(upstream, "_say", and_change)
    provider.entries = []
    lists.work()
    assert sorted(one.status for one in rows(ScheduledStep)) == ["CANCELED", "SCHEDULED", "SCHEDULED"]
    lists.work()
    assert sorted(one.status for one in rows(ScheduledStep)) == ["CANCELED", "SCHEDULED", "SCHEDULED"]


def test_a_turn_is_held_on_to_while_entries_are_taken_and_cancelled(lists, provider, monkeypatch):
    held, say = [], upstream._say

    def look(*what: object, **more: object) -> Message:
        held.append(db.read(upstream.the, "north").next_at)
        return say(*what, **more)

    monkeypatch.setattr(upstream, "_say", look)
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    for provider.entries in ([item("ACC001"), item("ACC002")], []):
        lists.work()
    assert len(held) == 4
    assert held == sorted(set(held)), "each time anew"


def test_what_there_is_no_time_for_is_taken_at_once_after_and_nothing_is_gone_before(lists, provider):
    lists.settings.limits.upstream_pass_seconds_max = 0  # one entry at a time
    gone = [item(f"ACC00{n}") for n in range(2)]
    stay = [item(f"ACC00{n}") for n in range(2, 6)]
    provider.entries = [*gone, stay[0]]
    lists.add("north", provider.port, gone="cancel", gone_after=2)
    for n in range(3):
        upstream.work(lists.settings)
        assert (len(numbers()), lists.row()["counts"].get("later", 0)) == (n + 1, 2 - n)
    upstream.work(lists.settings)
    assert len(provider.asked) == 3, "all is taken: it is asked at its time"
    provider.entries = stay
    states = []
    for is_time in (True, False, False, False, True, False):
        lists.work() if is_time else upstream.work(lists.settings)
        states.append((len(numbers()), [one.status for one in rows(ScheduledStep)].count("CANCELED")))
    assert states == [(4, 0), (5, 0), (6, 0), (6, 0), (6, 1), (6, 2)]
    assert (lists.row()["entries"], lists.row()["last_error"], lists.row()["failures"]) == (4, "", 0)


def test_the_time_of_a_pass_is_shared_by_all_that_have_answered(lists, provider, other, monkeypatch):
    lists.settings.limits.upstream_pass_seconds_max = 0.8
    say = upstream._say

    def slowly(*what: object, **more: object) -> Message:
        time.sleep(0.1)
        return say(*what, **more)

    monkeypatch.setattr(upstream, "_say", slowly)
    for name, one in (("north", provider), ("south", other)):
        one.entries = [item(f"{name}{n}", StudyInstanceUID=None) for n in range(5)]
        lists.add(name, one.port)
    lists.work()
    assert lists.row("north")["counts"]["later"] > 0
    assert lists.row("south")["counts"]["later"] > 0


def test_who_asks_now_waits_for_all_of_it(lists, provider):
    lists.settings.limits.upstream_pass_seconds_max = 0
    provider.entries = [item(f"ACC00{n}") for n in range(3)]
    lists.add("north", provider.port)
    assert upstream.ask_now("north", lists.settings)["counts"]["new"] == 3


def test_a_provider_that_was_changed_is_asked_as_if_it_had_never_failed(lists, provider):
    lists.settings.limits.upstream_failures_max = 2
    lists.add("north", provider.port)
    provider.refusal = pdu.reject(1, 1, 3)
    lists.work()
    lists.work()
    assert lists.row()["breaker"] == "open"
    changed(host="localhost")
    assert (lists.row()["breaker"], lists.row()["failures"]) == ("closed", 0)


# When it is away


def test_a_provider_that_stops_leaves_its_entries_and_they_are_marked(lists, provider, other):
    provider.entries, other.entries = [item("ACC001"), item("ACC002")], [item("ACC002")]
    lists.add("north", provider.port)
    lists.add("south", other.port)
    lists.work()
    pks = [one.key for one in rows(ScheduledStep)]
    assert (db.read(upstream.stale_since), db.read(upstream.stale_steps, pks)) == ({}, {})
    provider.close()
    lists.work()
    since = db.read(upstream.stale_since)
    assert list(since) == ["north"]
    lists.work()
    assert db.read(upstream.stale_since) == since, "since it went away"
    alone = next(one.key for one in rows(ScheduledStep) if one.accession_number == "ACC001")
    assert db.read(upstream.stale_steps, pks) == {alone: since["north"]}, "the other list has the rest"
    assert all(one.offerable and one.status == "SCHEDULED" for one in rows(ScheduledStep))
    assert lists.row()["last_error"].startswith("cannot be connected to")
    other.close()
    lists.work()
    (shared,) = {*pks} - {alone}
    assert db.read(upstream.stale_steps, pks)[shared] == db.read(upstream.stale_since)["south"] > since["north"]


def test_after_some_failures_it_is_asked_less_often_until_it_answers(lists, provider):
    lists.settings.limits.upstream_failures_max = 2
    lists.settings.limits.upstream_retry_seconds_max = 300
    lists.add("north", provider.port, every_seconds=60)
    provider.refusal = pdu.reject(1, 1, 3)
    waits, states = [], []
    for _ in range(5):
        lists.work()
        row = db.read(upstream.the, "north")
        waits.append(round((row.next_at - clock.now()).total_seconds(), -1))
        states.append(lists.row()["breaker"])
    assert (waits, states) == ([60, 120, 240, 300, 300], ["closed", "open", "open", "open", "open"])
    assert lists.row()["last_error"] == f"refused the association: {REJECTIONS[1, 3]}"
    asked = len(provider.calling)
    upstream.work(lists.settings)
    assert len(provider.calling) == asked, "not before its time"
    provider.refusal = b""
    lists.work()
    assert (lists.row()["breaker"], lists.row()["failures"], lists.row()["stale_since"]) == ("closed", 0, None)


def test_a_question_that_cannot_be_written_is_refused_and_costs_no_other_provider_its_turn(lists, provider, other):
    provider.entries = [item()]
    for character_set, key in (("ISO_IR 100", {"InstitutionName": "北病院"}), ("", {"PatientSex": "男"})):
        with pytest.raises(BrokerError, match="cannot write"):
            lists.add("south", other.port, character_set=character_set, keys=key)
    lists.add("south", other.port)
    lists.add("north", provider.port)

    def spoil(session: Session) -> None:
        session.exec(select(Upstream).where(Upstream.name == "south")).one().keys = {"PatientSex": "男"}

    db.run(spoil)
    lists.work()
    assert (numbers(), lists.row()["last_error"]) == (["ACC001"], "")
    assert lists.row("south")["last_error"] == upstream.BROKEN


def test_slow_providers_are_asked_at_once_and_cut_off(lists, provider, other):
    lists.settings.limits.upstream_seconds_max = 0.5
    provider.entries, other.entries = [item("ACC001")], [item("ACC002")]
    provider.delay, other.delay = 0.3, 2
    lists.add("north", provider.port)
    lists.add("south", other.port)
    begun = time.monotonic()
    lists.work()
    assert time.monotonic() - begun < 1.5
    assert numbers() == ["ACC001"]
    assert lists.row("south")["last_error"] == "gave no answer in 0.5 seconds"


def test_one_provider_that_breaks_us_does_not_cost_another_its_answer(lists, provider, other, monkeypatch):
    provider.entries, other.entries, other.delay = [item("ACC001")], [item("ACC002")], 0.2
    lists.add("north", provider.port)
    lists.add("south", other.port)
    known = upstream.listing_of

    def broken(answers, source, *more):
        return 1 / 0 if source.name == "north" else known(answers, source, *more)

    monkeypatch.setattr(upstream, "listing_of", broken)
    lists.work()
    assert numbers() == ["ACC002"]
    assert (lists.row()["last_error"], lists.row()["failures"]) == (upstream.BROKEN, 1)


@pytest.mark.parametrize("found", [[(99, 1, 6, "", ("127.0.0.1", 9))], UnicodeError("label too long")])
def test_a_host_that_cannot_be_reached_by_any_family_is_an_error_of_its_own(lists, provider, monkeypatch, found):
    def look_up(host: str, port: int, **_: object) -> list:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(find_client.socket, "getaddrinfo", look_up)
    lists.add("north", provider.port)
    lists.work()
    assert lists.row()["failures"] == 1
    assert lists.row()["last_error"].startswith(("cannot be connected to", "its host is not known"))


def test_a_clock_that_was_years_ahead_does_not_silence_a_provider(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port)

    def far(session: Session) -> None:
        session.exec(select(Upstream)).one().next_at = clock.now() + dt.timedelta(days=3650)

    db.run(far)
    upstream.work(lists.settings)
    assert numbers() == ["ACC001"]


def test_a_provider_that_is_switched_off_is_not_asked(lists, provider):
    provider.entries = [item()]
    lists.add("north", provider.port)
    lists.work()
    db.run(site.change_upstream, "north", now=clock.now(), actor="test", enabled=False)
    lists.work()
    assert (len(provider.asked), lists.row()["breaker"]) == (1, "off")
    assert list(db.read(upstream.stale_since)) == ["north"]


# Hostile answers


def endless(wire, command, context) -> None:
    for n in range(1_000):
        wire.send(pending(command, context, item(f"ACC{n}")))


def half(wire, command, context) -> None:
    wire.send(pending(command, context, item()))
    wire.sock.close()


def unfinished(wire, command, context) -> None:
    wire.send(pending(command, context, item()) + final(command, context, 0xA700))


@pytest.mark.parametrize(
    ("play", "error", "taken"),
    [
        (endless, "has more than 5 answers: ask for less (modality, station, days)", 5),
        (half, "the connection broke off", 1),
        (unfinished, "status A700: it has too many answers or no room: ask for less (modality, station, days)", 1),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_what_came_before_it_went_wrong_is_taken_and_the_rest_is_not_missed(lists, provider, play, error, taken):
    lists.settings.limits.upstream_matches_max = 5
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    provider.entries = [item("ACC999")]
    lists.work()
    provider.play = play
    lists.work()
    assert (lists.row()["last_error"], len(rows(ImagingOrder))) == (error, taken + 1)
    assert {one.status for one in rows(ScheduledStep)} == {"SCHEDULED"}


def test_an_answer_that_is_no_data_set_is_refused_once_and_the_others_are_taken(lists, provider, caplog):
    provider.entries = [b"\xff\xfe\x00\xe0\xff", item()[:-3], b"\x08\x00\x50\x00\xff\xff\xff\x7fYAMADA", item("ACC002")]
    lists.add("north", provider.port, gone="cancel", gone_after=1)
    lists.work()
    lists.work()
    assert (numbers(), len(messages("REJECTED"))) == (["ACC002"], 3)
    assert (lists.row()["counts"]["unreadable"], lists.row()["refused"]) == (3, 3)
    assert "YAMADA" not in caplog.text + "".join(one.error_text for one in messages("REJECTED"))


def test_too_many_bytes_or_elements_are_too_many(lists, provider):
    lists.settings.limits.upstream_bytes_max = 3_000
    lists.settings.limits.upstream_elements_max = 60
    provider.entries = [item(), item("ACC002", Allergies=["x"] * 1_500)]
    lists.add("north", provider.port)
    lists.work()
    assert lists.row()["last_error"] == "has more than 3000 bytes of answers: ask for less (modality, station, days)"
    many = [{"CodeValue": str(n), "CodeMeaning": "x"} for n in range(30)]
    provider.entries = [item("ACC003", step={"ScheduledProtocolCodeSequence": many})]
    lists.work()
    assert numbers() == ["ACC001"]
    assert messages("REJECTED")[0].error_text == "more than 60 elements"


# Before it is done, and by hand


@pytest.fixture
def run(lists, database_url, tmp_path):
    environment = commands.environment(database_url, tmp_path / "data")

    def invoke(*words: str) -> str:
        process = commands.begin([*words], environment, tmp_path)
        process.join(30)
        assert process.exitcode == 0, (tmp_path / "stderr").read_text()
        return (tmp_path / "stdout").read_text()

    return invoke


def test_a_dry_run_tells_what_would_be_and_changes_nothing(lists, provider):
    provider.entries = [item("ACC001"), item("ACC002"), item("ACC003")]
    lists.add("north", provider.port)
    lists.work()
    tables = (ImagingOrder, ScheduledStep, Patient, Message, UpstreamEntry, Upstream, AuditEvent, ReconciliationCase)
    provider.entries = [
        item("ACC001"), item("ACC002", step={"ScheduledProcedureStepStartTime": "1100"}), item("ACC004"),
        item("ACC005", PatientID=None), item("ACC006", step={"ScheduledProcedureStepStatus": "STARTED"}),
    ]  # fmt: skip
    before = [[row.model_dump() for row in rows(table)] for table in tables]
    found = upstream.attempt("north", lists.settings)
    assert [[row.model_dump() for row in rows(table)] for table in tables] == before
    told = {one["accession_number"]: (one["outcome"], one["why"]) for one in found["entries"]}
    assert told["ACC001"] == ("unchanged", "")
    assert told["ACC002"] == ("changed", "")
    assert told["ACC004"] == ("new", "")
    assert told[""][0] in ("refused", "over")
    assert {"101 (0010,0020): is required", "has begun or ended there"} == {
        one["why"] for one in found["entries"] if one["why"]
    }
    assert found["counts"] == {
        "answers": 5,
        "beside": 0,
        "unchanged": 1,
        "changed": 1,
        "new": 1,
        "refused": 1,
        "over": 1,
    }
    orders = {one.accession_number: one.key for one in rows(ImagingOrder)}
    assert found["missing_orders"] == [orders["ACC003"]]


def test_the_verbs_register_ask_show_and_forget_a_list(lists, provider, run, tmp_path):
    provider.entries = [item()]
    words = ("upstream", "add", "north", "--host", "127.0.0.1", "--port", str(provider.port), "--ae-title", "WLM")
    assert run(*words, "--modality", "CT", "--key", "PatientSex=M") == "added\n"
    assert run("upstream", "change", "north", "--gone", "cancel", "--days-after", "3") == "changed\n"
    said = ("--priority", "7", "--modality", "MR", "--every-seconds", "5")
    assert run("upstream", "change", "north", *said) == "changed\n"
    taken_away = ("--priority", "", "--modality", "", "--every-seconds", "", "--gone-after", "", "--days-before", "")
    assert run("upstream", "change", "north", *taken_away) == "changed\n"
    row = lists.row()
    assert (row["priority"], row["modality"], row["every_seconds"], row["days_after"]) == (100, "", 60, 3)
    assert "ACC001" in run("upstream", "try", "north")
    tried = json.loads(run("upstream", "try", "north", "--json"))
    assert tried["counts"] == {"answers": 1, "beside": 0, "new": 1}
    assert run("upstream", "now", "north").endswith("1 answers, 0 beside, 0 unreadable, 1 new, 0 gone\n")
    (row,) = json.loads(run("upstream", "list", "--json"))
    assert (row["keys"], row["entries"], row["stale_since"]) == ({"PatientSex": "M"}, 1, None)
    assert "north" in run("upstream", "list")
    (tmp_path / "site.toml").write_text(run("site", "export"))
    assert run("site", "import", str(tmp_path / "site.toml")) == "upstream north: unchanged\n"
    run("upstream", "remove", "north")
    assert (rows(Upstream), rows(UpstreamEntry), numbers()) == ([], [], ["ACC001"])
