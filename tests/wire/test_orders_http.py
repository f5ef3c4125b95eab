"""Orders over REST on real sockets: once, in the journal, and told the same twice."""

import copy
import dataclasses
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlmodel import Session, select

from broker import clock, db
from broker.errors import Unreadable
from broker.model.messages import Message, MessageKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep, StepVersion
from broker.model.patients import Patient
from broker.model.work import AuditEvent
from broker.ris_bridge import http_road, inbox, replay, rest_orders, rest_road
from tests import roads
from tests.house import House, eventually
from tests.world import today


def ask(
    broker: House, method: str, path: str = "", body: object = None, role: str | None = "ris", **headers: str
) -> httpx.Response:
    """body: JSON, or bytes as they are. headers: `_` for `-`."""
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    if role:
        said["Authorization"] = f"Bearer {broker.tokens[role]}"
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
    )
    return httpx.request(
        method, f"http://127.0.0.1:{broker.ports['http']}{rest_road.ORDERS}{path}", content=content, headers=said,
        timeout=40,
    )  # fmt: skip


def order(**changes: object) -> dict:
    return {**roads.rest(today()), **changes}


def with_step(**changes: object) -> dict:
    body = order()
    body["requested_procedures"][0]["steps"][0] |= changes
    return body


def test_an_order_is_placed_once_and_the_same_again_changes_nothing(broker):
    first = ask(broker, "POST", body=order())
    assert first.status_code == 201, first.text
    assert first.headers["Location"] == "/api/v1/orders/1"
    document = first.json()
    assert (document["order_id"], document["accession_number"], document["state"]) == (1, "ACC001", "SCHEDULED")
    again = ask(broker, "POST", body=order())
    assert (again.status_code, again.json()) == (200, document)
    assert len(broker.rows(ImagingOrder)) == len(broker.rows(StepVersion)) == 1
    assert broker.modality("CT1").worklist()[0].AccessionNumber == "ACC001"


def test_a_conflict_names_the_field_and_changes_nothing(broker):
    ask(broker, "POST", body=order())
    refused = ask(broker, "POST", body=with_step(modality="MR"))
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    assert "modality" in refused.json()["detail"]
    assert "PATCH" in refused.json()["detail"]
    assert "XO" not in refused.json()["detail"]
    assert "SPS001" not in refused.text
    assert broker.rows(ScheduledStep)[0].modality == "CT"


def test_what_is_wrong_is_told_by_its_path_and_journalled(broker):
    refused = ask(broker, "POST", body=with_step(scheduled_start="tomorrow"))
    assert refused.status_code == 422
    assert refused.json()["place"] == "requested_procedures.0.steps.0.scheduled_start"
    (row,) = broker.rows(Message)
    assert (row.state, row.protocol, row.error_code, row.type) == ("REJECTED", "rest", "103", "POST order")
    assert row.answer.endswith(refused.content)
    assert {(one.kind, one.value) for one in broker.rows(MessageKey)} >= {
        ("accession", "ACC001"),
        ("patient", "0000012345"),
    }
    assert not broker.rows(ImagingOrder)


def test_the_journal_keeps_the_request_and_its_answer(broker):
    body = json.dumps(order(), ensure_ascii=False, indent=3).encode()
    answer = ask(broker, "POST", body=body)
    row = eventually(lambda: next((row for row in broker.rows(Message) if row.answer_sent), None))
    assert row.raw == b"POST /api/v1/orders\r\n\r\n" + body
    assert row.answer.partition(b"\r\n\r\n")[2] == answer.content
    assert row.sender.startswith("ris-")
    assert (row.state, row.order_pk, row.became) == ("APPLIED", 1, "NW order 1")
    keys = {(one.kind, one.value) for one in broker.rows(MessageKey)}
    assert keys >= {("accession", "ACC001"), ("patient", "0000012345"), ("placer", "P1"), ("study", roads.UID)}


def test_a_repeated_key_is_told_the_same_bytes_even_when_the_order_has_moved_on(broker):
    first = ask(broker, "POST", body=order(), Idempotency_Key="K1")
    ask(broker, "POST", "/1/cancel", {"reason": "refused"})
    again = ask(broker, "POST", body=order(), Idempotency_Key="K1")
    assert (again.status_code, again.content) == (first.status_code, first.content) and first.status_code == 201
    assert [again.headers[name] for name in ("Location", "ETag")] == [
        first.headers[name] for name in ("Location", "ETag")
    ]
    assert broker.rows(ScheduledStep)[0].status == "CANCELED"
    assert broker.rows(Message)[0].control_id == "K1"


@pytest.mark.parametrize(
    ("method", "path", "body"), [("POST", "", order(priority="LOW")), ("POST", "/1/cancel", {}), ("PATCH", "/1", {})]
)
def test_a_key_used_for_another_request_is_refused(broker, method, path, body):
    ask(broker, "POST", body=order(), Idempotency_Key="K1")
    refused = ask(broker, method, path, body, Idempotency_Key="K1")
    assert (refused.status_code, refused.json()["place"]) == (422, "Idempotency-Key")
    assert broker.rows(ScheduledStep)[0].status == "SCHEDULED"
    assert ask(broker, "POST", body=order(), Idempotency_Key="K1").status_code == 201


def test_one_key_at_once_has_one_effect(broker):
    body = order()  # once: what it says of today changes with the minute
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: ask(broker, "POST", body=body, Idempotency_Key="K1"), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len(broker.rows(Message)) == len(broker.rows(ImagingOrder)) == 1


def test_the_same_key_of_another_client_is_another_key(broker):
    ask(broker, "POST", body=order(), Idempotency_Key="K1")
    other = ask(broker, "POST", body=order(accession_number="ACC002"), role="admin", Idempotency_Key="K1")
    assert other.status_code == 409, "the order's numbers, not the key"
    assert other.json()["place"] != "Idempotency-Key"


def test_a_change_says_what_it_says_and_null_deletes(broker):
    ask(broker, "POST", body=order())
    body = {
        "requested_procedures": [{"reason": None, "steps": [{"description": "造影CT", "station_ae_titles": ["CT2"]}]}]
    }
    answer = ask(broker, "PATCH", "/1", body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["steps"][0]["station_ae_titles"] == ["CT2"]
    (step,), (procedure,) = broker.rows(ScheduledStep), broker.rows(RequestedProcedure)
    assert (step.description, step.modality) == ("造影CT", "CT")
    assert "ReasonForTheRequestedProcedure" not in procedure.attributes
    assert procedure.attributes["RequestedProcedureComments"] == "造影剤アレルギー"


def test_a_change_of_the_patient_is_the_patients(broker):
    ask(broker, "POST", body=order())
    answer = ask(broker, "PATCH", "/1", {"patient": {"id": "0000012345", "birth_date": "1970-01-02"}})
    assert answer.status_code == 200, answer.text
    assert broker.rows(Patient)[0].birth_date == "19700102"
    assert ask(broker, "PATCH", "/1", {"patient": {"id": "2"}}).status_code == 422


def test_a_change_that_names_another_orders_parts_changes_neither(broker):
    ask(broker, "POST", body=order())
    other = with_step(sps_id="SPS2")
    other["requested_procedures"][0] |= {"id": "RP2", "study_instance_uid": "1.2.3.9", "placer_order_number": "P2",
                                         "filler_order_number": "F2"}  # fmt: skip
    assert ask(broker, "POST", body={**other, "accession_number": "ACC002"}).status_code == 201
    before = [[row.model_dump() for row in broker.rows(table)] for table in (RequestedProcedure, ScheduledStep)]
    step = other["requested_procedures"][0]["steps"][0]
    for said in (
        {"id": "RP2"}, {"study_instance_uid": "1.2.3.9"}, {"placer_order_number": "P2", "placer_order_issuer": "HIS"},
        {"study_instance_uid": "1.2.3.9", "steps": [step]}, {"id": "RP001", "study_instance_uid": "1.2.3.9"},
        {"id": "RP001", "filler_order_number": "F2", "filler_order_issuer": "RIS"}, {"steps": [{"sps_id": "SPS2"}]},
    ):  # fmt: skip
        refused = ask(broker, "PATCH", "/1", {"requested_procedures": [{**said, "description": "頭部CT"}]})
        assert refused.status_code in (409, 422), said
        assert refused.headers["content-type"] == "application/problem+json"
    for action in ("cancel", "arrive", "hold", "release", "no-show"):
        refused = ask(broker, "POST", f"/1/{action}", {"accession_number": "ACC002"})
        assert (refused.status_code, refused.json()["place"]) == (422, "accession_number")
    assert [[row.model_dump() for row in broker.rows(table)] for table in (RequestedProcedure, ScheduledStep)] == before


def test_if_match_keeps_two_from_changing_one_order(broker):
    etag = ask(broker, "POST", body=order()).headers["ETag"]
    change = {"requested_procedures": [{"steps": [{"station_ae_titles": ["CT2"]}]}]}
    assert ask(broker, "PATCH", "/1", change, If_Match=etag).status_code == 200
    stale = ask(broker, "PATCH", "/1", {"priority": "LOW"}, If_Match=etag)
    assert (stale.status_code, stale.json()["place"]) == (412, "If-Match")
    assert broker.rows(ImagingOrder)[0].priority == "STAT"


CHANGES: list[dict] = [
    {"priority": "LOW"}, {"requesting_service": "内科"}, {"current_patient_location": "02"},
    {"requesting_physician": "医師^二郎"}, {"admission_id": "V0002"}, {"patient": {"birth_date": "1970-01-02"}},
    {"patient": {"name": "山田^次郎"}}, {"patient": {"sex": "F"}},
    *({"requested_procedures": [one]} for one in (
        {"description": "頭部CT"}, {"comments": "なし"}, {"reason": None}, {"code": None}, {"transport": "車椅子"},
        {"referring_physician": "医師^三郎"}, {"filler_order_number": "F1", "filler_order_issuer": "RIS",
                                           "comments": "x"},
        *({"steps": [step]} for step in (
            {"description": "造影CT"}, {"location": "CT室"}, {"station_name": "CT-A"}, {"protocol_codes": []},
            {"performing_physician": "技師^一"}, {"station_ae_titles": ["CT2"]}, {"modality": "MR"},
        )),
    )),
]  # fmt: skip


def test_whatever_a_change_changes_the_etag_of_the_order_is_another(broker):
    placed = ask(broker, "POST", body=order())
    etag = placed.headers["ETag"]
    for change in CHANGES:
        changed = ask(broker, "PATCH", "/1", change, If_Match=etag)
        assert changed.status_code == 200, (change, changed.text)
        assert changed.headers["ETag"] != etag, change
        stale = ask(broker, "PATCH", "/1", {"priority": "HIGH"}, If_Match=etag)
        assert (stale.status_code, stale.json()["place"]) == (412, "If-Match"), change
        etag = changed.headers["ETag"]
        assert ask(broker, "GET", "/1").headers["ETag"] == etag
        assert ask(broker, "PATCH", "/1", change, If_Match=etag).headers["ETag"] == etag, change
    assert ask(broker, "GET", "/1", If_None_Match=etag).status_code == 304
    assert ask(broker, "GET", "/1", If_None_Match=placed.headers["ETag"]).status_code == 200
    assert ask(broker, "POST", "/1/hold", If_Match=placed.headers["ETag"]).status_code == 412


def test_the_status_document_is_known_by_the_orders_etag_and_not_the_other_way_round(broker):
    of_order = ask(broker, "POST", body=order()).headers["ETag"]
    ehr = broker.ehr().http
    of_status = ehr.get("/api/v1/status/ACC001").headers["ETag"]
    for etag in (of_order, of_status):
        same = ehr.get("/api/v1/status/ACC001?wait=0.1", headers={"If-None-Match": etag})
        assert (same.status_code, same.headers["ETag"]) == (304, of_status)
    refused = ask(broker, "PATCH", "/1", {"priority": "LOW"}, If_Match=of_status)
    assert (refused.status_code, refused.json()["place"]) == (412, "If-Match")
    assert "GET /api/v1/orders/1" in refused.json()["detail"]
    assert ask(broker, "POST", "/1/hold", If_Match=of_order).status_code == 200
    for etag in (of_order, of_status):
        assert ehr.get("/api/v1/status/ACC001?wait=10", headers={"If-None-Match": etag}).status_code == 200


@pytest.mark.parametrize("premises", ["postgresql"], indirect=True, scope="session")  # SQLite has one writer
def test_a_version_that_became_stale_while_its_sender_waited_for_the_lock_changes_nothing(broker, monkeypatch):
    etag = ask(broker, "POST", body=order()).headers["ETag"]
    locked = rest_road.finding.locked

    def theirs(session: Session) -> None:
        session.exec(select(RequestedProcedure)).one().description = "theirs"

    def late(session: Session, order_pk: int) -> ImagingOrder:
        monkeypatch.setattr(rest_road.finding, "locked", locked)
        with ThreadPoolExecutor(1) as another_process:
            another_process.submit(db.run, theirs).result()
        return locked(session, order_pk)

    monkeypatch.setattr(rest_road.finding, "locked", late)
    stale = ask(broker, "PATCH", "/1", {"priority": "LOW"}, If_Match=etag)
    assert (stale.status_code, stale.json()["place"]) == (412, "If-Match")


def test_all_that_is_wrong_is_told_in_one_answer(broker):
    body = with_step(scheduled_start="tomorrow", modality="ct") | {"priority": "SOON"}
    refused = ask(broker, "POST", body=body).json()
    fields = [one["field"] for one in refused["errors"]]
    assert fields[0] == refused["place"]
    step = "requested_procedures.0.steps.0"
    assert set(fields) == {"priority", f"{step}.scheduled_start", f"{step}.modality"}
    assert all("Input" not in one["problem"] for one in refused["errors"])
    assert "errors" not in ask(broker, "POST", body=order(priority="SOON")).json()


def test_a_name_that_a_client_made_up_reaches_neither_log_nor_journal_nor_answer(broker, capfd):
    """It may be the patient's (invariant 8)."""
    name = "鈴木花子 0000012345"
    for method, path in (("POST", ""), ("PATCH", "/1"), ("POST", "/1/hold"), ("POST", "/1/arrive")):
        for body in ({"patient": {name: "x"}}, {name: "x"}, {"patient": {"name": {name: "\0"}}}, {name: {name: "\0"}}):
            refused = ask(broker, method, path, body)
            assert refused.status_code in (404, 422)
            assert "鈴木" not in refused.text.encode().decode("unicode_escape", "ignore") + refused.text
    said = capfd.readouterr()
    for row in broker.rows(Message):
        assert "鈴木" not in row.error_place + row.error_text + row.type + row.became + row.answer.decode()
    log = said.out + said.err
    assert "message.rejected" in log
    assert "0000012345" not in log
    assert "鈴木" not in log


def test_cancel_hold_release_arrive_and_no_show(broker):
    ask(broker, "POST", body=order())

    def after(action: str, body: object = None) -> str:
        answer = ask(broker, "POST", f"/1/{action}", body)
        assert answer.status_code == 200, answer.text
        return answer.json()["state"]

    assert after("hold", {"reason": "contrast"}) == "ON_HOLD"
    assert after("release") == "SCHEDULED"
    assert after("arrive", {"at": clock.iso(clock.now())}) == "ARRIVED"
    assert after("no-show") == "NO_SHOW"
    assert after("cancel", {"reason": "not wanted"}) == "CANCELLED"
    assert {row.actor for row in broker.rows(AuditEvent) if row.action == "step.change"} == {
        broker.rows(Message)[0].sender
    }


@pytest.mark.parametrize("action", ["", "/cancel", "/arrive", "/hold"])
def test_an_order_that_is_not_there_is_404_and_journalled(broker, action):
    answer = ask(broker, "POST" if action else "PATCH", f"/4711{action}", {})
    assert answer.status_code == 404
    assert [row.state for row in broker.rows(Message)] == ["REJECTED"]
    assert ask(broker, "GET", "/4711").status_code == 404


def test_the_status_document_is_read_by_the_orders_key(broker):
    placed = ask(broker, "POST", body=order())
    found = ask(broker, "GET", "/1", role="ehr")
    assert (found.status_code, found.json()) == (200, placed.json())
    assert found.headers["ETag"] == placed.headers["ETag"]


@pytest.mark.parametrize(("role", "status"), [("ehr", 403), ("qc", 403), (None, 401)])
def test_only_who_may_places_orders(broker, role, status):
    assert ask(broker, "POST", body=order(), role=role).status_code == status
    assert ask(broker, "PATCH", "/1", body={}, role=role).status_code == status
    assert not broker.rows(Message)


NO_ORDER: list[tuple[dict[str, str], bytes, int]] = [
    ({"Content_Type": "application/xml"}, b"<x/>", 415), ({"Idempotency_Key": "x" * 256}, b"{}", 422),
    ({}, b"\xff", 400), ({}, b"", 400), ({}, b"[]", 422), ({}, b"[" * 100_000, 400), ({}, b'{"a": "\\u0000"}', 422),
    ({}, b'{"accession_number": "a\\u0000b", "patient": {"id": "\\u0000"}}', 422), ({}, b'{"a\\u0000": 1}', 422),
    ({}, b'{"accession_number": "\\ud800"}', 400),
    ({}, b" " * (1024 * 1024 + 1), 413),
]  # fmt: skip


def test_what_is_no_order_is_refused_in_time(broker):
    for headers, body, status in NO_ORDER:
        answer = ask(broker, "POST", body=body, **headers)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    assert not broker.rows(ImagingOrder)
    assert {row.state for row in broker.rows(Message)} == {"REJECTED"}


def again(broker: House, n: int) -> str:
    """What becomes of the n-th message when a person has it looked at once more."""
    return replay.replay(broker.rows(Message)[n].key, broker.settings, actor="qc")["outcome"]


def test_a_refused_request_can_be_looked_at_again(broker, monkeypatch):
    monkeypatch.setattr(broker.settings.site, "missing_accession_number", "reject")
    assert ask(broker, "POST", body=order(accession_number=None)).status_code == 422
    monkeypatch.setattr(broker.settings.site, "missing_accession_number", "generate")
    assert again(broker, 0) == "applied"
    assert ask(broker, "PATCH", "/1", {"accession_number": "ACC9"}).status_code == 422
    assert again(broker, 1) == "refused"
    monkeypatch.setattr(rest_orders, "changed", lambda body, known, steps, site: known.command("XO"))
    assert again(broker, 1) == "applied", "the order was there when it came"


@pytest.mark.parametrize(("method", "path"), [("POST", "/1/cancel"), ("POST", "/1/hold"), ("PATCH", "/1")])
def test_a_key_that_named_no_order_never_reaches_the_one_that_got_it_since(broker, method, path):
    ask(broker, method, path, {"priority": "LOW"} if method == "PATCH" else {})
    before = broker.rows(Message)[0]
    ask(broker, "POST", body=order())
    assert again(broker, 0) == "refused"
    assert (broker.rows(ScheduledStep)[0].status, broker.rows(ImagingOrder)[0].priority) == ("SCHEDULED", "STAT")
    after = broker.rows(Message)[0]
    assert (after.state, after.answer, after.error_text) == ("REJECTED", before.answer, before.error_text)


def test_nor_does_a_key_of_a_step_reach_the_step_that_got_it_since(broker):
    ask(broker, "POST", body=order())
    label = f"http://127.0.0.1:{broker.ports['http']}{rest_road.STEPS}/2/label"
    headers = {"Authorization": f"Bearer {broker.tokens['ris']}"}
    assert httpx.post(label, json={"label": "HEART"}, headers=headers).json()["place"] == "step_id"
    more = with_step(sps_id="SPS002")["requested_procedures"][0]
    assert ask(broker, "PATCH", "/1", {"requested_procedures": [more]}).status_code == 200
    assert again(broker, 1) == "refused"
    assert [one.label for one in broker.rows(ScheduledStep)] == ["", ""]


def test_what_is_the_same_on_the_wire_is_the_same_here(broker):
    """PS3.5 6.2: blanks at the ends of an identifier say nothing."""
    ask(broker, "POST", body=order())
    patient = order()["patient"]
    assert ask(broker, "POST", body=order(accession_number="ACC001 ")).status_code == 200
    other = order(accession_number=" ACC001", patient={**patient, "id": "W1", "name": "鈴木^花子"})
    refused = ask(broker, "POST", body=other)
    assert (refused.status_code, "another patient" in refused.json()["detail"]) == (409, True)
    renamed = order(accession_number="ACC002", patient={**patient, "id": f"{patient['id']} ", "name": "鈴木^花子"})
    renamed["requested_procedures"][0] |= {"id": "RP002", "study_instance_uid": None, "placer_order_number": "P2",
                                           "filler_order_number": "F2"}  # fmt: skip
    ask(broker, "POST", body=renamed)
    assert len(broker.rows(Patient)) == 1
    assert len({one.PatientName for one in broker.modality("CT1").worklist()}) == 1


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (order(accession_number="A\x85"), "accession_number"), (order(accession_number="A\u202e"), "accession_number"),
        (with_step(location="\x85\u2028"), "requested_procedures.0.steps.0.location"),
        (with_step(sps_id=" "), "requested_procedures.0.steps.0.sps_id"),
        (with_step(modality=" "), "requested_procedures.0.steps.0.modality"),
        (order(patient={"id": " ", "name": "Y"}), "patient.id"),
        (order(patient={"id": "1", "name": "\u200b"}), "patient.name.alphabetic"),
        (b'{"patient": {"id": "X1"}, "patient": {"id": "X2"}}', "patient"),
    ],
)  # fmt: skip
def test_what_nobody_can_see_is_no_value(broker, body, place):
    refused = ask(broker, "POST", body=body)
    assert (refused.status_code, refused.json()["place"]) == (422, place)
    assert not broker.rows(ImagingOrder)


def test_what_is_long_in_reading_holds_nobody_up(broker):
    begun, done = threading.Event(), threading.Event()

    def slowly(received: inbox.Received) -> inbox.Read:
        begun.set()
        assert done.wait(30)
        raise Unreadable("body", "is no JSON")

    raw = http_road.Request("POST", rest_road.ORDERS).raw()
    received = inbox.Received(raw, "rest", "", broker.settings, "ris", "K1", "00" * 32, "POST order")
    reading = threading.Thread(target=inbox.take, args=(received, dataclasses.replace(rest_road.ROAD, read=slowly)))
    reading.start()
    try:
        assert begun.wait(30)
        assert ask(broker, "POST", body=order()).status_code == 201
    finally:
        done.set()
        reading.join()
    assert [row.state for row in broker.rows(Message)] == ["APPLIED", "REJECTED"]


def test_missing_identifiers_are_made(broker):
    body = order(accession_number=None)
    procedure = body["requested_procedures"][0]
    procedure |= {"id": None, "study_instance_uid": None}
    procedure["steps"][0]["sps_id"] = None
    made = ask(broker, "POST", body=copy.deepcopy(body))
    assert made.status_code == 201, made.text
    document = made.json()
    assert document["accession_number"] and document["steps"][0]["sps_id"] and document["study_instance_uids"]
