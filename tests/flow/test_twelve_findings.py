"""Twelve things that the strongest peer does wrong by its code and default configuration (peers.md, "Findings from
source that matter most"), in its numbering: what happens here instead, as the other side of the wire sees it."""

import datetime as dt
from dataclasses import replace

import pytest
from pydicom.dataset import Dataset

from broker import ids
from broker.model.images import Decision, Instance, ReconciliationCase, Study
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient
from broker.sim.modality import Modality, Refused
from broker.sim.ris import Order, code_of, omi
from tests import world
from tests.flow.test_schedule_and_report import hl7, told
from tests.house import eventually
from tests.wire.test_mpps import get


def statuses(broker) -> list[str]:
    return [one.status for one in broker.rows(ScheduledStep)]


def say(broker, order: Order, control: str, *, minutes: int = 0) -> str:
    """MSA-1. minutes: how long after now it is said."""
    return code_of(broker.ris().send(omi(order, control, sent=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes))))


def exam_of(broker, accession: str = "ACC001") -> tuple[Modality, Dataset]:
    """A scanner, and its item of that order."""
    scanner = broker.modality("CT1")
    (item,) = eventually(lambda: [one for one in scanner.worklist() if one.AccessionNumber == accession])
    return scanner, item


def without_a_study_uid(order: str, issuer: str, patient: world.Patient = world.YAMADA) -> bytes:
    """An OMG of a RIS that makes no Study UID; all its numbers are the same, whoever says them."""
    return hl7(
        "OMG^O19^OMG_O19", f"ORC|NW|P1^{issuer}|F1^{issuer}", f"TQ1|1||||||{world.today():%Y%m%d%H%M%S}",
        f"OBR|1|P1^{issuer}|F1^{issuer}|CTCHEST^胸部CT^99LOCAL" + "|" * 14 + f"{order}|RP1|S1||||CT",
        patient=patient,
    )  # fmt: skip


def test_an_order_whose_status_is_blank_or_not_in_any_table_is_on_the_worklist(broker):
    """Finding 1: NW with an empty ORC-5 is AE there, and no item is made."""
    for accession, status in (("ACC001", b""), ("ACC002", b"ZZ")):
        raw = omi(world.order(accession))
        assert raw.count(b"||SC||||") == 1
        assert code_of(broker.ris().send(raw.replace(b"||SC||||", b"||" + status + b"||||"))) == "AA"
    assert [item.AccessionNumber for item in broker.modality("CT1").worklist()] == ["ACC001", "ACC002"]


def test_what_has_ended_is_never_scheduled_again_by_a_later_order_message(broker):
    """Finding 2: there the status of a later message overwrites COMPLETED."""
    order = world.order()
    broker.place(order)
    scanner, item = exam_of(broker)
    scanner.finish(scanner.start([item]), scanner.images(item, 1))
    assert statuses(broker) == ["COMPLETED"]
    for minutes, control in enumerate(("NW", "XO", "SC", "RL"), start=1):
        assert say(broker, order, control, minutes=minutes) == "AA"
    assert statuses(broker) == ["COMPLETED"]
    assert scanner.worklist() == []


def test_an_unchanged_first_step_hides_no_other_and_a_step_that_is_not_mentioned_stays(broker):
    """Finding 3: there the first unchanged step ends the loop, and what a message does not mention is deleted."""
    order = world.order(steps=2)
    broker.place(order)
    raw = omi(world.order(steps=3), "XO", sent=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))
    second = "胸部2".encode("iso2022_jp")
    assert code_of(broker.ris().send(raw.replace(second, b"again"))) == "AA"
    assert [one.description for one in broker.rows(ScheduledStep)] == ["胸部1", "again", "胸部3"]
    assert say(broker, replace(order, steps=order.steps[:1]), "XO", minutes=2) == "AA"
    assert statuses(broker) == ["SCHEDULED"] * 3
    assert len(broker.modality("CT1").worklist()) == 3


def test_a_status_in_a_query_never_brings_what_has_ended(broker):
    """Finding 4: there an unknown value takes the filter away, and the device gets what is finished or cancelled."""
    for accession in ("ACC001", "ACC002", "ACC003"):
        broker.place(world.order(accession))
    scanner, item = exam_of(broker)
    scanner.finish(scanner.start([item]), scanner.images(item, 1))
    broker.place(world.order("ACC002"), "CA")
    assert sorted(statuses(broker)) == ["CANCELED", "COMPLETED", "SCHEDULED"]
    query = scanner.query()
    for asked, shown in (("", 1), ("SCHEDULED", 1), ("UNHEARD", 0), ("COMPLETED", 0), ("CANCELED", 0)):
        query.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus = asked
        assert [one.AccessionNumber for one in scanner.worklist(query)] == ["ACC003"] * shown, asked


def test_the_same_numbers_of_two_issuers_never_share_a_study_uid(broker):
    """Finding 5: there it is derived from the bare requested procedure ID or accession number."""
    for accession, issuer, patient in (("ACC001", "NORTH", world.YAMADA), ("ACC002", "SOUTH", world.SATO)):
        broker.settings.site.accession_issuer = issuer
        assert told(broker, without_a_study_uid(accession, issuer, patient)) == "AA"
    broker.settings.site.accession_issuer = "EAST"
    assert told(broker, without_a_study_uid("ACC001", "EAST", world.TAKAHASHI)) == "AA"
    procedures = broker.rows(RequestedProcedure)
    assert [one.requested_procedure_id for one in procedures] == ["RP1"] * 3
    uids = [one.study_instance_uid for one in procedures]
    assert len(set(uids)) == 3
    assert all(ids.valid_uid(uid) for uid in uids)
    assert told(broker, without_a_study_uid("ACC001", "EAST", world.TAKAHASHI)) == "AA"
    assert [one.study_instance_uid for one in broker.rows(RequestedProcedure)] == uids, "the same when it comes again"


def test_a_character_set_that_is_not_known_is_an_error_and_no_name_is_lost(broker):
    """Finding 6: there it is read as US-ASCII, without a word."""
    for declared in (b"EBCDIC", b"~ISO IR99", b"UNICODE UTF-16"):
        answer = broker.ris().send(omi(world.order()).replace(b"~ISO IR87", declared))
        assert code_of(answer) == "AE"
        assert b"|MSH^1^18|102^" in answer
    assert (broker.rows(Patient), broker.rows(ImagingOrder)) == ([], [])


def test_images_are_compared_with_their_order_and_never_take_its_identity_unseen(broker):
    """Finding 7: there the order's identity is written over the image's own, if the feature is switched on at all."""
    broker.place(world.order())
    scanner, item = exam_of(broker)
    (image,) = scanner.images(item, 1, PatientID=world.SATO.id, PatientName="SATO^HANAKO", PatientBirthDate="19850315")
    assert scanner.store([image]) == [0x0000]
    assert broker.status("ACC001", "HELD")["held"]["reasons"]
    (instance,) = broker.rows(Instance)
    assert (instance.state, instance.store_key, instance.rendition_key) == ("HELD", "", "")
    assert [(one.level, one.state) for one in broker.rows(ReconciliationCase, kind="study")] == [("red", "OPEN")]


def test_an_arrival_reaches_the_visit_that_it_names_and_no_other_exam_of_the_patient(broker):
    """Finding 8: there ADT^A10 moves all that the patient has. The orders' visits are VACC001 and VACC002."""
    for accession in ("ACC001", "ACC002"):
        broker.place(world.order(accession))
    visit = "PV1|1|O|01||||||||||||||||VACC002^^^HOSP"
    assert told(broker, hl7("ADT^A10^ADT_A09", visit)) == "AA"
    assert statuses(broker) == ["SCHEDULED", "ARRIVED"]
    assert told(broker, hl7("ADT^A10^ADT_A09")) == "AE101", "it names no visit"
    assert told(broker, hl7("ADT^A12^ADT_A09", visit)) == "AA"
    assert statuses(broker) == ["SCHEDULED", "SCHEDULED"]


def test_a_performed_step_is_checked_is_read_again_and_finds_its_order_without_a_step_id(broker):
    """Finding 9: there nothing of it is checked, N-GET is missing, and only Study UID with SPS ID match."""
    broker.place(world.order())
    scanner, item = exam_of(broker)
    with pytest.raises(Refused, match="0106"):
        scanner.start([item], PerformedProcedureStepStatus="COMPLETED")
    with pytest.raises(Refused, match="0121"):
        scanner.start([item], PerformedProcedureStepID="")
    assert statuses(broker) == ["SCHEDULED"]
    item.StudyInstanceUID = ids.uid("2.25")
    item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID = ""
    uid = scanner.start([item])
    assert statuses(broker) == ["STARTED"]
    code, found = get(scanner, uid, 0x00400252)
    assert (code, found.PerformedProcedureStepStatus) == (0x0000, "IN PROGRESS")


def test_a_conflict_of_images_is_no_error_to_the_device_and_waits_for_a_person(broker):
    """Finding 10: there it ends in a silent merge, a silent new identifier or an error; there is no place to wait."""
    for accession, patient in (("ACC001", world.YAMADA), ("ACC002", world.SATO)):
        broker.place(world.order(accession, patient))
    scanner, item = exam_of(broker)
    _, other = exam_of(broker, "ACC002")
    mixed = scanner.images(other, 1, StudyInstanceUID=item.StudyInstanceUID, series_uid="2.25.77")
    assert scanner.store(mixed) == [0x0000]
    (study,) = eventually(lambda: broker.rows(Study, state="IN_REVIEW"))
    assert study.study_instance_uid == item.StudyInstanceUID, "no new identifier"
    assert [one.state for one in broker.rows(Instance)] == ["HELD"]
    assert [one.state for one in broker.rows(ReconciliationCase, kind="study")] == ["OPEN"]


@pytest.mark.parametrize(
    ("owner", "states"), [(world.YAMADA, ("HELD", "IN_REVIEW")), (world.SATO, ("STORED", "ARCHIVED"))]
)
def test_an_order_that_comes_after_its_images_takes_only_those_of_its_own_patient(broker, owner, states):
    """Finding 11: there it finds them by the accession number, whoever's they are."""
    scanner = broker.modality("CT1")
    images = scanner.images(
        None, 1, AccessionNumber="ACC001", PatientID=world.SATO.id, IssuerOfPatientID="HOSP", PatientName="SATO^HANAKO",
        PatientBirthDate="19850315", PatientSex="F",
    )  # fmt: skip
    assert scanner.store(images) == [0x0000]
    assert eventually(lambda: broker.rows(Study, state="IN_REVIEW"))
    broker.place(world.order("ACC001", owner))
    assert eventually(lambda: len(broker.rows(Decision)) > 1), "it is looked at again by itself"
    assert eventually(lambda: seen(broker) == states), seen(broker)
    (instance,) = broker.rows(Instance)
    assert bool(instance.store_key or instance.rendition_key) == (owner == world.SATO)


def seen(broker) -> tuple[str, str]:
    (instance,), (study,) = broker.rows(Instance), broker.rows(Study)
    return instance.state, study.state


def test_a_number_that_is_not_known_is_empty_in_whatever_is_told_and_never_the_study_uid(broker):
    """Finding 12: there placer, filler, accession number and requested procedure ID are filled with the Study UID."""
    uid = "1.2.392.99999.7"
    zds = f"ZDS|{uid}^RIS^Application^DICOM"
    bare = "OBR|1|P1^HIS||CTCHEST^胸部CT^99LOCAL"
    timing = f"TQ1|1||||||{world.today():%Y%m%d%H%M%S}"
    answers = [
        broker.ris().send(hl7("OMG^O19^OMG_O19", *segments))
        for segments in (
            ("ORC|SS|P1^HIS", bare, zds),
            ("ORC|NW|P1^HIS", timing, bare + "|" * 14 + "ACC001|RP1|S1||||CT", zds),
            ("ORC|SS|P1^HIS", bare, zds),
            ("ORC|SN", timing, "OBR|1|||CTCHEST^胸部CT^99LOCAL" + "|" * 14 + "ACC002|RP2|S2||||CT"),
        )
    ]
    assert [code_of(answer) for answer in answers] == ["AE", "AA", "AA", "AA"]
    unknown, _, known, assigned = [numbers(answer) for answer in answers]
    assert (unknown, known) == (["P1^HIS", ""], ["P1^HIS", ""])
    uids = {uid} | {one.study_instance_uid for one in broker.rows(RequestedProcedure)}
    assert not any(one.encode() in answer for one in uids for answer in answers)
    assert not set(assigned) & uids
    first, second = (broker.ehr().status(accession)["requested_procedures"] for accession in ("ACC001", "ACC002"))
    assert first == [{"id": "RP1", "placer_order_number": "P1", "filler_order_number": ""}]
    assert second[0]["placer_order_number"] == assigned[0].split("^")[0]


def numbers(answer: bytes) -> list[str]:
    """ORC-2 and ORC-3 of an order response; none in a plain acknowledgement."""
    orc = [line for line in answer.decode().split("\r") if line.startswith("ORC|")]
    return [*orc[0].split("|"), "", ""][2:4] if orc else []
