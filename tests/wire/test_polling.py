"""An HTTP RIS that is asked for orders: a real server, and everything that may go wrong between it and us."""

import base64
import datetime as dt
import http.server
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy.exc import DataError

from broker import clock, config, db, site
from broker.archive import status
from broker.model.messages import Message
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient
from broker.ris_bridge import intakes, journal, poll_client, polling, replay, rest_road
from broker.ris_bridge.poll_client import NoAnswer
from broker.sim.ris import omi
from tests import roads
from tests.house import eventually
from tests.intakes import away_at, change_intake, intake, numbers, rows
from tests.world import SATO, YAMADA, order

Answer = Callable[["Handler"], None]


def body(accession: str, patient=YAMADA) -> dict:
    """As POST /api/v1/orders takes it."""
    return {
        "accession_number": accession, "accession_issuer": "RIS",
        "patient": {"id": patient.id, "issuer": "HOSP", "birth_date": "1970-01-01", "sex": "M",
                    "name": {"ideographic": patient.kanji, "phonetic": patient.kana}},
        "requested_procedures": [{"id": f"R{accession}", "description": "胸部CT", "steps": [
            {"sps_id": f"S{accession}", "modality": "CT", "station_ae_titles": ["CT1"],
             "scheduled_start": "2025-12-01T09:30:00"}]}],
    }  # fmt: skip


class Ris:
    """A feed of items, two on a page. next_answers: what it does in place of a page, one for each question."""

    def __init__(self, *, context: ssl.SSLContext | None = None) -> None:
        self.items: list[object] = []
        self.next_answers: list[Answer] = []
        self.asked: list[tuple[str, str | None]] = []
        self.was_cut_off = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.ris = self
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self._server.server_port}/feed?site=1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def page(self, cursor: str) -> dict:
        start = int(cursor or 0)
        found = self.items[start : start + 2]
        return {"items": found, "next": str(start + len(found))}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        said = dict(one.split("=") for one in query.split("&"))
        ris = self.server.ris
        ris.asked.append((said.get("cursor", ""), self.headers.get("Authorization")))
        assert (path, said["site"]) == ("/feed", "1")
        if ris.next_answers:
            ris.next_answers.pop(0)(self)
        else:
            self.say(json.dumps(ris.page(said.get("cursor", "")), ensure_ascii=False).encode())

    def say(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def ris() -> Iterator[Ris]:
    made = Ris()
    yield made
    made.close()


class Poll:
    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings

    def add(self, url: str, **fields: object) -> None:
        said = {"kind": "poll", "url": url, "format": "json", "every_seconds": 60, **fields}
        db.run(site.add_intake, "ris", now=clock.now(), actor="test", **said)

    def work(self) -> None:
        """One pass, as if its time had come."""
        change_intake(next_at=None)
        polling.work(self.settings)

    @property
    def waits(self) -> float:
        return (intake().next_at - clock.now()).total_seconds()


@pytest.fixture
def poll(database, settings, monkeypatch) -> Poll:
    status.configure(settings)
    monkeypatch.setattr(db, "_finishers", [status.publish])
    polling._failures.clear()
    return Poll(settings)


def test_orders_of_every_form_arrive_once_and_in_order(poll, ris):
    messages = [omi(order(f"ACC00{n}", SATO)) for n in (2, 3, 4)]
    utf8 = messages[2].decode("iso2022_jp").replace("~ISO IR87", "UNICODE UTF-8").replace("ISO 2022-1994", "")
    ris.items = [
        body("ACC001"), {"hl7": messages[0].decode("iso2022_jp")},
        {"hl7_base64": base64.b64encode(messages[1]).decode()}, {"hl7": utf8}, {"hl7": messages[0].decode("iso2022_jp")},
    ]  # fmt: skip
    poll.add(ris.url)
    poll.work()
    assert numbers() == ["ACC001", "ACC002", "ACC003", "ACC004"]
    assert [(message.protocol, message.peer, message.state) for message in rows(Message)] == [
        ("rest", "poll:ris", "APPLIED"), *[("hl7", "poll:ris", "APPLIED")] * 3,
    ]  # fmt: skip
    assert [message.raw for message in rows(Message)[1:]] == [*messages[:2], utf8.encode()]
    assert YAMADA.kanji in rows(Message)[0].raw.decode()
    assert (intake().cursor, intake().last_error) == ("5", "")
    assert [cursor for cursor, _ in ris.asked] == ["", "2", "4", "5"]
    assert 50 < poll.waits <= 60


def test_the_text_of_an_item_is_kept_as_it_stood_in_the_answer():
    text = ' { "x" : [1, {"items": 2}], "items" : [ {"a" :  1.50, "b":"\\u5c71"} ,[ ], "c,]}" ] , "next":"7"} '
    page = poll_client.page(text.encode(), config.Limits())
    assert [one.raw for one in page.items] == ['{"a" :  1.50, "b":"\\u5c71"}', "[ ]", '"c,]}"']
    assert page.next == "7"


def test_the_token_is_sent_and_read_anew_each_time(poll, ris, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    poll.add(ris.url, secret_file=str(secret))
    poll.work()
    secret.write_text("second\n")
    poll.work()
    assert [token for _, token in ris.asked] == ["Bearer first", "Bearer second"]
    secret.write_text("two\nlines")
    poll.work()
    assert "secret_file" in intake().last_error
    assert len(ris.asked) == 2


def test_the_token_goes_nowhere_where_others_could_read_it(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("token")
    with pytest.raises(NoAnswer, match="not https"):
        poll_client.ask("http://ris.invalid/", "", str(secret), config.Limits())


def test_a_name_that_leads_to_a_link_local_address_is_not_asked(ris, monkeypatch):
    monkeypatch.setattr(intakes, "is_link_local", lambda host: host == "127.0.0.1")
    with pytest.raises(NoAnswer, match="link-local"):
        poll_client.ask(ris.url, "", "", config.Limits())
    assert ris.asked == []


def test_what_is_refused_is_in_the_journal_and_holds_nobody_up(poll, ris):
    ris.items = [
        {**body("ACC001"), "patient": {}}, 17, {"hl7": "no HL7"}, {"hl7_base64": "%"}, {"hl7_base64": ""},
        {"hl7": omi(order("ACC002"), "XO").decode("iso2022_jp")}, body("ACC003"),
    ]  # fmt: skip
    poll.add(ris.url)
    poll.work()
    assert numbers() == ["ACC003"]
    assert [message.state for message in rows(Message)] == ["REJECTED"] * 6 + ["APPLIED"]
    assert intake().cursor == "7"
    (found, *_), _ = db.read(journal.find, journal.Wanted(accession="ACC002"), limit=5, looked_at=100)
    assert replay.replay(found.key, poll.settings, actor="meyer")["outcome"] == "refused"


def test_a_name_that_a_system_made_up_reaches_neither_log_nor_journal(poll, ris, capfd):
    """It may be the patient's (invariant 8)."""
    name = "鈴木花子 0000012345"
    ris.items = [{**body("ACC001"), "patient": {name: "x"}}, {name: "\0"}, {"hl7": 1, name: 1}]
    poll.add(ris.url)
    poll.work()
    assert [message.state for message in rows(Message)] == ["REJECTED"] * 3
    for message in rows(Message):
        assert "鈴木" not in message.error_place + message.error_text + message.type + message.answer.decode()
    said = capfd.readouterr()
    assert "message.rejected" in said.out + said.err
    assert "0000012345" not in said.out + said.err + intake().last_error


def test_an_item_says_how_an_order_is_now(poll, ris):
    """A later one changes it, also back to what it was; one with the control CA cancels it."""

    def at(hour: int) -> dict:
        made = body("ACC001")
        made["requested_procedures"][0]["steps"][0]["scheduled_start"] = f"2025-12-01T{hour:02}:30:00"
        return made

    def step() -> tuple[str, str]:
        (found,) = rows(ScheduledStep)
        return found.start_time, found.status

    poll.add(ris.url)
    for hour in (9, 15, 9):
        ris.items += [at(hour), at(hour)]
        poll.work()
        assert step() == (f"{hour:02}3000", "SCHEDULED")
    ris.items += [{"control": "CA", "accession_number": "ACC001", "accession_issuer": "RIS"}, at(9) | {"control": "XX"}]
    poll.work()
    assert step() == ("093000", "SCHEDULED")
    ris.items += [at(9) | {"control": "CA"}, at(9) | {"control": "CA"}]
    poll.work()
    assert step() == ("093000", "CANCELED")
    assert [(one.error_code, one.error_place) for one in rows(Message) if one.state == "REJECTED"] == [
        ("101", "patient.id"), ("103", "control"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["髙橋^一郎", "山﨑^①", "髙^髙橋山髙"])
@pytest.mark.parametrize("declared", ["~ISO IR87", "EUC-JP", "CP932", "UNICODE UTF-8"])
def test_a_name_in_text_is_written_as_its_sender_would_have(poll, ris, name, declared):
    """In vendor rows too, as over MLLP."""
    text = roads.omi().decode().replace("山田^太郎", name).replace("UNICODE UTF-8", declared)
    ris.items = [{"hl7": text}]
    poll.add(ris.url)
    poll.work()
    (message,) = rows(Message)
    assert (message.state, message.error_text) == ("APPLIED", "")
    assert f"={name}=" in rows(Patient)[0].name
    assert "?" not in db.read(journal.message, 1, settings=poll.settings, language="ja", now=clock.now())["raw"]


@pytest.mark.parametrize("name", ["AB\ud800CD^X", "A\x00B^X"])
def test_a_text_that_is_none_is_refused_and_nothing_stands_in_for_a_character(poll, ris, name):
    page = {"items": [{"hl7": roads.omi().decode().replace("山田^太郎", name)}], "next": "1"}
    ris.next_answers = [text_of(json.dumps(page).encode())]
    poll.add(ris.url)
    poll.work()
    assert [(message.state, b"?" in message.raw) for message in rows(Message)] == [("REJECTED", False)]
    assert (rows(Patient), intake().cursor) == ([], "1")


def test_an_item_that_nobody_foresaw_is_told_and_holds_nobody_up(poll, ris, monkeypatch):
    take = rest_road.take

    def stumble(request: object, **kwargs: object) -> object:
        if b"ACC001" in request.body:
            raise DataError("", {}, Exception("no text"))
        return take(request, **kwargs)

    monkeypatch.setattr(rest_road, "take", stumble)
    ris.items = [body("ACC001"), body("ACC002"), body("ACC003")]
    poll.add(ris.url)
    poll.work()
    assert (numbers(), intake().cursor) == (["ACC002", "ACC003"], "3")
    assert intake().last_error == "an item could not be processed, see the broker's log"
    poll.work()
    assert intake().last_error == ""


def test_a_number_with_a_null_character_is_refused_like_any_other(poll, ris):
    ris.items = [body("a\x00b"), body("ACC002")]
    poll.add(ris.url)
    poll.work()
    assert (numbers(), intake().cursor) == (["ACC002"], "2")


def status_of(code: int, **headers: str) -> Answer:
    return lambda handler: handler.say(b"", code, **headers)


def cut(handler: Handler) -> None:
    """Half of a page, then nothing."""
    content = json.dumps(handler.server.ris.page("")).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content[: len(content) // 2])


def text_of(content: bytes, **headers: str) -> Answer:
    return lambda handler: handler.say(content, **headers)


def drip(handler: Handler) -> None:
    """One byte after the other, each of them in time."""
    _slowly(handler, b"HTTP/1.0 200 OK\r\nX: ", b"x")


def drip_body(handler: Handler) -> None:
    """Where no length is told, what is cut looks whole."""
    _slowly(handler, b"HTTP/1.0 200 OK\r\n\r\n" + b'{"items": [], "next": "9"}', b" ")


def _slowly(handler: Handler, start: bytes, byte: bytes) -> None:
    try:
        handler.wfile.write(start)
        for _ in range(200):
            handler.wfile.write(byte)
            time.sleep(0.05)
    except OSError:
        handler.server.ris.was_cut_off.set()


FAULTS: dict[str, tuple[Answer, str]] = {
    "error": (status_of(500), "status 500"),
    "unknown token": (status_of(401), "status 401"),
    "redirect": (status_of(302, Location="http://127.0.0.1:1/"), "redirect (302)"),
    "cut": (cut, "RemoteProtocolError"),
    "hang up": (lambda handler: handler.connection.close(), "RemoteProtocolError"),
    "no JSON": (text_of(b"<html>"), "no JSON"),
    "no UTF-8": (text_of(b'{"items": ["\xff"], "next": "9"}'), "no JSON in UTF-8"),
    "deep": (text_of(b'{"items": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "no JSON"),
    "no items": (text_of(b'{"next": "9"}'), '"items"'),
    "a list": (text_of(b"[]"), '"items"'),
    "no cursor": (text_of(b'{"items": [], "next": 9}'), "cursor"),
    "long cursor": (text_of(json.dumps({"items": [], "next": "9" * 5000}).encode()), "cursor"),
    "cursor of no characters": (text_of(b'{"items": [], "next": "\\u0000"}'), "cursor"),
    "many items": (text_of(json.dumps({"items": [1] * 11, "next": "9"}).encode()), "more than 10 items"),
    "large": (text_of(b" " * 3_000_000), "more than 2000000 bytes"),
    "compressed": (text_of(b"x", Content_Encoding="gzip"), "compressed"),
    "slow head": (drip, "more than 1.5 seconds"),
    "slow body": (drip_body, "more than 1.5 seconds"),
}


@pytest.fixture
def limits() -> config.Limits:
    return config.Limits(poll_items_max=10, poll_body_bytes_max=2_000_000)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_answer_that_is_none_is_told_without_its_content(ris, limits, fault):
    answer, said = FAULTS[fault]
    ris.next_answers = [answer]
    limits.poll_seconds_max = 1.5 if fault.startswith("slow") else 30
    with pytest.raises(NoAnswer) as told:
        poll_client.ask(ris.url, "", "", limits)
    assert said in told.value.text
    assert "9" * 5 not in told.value.text
    assert not fault.startswith("slow") or ris.was_cut_off.wait(20)


def test_a_connection_that_is_made_too_late_is_cut_off_too(ris, limits, monkeypatch):
    make = ssl.create_default_context

    def slowly() -> ssl.SSLContext:
        time.sleep(0.3)
        return make()

    monkeypatch.setattr(ssl, "create_default_context", slowly)
    limits.poll_seconds_max = 0.1
    ris.next_answers = [drip]
    with pytest.raises(NoAnswer, match="took more than"):
        poll_client.ask(ris.url, "", "", limits)
    assert ris.asked == []


@pytest.mark.parametrize("fault", ["error", "cut", "no JSON", "hang up"])
def test_after_each_failure_the_same_page_is_asked_for_and_no_order_is_lost_or_doubled(poll, ris, fault):
    ris.items = [body(f"ACC{n}") for n in range(5)]
    poll.add(ris.url)
    ris.next_answers = [lambda handler: handler.say(json.dumps(ris.page("")).encode()), FAULTS[fault][0]]
    poll.work()
    assert (numbers(), intake().cursor) == (["ACC0", "ACC1"], "2")
    assert intake().last_error != ""
    poll.work()
    assert numbers() == [f"ACC{n}" for n in range(5)]
    assert [message.state for message in rows(Message)] == ["APPLIED"] * 5
    assert [cursor for cursor, _ in ris.asked] == ["", "2", "2", "4", "5"]
    assert intake().last_error == ""


def test_when_the_database_goes_away_within_a_page_the_cursor_stays(poll, ris, monkeypatch):
    ris.items = [body("ACC001"), {"hl7": omi(order("ACC002")).decode("iso2022_jp")}, body("ACC003")]
    poll.add(ris.url)
    with away_at(monkeypatch, 2):
        poll.work()
    assert (numbers(), intake().cursor) == (["ACC001"], "")
    poll.work()
    assert numbers() == ["ACC001", "ACC002", "ACC003"]
    assert [message.state for message in rows(Message)] == ["APPLIED"] * 3
    assert [step.version for step in rows(ScheduledStep)] == [1] * 3


def test_a_system_that_fails_is_asked_ever_less_often_and_at_once_again_when_it_answers(poll, ris):
    poll.add(ris.url, every_seconds=10)
    waits = []
    for _ in range(9):
        ris.next_answers = [status_of(500)]
        poll.work()
        waits.append(round(poll.waits, -1))
    assert waits[:4] == [20, 40, 80, 160]
    assert max(waits) == poll.settings.limits.poll_retry_seconds_max
    poll.work()
    assert poll.waits <= 10


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("300", 300), ("99999999", 3600), ("-5", 0), ("soon", 0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0), ("", 0)],
)
def test_when_to_come_again_is_heeded_within_bounds(ris, limits, said, seconds):
    ris.next_answers = [status_of(429, Retry_After=said)]
    with pytest.raises(NoAnswer) as told:
        poll_client.ask(ris.url, "", "", limits)
    assert told.value.wait == seconds


def test_a_date_when_to_come_again_is_heeded_too(poll, ris):
    at = clock.now() + dt.timedelta(seconds=600)
    ris.next_answers = [status_of(503, Retry_After=at.strftime("%a, %d %b %Y %H:%M:%S GMT"))]
    poll.add(ris.url, every_seconds=1)
    poll.work()
    assert 590 < poll.waits <= 600


@pytest.mark.parametrize("code", [204, 304])
def test_nothing_new_is_no_error(poll, ris, code):
    poll.add(ris.url)
    ris.next_answers = [status_of(code)]
    poll.work()
    assert (intake().last_error, intake().cursor) == ("", "")


def test_a_cursor_that_moves_without_items_is_asked_once_in_a_turn(poll, ris):
    poll.add(ris.url)
    ris.next_answers = [text_of(b'{"items": [], "next": "%d"}' % n) for n in range(1, 5)]
    poll.work()
    assert (len(ris.asked), intake().cursor) == (1, "1")


def test_of_several_processes_one_asks(poll, ris):
    """And one that was overtaken while it asked writes no cursor."""
    ris.items = [body("ACC001")]
    poll.add(ris.url)
    inside = []

    def meanwhile(handler: Handler) -> None:
        polling.work(poll.settings)
        inside.append(len(ris.asked))
        change_intake(next_at=clock.now())
        polling.work(poll.settings)
        handler.say(json.dumps({"items": [], "next": "OLD"}).encode())

    ris.next_answers = [meanwhile]
    poll.work()
    assert inside == [1]
    assert (numbers(), intake().cursor) == (["ACC001"], "1")


def test_a_certificate_that_nobody_vouches_for_is_refused(limits, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    made = Ris(context=context)
    try:
        with pytest.raises(NoAnswer, match="ConnectError"):
            poll_client.ask(made.url, "", "", limits)
        assert made.asked == []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(certificate))
            assert poll_client.ask(made.url, "", "", limits).next == "0"
    finally:
        made.close()


def test_a_running_broker_asks_by_itself(broker, ris):
    ris.items = [body("ACC001"), {"hl7": omi(order("ACC002")).decode("iso2022_jp")}]
    db.run(
        site.add_intake, "ris", kind="poll", url=ris.url, format="json", every_seconds=1, now=clock.now(), actor="test"
    )  # fmt: skip
    assert eventually(lambda: len(broker.modality().worklist()) == 2)
    assert [one.accession_number for one in broker.rows(ImagingOrder)] == ["ACC001", "ACC002"]
