"""Devices over HTTP: what is listed of them, and what their queries say."""

import httpx
from sqlmodel import select

from broker import clock, db
from broker.dicom import tree
from broker.model.work import AuditEvent
from broker.model.worklist import WorklistAnswer, WorklistKeys, WorklistQuery


def ask(broker, method: str, path: str, role: str = "admin", kind: str = "", **more: object) -> httpx.Response:
    """kind: the Content-Type, where httpx does not say it by itself."""
    url = f"http://127.0.0.1:{broker.ports['http']}/api/v1/nodes{path}"
    headers = {"Authorization": f"Bearer {broker.tokens[role]}", **({"Content-Type": kind} if kind else {})}
    return httpx.request(method, url, headers=headers, timeout=40, **more)


def asked(ae_title: str) -> None:
    """Recorded a dozen times, without a station."""
    now, dataset = clock.now(), tree.write({0x00400100: ("SQ", [{0x00400001: ("AE", "")}])}, tree.EXPLICIT_LE, ("",))

    def write(session) -> None:
        keys, answer = WorklistKeys(digest="keys", dataset=dataset), WorklistAnswer(digest="answer")
        session.add_all([keys, answer])
        session.flush()
        said = {"keys_pk": keys.pk, "answer_pk": answer.pk, "first_at": now, "last_at": now}
        session.add(WorklistQuery(ae_title=ae_title, times=12, **said))

    db.run(write)


def test_what_a_devices_queries_say_is_listed_and_accepted_by_whoever_may(broker):
    title = ask(broker, "GET", "").json()["items"][0]["ae_title"]
    asked(title)
    path = f"/{title}/suggestions"
    (one,) = ask(broker, "GET", path).json()["items"]
    assert (one["name"], one["evidence"][:9]) == ("asks-without-station", "12 of 12 ")
    assert one["changes"] == {"profile": "asks-without-station"}
    assert ask(broker, "GET", path, "qc").status_code == 403
    assert ask(broker, "POST", f"{path}/accept", "qc", json={}).status_code == 403
    assert ask(broker, "POST", f"{path}/accept", json={"proposals": ["ascii-only"]}).status_code == 422
    assert ask(broker, "POST", f"{path}/accept", json={"all": True}).status_code == 422
    body = '{"proposals": []}'
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):  # the first is what curl -d says
        refused = ask(broker, "POST", f"{path}/accept", content=body, kind=kind)
        assert (refused.status_code, refused.json()["place"]) == (415, "Content-Type")
        assert "must be application/json" in refused.json()["detail"]
    assert ask(broker, "POST", f"{path}/accept", "qc", content=body, kind="text/plain").status_code == 403
    taken = ask(broker, "POST", f"{path}/accept", content=body, kind="application/json; charset=utf-8").json()
    assert (taken["accepted"], taken["node"]["profile"]) == (["asks-without-station"], "asks-without-station")
    assert ask(broker, "GET", "").json()["items"][0]["profile"] == "asks-without-station"
    assert ask(broker, "GET", path).json() == {"items": []}
    told = select(AuditEvent).where(AuditEvent.action == "site.change").order_by(AuditEvent.pk.desc())
    event = db.read(lambda session: session.exec(told).first())
    assert (event.subject, [*event.detail["accepted"]]) == (f"node:{title}", ["asks-without-station"])
    assert event.actor.startswith("admin")
    assert ask(broker, "GET", "/NO%2FBODY/suggestions").status_code == 404
