"""FHIR R4 on real sockets: orders in, all or nothing; what they became is read again; every error is an OperationOutcome."""

import json
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlmodel import Session, select

from broker import db
from broker.model.messages import Message, MessageKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep, StepVersion
from broker.model.patients import Patient
from broker.ris_bridge import inbox, replay
from broker.ris_bridge.fhir import resources, road
from tests import roads
from tests.house import House
from tests.world import today

MEDIA = "application/fhir+json; charset=utf-8"
JP_SYSTEM = re.compile(r"urn:oid:1\.2\.392\.100495\.20\.3\.51\.1(0[1-9]|[1-3][0-9]|4[0-7])([0-9])([0-9]{7})$")


def ask(
    broker: House, method: str, path: str = "", body: object = None, role: str | None = "ris", **headers: str
) -> httpx.Response:
    said = {
        "Content-Type": "application/fhir+json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    if role:
        said["Authorization"] = f"Bearer {broker.tokens[role]}"
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
    )
    url = f"http://127.0.0.1:{broker.ports['http']}/fhir{path}"
    answer = httpx.request(method, url, content=content, headers=said, timeout=40)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == MEDIA, answer.text
        assert answer.json()["resourceType"] == "OperationOutcome"
    return answer


@pytest.fixture
def site(broker, monkeypatch):
    monkeypatch.setattr(broker.settings.site, "accession_issuer", "RIS")
    monkeypatch.setattr(broker.settings.fhir, "systems", roads.SYSTEMS)
    return broker


@pytest.fixture
def placed(site):
    """The golden order, by a transaction."""
    answer = ask(site, "POST", body=roads.fhir(today()))
    assert answer.status_code == 200, answer.text
    return site


def outcome(answer: httpx.Response) -> tuple[str, list[str]]:
    (issue,) = answer.json()["issue"]
    return issue["code"], issue.get("expression", [])


# In


def test_a_transaction_is_answered_entry_by_entry(site):
    answer = ask(site, "POST", body=roads.fhir(today()))
    assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA)
    bundle = answer.json()
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "transaction-response")
    entries = [one["response"] for one in bundle["entry"]]
    assert [(one["status"], one["location"]) for one in entries] == [
        ("201 Created", "Patient/1"), ("201 Created", "ServiceRequest/1"), ("201 Created", "Appointment/1"),
        ("201 Created", "Task/1"),
    ]  # fmt: skip
    for one in entries:
        read = ask(site, "GET", f"/{one['location']}")
        assert (read.status_code, read.headers["ETag"]) == (200, one["etag"])
    assert site.modality("CT1").worklist()[0].AccessionNumber == "ACC001"


def test_the_same_transaction_again_changes_nothing(placed):
    again = ask(placed, "POST", body=roads.fhir(today())).json()
    assert {one["response"]["status"] for one in again["entry"]} == {"200 OK"}
    assert len(placed.rows(ImagingOrder)) == len(placed.rows(StepVersion)) == len(placed.rows(Patient)) == 1


def test_two_procedures_of_one_order_have_a_key_each(site):
    second = {**roads.service_request(), "orderDetail": []}
    second["identifier"] = [roads._identifier("P2", roads.HIS, "PLAC")]
    entries = ask(site, "POST", body=roads.bundle(roads.patient(), roads.service_request(), second)).json()["entry"]
    (_, other) = site.rows(RequestedProcedure)
    assert [one["response"]["location"] for one in entries[1:]] == ["ServiceRequest/1", f"ServiceRequest/1-{other.pk}"]
    found = ask(site, "GET", f"/ServiceRequest/1-{other.pk}").json()
    assert (found["identifier"][0]["value"], found["identifier"][1]["value"]) == ("P2", "ACC001")


def test_a_transaction_with_one_wrong_entry_leaves_nothing(site):
    bundle = roads.fhir(today())
    bundle["entry"][2]["resource"]["start"] = "noon"
    refused = ask(site, "POST", body=bundle)
    assert (refused.status_code, outcome(refused)) == (422, ("code-invalid", ["Bundle.entry[2].resource.start"]))
    assert not site.rows(Patient)
    (row,) = site.rows(Message)
    assert (row.state, row.protocol, row.type) == ("REJECTED", "fhir", "POST Bundle")
    assert row.answer.endswith(refused.content)
    assert {(one.kind, one.value) for one in site.rows(MessageKey)} >= {
        ("accession", "ACC001"), ("patient", "0000012345"), ("placer", "P1"), ("filler", "F1"), ("study", roads.UID),
    }  # fmt: skip


def test_a_transaction_over_the_limit_is_refused_as_a_whole(site):
    requests = [roads.service_request()] * site.settings.limits.fhir_entries_max
    refused = ask(site, "POST", body=roads.bundle(roads.patient(), *requests))
    assert (refused.status_code, outcome(refused)) == (422, ("invalid", ["Bundle.entry"]))
    assert "further one" in refused.json()["issue"][0]["diagnostics"]
    assert not site.rows(Patient)


def test_a_transaction_that_conflicts_leaves_everything_as_it_was(placed):
    bundle = roads.fhir(today())
    bundle["entry"][1]["resource"]["code"]["text"] = "頭部CT"
    refused = ask(placed, "POST", body=bundle)
    assert (refused.status_code, outcome(refused)) == (409, ("conflict", ["Bundle.entry[1].resource"]))
    assert refused.json()["issue"][0]["diagnostics"].endswith("change it by PUT")
    assert placed.rows(RequestedProcedure)[0].description == "胸部CT"


def test_a_request_of_a_patient_who_is_known_is_placed_alone(placed):
    alone = {**roads.service_request(), "subject": {"reference": "Patient/1"}, "identifier": []}
    created = ask(placed, "POST", "/ServiceRequest", alone)
    assert created.status_code == 201, created.text
    assert created.headers["Location"] == f"/fhir/ServiceRequest/{created.json()['id']}"
    assert ask(placed, "GET", f"/ServiceRequest/{created.json()['id']}").json() == created.json()
    nobody = ask(placed, "POST", "/ServiceRequest", {**alone, "subject": {"reference": "Patient/99"}})
    assert (nobody.status_code, outcome(nobody)) == (404, ("not-found", ["ServiceRequest.subject"]))


def test_a_conditional_create_makes_one(placed):
    alone = {**roads.service_request(), "subject": {"reference": "Patient/1"}, "priority": "routine"}
    again = ask(placed, "POST", "/ServiceRequest", alone, If_None_Exist=f"identifier={roads.HIS}|P1")
    assert (again.status_code, again.json()["id"]) == (200, "1")
    assert placed.rows(ImagingOrder)[0].priority == "STAT"


def test_a_repeated_key_is_told_the_same_bytes_and_at_once_has_one_effect(site):
    bundle = roads.fhir(today())
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: ask(site, "POST", body=bundle, Idempotency_Key="K1").content, range(4)))
    assert len(set(answers)) == 1
    assert len(site.rows(Message)) == 1
    other = ask(site, "POST", body={**bundle, "id": "x"}, Idempotency_Key="K1")
    assert (other.status_code, outcome(other)[1]) == (422, ["Idempotency-Key"])


def test_a_stale_etag_changes_nothing(placed):
    """FHIR-04"""
    read = ask(placed, "GET", "/ServiceRequest/1")
    resource = read.json()
    resource["note"] = [{"text": "first"}]
    changed = ask(placed, "PUT", "/ServiceRequest/1", resource, If_Match=read.headers["ETag"])
    assert changed.status_code == 200, changed.text
    assert changed.headers["ETag"] != read.headers["ETag"]
    resource["note"] = [{"text": "second"}]
    stale = ask(placed, "PUT", "/ServiceRequest/1", resource, If_Match=read.headers["ETag"])
    assert (stale.status_code, outcome(stale)) == (412, ("conflict", ["If-Match"]))
    assert ask(placed, "GET", "/ServiceRequest/1").json()["note"] == [{"text": "first"}]


@pytest.mark.parametrize("premises", ["postgresql"], indirect=True, scope="session")  # SQLite has one writer
def test_a_version_that_became_stale_while_its_sender_waited_for_the_lock_changes_nothing(placed, monkeypatch):
    read = ask(placed, "GET", "/ServiceRequest/1")
    resource = {**read.json(), "note": [{"text": "mine"}]}
    locked = road.finding.locked

    def theirs(session: Session) -> None:
        row = session.exec(select(RequestedProcedure)).one()
        row.description = "theirs"

    def late(session: Session, order_pk: int) -> ImagingOrder:
        monkeypatch.setattr(road.finding, "locked", locked)
        with ThreadPoolExecutor(1) as another_process:
            another_process.submit(db.run, theirs).result()
        return locked(session, order_pk)

    monkeypatch.setattr(road.finding, "locked", late)
    stale = ask(placed, "PUT", "/ServiceRequest/1", resource, If_Match=read.headers["ETag"])
    assert (stale.status_code, outcome(stale)) == (412, ("conflict", ["If-Match"]))
    assert [row.description for row in placed.rows(RequestedProcedure)] == ["theirs"]


def test_what_was_read_and_is_sent_back_changes_nothing(placed):
    read = ask(placed, "GET", "/ServiceRequest/1")
    before = placed.rows(ScheduledStep)[0].version
    same = ask(placed, "PUT", "/ServiceRequest/1", read.json(), If_Match=read.headers["ETag"])
    assert same.status_code == 200, same.text
    assert same.headers["ETag"] == read.headers["ETag"]
    assert placed.rows(ScheduledStep)[0].version == before


def test_what_came_over_hl7_and_is_sent_back_changes_nothing(site):
    site.ris().send(roads.omi(start=today()))
    read = ask(site, "GET", "/ServiceRequest/1")
    assert ask(site, "PUT", "/ServiceRequest/1", read.json()).headers["ETag"] == read.headers["ETag"]
    assert [one.version for one in site.rows(ScheduledStep)] == [1]


@pytest.mark.parametrize(
    ("statuses", "step", "shown"),
    [(["on-hold"], "ON_HOLD", "on-hold"), (["on-hold", "active"], "SCHEDULED", "active"),
     (["revoked"], "CANCELED", "revoked"), (["entered-in-error"], "CANCELED", "revoked")],
)  # fmt: skip
def test_the_status_of_a_request_holds_releases_and_cancels(placed, statuses, step, shown):
    resource = ask(placed, "GET", "/ServiceRequest/1").json()
    for status in statuses:
        answer = ask(placed, "PUT", "/ServiceRequest/1", {**resource, "status": status})
        assert answer.status_code == 200, answer.text
    assert placed.rows(ScheduledStep)[0].status == step
    assert ask(placed, "GET", "/ServiceRequest/1").json()["status"] == shown


def test_an_appointment_moves_the_step_of_a_known_request(placed):
    later = roads.appointment(today(23, 15))
    later["basedOn"] = [{"reference": "ServiceRequest/1"}]
    later["participant"][0]["actor"] = {"reference": "Patient/1"}
    (entry,) = ask(placed, "POST", body=roads.bundle(later)).json()["entry"]
    assert entry["response"]["location"] == "Appointment/1"
    assert placed.rows(ScheduledStep)[0].start_time == "231500"
    later["status"] = "cancelled"
    assert ask(placed, "POST", body=roads.bundle(later)).status_code == 200
    assert placed.rows(ScheduledStep)[0].status == "CANCELED"


@pytest.mark.parametrize("kind", ["Task", "Appointment"])
@pytest.mark.parametrize("status", ["accepted", "cancelled"])
@pytest.mark.parametrize("says", ["SPS ID", "request"])
def test_a_put_is_about_the_step_that_its_url_names(site, kind, status, says):
    """Whether the step is named by its own number, or is its request's only one."""
    twice = [{**roads.task(), "status": "accepted", "identifier": [{"value": name}]} for name in ("S1", "S2")]
    placed = ask(site, "POST", body=roads.bundle(roads.patient(), roads.service_request(), *twice))
    assert placed.status_code == 200, placed.text
    place_another(site)
    key, step, other, nobody = ("1", "1", "2", "9") if says == "SPS ID" else ("2", "3", "1", "0")
    resource = {**(roads.task() if kind == "Task" else roads.appointment(today(23, 15))), "status": status}
    resource["basedOn"] = [{"reference": f"ServiceRequest/{key}"}]
    resource["identifier"] = (
        [{"type": {"text": "Scheduled Procedure Step ID"}, "value": "S1"}] if says == "SPS ID" else []
    )
    resource.pop("participant", None)
    before = [row.model_dump() for row in site.rows(ScheduledStep)]
    for wrong in (other, nobody, "x"):
        refused = ask(site, "POST", body=put({**resource, "id": wrong}, f"{kind}/{wrong}"))
        assert (refused.status_code, outcome(refused)) == (409, ("conflict", ["Bundle.entry[0].resource.id"]))
        assert [row.model_dump() for row in site.rows(ScheduledStep)] == before
    right = ask(site, "POST", body=put({**resource, "id": step}, f"{kind}/{step}"))
    assert right.status_code == 200, right.text
    assert right.json()["entry"][0]["response"]["location"] == f"{kind}/{step}"


def test_a_put_beside_its_request_is_about_the_step_that_its_url_names(site):
    first, second = ({**roads.task(), "status": "accepted", "identifier": [{"value": name}]} for name in ("S1", "S2"))
    bundle = roads.bundle(roads.patient(), roads.service_request(), first, second)
    assert ask(site, "POST", body=bundle).status_code == 200
    for status in ("active", "revoked"):
        resource = {**ask(site, "GET", "/ServiceRequest/1").json(), "status": status}
        both = roads.bundle(resource, {**second, "id": "9", "basedOn": [{"reference": "ServiceRequest/1"}]})
        both["entry"][0]["request"] = {"method": "PUT", "url": "ServiceRequest/1"}
        for wrong in ("1", "9") if status == "active" else ("9",):
            both["entry"][1]["resource"]["id"] = wrong
            both["entry"][1]["request"] = {"method": "PUT", "url": f"Task/{wrong}"}
            assert ask(site, "POST", body=both).status_code == 409, (status, wrong)
        both["entry"][1]["resource"]["id"] = "2"
        both["entry"][1]["request"] = {"method": "PUT", "url": "Task/2"}
        assert statuses(site) == ["SCHEDULED", "SCHEDULED"]
        assert ask(site, "POST", body=both).status_code == 200, status


@pytest.mark.parametrize("is_known", [False, True])
def test_two_tasks_that_say_two_things_of_one_step_leave_everything_as_it_was(site, is_known):
    def task(hour: int) -> dict:
        above = {"basedOn": [{"reference": "ServiceRequest/1"}]} if is_known else {}
        start = today(hour).isoformat()
        return {**roads.task(), **above, "status": "accepted", "identifier": [{"value": "SG2"}],
                "restriction": {"period": {"start": start}}}  # fmt: skip

    with_order = [] if is_known else [roads.patient(), roads.service_request()]
    if is_known:
        above = {**task(8), "basedOn": roads.task()["basedOn"]}
        assert ask(site, "POST", body=roads.bundle(roads.patient(), roads.service_request(), above)).status_code == 200
    before = [row.model_dump() for row in site.rows(ScheduledStep)]
    refused = ask(site, "POST", body=roads.bundle(*with_order, task(9), task(10)))
    second = len(with_order) + 1
    assert (refused.status_code, outcome(refused)) == (422, ("value", [f"Bundle.entry[{second}].resource.identifier"]))
    assert [row.model_dump() for row in site.rows(ScheduledStep)] == before
    answer = ask(site, "POST", body=roads.bundle(*with_order, task(9), task(9)))
    assert answer.status_code == 200, answer.text
    assert [one["response"]["location"] for one in answer.json()["entry"][-2:]] == ["Task/1", "Task/1"]
    assert [row.start_time for row in site.rows(ScheduledStep)] == [f"{today(9):%H%M%S}"]


def test_what_a_service_refuses_is_told_at_its_element(placed):
    other = {**roads.patient(), "identifier": [{"system": roads.HOSP, "value": "2"}]}
    refused = ask(placed, "POST", body=roads.bundle(other, roads.service_request()))
    assert (refused.status_code, outcome(refused)) == (409, ("conflict", ["Bundle.entry[1].resource.identifier"]))
    nobody = {**other, "identifier": [{"system": roads.HOSP, "value": "3"}], "id": "9"}
    assert outcome(ask(placed, "POST", body=put(nobody, "Patient/9")))[1] == ["Bundle.entry[0].resource"]
    assert outcome(ask(placed, "POST", body=b"\xff")) == ("structure", [])


def test_all_that_is_wrong_with_a_resource_is_told_at_once(site):
    wrong = {**roads.service_request(), "priority": "soon", "status": "done"}
    issues = ask(site, "POST", "/ServiceRequest", wrong).json()["issue"]
    assert {one["expression"][0] for one in issues} == {"ServiceRequest.priority", "ServiceRequest.status"}


def test_a_code_of_a_local_scheme_comes_back_with_its_name(site, monkeypatch):
    monkeypatch.setattr(site.settings.fhir, "systems", roads.SYSTEMS[:3])
    coding = {"system": "urn:dicom:scheme:99LOCAL", "code": "CTCHEST", "display": "胸部CT"}
    sent = {**roads.service_request(), "code": {"coding": [coding], "text": "胸部CT"}}
    assert ask(site, "POST", body=roads.bundle(roads.patient(), sent)).status_code == 200
    read = ask(site, "GET", "/ServiceRequest/1")
    assert read.json()["code"]["coding"] == [coding]
    assert ask(site, "PUT", "/ServiceRequest/1", read.json()).headers["ETag"] == read.headers["ETag"]


def test_a_name_that_a_client_made_up_reaches_neither_log_nor_journal_nor_answer(site, capfd):
    """It may be the patient's (invariant 8)."""
    name = "鈴木花子 0000012345"
    odd: list[dict] = [
        {**roads.service_request(), "contained": [{name: "\0"}]}, {"resourceType": name}, {"resourceType": name, "a": "\0"},
        {**roads.patient(), "contact": {name: {name: "\0"}}}, roads.bundle({**roads.patient(), "resourceType": name}),
        roads.bundle({**roads.patient(), "name": {name: 1}}), {**roads.bundle(roads.patient()), name: ["\0"]},
    ]  # fmt: skip
    for one in odd:
        for path in ("", "/ServiceRequest"):
            refused = ask(site, "POST", path, one)
            assert refused.status_code in (400, 422)
            assert "鈴木" not in refused.text
    for row in site.rows(Message):
        assert "鈴木" not in row.error_place + row.error_text + row.type + row.became
    said = capfd.readouterr()
    assert "message.rejected" in said.out + said.err
    assert "0000012345" not in said.out + said.err


@pytest.mark.parametrize("status", ["cancelled", "arrived", "completed"])
def test_what_is_said_of_a_step_beside_its_request_is_refused_and_not_forgotten(placed, status):
    request = ask(placed, "GET", "/ServiceRequest/1").json()
    slot = {**roads.appointment(today(23, 15)), "status": status, "basedOn": [{"reference": "ServiceRequest/1"}]}
    both = put(request, "ServiceRequest/1")
    both["entry"] += roads.bundle(slot)["entry"]
    refused = ask(placed, "POST", body=both)
    assert (refused.status_code, outcome(refused)[1]) == (422, ["Bundle.entry[1].resource.status"])
    assert placed.rows(ScheduledStep)[0].status == "SCHEDULED"


def test_a_task_of_two_known_requests_is_refused(placed):
    place_another(placed)
    both = {**cancelled("1"), "focus": {"reference": "ServiceRequest/2"}}
    refused = ask(placed, "POST", body=roads.bundle(both))
    assert (refused.status_code, outcome(refused)) == (409, ("conflict", ["Bundle.entry[0].resource.basedOn"]))
    assert statuses(placed) == ["SCHEDULED", "SCHEDULED"]
    assert ask(placed, "POST", body=roads.bundle({**both, "focus": both["basedOn"][0]})).status_code == 200


def test_a_request_for_another_patients_order_changes_nothing(placed):
    other = {**roads.patient(), "identifier": [{"system": roads.HOSP, "value": "2"}]}
    refused = ask(placed, "POST", body=roads.bundle(other, roads.service_request()))
    assert refused.status_code == 409
    resource = {**ask(placed, "GET", "/ServiceRequest/1").json(), "subject": {"identifier": {"value": "2"}}}
    assert ask(placed, "PUT", "/ServiceRequest/1", resource).status_code == 404
    assert len(placed.rows(Patient)) == 1


def test_a_refused_request_can_be_looked_at_again(site):
    resource = {**roads.service_request(), "subject": {"identifier": {"system": roads.HOSP, "value": "0000012345"}}}
    assert ask(site, "POST", "/ServiceRequest", resource).status_code == 404
    ask(site, "POST", body=roads.bundle(roads.patient()))
    answer = inbox.take(*road.again(site.rows(Message)[0], site.settings), again=True)
    assert answer.raw.startswith(b"HTTP/1.1 201 Created")


def again(site: House, n: int) -> str:
    """What becomes of the n-th message when a person has it looked at once more."""
    return replay.replay(site.rows(Message)[n].key, site.settings, actor="qc")["outcome"]


def another() -> dict:
    """An order of another patient."""
    body = roads.rest(today())
    procedure = body["requested_procedures"][0]
    procedure |= {
        "id": "RP2",
        "study_instance_uid": "1.2.3.9",
        "placer_order_number": "P2",
        "filler_order_number": "F2",
    }
    procedure["steps"][0]["sps_id"] = "SPS2"
    return {**body, "accession_number": "ACC002", "patient": {
        "id": "2", "issuer": "HOSP", "birth_date": "1985-03-15", "sex": "F", "name": {"alphabetic": "SATO^HANAKO"}}}  # fmt: skip


def place_another(site: House) -> None:
    url = f"http://127.0.0.1:{site.ports['http']}/api/v1/orders"
    headers = {"Authorization": f"Bearer {site.tokens['ris']}"}
    assert httpx.post(url, json=another(), headers=headers, timeout=40).status_code == 201


def statuses(site: House) -> list[str]:
    return [row.status for row in site.rows(ScheduledStep)]


def cancelled(key: str) -> dict:
    return {
        **roads.task(),
        "status": "cancelled",
        "basedOn": [{"reference": f"ServiceRequest/{key}"}],
        "identifier": [],
    }


def put(resource: dict, url: str) -> dict:
    bundle = roads.bundle(resource)
    bundle["entry"][0]["request"] = {"method": "PUT", "url": url}
    return bundle


def test_a_key_that_named_nothing_never_reaches_what_got_it_since(site):
    alone = {**roads.service_request(), "identifier": [roads._identifier("P7", roads.HIS, "PLAC")]}
    early = [
        roads.bundle(cancelled("1")),
        put({**alone, "id": "1", "status": "revoked", "subject": {"identifier": {"value": "1"}}}, "ServiceRequest/1"),
        put({**roads.patient(), "id": "1", "birthDate": "1999-09-09"}, "Patient/1"),
        roads.bundle({**alone, "subject": {"reference": "Patient/1"}}),
    ]
    assert [ask(site, "POST", body=one).status_code for one in early] == [404] * len(early)
    assert ask(site, "POST", body=roads.fhir(today())).status_code == 200
    for n in range(len(early)):
        assert again(site, n) == "refused", n
    assert statuses(site) == ["SCHEDULED"]
    assert [row.birth_date for row in site.rows(Patient)] == ["19700101"]
    assert len(site.rows(ImagingOrder)) == 1


def test_nor_a_procedure_that_its_order_got_since(placed):
    early = range(2, 6)
    for n in early:
        assert ask(placed, "POST", body=roads.bundle(cancelled(f"1-{n}"))).status_code == 404
    second = {**roads.service_request(), "orderDetail": [], "subject": {"reference": "Patient/1"}}
    accession = roads._identifier("ACC001", roads.RIS, "ACSN")
    second["identifier"] = [roads._identifier("P2", roads.HIS, "PLAC"), accession]
    assert ask(placed, "POST", "/ServiceRequest", second).status_code == 201
    (_, other) = placed.rows(RequestedProcedure)
    assert other.pk in early
    assert {again(placed, n) for n in range(1, len(early) + 1)} == {"refused"}
    assert statuses(placed) == ["SCHEDULED", "SCHEDULED"]


def test_but_an_identifier_that_named_nothing_finds_the_order_that_has_it(site):
    late = {**cancelled(""), "status": "accepted"}
    late["basedOn"] = [{"identifier": {"system": roads.HIS, "value": "P1"}}]
    assert ask(site, "POST", body=roads.bundle(late)).status_code == 404
    assert ask(site, "POST", body=roads.fhir(today())).status_code == 200
    assert again(site, 0) == "applied"
    assert site.rows(Message)[0].order_pk == 1


def test_nothing_of_another_patient_is_taken_for_the_patients(placed):
    place_another(placed)
    sato = {"resourceType": "Patient", "id": "2", "identifier": [{"system": roads.HOSP, "value": "2"}],
            "name": [{"family": "SATO", "given": ["HANAKO"]}], "birthDate": "1985-03-15", "gender": "female"}  # fmt: skip
    both = {**sato, "id": "1", "identifier": [*roads.patient()["identifier"], *sato["identifier"]]}
    asked = ask(placed, "GET", "/ServiceRequest/1").json()
    theirs = {"reference": "Patient/2"}
    for body, status in (
        (put(sato, "Patient/1"), 422), (put({**sato, "id": "1"}, "Patient/1"), 409), (put(both, "Patient/1"), 409),
        (put(sato, f"Patient?identifier={roads.HOSP}|0000012345"), 422),
        (put({**asked, "subject": theirs, "status": "revoked"}, "ServiceRequest/1"), 409),
        (roads.bundle({**cancelled("1"), "for": theirs}), 409),
        (roads.bundle({**roads.appointment(), **cancelled("1"), "resourceType": "Appointment",
                       "participant": [{"actor": theirs}]}), 409),
    ):  # fmt: skip
        refused = ask(placed, "POST", body=body)
        assert refused.status_code == status, refused.text
    assert statuses(placed) == ["SCHEDULED", "SCHEDULED"]
    assert [(row.birth_date, row.sex) for row in placed.rows(Patient)] == [("19700101", "M"), ("19850315", "F")]
    assert ask(placed, "POST", body=put(sato, "Patient/2")).status_code == 200


def test_a_condition_does_not_answer_with_another_patients_order(placed):
    other = {**roads.patient(), "identifier": [{"system": roads.HOSP, "value": "77"}]}
    bundle = roads.bundle(other, {**roads.service_request(), "requisition": None}, roads.appointment())
    bundle["entry"][1]["request"]["ifNoneExist"] = f"identifier={roads.HIS}|P1"
    refused = ask(placed, "POST", body=bundle)
    assert (refused.status_code, outcome(refused)) == (412, ("conflict", ["Bundle.entry[1].resource.subject"]))
    alone = {**roads.service_request(), "contained": [{**other, "id": "p"}], "subject": {"reference": "#p"}}
    del alone["encounter"], alone["requester"]
    refused = ask(placed, "POST", "/ServiceRequest", alone, If_None_Exist="identifier=P1")
    assert (refused.status_code, outcome(refused)) == (412, ("conflict", ["ServiceRequest.subject"]))
    assert len(placed.rows(ImagingOrder)) == len(placed.rows(Patient)) == 1


def test_an_answer_of_many_steps_reads_each_of_them_once(site, monkeypatch):
    read: list[int] = []
    whole = resources.steps
    monkeypatch.setattr(resources, "steps", lambda *of: read.append(1) or whole(*of))
    tasks = [{**roads.task(), "identifier": [{"value": f"S{n}"}]} for n in range(20)]
    entries = ask(site, "POST", body=roads.bundle(roads.patient(), roads.service_request(), *tasks)).json()["entry"]
    assert len({one["response"]["location"] for one in entries}) == 22
    assert len(read) < 5


# Out


def test_a_patient_has_two_names_and_an_identifier_of_the_japanese_form(placed):
    """FHIR-06"""
    patient = ask(placed, "GET", "/Patient/1", role="ehr").json()
    names = {one["extension"][0]["valueCode"]: (one["family"], one["given"]) for one in patient["name"]}
    assert names == {"ABC": ("YAMADA", ["TARO"]), "IDE": ("山田", ["太郎"]), "SYL": ("ヤマダ", ["タロウ"])}
    assert JP_SYSTEM.fullmatch(patient["identifier"][0]["system"])
    assert (patient["birthDate"], patient["gender"]) == ("1970-01-01", "male")


def test_one_who_was_merged_says_into_whom(placed):
    adt = (
        "MSH|^~\\&|HIS|HOSP|BROKER|HOSP|20251202||ADT^A40|M1|P|2.5.1||||||UNICODE UTF-8\rEVN|A40|20251202\r"
        "PID|1||2^^^HOSP^PI||YAMADA^TARO||19700101|M\rMRG|0000012345^^^HOSP^PI\r"
    )
    assert b"MSA|AA" in placed.ris().send(adt.encode())
    merged = ask(placed, "GET", "/Patient/1").json()
    assert (merged["active"], merged["link"]) == (
        False, [{"other": {"reference": "Patient/2"}, "type": "replaced-by"}],
    )  # fmt: skip
    found = ask(placed, "GET", f"/Patient?identifier={roads.HOSP}|0000012345").json()
    assert [one["resource"]["id"] for one in found["entry"]] == ["2"]


@pytest.mark.parametrize(
    "token", [f"{roads.HIS}|P1", "P1", f"{roads.RIS}|ACC001", f"urn:dicom:uid|urn:oid:{roads.UID}"]
)
def test_a_request_is_found_by_its_identifiers(placed, token):
    found = ask(placed, "GET", f"/ServiceRequest?identifier={token}", role="ehr")
    assert found.json()["total"] == 1
    assert found.json()["entry"][0]["resource"] == ask(placed, "GET", "/ServiceRequest/1").json()


def test_nothing_found_is_an_empty_list_and_what_is_no_parameter_is_said(placed):
    empty = ask(placed, "GET", f"/ServiceRequest?identifier={roads.RIS}|P1&colour=red").json()
    assert (empty["total"], [one["search"]["mode"] for one in empty["entry"]]) == (0, ["outcome"])
    strict = ask(placed, "GET", "/ServiceRequest?identifier=P1&colour=red", Prefer="handling=strict")
    assert strict.status_code == 422


def test_the_capabilities_are_what_there_is(placed):
    statement = ask(placed, "GET", "/metadata", role=None).json()
    assert statement["fhirVersion"] == "4.0.1"
    kinds = {one["type"]: one for one in statement["rest"][0]["resource"]}
    assert kinds.keys() == resources.CAPABILITIES.keys()
    for kind, one in kinds.items():
        codes = {interaction["code"] for interaction in one["interaction"]}
        assert ask(placed, "GET", f"/{kind}/1").status_code == 200
        assert (ask(placed, "GET", f"/{kind}?identifier=x").status_code == 200) == ("search-type" in codes)
        assert (ask(placed, "POST", f"/{kind}", b"{}").status_code != 405) == ("create" in codes)
        assert (ask(placed, "PUT", f"/{kind}/1", b"{}").status_code != 405) == ("update" in codes)


ERRORS: list[tuple[str, str, bytes | None, str | None, int]] = [
        ("GET", "/Patient/1", None, None, 401), ("GET", "/ServiceRequest/4711", None, "ehr", 404),
        ("GET", "/ServiceRequest/1-2-3", None, "ehr", 404), ("GET", "/Patient/" + "9" * 30, None, "ehr", 404),
        ("GET", "/Observation/1", None, "ehr", 422), ("DELETE", "/Patient/1", None, "ris", 405),
        ("GET", "/nowhere/at/all", None, "ris", 404), ("POST", "", b"{}", "ehr", 403), ("POST", "", b"{}", None, 401),
        ("POST", "", b"<Bundle/>", "ris", 400), ("POST", "", b"\xff", "ris", 400), ("POST", "", b"[" * 99_999, "ris", 400),
        ("POST", "", b'{"resourceType": "Bundle", "type": "transaction", "entry": [{"resource": {"resourceType": {}}, '
                     b'"request": {"method": "POST", "url": "Patient"}}]}', "ris", 422),
        ("POST", "/ServiceRequest", b'{"resourceType": "ServiceRequest", "identifier": [{"value": "a\\u0000b"}]}', "ris", 422),
        ("POST", "", b'{"resourceType": "Bundle", "\\u0000": 1}', "ris", 422),
        ("POST", "", b'{"resourceType": "Bundle", "id": "\\ud800"}', "ris", 400),
        ("POST", "", b'{"resourceType": "Patient"}', "ris", 422), ("POST", "", b'{"resourceType": 1}', "ris", 400),
        ("POST", "/ServiceRequest", b'{"resourceType": "Patient"}', "ris", 422),
        ("PUT", "/ServiceRequest/1", b'{"resourceType": "ServiceRequest", "id": "2"}', "ris", 422),
        ("GET", "/Patient?identifier=%00", None, "ehr", 422), ("GET", "/Patient", None, "ehr", 422),
]  # fmt: skip


def test_every_error_is_an_operation_outcome(site):
    for method, path, body, role, status in ERRORS:
        assert ask(site, method, path, body, role=role).status_code == status, (method, path, body)
    assert {row.state for row in site.rows(Message)} == {"REJECTED"}


def test_nul_is_refused_where_it_stands_and_the_rest_is_found_in_the_journal(site):
    bundle = roads.fhir(today())
    bundle["entry"][1]["resource"]["contained"][0]["comment"] = ["a", "b\0"]
    refused = ask(site, "POST", body=bundle)
    assert (refused.status_code, outcome(refused)[1]) == (422, ["Bundle.entry[1].resource.contained[0].comment[1]"])
    assert ("accession", "ACC001") in {(one.kind, one.value) for one in site.rows(MessageKey)}


def test_a_name_that_stands_twice_is_refused_and_the_rest_is_found_in_the_journal(site):
    body = json.dumps(roads.fhir(today()), ensure_ascii=False).replace(
        '"status": "active"', '"status": "active", "status": "draft"'
    )
    refused = ask(site, "POST", body=body.encode())
    assert (refused.status_code, outcome(refused)[1]) == (422, ["status"])
    assert ("accession", "ACC001") in {(one.kind, one.value) for one in site.rows(MessageKey)}


def test_xml_is_not_taken_and_sixteen_mebibytes_are(site):
    assert ask(site, "POST", body=b"<Bundle/>", Content_Type="application/fhir+xml").status_code == 415
    large = {**roads.bundle(roads.patient()), "id": "x" * 2 * 1024 * 1024}
    assert ask(site, "POST", body=large).status_code == 200
    assert ask(site, "POST", body=b" " * (16 * 1024 * 1024 + 1)).status_code == 413


def test_a_stranger_is_refused_before_a_byte_of_the_body_is_read(site):
    with socket.create_connection(("127.0.0.1", site.ports["http"]), timeout=20) as sock:
        sock.sendall(b"POST /fhir HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 401")
