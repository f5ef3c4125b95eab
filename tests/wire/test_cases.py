"""The desk over HTTP: held studies decided, by one person or two, and taken back."""

import pytest

from broker.model.images import Instance, ReconciliationCase
from tests import world
from tests.house import eventually


@pytest.fixture
def held(broker):
    """A red case: another patient's images with this order's Study UID. (order id, case)"""
    broker.place(world.order("ACC001"))
    scanner = broker.modality("CT1")
    images = scanner.images(eventually(scanner.worklist)[0], 2, PatientID="9999999999", PatientName="OTHER^ONE")
    scanner.store(images)
    document = broker.status("ACC001", "HELD")
    (case,) = broker.ehr("qc").cases()
    return document["order_id"], case


def resolve(broker, role, case, **body):
    return broker.ehr(role).http.post(f"/api/v1/cases/{case['id']}/resolve", json=body)


def test_a_red_case_takes_two_principals_and_then_the_images_show_the_order(broker, held):
    order_id, case = held
    assert (case["level"], case["row"]) == ("red", "11")
    wanted = {"action": "match", "order_id": order_id, "reason": "the technologist confirms"}
    first = resolve(broker, "qc", case, **wanted)
    assert (first.status_code, first.json()["state"]) == (200, "TAKEN")
    again = resolve(broker, "qc", case, **wanted)
    assert (again.status_code, again.json()["state"]) == (200, "TAKEN")
    assert [one.state for one in broker.rows(Instance)] == ["HELD", "HELD"]
    second = resolve(broker, "admin", case, **wanted)
    assert (second.status_code, second.json()["state"]) == (200, "RESOLVED")
    eventually(lambda: {one.state for one in broker.rows(Instance)} == {"STORED"})
    assert all(one.rendition_key for one in broker.rows(Instance))
    assert broker.status("ACC001", "IN_PROGRESS")["images"]["available"] == 2


def test_two_people_must_say_the_same(broker, held):
    order_id, case = held
    resolve(broker, "qc", case, action="match", order_id=order_id)
    other = resolve(broker, "admin", case, action="reject", code="113037")
    assert other.status_code == 409
    assert other.headers["content-type"] == "application/problem+json"


def test_a_rejected_study_leaves_the_exam_and_comes_back_by_an_undo(broker, held):
    _, case = held
    for role in ("qc", "admin"):
        resolve(broker, role, case, action="reject", code="113037", reason="wrong patient")
    assert {one.state for one in broker.rows(Instance)} == {"REJECTED"}
    assert broker.status("ACC001", "SCHEDULED")["images"]["available"] == 0
    undone = broker.ehr("qc").http.post(f"/api/v1/cases/{case['id']}/undo", json={"reason": "a mistake"})
    assert (undone.status_code, undone.json()["state"]) == (200, "OPEN")
    assert broker.status("ACC001", "HELD")["held"]


@pytest.mark.parametrize(
    ("body", "status"),
    [({"action": "forget"}, 422), ({"action": "match"}, 422), ({"action": "match", "order_id": 99999}, 404),
     ({"action": "reject", "code": "1"}, 422), ({"action": "split"}, 415), ({"action": "match", "other": 1}, 422)],
)  # fmt: skip
def test_a_decision_that_cannot_be_is_explained_and_changes_nothing(broker, held, body, status):
    _, case = held
    answer = resolve(broker, "qc", case, **body)
    assert answer.status_code == status, answer.text
    assert broker.rows(ReconciliationCase, kind="study")[0].state == "OPEN"


def test_what_is_resolved_waits_for_nobody(broker, held):
    _, case = held
    desk = broker.ehr("qc").http

    def listed(state: str = "") -> list[int]:
        answer = desk.get("/api/v1/cases", params={"state": state} if state else {})
        return [one["id"] for one in answer.json()["items"]]

    assert (listed(), listed("OPEN"), listed("RESOLVED")) == ([case["id"]], [case["id"]], [])
    resolve(broker, "qc", case, action="reject", code="113037")
    assert (listed(), listed("TAKEN"), listed("OPEN")) == ([case["id"]], [case["id"]], [])
    resolve(broker, "admin", case, action="reject", code="113037")
    assert (listed(), listed("RESOLVED")) == ([], [case["id"]])


def test_only_the_desk_sees_cases(broker, held):
    _, case = held
    assert broker.ehr("ris").http.get("/api/v1/cases").status_code == 403
    assert resolve(broker, "ehr", case, action="reject", code="113037").status_code == 403
    assert broker.ehr("qc").http.get("/api/v1/cases/99999").status_code == 404
