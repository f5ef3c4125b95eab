"""The worklist over HTTP, and the life of an item as people steer it and a device sees it; real sockets."""

import datetime as dt
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
import structlog.testing
from pydicom.uid import ExplicitVRLittleEndian
from sqlmodel import Session, select

from broker import access, clock, db, site
from broker.model.images import ReconciliationCase
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, ScheduledStation, ScheduledStep
from broker.model.site import ApiToken, Sender
from broker.mwl import items, orders
from tests import roads
from tests.house import House, eventually
from tests.wire.test_cli import broker_command  # noqa: F401  a fixture
from tests.wire.test_http import get
from tests.wire.test_orders_http import ask
from tests.wire.test_orders_http import order as body_of_order
from tests.wire.test_worklist import find
from tests.world import SATO, TOKYO, YAMADA, order, today

LIST = "/api/v1/worklist"
JULY = dt.datetime(2035, 7, 5, 9, 30, tzinfo=TOKYO)


def listed(broker: House, query: str = "", role: str = "ris") -> list[str]:
    """Accession numbers."""
    answer = get(broker, f"{LIST}?{query}", role)
    assert answer.status_code == 200, answer.text
    return [one["accession_number"] for one in answer.json()["items"]]


def seen(broker: House, ae_title: str = "CT1") -> list[str]:
    """Accession numbers that the device gets by C-FIND."""
    return [item.AccessionNumber for item in broker.modality(ae_title).worklist()]


def post(broker: House, path: str, body: object = None, role: str = "ris", **headers: str) -> httpx.Response:
    said = {"Authorization": f"Bearer {broker.tokens[role]}", **headers}
    url = f"http://127.0.0.1:{broker.ports['http']}{path}"
    return httpx.post(url, content=b"" if body is None else json.dumps(body).encode(), headers=said, timeout=40)


def age(broker: House, days: float) -> None:
    """Of the first order: all that was said and all that happened was so long ago."""

    def aged(session: Session) -> None:
        at = clock.now() - dt.timedelta(days=days)
        order_row, step = session.get_one(ImagingOrder, 1), session.get_one(ScheduledStep, 1)
        order_row.last_event_at = order_row.updated_at = step.status_at = at
        step.start_date = "20200101"
        session.add(order_row)
        session.add(step)

    db.run(aged)


# The life of an item, as a device sees it


def test_a_hold_takes_an_exam_off_the_device_and_a_release_brings_it_back(broker):
    broker.place(order("ACC001"))
    assert seen(broker) == ["ACC001"]
    assert ask(broker, "POST", "/1/hold", {"reason": "contrast"}).status_code == 200
    assert seen(broker) == []
    assert ask(broker, "POST", "/1/release").status_code == 200
    assert seen(broker) == ["ACC001"]


def test_who_has_arrived_is_still_on_the_list_and_told_as_such(broker):
    broker.place(order("ACC001"))
    ask(broker, "POST", "/1/arrive")
    modality = broker.modality("CT1")
    query = modality.query()
    query.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus = None
    (item,) = modality.worklist(query)
    assert item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStatus == "ARRIVED"


def test_what_nobody_spoke_of_leaves_the_device_by_itself_and_a_person_brings_it_back_for_good(broker):
    broker.place(order("ACC001"))
    age(broker, 8)
    assert eventually(lambda: seen(broker) == [])
    broker.status("ACC001", "EXPIRED")
    answer = ask(broker, "POST", "/1/reinstate", {"reason": "the patient is here"})
    assert (answer.status_code, answer.json()["state"]) == (200, "SCHEDULED"), answer.text
    assert seen(broker) == ["ACC001"]
    assert not eventually(lambda: seen(broker) != ["ACC001"], 1), "the next passes leave it alone"


@pytest.mark.parametrize("action", ["cancel", "no-show"])
def test_a_person_takes_back_an_end_and_an_older_message_changes_nothing(broker, action):
    placed = order("ACC001")
    broker.place(placed)
    ask(broker, "POST", f"/1/{action}", {})
    assert seen(broker) == []
    assert ask(broker, "POST", "/1/reinstate", {"reason": "said of another"}).status_code == 200
    assert seen(broker) == ["ACC001"]
    broker.place(placed)  # the same order again
    assert seen(broker) == ["ACC001"]


@pytest.mark.parametrize(
    ("body", "status", "place"),
    [
        ({}, 422, "reason"), ({"reason": " "}, 422, "reason"), ({"reason": None}, 422, "reason"),
        ({"reason": "x", "sps_id": "NONE"}, 404, "sps_id"), ({"reason": "x", "id": "NONE"}, 404, "id"),
        ({"reason": "x", "colour": "red"}, 422, "colour"), ({"reason": "x"}, 409, "order_id"),
    ],
)  # fmt: skip
def test_what_cannot_come_back_is_told_why(broker, body, status, place):
    broker.place(order("ACC001"))
    answer = ask(broker, "POST", "/1/reinstate", body)
    assert (answer.status_code, answer.json()["place"]) == (status, place), answer.text
    assert ask(broker, "POST", "/1/reinstate", {"reason": "x"}, role="ehr").status_code == 403


def test_one_step_of_several_comes_back(broker):
    broker.place(order("ACC001", steps=2))
    ask(broker, "POST", "/1/cancel", {})
    answer = ask(broker, "POST", "/1/reinstate", {"reason": "only this one", "sps_id": "S2ACC001"})
    assert [one["state"] for one in answer.json()["steps"]] == ["CANCELLED", "SCHEDULED"]
    assert [item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID
            for item in broker.modality("CT1").worklist()] == ["S2ACC001"]  # fmt: skip


def test_an_exam_of_a_device_without_mpps_leaves_the_list_when_its_images_are_quiet(broker):
    broker.settings.reconcile.complete_without_mpps_seconds = 0.5
    broker.place(order("ACC001"))
    modality = broker.modality("CT1")
    (item,) = modality.worklist()
    assert modality.store(modality.images(item)) == [0x0000, 0x0000]
    assert eventually(lambda: broker.rows(ScheduledStep)[0].status == "COMPLETED")
    assert seen(broker) == []


@pytest.mark.parametrize("broken", ["long", "unreadable"])
def test_an_exam_that_cannot_be_written_for_a_device_costs_it_that_exam_alone(broker, broken):
    """In a set with escapes the text is longer than an explicit VR can be."""
    broker.place(order("ACC001"))
    broker.place(order("ACC002", SATO))
    text = {"RequestedProcedureComments": "aあ" * 16_000}

    def spoil(session: Session) -> None:
        first = session.get_one(ImagingOrder, 1)
        first.attributes = {**first.attributes, **text}
        session.add(first)
        session.flush()
        items.rebuild(session, 1, now=clock.now())
        if broken == "unreadable":
            session.get_one(ScheduledStep, 1).dataset = b"\xff" * 9

    db.run(spoil)
    query = broker.modality("CT1").query()
    query.RequestedProcedureComments = None
    with structlog.testing.capture_logs() as logs:
        statuses, found, _ = find(broker, query, syntax=ExplicitVRLittleEndian)
    assert ([one.AccessionNumber for one in found], statuses[-1]) == (["ACC002"], 0x0000)
    (case,) = eventually(lambda: broker.rows(ReconciliationCase))
    why = "cannot be encoded: (0040,1400)" if broken == "long" else "cannot be read"
    assert (case.kind, case.order_pk, case.reasons) == (
        items.CHARACTERS, 1, [f"step S1ACC001 of RACC001, version 2, is not offered to CT1: {why}"],
    )  # fmt: skip
    assert [one["withheld"] for one in logs if one["event"] == "worklist.characters"] == [why]
    assert [one["says"] for one in get(broker, f"{LIST}/exceptions", "qc").json()["items"]] == [
        f"CT1 is not shown it: {why}"
    ]
    assert [one.AccessionNumber for one in broker.modality("CT1").worklist(query)] == (
        ["ACC001", "ACC002"] if broken == "long" else ["ACC002"]
    ), "without explicit VRs there is no such limit"


def test_of_two_steps_with_one_id_the_one_that_is_kept_out_is_told(broker):
    """An SPS ID is unique in its requested procedure only."""
    body: dict[str, Any] = body_of_order()
    (first,) = body["requested_procedures"]
    first["steps"], first["id"] = [{**first["steps"][0], "sps_id": "1", "station_ae_titles": ["CT1"]}], "RP1"
    second = {**first, "id": "RP2", "steps": [{**first["steps"][0], "station_ae_titles": ["MR1"]}]}
    for one in (first, second):
        for name in ("placer_order_number", "filler_order_number", "study_instance_uid"):
            one.pop(name, None)
    body["requested_procedures"] = [first, second]
    body["patient"]["name"] = {"ideographic": "山田^太郎"}
    assert ask(broker, "POST", body=body).status_code == 201
    db.run(site.change_node, "CT1", now=clock.now(), actor="test", character_set="ASCII")
    access.forget()
    assert broker.modality("CT1").worklist() == []
    told = eventually(lambda: get(broker, f"{LIST}/exceptions", "ris").json()["items"])
    assert [(one["requested_procedure_id"], one["sps_id"], one["ae_title"]) for one in told] == [("RP1", "1", "CT1")]


# Lists


def test_what_people_look_for_is_found_by_every_filter(broker):
    broker.place(order("ACC001", start=JULY))
    broker.place(order("ACC002", SATO, modality="MR", station="MR1", start=JULY + dt.timedelta(days=1)))
    broker.place(order("ACC003", SATO, start=JULY + dt.timedelta(days=2)))
    post(broker, f"{LIST}/3/label", {"label": "HEART"})
    for query, found in {
        "": [1, 2, 3], "modality=MR": [2], f"patient_id={YAMADA.id}": [1], f"patient_id={SATO.id}": [2, 3],
        "accession_number=ACC002": [2], "date=2035-07-06": [2], "from=2035-07-06": [2, 3], "to=2035-07-06": [1, 2],
        "from=2035-07-06&to=2035-07-06": [2], "label=HEART": [3], "status=SCHEDULED": [1, 2, 3], "ae=CT1": [1, 3],
        "ae=MR1": [2], "ae=CT1&date=2035-07-05": [1], "ae=CT1&modality=MR": [], "patient_id=NONE": [], "label=NONE": [],
        f"ae=CT1&patient_id={SATO.id}": [3], "ae=CT1&label=HEART": [3], "ae=CT1&accession_number=ACC001": [1],
        "modality=CT&to=2035-07-05": [1], "accession_number=*": [], "ae=CT1&accession_number=A*": [],
    }.items():  # fmt: skip
        assert listed(broker, query) == [f"ACC00{n}" for n in found], query
        count = get(broker, f"{LIST}/count?{query}", "qc").json()
        assert count == {"count": len(found)}, query


def test_a_row_says_what_people_need_and_its_key(broker):
    broker.place(order("ACC001", start=JULY))
    (row,) = get(broker, LIST, "qc").json()["items"]
    assert row == {
        "step_id": 1, "order_id": 1, "accession_number": "ACC001", "requested_procedure_id": "RACC001",
        "sps_id": "S1ACC001", "modality": "CT", "start_date": "20350705", "start_time": "093000",
        "state": "SCHEDULED", "station_ae_titles": ["CT1"], "description": "胸部1", "label": "", "stale_since": None,
        "patient": {"id": YAMADA.id, "name": "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"},
    }  # fmt: skip


def test_a_list_comes_in_pages_without_a_gap_and_none_twice(broker):
    for n in range(5):
        broker.place(order(f"ACC00{n}", start=JULY, steps=2))
    for query in ("limit=3", "limit=3&ae=CT1"):
        found: list[str] = []
        cursor = ""
        while cursor is not None:
            page = get(broker, f"{LIST}?{query}" + (f"&cursor={cursor}" if cursor else ""), "ris").json()
            found += [one["sps_id"] for one in page["items"]]
            assert len(page["items"]) <= 3
            cursor = page["next"]
        assert found == sorted(found)
        assert len(set(found)) == len(found) == 10


REFUSED = [
    ("colour=red", "colour"), ("modality=", "modality"), ("modality=ct", "modality"), ("status=GONE", "status"),
    ("status=SCHEDULED,", "status"), ("date=20350705", "date"), ("date=2035-02-30", "date"), ("from=today", "from"),
    ("date=2035-07-05&from=2035-07-01", "date"), ("from=2035-07-06&to=2035-07-05", "from"), ("limit=0", "limit"),
    ("limit=-1", "limit"), ("limit=x", "limit"), ("cursor=x", "cursor"), ("cursor=bnVsbA==", "cursor"),
    ("cursor=WyIxIiwiIiwiIixudWxsXQ==", "cursor"), ("cursor=WyJcdWQ4MDAiLCIiLCJTIiwxXQ==", "cursor"),
    ("cursor=WyIiLCIiLCJcdWRmZmYiLDFd", "cursor"), ("cursor=" + "W1tb" * 900, "cursor"), ("modality=CT&modality=MR", "modality"), ("ae=", "ae"),
    ("ae=NOBODY", "ae"), ("ae=A%5CB", "ae"), ("label=A%5CB", "label"),
    ("as_shown=true", "as_shown"), ("ae=CT1&as_shown=yes", "as_shown"), ("%E5%B1%B1=1", "query"),
    ("ae=CT1&as_shown=true&status=SCHEDULED", "as_shown"), ("patient_id=" + "9" * 65, "patient_id"),
    ("from=" + "%D9%A2" * 4 + "-07-05", "from"),
]  # fmt: skip


def test_what_cannot_be_meant_is_refused_and_never_widens_the_answer(broker):
    broker.place(order("ACC001"))
    for query, place in REFUSED:
        answer = get(broker, f"{LIST}?{query}", "ris")
        assert (answer.status_code, answer.json().get("place")) == (404 if query == "ae=NOBODY" else 422, place), query
        assert answer.headers["content-type"] == "application/problem+json"
        assert "items" not in answer.json()
        if place not in ("limit", "cursor", "as_shown"):
            assert get(broker, f"{LIST}/count?{query}", "ris").status_code == answer.status_code, query


@pytest.mark.parametrize(
    "path", [f"{LIST}/count?limit=1", f"{LIST}/exceptions?modality=CT", f"{LIST}/exceptions?after=x"]
)
def test_each_list_takes_its_own_parameters_alone(broker, path):
    assert get(broker, path, "ris").status_code == 422


@pytest.mark.parametrize("path", [LIST, f"{LIST}/count", f"{LIST}/exceptions"])
def test_lists_are_for_those_with_rights(broker, path):
    assert [get(broker, path, role).status_code for role in ("ris", "qc", "admin", "ehr", None)] == [
        200, 200, 200, 403, 401,
    ]  # fmt: skip
    assert [post(broker, f"{LIST}/1/label", {"label": "X"}, role).status_code for role in ("qc", "ehr")] == [403, 403]


def move(*events: str, step_pk: int = 1, at: dt.datetime | None = None) -> None:
    def moved(session: Session) -> None:
        step = db.lock(session, ScheduledStep, step_pk)
        for event in events:
            orders.move_step(session, step, event, now=at or clock.now(), actor="test", cause="test")

    db.run(moved)


def test_what_the_site_hides_is_listed_only_where_its_status_is_asked_for(broker):
    for n in range(4):
        broker.place(order(f"ACC00{n}", start=JULY + dt.timedelta(hours=n)))
    move("start", step_pk=1)
    move("start", "complete", step_pk=2)
    move("cancel", step_pk=3)
    assert listed(broker) == ["ACC003"]
    assert listed(broker, "status=STARTED") == ["ACC000"]
    assert listed(broker, "status=COMPLETED,CANCELED") == ["ACC001", "ACC002"]
    assert listed(broker, "status=CANCELED&ae=CT1") == ["ACC002"]
    assert listed(broker, "status=CANCELED&ae=CT2") == []
    broker.settings.worklist.hide_rest = ["CANCELED"]
    assert listed(broker) == ["ACC000", "ACC001", "ACC003"]
    broker.settings.worklist.started_hours = broker.settings.worklist.finished_hours = 0
    assert listed(broker) == ["ACC003"]
    broker.settings.worklist.hide_rest = ["SCHEDULED"]
    assert listed(broker) == []


def test_a_preview_is_what_the_device_gets(broker):
    db.run(site.add_node, "KOMODITY", host="127.0.0.1", modality="CT", aliases=["ROOM1"], groups=["ANYCT"],
           sees=["own"], actor="test", now=clock.now())  # fmt: skip
    access.forget()
    for n, station in enumerate(("KOMODITY", "ROOM1", "ANYCT", "CT2")):
        broker.place(order(f"ACC00{n}", start=JULY + dt.timedelta(hours=n), station=station))
    assert listed(broker, "ae=KOMODITY") == listed(broker, "ae=ROOM1") == ["ACC000", "ACC001", "ACC002"]
    assert seen(broker, "KOMODITY") == ["ACC000", "ACC001", "ACC002"]
    assert listed(broker, "ae=KOMODITY&status=SCHEDULED") == ["ACC000", "ACC001", "ACC002"]
    rows = get(broker, f"{LIST}?ae=KOMODITY&as_shown=true", "ris").json()["items"]
    assert [one["accession_number"] for one in rows] == ["ACC000", "ACC001", "ACC002"]
    assert rows[0]["step_id"] == 1
    assert rows[0]["record"]["Patient ID"] == rows[0]["shown"]["Patient ID"] == YAMADA.id


def test_a_title_of_several_devices_has_no_preview_of_its_own(broker):
    for title in ("ONE", "TWO"):
        db.run(site.add_node, title, host="127.0.0.1", groups=["ANYCT"], actor="test", now=clock.now())
    access.forget()
    refused = get(broker, f"{LIST}?ae=ANYCT", "ris")
    assert (refused.status_code, refused.json()["place"]) == (422, "ae")
    assert "ONE, TWO" in refused.json()["detail"]


# Exceptions


def without_station() -> None:
    def taken(session: Session) -> None:
        for row in session.exec(select(ScheduledStation)):
            session.delete(row)
        session.flush()
        items.rebuild(session, 1, now=clock.now())

    db.run(taken)


def test_an_exam_without_a_station_is_on_no_list_stands_with_its_remedy_and_the_remedy_works(broker):
    broker.place(order("ACC001"))
    without_station()
    assert (seen(broker), listed(broker)) == ([], [])
    (told,) = get(broker, f"{LIST}/exceptions", "qc").json()["items"]
    assert (told["sps_id"], told["request"]) == ("S1ACC001", "PATCH /api/v1/orders/1")
    assert told["missing"][0]["rest"] == "requested_procedures.steps.station_ae_titles"
    assert "station" in told["says"]
    mended = ask(broker, "PATCH", "/1", {"requested_procedures": [{"steps": [{"station_ae_titles": ["CT1"]}]}]})
    assert mended.status_code == 200, mended.text
    assert (seen(broker), listed(broker)) == (["ACC001"], ["ACC001"])
    assert get(broker, f"{LIST}/exceptions", "qc").json() == {"items": [], "next": None}


def test_an_order_that_waits_for_a_person_stands_there_with_its_case(broker):
    broker.place(order("ACC001"))
    broker.place(order("ACC002", replace(SATO, id=YAMADA.id)))
    assert listed(broker) == ["ACC001"]
    (told,) = get(broker, f"{LIST}/exceptions", "qc").json()["items"]
    assert (told["accession_number"], told["kind"], told["missing"]) == ("ACC002", "patient_conflict", [])
    assert (
        told["says"] == f"no device is shown it: patient_conflict is a question for a person (case {told['case_id']})"
    )
    answer = post(
        broker, told["request"].split()[1], {"action": "acknowledge"}, "qc", **{"Content-Type": "application/json"}
    )
    assert answer.status_code == 200, answer.text
    assert get(broker, f"{LIST}/exceptions", "qc").json()["items"] == []
    assert listed(broker) == ["ACC001", "ACC002"]


# Labels


def labels(broker: House) -> list[str]:
    return [one.label for one in broker.rows(ScheduledStep)]


def test_a_label_is_given_changed_and_taken_by_its_own_request(broker):
    broker.place(order("ACC001", steps=2))
    first = post(broker, f"{LIST}/2/label", {"label": "HEART"}, **{"Idempotency-Key": "L1"})
    assert (first.status_code, first.json()["order_id"]) == (200, 1), first.text
    assert labels(broker) == ["", "HEART"]
    again = post(broker, f"{LIST}/2/label", {"label": "HEART"}, **{"Idempotency-Key": "L1"})
    assert again.content == first.content
    assert post(broker, f"{LIST}/2/label", {"label": None}).status_code == 200
    assert labels(broker) == ["", ""]
    assert {one.type for one in broker.rows(Message)} >= {"POST step label"}
    etag = get(broker, "/api/v1/orders/1", "ris").headers["ETag"]
    assert post(broker, f"{LIST}/1/label", {"label": "LUNG"}, **{"If-Match": etag}).status_code == 200
    assert post(broker, f"{LIST}/1/label", {"label": "HEAD"}, **{"If-Match": etag}).status_code == 412
    assert labels(broker) == ["LUNG", ""]


@pytest.mark.parametrize(
    ("step", "body", "status", "place"),
    [
        (1, {}, 422, "label"), (1, {"label": "A\\B"}, 422, "label"), (1, {"label": "A" * 65}, 422, "label"),
        (1, {"label": "A,B"}, 422, "label"), (1, {"label": "A\u202e"}, 422, "label"),
        (1, {"label": 1}, 422, "label"), (9, {"label": "A"}, 404, "step_id"), (1, {"label": "A", "b": 1}, 422, "b"),
    ],
)  # fmt: skip
def test_a_label_that_is_none_and_a_step_that_is_none_are_refused(broker, step, body, status, place):
    broker.place(order("ACC001"))
    answer = post(broker, f"{LIST}/{step}/label", body)
    assert (answer.status_code, answer.json()["place"]) == (status, place), answer.text
    assert labels(broker) == [""]


def test_a_label_of_the_body_counts_before_that_of_the_sender(broker):
    body: dict[str, Any] = body_of_order()
    body["requested_procedures"][0]["steps"][0]["label"] = "LUNG"
    assert ask(broker, "POST", body=body).status_code == 201
    assert labels(broker) == ["LUNG"]
    assert ask(broker, "POST", body=body_of_order()).status_code == 200, "what it does not say is no difference"
    changed = {"requested_procedures": [{"steps": [{"label": "HEAD"}]}]}
    before = get(broker, "/api/v1/orders/1", "ris").headers["ETag"]
    assert ask(broker, "PATCH", "/1", changed).headers["ETag"] != before
    assert labels(broker) == ["HEAD"]


@pytest.mark.parametrize("road", ["hl7", "rest", "fhir"])
def test_a_sender_has_a_worklist_of_its_own(broker, road, monkeypatch):
    """Over HTTP the sender is called as its token."""

    def add(session: Session) -> None:
        token = session.exec(select(ApiToken).where(ApiToken.role == "ris")).one()
        name, application = ("RIS", "HIS") if road == "hl7" else (token.name, "elsewhere")
        session.add(Sender(name=name, application=application, label="HEART"))

    monkeypatch.setattr(broker.settings.fhir, "systems", roads.SYSTEMS)
    db.run(add)
    if road == "hl7":
        broker.place(order("ACC001"))
    elif road == "rest":
        assert ask(broker, "POST", body=body_of_order()).status_code == 201
    else:
        answer = httpx.post(
            f"http://127.0.0.1:{broker.ports['http']}/fhir", content=json.dumps(roads.fhir(today())), timeout=40,
            headers={"Authorization": f"Bearer {broker.tokens['ris']}", "Content-Type": "application/fhir+json"},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
    assert labels(broker) == ["HEART"]


# At the command line


def test_what_will_expire_and_what_is_kept_out_is_told_and_a_person_brings_an_order_back(broker_command, tmp_path):  # noqa: F811
    path = tmp_path / "order.json"
    path.write_text(json.dumps(body_of_order()), "utf-8")
    broker_command("order", "place", str(path))
    assert json.loads(broker_command("worklist", "expiring", "--json")) == []
    (row,) = json.loads(broker_command("worklist", "expiring", "--days", "8", "--json"))
    assert (row["accession_number"], row["state"], row["station_ae_titles"]) == ("ACC001", "SCHEDULED", ["CT1"])
    assert "7 days since" in broker_command("worklist", "expiring", "--days", "8")
    assert broker_command("worklist", "exceptions") == "none\n"
    assert "nothing of it" in broker_command("order", "reinstate", "1", "--reason", "x", status=1)
    broker_command("order", "cancel", "1")
    assert "--reason" in broker_command("order", "reinstate", "1", status=2)
    assert "back on the worklist" in broker_command("order", "reinstate", "1", "--reason", "x", "--step", "SPS001")
    shown = json.loads(broker_command("order", "show", "1"))
    assert shown["state"] == "SCHEDULED"
