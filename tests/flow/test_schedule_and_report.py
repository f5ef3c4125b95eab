"""What a schedule and a reporting system say, from the wire to what devices and the EHR are shown."""

import base64
import datetime as dt

import pytest

from broker import clock, db, ids, site
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, Report, ScheduledStep
from broker.ris_bridge.mapping import store
from broker.sim.ris import code_of
from tests import world
from tests.house import eventually

PDF = b"%PDF-1.7\nan invented report"
SECRET = "肺野に異常なし"
SIU_ONLY = """
name = "clinic"
extends = "siu-scheduling"

[identity]
unknown = "place"

[[station]]
when = ["AIL-3.2 = CT-A"]
ae_titles = ["CT1"]
modality = "CT"

[[station]]
when = ["AIL-3.2 = CT-B"]
ae_titles = ["CT2"]
modality = "CT"
"""
ARRIVALS = """
name = "counter"

[[message]]
type = "ORU^R01"
when = ["OBX-3 = ARRIVED"]
means = "arrive"
"""


def hl7(kind: str, *segments: str, sender: str = "RIS", patient: world.Patient = world.YAMADA) -> bytes:
    stamp = dt.datetime.now(world.TOKYO).strftime("%Y%m%d%H%M%S.%f%z")
    head = f"MSH|^~\\&|{sender}|HOSP|BROKER|HOSP|{stamp}||{kind}|{ids.control_id()}|P|2.5.1||||||UNICODE UTF-8"
    pid = f"PID|1||{patient.id}^^^{patient.issuer}^PI||{patient.kanji}^^^^^L^I||{patient.birth_date}|{patient.sex}"
    split = 1 if kind.startswith("SIU") else 0
    return "\r".join((head, *segments[:split], pid, *segments[split:], "")).encode()


def slot(
    event: str, start: dt.datetime, *, room: str = "CT-A", numbers: str = "PACC001^HIS|FACC001^RIS", **more
) -> bytes:
    sch = f"SCH||A1^SCH|||||||||||||||||||||||Booked|{numbers}"
    return hl7(
        f"SIU^{event}^SIU_S12", sch, "RGS|1|U", f"AIS|1|U|6000000200000000^胸部単純CT^JJ1017-16M|{start:%Y%m%d%H%M%S}",
        f"AIL|1|U|RAD^{room}", **more,
    )  # fmt: skip


def report(status: str, *results: str, accession: str = "ACC001", **more) -> bytes:
    obr = f"OBR|1|P{accession}^HIS|R{accession}^RIS|CTCHEST^胸部CT|||||||||||||||||||||{status}"
    return hl7("ORU^R01^ORU_R01", f"ORC|RE|P{accession}^HIS|F{accession}^RIS", obr, *results, **more)


def told(broker, raw: bytes) -> str:
    answer = broker.ris().send(raw)
    assert SECRET.encode() not in answer
    return code_of(answer) + (answer.split(b"ERR|")[1].split(b"|")[2][:3].decode() if b"ERR|" in answer else "")


def steps(broker):
    return [(one.start_time, one.status) for one in broker.rows(ScheduledStep)]


def use(broker, text: str, **fields) -> None:
    """That profile for a sender of its own."""
    name, *_ = db.run(store.put, text, now=clock.now(), actor="test")
    db.run(site.add_sender, name, mapping=name, now=clock.now(), actor="test", **fields)


def test_an_appointment_moves_its_order_and_its_end_takes_the_item_off_the_worklist(broker):
    """HL7-31"""
    use(broker, SIU_ONLY.replace('"place"', '"refuse"'), application="RIS")
    broker.place(world.order())
    assert told(broker, slot("S12", world.today(10, 15))) == "AA"
    scanner = broker.modality("CT1")
    (item,) = eventually(scanner.worklist)
    step = item.ScheduledProcedureStepSequence[0]
    assert step.ScheduledProcedureStepStartTime == "101500"
    assert broker.rows(ScheduledStep)[0].attributes["ScheduledProcedureStepLocation"] == "CT-A"
    assert step.ScheduledProcedureStepDescription == "胸部1", "what is to be done is the order's"
    assert told(broker, slot("S13", world.today(14, 30), room="CT-B", numbers="")) == "AA"
    (moved,) = eventually(broker.modality("CT2").worklist)
    assert moved.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartTime == "143000"
    assert scanner.worklist() == []
    assert told(broker, slot("S15", world.today(14, 30), numbers="")) == "AA"
    assert steps(broker) == [("143000", "CANCELED")]
    assert told(broker, slot("S14", world.today(16, 0), numbers="")) == "AA"
    assert steps(broker) == [("143000", "CANCELED")], "it does not come back"
    assert broker.modality("CT2").worklist() == []


def test_a_patient_who_did_not_come_is_shown_as_such(broker):
    """HL7-31"""
    broker.place(world.order())
    assert told(broker, slot("S26", world.today())) == "AA"
    assert steps(broker)[0][1] == "NO_SHOW"


def test_an_appointment_of_an_order_that_nobody_knows_is_refused(broker):
    use(broker, 'name = "own"\nextends = "siu-scheduling"\n[identity]\nunknown = "refuse"\n', application="RIS")
    assert told(broker, slot("S12", world.today())) == "AE204"
    assert broker.rows(ImagingOrder) == []


def test_an_appointment_of_another_patients_order_is_refused(broker):
    broker.place(world.order())
    before = steps(broker)
    assert told(broker, slot("S13", world.today(14, 30), patient=world.SATO)) == "AE205"
    assert steps(broker) == before


def test_where_there_is_only_a_schedule_an_appointment_is_an_order(broker):
    """HL7-31"""
    use(broker, SIU_ONLY, application="CLINIC")
    for event, start in (("S12", world.today(10, 15)), ("S13", world.today(11, 45))):
        assert told(broker, slot(event, start, numbers="", sender="CLINIC")) == "AA"
    (order,) = broker.rows(ImagingOrder)
    (item,) = eventually(broker.modality("CT1").worklist)
    step = item.ScheduledProcedureStepSequence[0]
    assert (item.AccessionNumber, item.PatientID) == (order.accession_number, "0000012345")
    assert (step.ScheduledProcedureStepStartTime, step.Modality) == ("114500", "CT")
    assert step.ScheduledProtocolCodeSequence[0].CodeValue == "6000000200000000"
    assert broker.rows(Message)[-1].mapping == "clinic v1"
    assert told(broker, slot("S17", world.today(), numbers="", sender="CLINIC")) == "AA"
    assert steps(broker) == [("114500", "CANCELED")]


def test_a_final_report_closes_its_order_and_is_read_as_it_was_sent(broker):
    broker.place(world.order())
    scanner = broker.modality("CT1")
    (item,) = eventually(scanner.worklist)
    uid = scanner.start([item])
    images = scanner.images(item, 1, mpps_uid=uid)
    scanner.store(images)
    scanner.finish(uid, images)
    broker.status("ACC001", "AVAILABLE")
    assert told(broker, report("P", f"OBX|1|TX|FIND^所見||{SECRET}||||||P")) == "AA"
    assert broker.ehr().status("ACC001")["state"] == "AVAILABLE"
    pdf = f"OBX|2|ED|PDF^PDF||RIS^application^PDF^Base64^{base64.b64encode(PDF).decode()}||||||F"
    assert told(broker, report("F", f"OBX|1|TX|FIND^所見||{SECRET}||||||F", pdf)) == "AA"
    broker.status("ACC001", "REPORTED")

    http = broker.ehr().http
    path = f"/api/v1/orders/{broker.rows(ImagingOrder)[0].pk}/reports"
    items = http.get(path).json()["items"]
    assert [(one["version"], one["status"], one["superseded"]) for one in items] == [
        (1, "preliminary", True),
        (2, "final", False),
    ]
    assert [(one["number"], one["issuer"], one["title"]) for one in items] == [("RACC001", "RIS", "胸部CT")] * 2
    assert [(one["text"], one["document_bytes"]) for one in items] == [(True, 0), (True, len(PDF))]
    document = http.get(f"{path}/2")
    assert (document.headers["content-type"], document.content) == ("application/pdf", PDF)
    for text in (http.get(f"{path}/1"), http.get(f"{path}/2", params={"form": "text"})):
        assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", SECRET)
    assert [http.get(f"{path}/{n}").status_code for n in ("3", "0")] == [404, 422]
    assert http.get(f"{path}/1", params={"form": "pdf"}).status_code == 404
    assert http.get("/api/v1/orders/999/reports").status_code == 404


def test_a_report_on_another_patients_order_is_kept_nowhere(broker):
    broker.place(world.order())
    said = f"OBX|1|TX|FIND^所見||{SECRET}||||||F"
    assert told(broker, report("F", said, patient=world.SATO)) == "AE205"
    assert told(broker, report("F", said, accession="ACC777")) == "AE204"
    assert broker.rows(Report) == []
    assert not any(SECRET in row.error_text for row in broker.rows(Message))


@pytest.mark.parametrize(("data", "code"), [("%%%%", "AE102"), (base64.b64encode(b"MZ no pdf").decode(), "AE102")])
def test_a_document_that_is_none_is_refused_by_its_place(broker, data, code):
    broker.place(world.order())
    raw = report("F", f"OBX|1|ED|PDF^PDF||RIS^application^PDF^Base64^{data}||||||F")
    answer = broker.ris().send(raw)
    assert b"ERR||OBX^1^5|102" in answer
    assert told(broker, raw) == code


def test_a_document_of_a_megabyte_is_kept_whole(broker):
    broker.place(world.order())
    pdf = PDF + bytes(range(256)) * 4096
    segment = f"OBX|1|ED|PDF^PDF||RIS^application^PDF^Base64^{base64.b64encode(pdf).decode()}||||||F"
    assert told(broker, report("F", segment)) == "AA"
    assert broker.rows(Report)[0].document == pdf


def test_a_notice_of_arrival_that_comes_as_a_result_moves_its_order_alone(broker):
    use(broker, ARRIVALS, application="COUNTER")
    for accession in ("ACC001", "ACC002"):
        broker.place(world.order(accession))
    assert told(broker, report("", "OBX|1|TX|ARRIVED||1", sender="COUNTER")) == "AA"
    assert [status for _, status in steps(broker)] == ["ARRIVED", "SCHEDULED"]
    assert broker.rows(Report) == []
