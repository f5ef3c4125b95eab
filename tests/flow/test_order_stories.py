"""Acceptance cases of order intake that need the whole way: from the wire to the rows, the worklist and what an EHR is
told. Clauses about roads that are not built (HL7 out) are checked by rows."""

import datetime as dt

import pytest

from broker import clock, db, site
from broker.model.images import ReconciliationCase, Study
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.model.work import Destination, Outbox
from broker.sim.ris import Order, code_of, omi
from tests import world
from tests.flow.test_schedule_and_report import hl7, told
from tests.house import eventually


def later(order: Order, control: str, minutes: int = 1) -> bytes:
    return omi(order, control, sent=dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes))


def placing(accession: str, pid: str) -> bytes:
    """An OMG of today with that PID from field 3 on."""
    return hl7(
        "OMG^O19^OMG_O19", f"ORC|NW|P{accession}^HIS|F{accession}^RIS" + "|" * 15 + "CT1", f"TQ1|1||||||{world.today():%Y%m%d%H%M%S}",
        f"OBR|1|P{accession}^HIS|F{accession}^RIS|CTCHEST^胸部CT^99LOCAL" + "|" * 14
        + f"{accession}|R{accession}|S{accession}||||CT",
    ).replace(hl7("OMG").split(b"\r")[1], f"PID|1||{pid}".encode())  # fmt: skip


def sees(broker) -> list[str]:
    """Accession numbers on the worklist of CT1."""
    return [item.AccessionNumber for item in broker.modality("CT1").worklist()]


# Characters, as they end up in the record and on the scanner


@pytest.mark.parametrize(("codec", "declared", "entry"), [("cp932", b"~ISO IR87", "CP932"), ("iso2022_jp", b"", "")])
def test_a_name_of_difficult_second_bytes_is_stored_and_shown_whole(broker, codec, declared, entry):
    """HL7-07 HL7-09: by the set of its sender, whatever MSH-18 says; by the site's where it says nothing."""
    db.run(site.add_sender, "RIS", application="HIS", character_set=entry, actor="test", now=clock.now())
    said = omi(world.order()).decode("iso2022_jp").replace("山田^太郎^^^^^L^I", "ソ表^能ポ^^^^^L^I")
    raw = said.replace("胸部1", "ソ表能ポ").encode(codec).replace(b"~ISO IR87", declared)
    assert code_of(broker.ris().send(raw)) == "AA"
    (patient,), (step,) = broker.rows(Patient), broker.rows(ScheduledStep)
    assert patient.name == "YAMADA^TARO=ソ表^能ポ=ヤマダ^タロウ"
    assert step.description == "ソ表能ポ"
    (item,) = broker.modality("CT1").worklist()
    assert str(item.PatientName) == patient.name


def test_repetitions_of_a_name_without_a_code_are_told_apart_by_their_script(broker):
    """HL7-29"""
    for accession, number, name in (
        ("ACC001", "1", "ヤマダ^タロウ~山田^太郎"),
        ("ACC002", "2", "ﾔﾏﾀﾞ^ﾀﾛｳ^^^^^L^P~山田^太郎^^^^^L^I"),
    ):
        answer = broker.ris().send(placing(accession, f"{number}^^^HOSP^PI||{name}||19700101|M"))
        assert code_of(answer) == "AA"
    assert [row.name for row in broker.rows(Patient)] == ["YAMADA^TARO=山田^太郎=ヤマダ^タロウ"] * 2


def test_escaped_text_is_stored_as_it_was_meant_and_an_answer_repeats_it_escaped(broker):
    """HL7-36"""
    raw = omi(world.order()) + b"NTE|1||a\\F\\b\\S\\c\\T\\d\\R\\e\\E\\f\\.br\\g\r"
    assert code_of(broker.ris().send(raw.replace(b"PACC001^HIS", b"P\\T\\1^HIS"))) == "AA"
    (item,) = broker.modality("CT1").worklist(everything(broker))
    assert item.PlacerOrderNumberImagingServiceRequest == "P&1"
    assert str(item.RequestedProcedureComments).splitlines() == ["a|b^c&d~e\\f", "g"]
    asked = hl7("OMG^O19^OMG_O19", "ORC|SS|P\\T\\1^HIS", "OBR|1|P\\T\\1^HIS||X^a\\F\\b^L")
    answer = broker.ris().send(asked)
    assert b"\rORC|SC|P\\T\\1^HIS|" in answer
    assert b"\rOBR|1|P\\T\\1^HIS||X^a\\F\\b^L\r" in answer


def everything(broker):
    query = broker.modality("CT1").query()
    for keyword in ("PlacerOrderNumberImagingServiceRequest", "RequestedProcedureComments"):
        setattr(query, keyword, None)
    return query


# Cancels


def test_a_cancel_is_seen_on_every_road_out(broker):
    """HL7-16"""
    broker.place(world.order())
    assert sees(broker) == ["ACC001"]
    assert code_of(broker.ris().send(later(world.order(), "CA"))) == "AA"
    assert sees(broker) == []
    http = broker.ehr("ris").http
    (order,), (step,) = broker.rows(ImagingOrder), broker.rows(ScheduledStep)
    assert http.get(f"/fhir/Task/{step.pk}").json()["status"] == "cancelled"
    assert http.get(f"/fhir/ServiceRequest/{order.pk}").json()["status"] == "revoked"
    assert broker.ehr().status("ACC001")["state"] == "CANCELLED"


def test_a_cancel_of_what_is_on_the_table_is_answered_and_stops_nothing(broker):
    """HL7-17"""
    broker.place(world.order())
    scanner = broker.modality("CT1")
    (item,) = scanner.worklist()
    uid = scanner.start([item])
    assert code_of(broker.ris().send(later(world.order(), "CA"))) == "AA"
    assert [one.status for one in broker.rows(ScheduledStep)] == ["STARTED"]
    assert [one.kind for one in broker.rows(ReconciliationCase)] == ["late_cancel"]
    db.run(site.add_sender, "RIS", application="HIS", order_responses=True, actor="test", now=clock.now())
    answer = broker.ris().send(later(world.order(), "CA", 2))
    assert b"\rORC|UC|PACC001^HIS|FACC001^RIS||IP" in answer
    scanner.finish(uid, scanner.images(item, 1))
    assert [one.status for one in broker.rows(ScheduledStep)] == ["COMPLETED"]


# Patients


def test_a_merge_with_a_number_that_nobody_has_is_heeded_later(broker):
    """HL7-24"""
    broker.place(world.order())
    assert told(broker, hl7("ADT^A40^ADT_A39", "MRG|B7^^^HOSP^PI")) == "AA"
    assert broker.rows(Message)[-1].state == "APPLIED"
    assert told(broker, placing("ACC002", "B7^^^HOSP^PI||山田^太郎||19700101|M")) == "AA"
    (patient,) = broker.rows(Patient)
    assert {one.patient_pk for one in broker.rows(ImagingOrder)} == {patient.pk}
    assert [item.PatientID for item in broker.modality("CT1").worklist()] == [world.YAMADA.id] * 2


def test_a_new_number_takes_orders_and_images_along(broker):
    """HL7-26"""
    broker.place(world.order())
    scanner = broker.modality("CT1")
    (item,) = scanner.worklist()
    scanner.store(scanner.images(item, 1))
    assert eventually(lambda: broker.rows(Study, state="ARCHIVED"))
    number = world.Patient("N1", "山田^太郎", "", "19700101", "M")
    assert told(broker, hl7("ADT^A47^ADT_A30", f"MRG|{world.YAMADA.id}^^^HOSP^PI", patient=number)) == "AA"
    (patient,), (study,) = broker.rows(Patient), broker.rows(Study)
    assert study.patient_pk == patient.pk
    items = broker.ehr().http.get("/api/v1/status", params={"patient_id": "N1"}).json()["items"]
    assert [(one["accession_number"], one["patient"]["id"]) for one in items] == [("ACC001", "N1")]
    assert study.study_instance_uid in items[0]["study_instance_uids"]


def test_an_empty_field_says_nothing_and_two_quotes_delete(broker):
    """HL7-27"""
    broker.place(world.order())
    for sex, known in (("", "M"), ('""', "")):
        pid = world.Patient(world.YAMADA.id, "山田^太郎", "", "19700101", sex)
        assert told(broker, hl7("ADT^A08^ADT_A01", patient=pid)) == "AA"
        assert [row.sex for row in broker.rows(Patient)] == [known]


def test_an_order_makes_the_patient_where_no_adt_ever_comes(broker):
    """HL7-41"""
    assert told(broker, placing("ACC001", "7^^^HOSP^PI~9^^^WARD^XX||山田^太郎~ヤマダ^タロウ||19700101|F")) == "AA"
    (patient,) = broker.rows(Patient)
    assert (patient.name, patient.birth_date, patient.sex) == ("YAMADA^TARO=山田^太郎=ヤマダ^タロウ", "19700101", "F")
    identifier, *_ = broker.rows(PatientIdentifier)
    assert (identifier.value, identifier.issuer) == ("7", "HOSP")
    assert sees(broker) == ["ACC001"]


# A schedule with several services


def two_slots(event: str, *times: tuple[int, int]) -> bytes:
    """One appointment of the order's two steps, a service for each, by their codes; the second is said first."""
    services = []
    for n, (hour, minute) in reversed([*enumerate(times)]):
        services += [
            f"RGS|{n + 1}|U", f"AIS|{n + 1}|U|6000{n}00200000000^胸部{n + 1}^JJ1017-16M"
            f"|{world.today(hour, minute):%Y%m%d%H%M%S}", f"AIL|{n + 1}|U|RAD^ROOM{n + 1}",
        ]  # fmt: skip
    return hl7(f"SIU^{event}^SIU_S12", "SCH||A1^SCH|||||||||||||||||||||||Booked|PACC001^HIS|FACC001^RIS", *services)


def slots(broker) -> list[tuple[str, str, str]]:
    return [
        (one.start_time, one.attributes.get("ScheduledProcedureStepLocation", ""), one.status)
        for one in broker.rows(ScheduledStep)
    ]


def test_an_appointment_of_two_services_moves_each_step_of_its_order(broker):
    """HL7-31: one order of two steps; each service goes to the step of its code, whatever its place in the message."""
    broker.place(world.order(steps=2))
    assert told(broker, two_slots("S12", (9, 10), (9, 40))) == "AA"
    assert slots(broker) == [("091000", "ROOM1", "SCHEDULED"), ("094000", "ROOM2", "SCHEDULED")]
    assert told(broker, two_slots("S13", (13, 5), (9, 40))) == "AA"
    assert slots(broker) == [("130500", "ROOM1", "SCHEDULED"), ("094000", "ROOM2", "SCHEDULED")]
    shown = [one.ScheduledProcedureStepSequence[0] for one in broker.modality("CT1").worklist()]
    assert {one.ScheduledProcedureStepID: one.ScheduledProcedureStepStartTime for one in shown} == {
        "S1ACC001": "130500", "S2ACC001": "094000",
    }  # fmt: skip
    scanner = broker.modality("CT1")
    first = next(
        one
        for one in scanner.worklist()
        if one.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID == "S1ACC001"
    )
    scanner.start([first])
    assert told(broker, two_slots("S15", (13, 5), (9, 40))) == "AA"
    assert [status for *_, status in slots(broker)] == ["STARTED", "CANCELED"]


# What leaves


def test_each_event_of_three_orders_waits_once_in_the_lane_of_its_order(broker):
    """HL7-37: by the rows of the outbox; which peer answers what is shown when HL7 leaves."""
    db.run(lambda session: session.add(Destination(name="his", kind="webhook")))
    accessions = ("ACC001", "ACC002", "ACC003")
    ris = broker.ris()
    sent = [omi(world.order(accession)) for accession in accessions]
    sent += [later(world.order(accession), "CA") for accession in reversed(accessions)]
    for raw in [*sent, *sent]:
        assert code_of(ris.send(raw)) == "AA"
    rows = broker.rows(Outbox)
    assert len(rows) == 6
    lanes = {lane: [one.event for one in rows if one.lane == lane] for lane in {one.lane for one in rows}}
    assert lanes == {f"his|{accession}": ["order.scheduled", "order.cancelled"] for accession in accessions}
    assert len({one.control_id for one in rows}) == 6
    for lane in lanes:
        versions = [one.body["version"] for one in rows if one.lane == lane]
        assert versions == sorted(set(versions))
