"""HTTP as an EHR uses it: status, feed, errors, rights; real sockets."""

import socket
import threading
import time
from zoneinfo import ZoneInfo

import httpx
import pytest

from broker import clock, db, site
from broker.model.messages import Message
from broker.web import why_routes, worklist_routes
from broker.web.auth import here_or_token, open_to_all, principal
from tests.world import SATO, YAMADA, order


def get(broker, path: str, role: str | None = "ehr", **kwargs) -> httpx.Response:
    headers = {**({"Authorization": f"Bearer {broker.tokens[role]}"} if role else {}), **kwargs.pop("headers", {})}
    return httpx.get(f"http://127.0.0.1:{broker.ports['http']}{path}", headers=headers, timeout=40, **kwargs)


def test_the_status_document_has_the_keys_and_states_of_the_contract(broker):
    broker.place(order("ACC001", steps=2))
    document = get(broker, "/api/v1/status/ACC001").json()
    assert list(document) == [
        "order_id", "accession_number", "accession_issuer", "requested_procedures", "patient", "state", "steps",
        "study_instance_uids", "images", "held", "links", "version", "updated_at",
    ]  # fmt: skip
    assert (document["state"], document["version"], document["accession_issuer"]) == ("SCHEDULED", 1, "RIS")
    assert document["patient"] == {"id": YAMADA.id, "issuer": "HOSP"}
    assert document["requested_procedures"] == [
        {"id": "RACC001", "placer_order_number": "PACC001", "filler_order_number": "FACC001"}
    ]
    step = document["steps"][0]
    assert (step["sps_id"], step["station_ae_titles"], step["state"], step["performed"]) == (
        "S1ACC001", ["CT1"], "SCHEDULED", [],
    )  # fmt: skip
    assert step["scheduled_start"].endswith("+09:00")
    assert document["images"] == {"announced": 0, "received": 0, "available": 0, "missing": []}
    assert "山田" not in str(document)
    assert YAMADA.birth_date not in str(document)


def test_an_unchanged_document_is_answered_304_and_a_change_has_a_new_version(broker):
    broker.place(order("ACC001"))
    first = get(broker, "/api/v1/status/ACC001")
    etag = first.headers["ETag"]
    assert get(broker, "/api/v1/status/ACC001", headers={"If-None-Match": etag}).status_code == 304
    broker.place(order("ACC001"), "CA")
    second = get(broker, "/api/v1/status/ACC001", headers={"If-None-Match": etag})
    assert second.status_code == 200
    assert (second.json()["state"], second.json()["version"]) == ("CANCELLED", 2)


def test_a_waiting_poll_is_answered_when_the_order_changes(broker):
    broker.place(order("ACC001"))
    etag = get(broker, "/api/v1/status/ACC001").headers["ETag"]
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(get(broker, "/api/v1/status/ACC001?wait=30", headers={"If-None-Match": etag}))
    )
    waiting.start()
    time.sleep(0.3)
    broker.place(order("ACC001"), "CA")
    waiting.join(25)
    assert [answer.json()["state"] for answer in answers] == ["CANCELLED"]


def test_the_feed_has_every_version_of_every_order_once_and_without_gaps(broker):
    for n in range(5):
        broker.place(order(f"ACC{n}"))
        broker.place(order(f"ACC{n}"), "CA")
    seen, cursor = [], 0
    while items := get(broker, f"/api/v1/status/changes?since={cursor}&limit=3").json()["items"]:
        seen += items
        cursor = items[-1]["cursor"]
    assert [item["cursor"] for item in seen] == list(range(1, 11))
    assert [(item["document"]["accession_number"], item["document"]["version"]) for item in seen] == [
        (f"ACC{n}", version) for n in range(5) for version in (1, 2)
    ]


def test_lists_are_filtered_and_an_unknown_filter_is_refused(broker):
    broker.place(order("ACC001"))
    broker.place(order("ACC002", SATO))
    broker.place(order("ACC002", SATO), "CA")

    def numbers(query: str) -> list[str]:
        return [one["accession_number"] for one in get(broker, f"/api/v1/status?{query}").json()["items"]]

    assert numbers("state=CANCELLED") == ["ACC002"]
    assert numbers(f"patient_id={YAMADA.id}") == ["ACC001"]
    assert numbers("placer_order_number=PACC002") == ["ACC002"]
    assert numbers(f"study_instance_uid={order('ACC001').study_uid}") == ["ACC001"]
    assert numbers("limit=1") == ["ACC001"]
    refused = get(broker, "/api/v1/status?colour=red")
    assert refused.status_code == 422
    assert refused.json()["place"] == "colour"


def test_two_issuers_with_one_number_are_a_conflict_that_names_them(broker):
    from broker.model.orders import ImagingOrder

    broker.place(order("ACC001"))
    broker.place(order("ACC002", SATO))

    def same_number(session) -> None:
        row = session.get(ImagingOrder, 2)
        row.accession_number, row.accession_issuer = "ACC001", "OTHER"
        session.add(row)

    db.run(same_number)
    refused = get(broker, "/api/v1/status/ACC001")
    assert refused.status_code == 409
    assert "OTHER" in refused.json()["detail"]
    assert "RIS" in refused.json()["detail"]
    assert get(broker, "/api/v1/status/ACC001?issuer=RIS").status_code == 200


def test_a_number_with_a_slash_is_found_percent_encoded(broker):
    broker.place(order("A/1"))
    assert get(broker, "/api/v1/status/A%2F1").json()["accession_number"] == "A/1"


@pytest.mark.parametrize(
    ("path", "role", "status"),
    [
        ("/api/v1/status/NONE", "ehr", 404), ("/api/v1/status/NONE", None, 401), ("/nowhere", "ehr", 404),
        ("/api/v1/nodes", "ehr", 403), ("/api/v1/messages/4711", "qc", 404), ("/api/v1/worklist", "ehr", 403),
        ("/api/v1/status?limit=0", "ehr", 422), ("/api/v1/status/changes?since=x", "ehr", 422),
    ],
)  # fmt: skip
def test_every_error_is_problem_json_that_says_what(broker, path, role, status):
    answer = get(broker, path, role)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["title"]


HUGE = 10**20 - 1


@pytest.mark.parametrize(
    "path",
    [
        f"/api/v1/status/changes?since={HUGE}", f"/api/v1/status/changes?since=-{HUGE}", f"/api/v1/status?after={HUGE}",
        f"/api/v1/messages/{HUGE}", f"/api/v1/cases/{HUGE}", f"/api/v1/cases?after={HUGE}",
        "/api/v1/status/A%00B", "/api/v1/status?patient_id=%00", "/api/v1/status?state=%0a", "/api/v1/worklist?ae=%00",
        "/api/v1/messages?state=%00", "/api/v1/cases?state=%00", "/api/v1/status/A%1b", "/api/v1/status/A%c2%85",
        "/static/%00", "/api/v1/status?updated_since=0001-01-01T00:00:00%2B14:00",
        "/api/v1/status?updated_since=9999-12-31T23:59:59-14:00", "/api/v1/status?updated_since=0001-01-01",
        "/api/v1/status?updated_since=yesterday", "/api/v1/status/changes?wait=nan",
    ],
)  # fmt: skip
def test_what_no_column_can_hold_is_not_acceptable_and_no_trouble_of_ours(broker, path):
    answer = get(broker, path, "admin")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text


@pytest.mark.parametrize(
    "path",
    [
        f"/api/v1/status/changes?since={2**63 - 1}", f"/api/v1/messages/{2**63 - 1}", f"/api/v1/cases?after={2**63 - 1}",
        "/api/v1/status?updated_since=0002-01-01", "/api/v1/status?patient_id=%E5%B1%B1", "/api/v1/status?limit=" + "9" * 30,
        "/api/v1/status/%ff%fe", "/api/v1/status?state=x&state=y",
    ],
)  # fmt: skip
def test_what_a_column_can_hold_is_looked_for(broker, path):
    assert get(broker, path, "admin").status_code in (200, 404)


@pytest.mark.parametrize(
    "body",
    [
        b'{"action": "match", "order_id": %d}' % HUGE, b'{"action": "match", "sps_id": "a\\u0000"}',
        b'{"action": "reject", "code": "\\u0000"}', b'{"action": "\\u0000"}',
        b'{"action": "reject", "reason": "\\u0000"}', b'{"action": "\\ud800"}', b'{"\\ud800": 1}',
    ],
)  # fmt: skip
def test_nor_in_a_body(broker, body):
    answer = httpx.post(
        f"http://127.0.0.1:{broker.ports['http']}/api/v1/cases/1/resolve", content=body,
        headers={"Authorization": f"Bearer {broker.tokens['qc']}", "Content-Type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == 422, answer.text


def test_a_dead_port_is_not_ready(broker):
    from fastapi.testclient import TestClient

    from broker.web.app import create_app

    well = {"dicom": lambda: True, "hl7": lambda: True}
    assert TestClient(create_app(broker.settings, {}, well)).get("/healthz/ready").status_code == 200
    answer = TestClient(create_app(broker.settings, {}, well | {"dicom": lambda: False})).get("/healthz/ready")
    assert answer.status_code == 503
    assert answer.json()["dead"] == ["dicom"]


def test_a_disabled_token_is_no_token(broker):
    name = next(row.name for row in db.read(site.tokens) if row.role == "ehr")
    db.run(site.disable_token, name, now=clock.now(), actor="test")
    assert get(broker, "/api/v1/status").status_code == 401


@pytest.mark.parametrize("path", ["/healthz/live", "/healthz/ready", "/version", "/openapi.json"])
def test_health_version_and_description_need_no_token(broker, path):
    assert get(broker, path, None).status_code == 200


def test_the_description_has_every_parameter_of_the_worklist(broker):
    paths = get(broker, "/openapi.json", None).json()["paths"]
    told = {
        path.rpartition("/")[2]: [one["name"] for one in paths[path]["get"]["parameters"] if one["in"] == "query"]
        for path in paths
        if path.startswith("/api/v1/worklist") and "get" in paths[path]
    }
    assert told == {
        "worklist": [*worklist_routes.LISTED], "count": [*worklist_routes.FILTERS],
        "exceptions": [*worklist_routes.PAGED], "why": [*why_routes.WHY], "at": [*why_routes.AT],
    }  # fmt: skip


def test_every_route_declares_who_may_use_it(broker):
    from broker.web.app import create_app

    for route in create_app(broker.settings, {}).routes:
        if not hasattr(route, "dependant"):
            continue
        found, stack = set(), [route.dependant]
        while stack:
            dependant = stack.pop()
            found.add(dependant.call)
            stack += dependant.dependencies
        assert found & {principal, open_to_all, here_or_token}, route.path


def test_the_status_page_shows_counts_and_no_patient(broker):
    broker.place(order("ACC001"))
    page = get(broker, "/", None)
    assert page.status_code == 200
    assert "SCHEDULED" in page.text
    assert "ris-broker の状態" in page.text
    assert "山田" not in page.text
    assert YAMADA.id not in page.text
    (message,) = broker.rows(Message)
    assert f"{message.received_at.astimezone(ZoneInfo('Asia/Tokyo')):%Y-%m-%d %H:%M:%S}</p>" in page.text, (
        "as clocks there"
    )
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    assert get(broker, "/static/status.css", None).status_code == 200


def test_the_worklist_and_the_journal_are_listed_for_those_with_rights(broker):
    broker.place(order("ACC001"))
    (item,) = get(broker, "/api/v1/worklist?ae=CT1", "qc").json()["items"]
    assert (item["accession_number"], item["sps_id"]) == ("ACC001", "S1ACC001")
    assert get(broker, "/api/v1/worklist?ae=MR1", "qc").json()["items"] == []
    (message,) = get(broker, "/api/v1/messages", "qc").json()["items"]
    whole = get(broker, f"/api/v1/messages/{message['id']}", "qc").json()
    assert whole["raw"].startswith("MSH|^~\\&|HIS")
    assert "MSA|AA|" in whole["answer"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(broker):
    with socket.create_connection(("127.0.0.1", broker.ports["http"])) as sock:
        sock.sendall(b"POST /api/v1/orders HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967296\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 413")


def test_an_encoded_body_is_refused(broker):
    answer = httpx.post(
        f"http://127.0.0.1:{broker.ports['http']}/api/v1/orders", content=b"x", headers={"Content-Encoding": "gzip"}
    )
    assert answer.status_code == 415
