"""The journal over HTTP and at the command line: found, read, worked off."""

import base64
import hashlib
import json

import httpx
import pytest

from broker import clock, db, site
from broker.model.messages import Message
from broker.model.orders import ImagingOrder
from broker.ris_bridge.crashes import CRASHES, Crashes
from broker.sim.ris import omi
from tests import commands
from tests.world import SATO, YAMADA, order


def ask(broker, method: str, path: str, role: str | None = "qc", **kwargs) -> httpx.Response:
    headers = {"Authorization": f"Bearer {broker.tokens[role]}"} if role else {}
    url = f"http://127.0.0.1:{broker.ports['http']}/api/v1/messages{path}"
    return httpx.request(method, url, headers=headers, timeout=40, **kwargs)


@pytest.fixture
def refused(broker) -> int:
    """An order of a sender that may not send it yet."""
    entry = {"application": "HIS", "now": clock.now(), "actor": "test"}
    db.run(site.add_sender, "HIS", messages=["ADT"], **entry)
    broker.ris().send(omi(order("ACC001")))
    db.run(site.remove_sender, "HIS", now=clock.now(), actor="test")
    return broker.rows(Message)[0].key


def test_messages_are_found_by_what_they_are_about(broker):
    for accession, patient in (("ACC001", YAMADA), ("ACC002", SATO), ("ACC003", YAMADA)):
        broker.place(order(accession, patient))
    broker.ris().send(omi(order("ACC009"), "XO"))

    def found(**filters: object) -> list[str]:
        answer = ask(broker, "GET", "", params=filters)
        assert answer.status_code == 200, answer.text
        return [one["became"] or one["state"] for one in answer.json()["items"]]

    first, second, third = (f"NW order {one.pk}" for one in broker.rows(ImagingOrder))
    assert found() == ["REJECTED", third, second, first]
    assert found(accession="ACC002") == found(number="ACC002") == found(patient=SATO.id) == [second]
    assert found(patient=YAMADA.id, state="APPLIED") == [third, first]
    assert found(placer="PACC003") == found(filler="FACC003") == found(study=order("ACC003").study_uid) == [third]
    assert found(type="OMI") == found(type="OMI^O23", sender="HIS|HOSP", protocol="hl7") == found()
    assert found(error_code="204") == found(state="REJECTED") == ["REJECTED"]
    assert found(since="2025-01-01T00:00:00+09:00", until="2025-01-02") == found(type="ADT") == []
    page = ask(broker, "GET", "", params={"limit": 2}).json()
    assert found(after=page["next"]) == [second, first]


def test_a_message_is_read_as_bytes_as_text_and_by_its_fields(broker):
    raw = omi(order("ACC001"))
    broker.ris().send(raw)
    (message,) = broker.rows(Message)
    shown = ask(broker, "GET", f"/{message.pk}", "ris", params={"language": "en"}).json()
    assert base64.b64decode(shown["raw_base64"]) == raw
    assert shown["raw"] == raw.decode("iso2022_jp")
    pid = next(one for one in shown["raw_segments"] if one["segment"] == "PID")
    field = next(one for one in pid["fields"] if one["number"] == 3)
    assert (field["name"], field["repetitions"]) == ("Patient identifier list", [[YAMADA.id, "", "", "HOSP", "PI"]])
    assert [one["segment"] for one in shown["answer_segments"]] == ["MSH", "MSA"]
    japanese = ask(broker, "GET", f"/{message.pk}").json()
    assert "患者IDリスト" in str(japanese["raw_segments"])


def test_what_was_refused_is_worked_off(broker, refused):
    kinds = ask(broker, "GET", "/exceptions", "ris").json()
    assert (kinds["refused"], [one["type"] for one in kinds["kinds"]]) == (1, ["OMI^O23"])
    (item,) = ask(broker, "GET", "?state=REJECTED").json()["items"]
    assert item["age_seconds"] >= 0
    told = ask(broker, "POST", f"/{refused}/replay").json()
    assert (told["outcome"], told["state"]) == ("applied", "APPLIED")
    assert [one.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for one in broker.modality().worklist()] == [
        "S1ACC001"
    ]
    assert ask(broker, "POST", f"/{refused}/replay").json()["outcome"] == "was applied already"
    assert ask(broker, "POST", f"/{refused}/dismiss", json={"reason": "x"}).status_code == 409


def test_many_are_looked_at_again_at_once(broker, refused):
    told = ask(broker, "POST", "/replay", json={"type": "OMI", "limit": 10}).json()
    assert ([one["outcome"] for one in told["items"]], told["next"]) == (["applied"], None)


def test_a_dismissal_has_its_reason(broker, refused):
    assert ask(broker, "POST", f"/{refused}/dismiss", json={"reason": ""}).status_code == 422
    told = ask(broker, "POST", f"/{refused}/dismiss", json={"reason": "a test"}).json()
    assert (told["state"], told["noted"]) == ("DISMISSED", "a test")
    assert ask(broker, "GET", "/exceptions").json() == {"refused": 0, "oldest_seconds": None, "kinds": []}


@pytest.mark.parametrize(
    ("method", "path", "roles"),
    [("GET", "", {"ris", "qc", "admin"}), ("GET", "/exceptions", {"ris", "qc", "admin"}),
     ("GET", "/4711", {"ris", "qc", "admin"}), ("POST", "/4711/replay", {"qc", "admin"}),
     ("POST", "/replay", {"qc", "admin"}), ("POST", "/4711/dismiss", {"qc", "admin"})],
)  # fmt: skip
def test_who_may_read_and_who_may_decide(broker, method, path, roles):
    body = {"json": {"reason": "x"} if "dismiss" in path else {}} if method == "POST" else {}
    for role in ("ris", "ehr", "qc", "admin"):
        answer = ask(broker, method, path, role, **body)
        assert (answer.status_code not in (401, 403)) == (role in roles), (role, answer.text)
    assert ask(broker, method, path, None, **body).status_code == 401


@pytest.mark.parametrize("query", ["colour=red", "state=LOST", "since=yesterday", "until=9999-12-31", "limit=0", "after=-1",
                                   "accession=%00", "since=0001-01-01T00:00:00%2B14:00"])  # fmt: skip
def test_a_question_that_is_none_is_not_acceptable(broker, query):
    answer = ask(broker, "GET", f"?{query}")
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text


@pytest.fixture
def command(broker, tmp_path):
    environment = commands.environment(broker.settings.database_url, tmp_path / "data")

    def command(*arguments: str, status: int = 0) -> str:
        process = commands.begin(["message", *arguments], environment, tmp_path)
        process.join(60)
        said = (tmp_path / "stdout").read_bytes().decode("iso2022_jp" if "--raw" in arguments else "utf-8")
        assert process.exitcode == status, said + (tmp_path / "stderr").read_text("utf-8")
        return said

    return command


def test_the_command_line_does_the_same(broker, refused, command):
    broker.place(order("ACC002", SATO))
    listed = json.loads(command("list", "--state", "REJECTED", "--json"))
    assert [one["id"] for one in listed] == [refused]
    assert [one["state"] for one in json.loads(command("list", "--number", "ACC002", "--json"))] == ["APPLIED"]
    assert [one["count"] for one in json.loads(command("exceptions", "--json"))] == [1]
    shown = command("show", str(refused), "--language", "ja")
    assert "  PID-3 患者IDリスト: 0000012345 ^  ^  ^ HOSP ^ PI\n" in shown
    assert "  PID-5 患者氏名: 山田 ^ 太郎" in shown
    assert command("show", str(refused), "--raw") == omi_of(broker, refused)
    assert command("dismiss", str(refused), "--reason", "a test") == f"message {refused} is dismissed\n"
    assert command("list", "--state", "REJECTED") == "none\n"
    assert "applied" in command("replay", str(refused))
    assert "was applied already" in command("replay", str(refused))
    assert command("replay", "--type", "OMI") == "none\n"
    command("show", "4711", status=1)
    command("list", "--state", "LOST", status=2)


def test_what_was_mended_is_counted_first_and_then_taken_by_any_filter_of_the_list(broker, command):
    """Changes that came before their orders."""
    placed = [order(f"ACC00{n}", one) for n, one in enumerate((YAMADA, SATO, YAMADA, YAMADA, YAMADA), start=1)]
    for one in placed:
        broker.ris().send(omi(one, "XO"))

    def replay(*arguments: str) -> list[str]:
        return [one["outcome"] for one in json.loads(command("replay", *arguments, "--json"))]

    counted = json.loads(command("replay", "--since", "00:00", "--sender", "HIS|HOSP", "--dry-run", "--json"))
    assert (counted["found"], counted["more"], [one["count"] for one in counted["kinds"]]) == (5, False, [5])
    assert "found: 2, and there may be more" in command("replay", "--limit", "2", "--dry-run")
    assert "found: 3\n" in command("replay", "--after", str(broker.rows(Message)[1].key), "--dry-run")
    command("replay", "1", "--dry-run", status=2)
    assert not broker.rows(ImagingOrder)
    for one in placed:
        broker.place(one)
    assert replay("--patient", SATO.id) == ["applied"]
    assert replay("--accession", "ACC001") == replay("--placer", "PACC003") == ["applied"]
    assert replay("--accession", "ACC001") == replay("--protocol", "rest") == replay("--until", "00:00") == []
    assert replay("--since", "00:00", "--sender", "HIS|HOSP", "--limit", "1") == ["applied"]
    assert [one.state for one in broker.rows(Message)] == ["APPLIED"] * 4 + ["REJECTED"] + ["APPLIED"] * 5


def test_a_message_that_was_refused_unread_is_found_by_its_numbers(broker, refused):
    for name, value in (("accession", "ACC001"), ("patient", YAMADA.id), ("placer", "PACC001")):
        (item,) = ask(broker, "GET", "", params={name: value}).json()["items"]
        assert (item["id"], item["state"]) == (refused, "REJECTED")
    assert ask(broker, "POST", f"/{refused}/replay").json()["outcome"] == "applied"
    (item,) = ask(broker, "GET", "?accession=ACC001").json()["items"]
    assert item["state"] == "APPLIED"


def test_a_message_that_the_program_does_not_survive_is_parked_until_a_person_replays_it(broker):
    poison = omi(order("ACC001"))
    for _ in range(broker.settings.limits.message_deaths_max):
        killed = Crashes()
        killed.open(broker.settings.data_dir, 3)
        killed._work.note(hashlib.sha256(poison).digest())
        del killed  # its file stays, and is nobody's
        broker.restart()
    for _ in range(2):
        answer = broker.ris().send(poison)
        assert b"MSA|AE" in answer and b"|207^" in answer and b"replay it after an upgrade" in answer
    assert not broker.rows(ImagingOrder)
    (parked,) = ask(broker, "GET", "?accession=ACC001").json()["items"]
    assert ask(broker, "GET", "/exceptions").json()["kinds"][0]["error_code"] == "207"
    broker.place(order("ACC002"))
    (again,) = ask(broker, "POST", "/replay", json={"number": "ACC001"}).json()["items"]
    assert (again["outcome"], again["error_code"]) == ("refused", "207"), "only who names it takes that risk"
    assert ask(broker, "POST", f"/{parked['id']}/replay").json()["outcome"] == "applied"
    assert b"MSA|AA" in broker.ris().send(poison)
    assert not CRASHES.is_poison(hashlib.sha256(poison).hexdigest())


def omi_of(broker, pk: int) -> str:
    return next(row for row in broker.rows(Message) if row.pk == pk).raw.decode("iso2022_jp")
