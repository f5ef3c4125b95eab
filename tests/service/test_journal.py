"""The journal: found by anything that is asked for, read by a person, and what was refused worked off."""

import base64
import datetime as dt
import hashlib
import itertools
import json
import re

import pytest
from sqlalchemy import event, insert, text
from sqlmodel import Session, select

from broker import clock, db, site
from broker.commands import common
from broker.errors import InvalidValue, UnknownKey, WrongState
from broker.model.messages import Message, MessageKey
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.work import AuditEvent
from broker.ris_bridge import http_road, journal, replay, rest_road
from broker.ris_bridge.hl7 import fields, keys, road, view
from broker.ris_bridge.journal import Wanted
from broker.sim.ris import code_of, omi
from tests import roads
from tests.world import SATO, YAMADA, order

NOON = dt.datetime(2025, 12, 1, 3, 0, tzinfo=dt.UTC)


@pytest.fixture
def inbox(exams, settings):
    """What a sender on this computer is answered."""

    def send(raw: bytes, peer: str = "127.0.0.1") -> bytes:
        answer = road.receive(raw, peer, settings)
        assert answer is not None
        return answer.raw

    return send


def fill(count: int, **keys: str) -> None:
    """Rows of a busy journal, a minute apart; the key of each kind where its number says so."""

    def add(session: Session) -> None:
        messages = [
            {
                "pk": n, "protocol": ("hl7", "hl7", "rest", "csv")[n % 4], "type": ("ORM^O01", "OMI^O23", "ADT^A08")[n % 3],
                "sender": f"S{n % 5}|H", "control_id": f"C{n}", "sha256": f"{n:064d}", "raw": b"MSH", "answer": b"",
                "state": "REJECTED" if n % 7 == 0 else "APPLIED", "error_code": ("204", "205")[n % 2] if n % 7 == 0 else "",
                "received_at": NOON + dt.timedelta(minutes=n),
            }
            for n in range(1, count + 1)
        ]  # fmt: skip
        session.execute(insert(Message), messages)
        found = [
            {"message_pk": n, "kind": kind, "value": f"{kind}-{n // 10}"}
            for n in range(1, count + 1) for kind in journal.KINDS
        ]  # fmt: skip
        session.execute(insert(MessageKey), found)

    db.run(add)


def find(wanted: Wanted, *, limit: int = 1000, looked_at: int = 5000, after: int = 0, **how: bool) -> list[int]:
    rows, _ = db.read(journal.find, wanted, limit=limit, looked_at=looked_at, after=after, **how)
    return [row.key for row in rows]


MINUTE = dt.timedelta(minutes=1)
ASKED = {
    "accession": "accession-3", "patient": "patient-3", "placer": "placer-3", "filler": "filler-3",
    "appointment": "appointment-3", "study": "study-3", "number": "filler-3", "sender": "S2|H", "type": "ORM",
    "state": "REJECTED", "protocol": "csv", "error_code": "204", "since": NOON + 20 * MINUTE, "until": NOON + 200 * MINUTE,
}  # fmt: skip
MEANS = {
    **{kind: lambda n: n // 10 == 3 for kind in (*journal.KINDS, "number")},
    "sender": lambda n: n % 5 == 2, "type": lambda n: n % 3 == 0, "state": lambda n: n % 7 == 0,
    "protocol": lambda n: n % 4 == 3, "error_code": lambda n: n % 14 == 0,
    "since": lambda n: n >= 20, "until": lambda n: n <= 200,
}  # fmt: skip


@pytest.mark.usefixtures("database")
def test_any_one_or_two_filters_find_just_the_rows_that_fit_newest_first():
    fill(300)
    for names in [*itertools.combinations(ASKED, 1), *itertools.combinations(ASKED, 2)]:
        wanted = Wanted(**{name: ASKED[name] for name in names})
        expected = [n for n in range(300, 0, -1) if all(MEANS[name](n) for name in names)]
        assert find(wanted) == expected, names
        assert find(wanted, oldest_first=True) == expected[::-1], names


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("asked", [{}, {"type": "ORM"}, {"state": "REJECTED"}, {"protocol": "csv", "sender": "S2|H"},
                                   {"number": "placer-3"}, {"error_code": "205", "since": NOON}])  # fmt: skip
@pytest.mark.parametrize("oldest_first", [False, True])
def test_pages_that_are_followed_hold_every_row_once_however_little_is_looked_at(asked, oldest_first):
    fill(300)
    seen, after, pages = [], 0, 0
    while after is not None:
        rows, after = db.read(
            journal.find, Wanted(**asked), limit=7, looked_at=10, after=after, oldest_first=oldest_first
        )
        seen += [row.key for row in rows]
        pages += 1
        assert len(rows) <= 7
        assert pages < 200
    assert seen == find(Wanted(**asked), oldest_first=oldest_first)


@pytest.mark.usefixtures("database")
def test_a_clock_that_was_set_back_hides_no_message():
    fill(50)

    def earlier(session: Session) -> None:
        for pk in (48, 49, 50):
            session.get(Message, pk).received_at = NOON + 44 * MINUTE + pk * dt.timedelta(seconds=1)
        session.get(Message, 40).received_at = NOON + 44 * MINUTE + dt.timedelta(seconds=40)

    db.run(earlier)
    assert find(Wanted(until=NOON + 45 * MINUTE))[:4] == [50, 49, 48, 45]
    assert find(Wanted(since=NOON + 44 * MINUTE)) == [50, 49, 48, 47, 46, 45, 44, 40]


@pytest.mark.usefixtures("database")
def test_more_types_than_anybody_has_do_not_hide_one():
    fill(300)

    def strange(session: Session) -> None:
        for pk in range(1, 101):
            session.get(Message, pk).type = f"A{pk:02d}^X"

    db.run(strange)
    assert find(Wanted(type="ORM")) == [n for n in range(300, 100, -1) if n % 3 == 0]


@pytest.mark.usefixtures("database")
def test_a_percent_sign_is_no_wildcard():
    fill(20)
    assert find(Wanted(type="%")) == find(Wanted(type="O_M")) == find(Wanted(accession="%")) == []


@pytest.mark.usefixtures("database")
def test_no_combination_of_filters_scans_the_journal():
    """Neither the table nor a whole index is walked without a limit, and nothing of it is sorted but one page's rows."""
    fill(2000)
    asked = list(itertools.chain(*(itertools.combinations(ASKED, size) for size in (0, 1, 2, len(ASKED)))))
    for names in asked:
        for plan in plans(
            lambda names=names: find(Wanted(**{name: ASKED[name] for name in names}), limit=50, after=1500)
        ):
            assert not scans(plan), f"{names}:\n{plan}"


def plans(query) -> list[str]:
    """The plan of every statement that it makes."""
    statements = []

    def note(_connection, _cursor, statement, parameters, *_):
        if statement.startswith(("SELECT", "WITH")):
            statements.append((statement, parameters))

    event.listen(db.engine(), "before_cursor_execute", note)
    try:
        query()
    finally:
        event.remove(db.engine(), "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if db.is_sqlite() else "EXPLAIN "
    with db.engine().connect() as connection:
        if not db.is_sqlite():  # the table of a test is so small that reading it whole is right
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        return [
            "\n".join(str(row[-1]) for row in connection.exec_driver_sql(explain + statement, parameters))
            for statement, parameters in statements
        ]


def scans(plan: str) -> bool:
    if db.is_sqlite():
        return "SCAN message" in plan or "AUTOMATIC" in plan
    return "Seq Scan on message" in plan


# What a person reads


def test_a_message_is_shown_whole_with_the_names_of_its_fields_in_both_languages(inbox, settings):
    raw = omi(order("ACC001"))
    inbox(raw)
    shown = show(1, settings)
    assert base64.b64decode(shown["raw_base64"]) == raw
    assert shown["raw"] == raw.decode("iso2022_jp")
    assert value(shown, "PID", 5) == ["山田", "太郎", "", "", "", "", "L", "I"]
    assert name(shown, "PID", 3) == "患者IDリスト"
    assert name(shown, "IPC", 1) == "受付番号"
    assert (name(shown, "ORC", 2), name(shown, "ORC", 3)) == ("依頼者オーダ番号", "実施者オーダ番号")
    english = show(1, settings, language="en")
    assert name(english, "PID", 3) == "Patient identifier list"
    assert name(english, "ORC", 2) == "Placer order number"
    assert name(english, "ZDS", 1) == ""
    assert value(shown, "MSA", 1, "answer") == ["AA"]
    assert {(key["kind"], key["value"]) for key in shown["keys"]} == {
        ("patient", YAMADA.id), ("accession", "ACC001"), ("placer", "PACC001"), ("filler", "FACC001"),
        ("study", order("ACC001").study_uid),
    }  # fmt: skip
    assert (shown["state"], shown["order_id"], shown["age_seconds"]) == ("APPLIED", 1, None)


def show(pk: int, settings, language: str = "ja") -> dict:
    return db.read(journal.message, pk, settings=settings, language=language, now=clock.now())


def cell(shown: dict, segment: str, number: int, part: str = "raw") -> dict:
    found = next((one for one in shown[f"{part}_segments"] if one["segment"] == segment), {"fields": []})
    return next((one for one in found["fields"] if one["number"] == number), {"name": "", "repetitions": [[]]})


def name(shown: dict, segment: str, number: int) -> str:
    return cell(shown, segment, number)["name"]


def value(shown: dict, segment: str, number: int, part: str = "raw") -> list:
    return cell(shown, segment, number, part)["repetitions"][0]


def test_bytes_that_are_no_text_are_shown_as_what_they_are(inbox, settings):
    raw = omi(order()).replace("山田".encode("iso2022_jp"), b"\xff\xfe")
    assert code_of(inbox(raw)) == "AE"
    shown = show(1, settings)
    assert "\\xff\\xfe" in shown["raw"]
    assert base64.b64decode(shown["raw_base64"]) == raw
    assert shown["error_code"] == "102"


def test_a_message_is_read_in_the_set_of_its_sender_where_it_declares_another(inbox, settings):
    db.run(site.add_sender, "HIS", application="HIS", character_set="CP932", now=clock.now(), actor="test")
    raw = omi(order()).decode("iso2022_jp").replace("~ISO IR87", "").replace("ISO 2022-1994", "").encode("cp932")
    assert code_of(inbox(raw)) == "AA"
    assert value(show(1, settings), "PID", 5)[:2] == ["山田", "太郎"]


def test_only_so_many_segments_are_shown_and_the_others_are_counted(inbox, settings):
    inbox(omi(order()) + b"NTE|1||x\r" * 50)
    settings.limits.journal_segments_max = 10
    shown = show(1, settings)
    assert (len(shown["raw_segments"]), shown["raw_segments_left"]) == (10, 47)
    assert shown["raw"].count("NTE|") == 50


@pytest.mark.parametrize("raw", [b"", b"MSH", b"MSH|", b"MSH||||", b"\x00\xff" * 50, b"MSH|^~\\&|" + b"~" * 5000, b"|" * 5000,
                                 b"MSH|^~\\&|\rPID|\\C2842\\|\\X\r\n\r\n" + b"&" * 5000])  # fmt: skip
@pytest.mark.parametrize("protocol", ["hl7", "rest", "csv"])
def test_whatever_came_can_be_shown(raw, protocol):
    shown = view.show(raw, protocol, "ISO-2022-JP", "", "ja", 100)
    assert base64.b64decode(shown["_base64"]) == raw
    assert len(json.dumps(shown)) < 40 * len(raw) + 2000
    view.lines(shown["_segments"])


def test_who_sends_a_message_does_not_write_on_the_terminal_of_who_reads_it(inbox, settings, capsys):
    """Neither as bytes nor by an escape of HL7; marks of direction would turn a number round."""
    signs = "\x1b]0;x\x07\x9b2J\u202e\u200b"
    raw = omi(order()).decode("iso2022_jp").replace("~ISO IR87", "UNICODE UTF-8").replace("|HIS|", f"|HIS{signs}|")
    raw = raw.replace("||19700101", "\\X1B\\[2J||19700101")
    assert code_of(inbox(raw.encode(), "10.0.0.9")) == "AR"
    shown = show(1, settings)
    said = "\n".join(view.lines(shown["raw_segments"]))
    assert "HIS\\x1b]0;x\\x07\\x9b2J\\u202e\\u200b" in said
    assert "\\x1b[2J" in said
    common.show([{"sender": shown["sender"], "text": "a\nb\ud800"}], as_json=False)
    common.show([{"sender": shown["sender"]}], as_json=True)
    common.show([{"sender": "山田\t"}], as_json=False)
    told = capsys.readouterr().out
    assert json.loads(re.search(r"\[\n.*\n\]", told, re.DOTALL)[0]) == [{"sender": shown["sender"]}]
    assert "a\\x0ab\\ud800\n" in told
    assert "山田\\x09\n" in told
    assert not set(signs) - set("]0;x2J") & set(said + told)


def test_a_message_that_is_too_much_is_not_shown_in_full():
    for sign in b"|~^&\r":
        raw = b"MSH|^~\\&|\rPID|" + bytes([sign, 65]) * 100_000
        shown = view.show(raw, "hl7", "ISO-2022-JP", "", "ja", 100)
        assert len(json.dumps(shown["_segments"])) < 100_000
        assert len(shown[""]) == len(raw)


def test_every_segment_that_is_read_has_its_fields_named_in_japanese():
    table = fields._japanese()
    segments = {name for name, number in table if not number}
    assert segments >= {segment for _, segment, _ in keys.KEYS} | {
        *"MSH EVN PID PV1 ORC OBR TQ1 IPC ZDS NTE OBX SCH RGS AIS AIG AIL AIP MRG AL1 MSA ERR BHS BTS FHS FTS".split()
    }
    assert all(table.values())
    for segment in segments - {"ZDS"}:
        mine = max(number for name, number in table if name == segment)
        assert fields.field_name(segment, mine, "en"), f"{segment} has no field {mine}"


# What a person does about a refused message


@pytest.fixture
def refused(inbox) -> int:
    """An order of a sender that nobody has registered."""
    assert code_of(inbox(omi(order("ACC001"), control_id="M1"), "10.0.0.9")) == "AR"
    return 1


def register() -> None:
    db.run(site.add_sender, "HIS", application="HIS", now=clock.now(), actor="test")


def actions() -> list[tuple[str, str, str]]:
    rows = db.read(lambda session: session.exec(select(AuditEvent).order_by(AuditEvent.pk)).all())
    return [(row.action, row.subject, row.actor) for row in rows if row.action.startswith("message.")]


def test_what_was_refused_is_applied_when_it_is_looked_at_again_after_the_sender_is_known(inbox, refused, settings):
    register()
    told = replay.replay(refused, settings, actor="meyer")
    assert (told["outcome"], told["state"], told["became"], told["error_code"]) == (
        "applied",
        "APPLIED",
        "NW order 1",
        "",
    )
    assert code_of(db.read(journal.get, refused).answer) == "AA"
    assert code_of(inbox(omi_again(), "10.0.0.9")) == "AA"
    assert db.read(lambda session: len(session.exec(select(ImagingOrder)).all())) == 1
    assert actions() == [("message.replay", "message:1", "meyer")]


def omi_again() -> bytes:
    return db.read(journal.get, 1).raw


def test_it_stays_refused_with_the_reason_of_today(refused, settings):
    db.run(
        site.add_sender, "HIS", application="HIS", messages=["ADT"], now=clock.now(), actor="test"
    )  # fmt: skip
    told = replay.replay(refused, settings, actor="meyer")
    assert (told["outcome"], told["state"], told["error_place"]) == ("refused", "REJECTED", "MSH^1^9")


def test_a_refusal_about_the_content_is_looked_at_again_too(inbox, settings):
    """The sender would get its old answer; a person wants to know what is true now."""
    assert code_of(inbox(omi(order("ACC001"), "XO", control_id="M1"))) == "AE"
    (pk,) = find(Wanted(state="REJECTED"))
    inbox(omi(order("ACC001"), control_id="M0"))
    assert replay.replay(pk, settings, actor="meyer")["outcome"] == "applied"


def test_what_was_applied_is_not_applied_twice(inbox, settings):
    inbox(omi(order("ACC001")))
    before = db.read(lambda session: session.get(ScheduledStep, 1).model_dump())
    assert replay.replay(1, settings, actor="meyer")["outcome"] == "was applied already"
    assert db.read(lambda session: session.get(ScheduledStep, 1).model_dump()) == before
    assert actions() == []


def test_a_new_default_character_set_does_not_hide_the_row_of_an_old_message(inbox, settings):
    """Its key is as it was, though the sender's name reads otherwise now."""
    raw = omi(order("ACC001")).replace(b"|HIS|", "|病院|".encode("iso2022_jp")).replace(b"~ISO IR87", b"")
    settings.hl7.character_set = "UNICODE UTF-8"
    assert code_of(inbox(raw)) == "AE"
    settings.hl7.character_set = "ISO-2022-JP"
    assert replay.replay(1, settings, actor="meyer")["outcome"] == "applied"
    assert db.read(lambda session: len(session.exec(select(Message)).all())) == 1


def test_many_are_looked_at_in_the_order_in_which_they_came_and_no_more_than_wanted(inbox, settings):
    for n, control in enumerate(["NW", "XO", "CA"]):
        inbox(omi(order("ACC001"), control, control_id=f"M{n}", sent=NOON + n * MINUTE), "10.0.0.9")
    inbox(omi(order("ACC002", SATO), control_id="M9"), "10.0.0.9")
    register()
    first = replay.replay_many(Wanted(state="REJECTED"), settings, actor="meyer", limit=3)
    assert [one["outcome"] for one in first["items"]] == ["applied"] * 3
    assert [one["id"] for one in first["items"]] == [1, 2, 3]
    rest = replay.replay_many(Wanted(state="REJECTED"), settings, actor="meyer", limit=3, after=first["next"])
    assert ([one["id"] for one in rest["items"]], rest["next"]) == ([4], None)
    assert db.read(lambda session: session.get(ScheduledStep, 1).status) == "CANCELED"


def test_a_dismissed_message_needs_nobody_and_says_why(inbox, refused, settings):
    row = db.run(replay.dismiss, refused, reason="test system", actor="meyer", now=clock.now())
    assert (row.state, row.noted) == ("DISMISSED", "test system")
    assert db.read(journal.exceptions, now=clock.now(), looked_at=100)["refused"] == 0
    assert find(Wanted(state="DISMISSED")) == [1]
    assert actions() == [("message.dismiss", "message:1", "meyer")]
    with pytest.raises(WrongState):
        db.run(replay.dismiss, refused, reason="again", actor="meyer", now=clock.now())
    register()
    assert code_of(inbox(omi_again(), "10.0.0.9")) == "AA"  # not the sender's fault: as any refused one


def test_a_dismissed_message_can_be_looked_at_again(refused, settings):
    db.run(replay.dismiss, refused, reason="test system", actor="meyer", now=clock.now())
    register()
    told = replay.replay(refused, settings, actor="meyer")
    assert (told["outcome"], told["noted"]) == ("applied", "")


@pytest.mark.parametrize(("entry", "code"), [
    ({"application": "HIS", "facility": "HOSP"}, "AR"), ({"application": "HIS"}, "AR"), ({"facility": "HOSP"}, "AR"),
    ({"application": "HIS", "facility": "OTHER"}, "AA"), ({}, "AA"),
])  # fmt: skip
@pytest.mark.parametrize("policy", ["", "accept"])
def test_who_says_that_he_is_a_registered_sender_is_not_unknown(inbox, settings, entry, code, policy):
    settings.hl7.unknown_sender = policy
    db.run(site.add_sender, "HIS", **entry, address="10.1.1.1", now=clock.now(), actor="test")
    assert code_of(inbox(omi(order("ACC001")))) == code
    if entry.get("facility") != "OTHER":
        assert code_of(inbox(omi(order("ACC002")), "10.1.1.1")) == "AA"


def test_who_is_not_registered_cannot_fill_the_disk(inbox, settings):
    """The oldest of their messages go; those of senders that are known stay, and those that a person has looked at."""
    settings.limits.unknown_sender_messages_max = 3
    inbox(omi(order("ACC001"), "XO", control_id="KNOWN"))
    for n in range(6):
        inbox(omi(order("ACC002"), control_id=f"M{n}"), "10.0.0.9")
    oldest = find(Wanted(error_code="207"))[-1]
    db.run(replay.dismiss, oldest, reason="a test", actor="meyer", now=clock.now())
    assert code_of(inbox(omi(order("ACC003")) + b"NTE|1||" + b"x" * 65_000, "10.0.0.9")) == "AR"
    for _ in range(2):
        journal.work(settings)
        kept = [
            one.control_id for one in db.read(lambda session: session.exec(select(Message).order_by(Message.pk)).all())
        ]
        assert kept == ["KNOWN", "M0", "M3", "M4", "M5"]
    inbox(omi(order("ACC002"), control_id="M7"), "10.0.0.9")
    journal.work(settings)
    assert len(find(Wanted())) == 5
    assert len(find(Wanted(sender="HIS|HOSP", state="REJECTED"))) == 4


def test_a_long_message_of_a_registered_sender_is_kept_when_it_is_refused(inbox):
    register()
    assert code_of(inbox(omi(order("ACC001"), "XO") + b"NTE|1||" + b"x" * 65_000, "10.0.0.9")) == "AE"
    assert len(find(Wanted())) == 1


def test_a_dismissal_is_forgotten_when_the_message_is_refused_anew(refused, settings):
    db.run(replay.dismiss, refused, reason="test system", actor="meyer", now=clock.now())
    told = replay.replay(refused, settings, actor="meyer")
    assert (told["outcome"], told["state"], told["noted"]) == ("refused", "REJECTED", "")


def test_a_control_id_is_used_by_what_was_applied_alone(inbox):
    """What a stranger has sent under it, or the sender itself with an error that it mends, was not taken."""
    good = omi(order("ACC001"), control_id="M1", sent=NOON)
    assert code_of(inbox(omi(order("ACC666"), control_id="M1", sent=NOON), "10.0.0.9")) == "AR"
    assert code_of(inbox(good.replace(b"19700101", b"19709901"))) == "AE"
    assert code_of(inbox(good)) == "AA"
    assert b"|205^" in inbox(omi(order("ACC002"), control_id="M1", sent=NOON))
    assert code_of(inbox(omi(order("ACC003"), control_id="M1", sent=NOON + MINUTE))) == "AA"
    (row,) = db.read(journal.find, Wanted(accession="ACC003"), limit=5, looked_at=100)[0]
    assert "control id reused" in row.became


def test_what_has_no_time_of_its_own_was_said_when_it_first_came(inbox, settings):
    def untimed(control: str, hour: int, control_id: str) -> bytes:
        raw = roads.omi(control, roads.START.replace(hour=hour)).replace(b"|20251201085500+0900|", b"||")
        return raw.replace(b"|20251201085500|", b"||").replace(b"MSG-OMI", control_id)

    assert code_of(inbox(untimed("XO", 8, b"M0"))) == "AE"
    assert code_of(inbox(untimed("NW", 9, b"M1"))) == "AA"
    assert code_of(inbox(untimed("XO", 16, b"M2"))) == "AA"
    (first,) = find(Wanted(state="REJECTED"))
    assert replay.replay(first, settings, actor="meyer")["outcome"] == "applied"
    assert db.read(lambda session: session.exec(select(ScheduledStep)).one().start_time) == "163000"


def test_a_request_that_is_looked_at_again_was_said_when_it_first_came(exams, settings):
    settings.site.accession_issuer, settings.site.patient_id_issuer = "RIS", "HOSP"

    def send(method: str, path: str, body: dict) -> None:
        request = http_road.Request(method, rest_road.ORDERS + path, json.dumps(body).encode())
        rest_road.take(request, sender="ris", peer="", key="", settings=settings)

    def move(hour: int) -> dict:
        step = {"sps_id": "SPS001", "scheduled_start": roads.START.replace(hour=hour).isoformat()}
        return {"requested_procedures": [{"id": "RP001", "steps": [step]}]}

    def refuse(session: Session) -> None:
        raw = http_road.Request("PATCH", rest_road.ORDERS + "/1", json.dumps(move(8)).encode()).raw()
        said = {"protocol": "rest", "type": "PATCH order", "sender": "ris", "control_id": "K", "raw": raw}
        digest = hashlib.sha256(raw).hexdigest()
        session.add(Message(**said, sha256=digest, state="REJECTED", received_at=clock.now()))

    send("POST", "", roads.rest())
    db.run(refuse)
    send("PATCH", "/1", move(15))
    told = replay.replay(2, settings, actor="meyer")
    assert told["outcome"] == "applied", told
    assert db.read(lambda session: session.get(ScheduledStep, 1).start_time) == "153000"


def test_what_was_applied_cannot_be_dismissed(inbox):
    inbox(omi(order("ACC001")))
    with pytest.raises(WrongState):
        db.run(replay.dismiss, 1, reason="why not", actor="meyer", now=clock.now())
    with pytest.raises(UnknownKey):
        db.run(replay.dismiss, 4711, reason="why not", actor="meyer", now=clock.now())


def test_what_waits_is_counted_by_kind_with_its_age(inbox):
    for n in range(3):
        inbox(omi(order(f"ACC{n}"), control_id=f"M{n}"), "10.0.0.9")
    inbox(omi(order("ACC001"), "XO"))
    later = clock.now() + dt.timedelta(hours=1)
    found = db.read(journal.exceptions, now=later, looked_at=100)
    assert found["refused"] == 4
    assert 3600 <= found["oldest_seconds"] < 3700
    assert [(one["count"], one["error_code"], one["error_place"]) for one in found["kinds"]] == [
        (3, "207", "MSH^1^3"), (1, "204", "ORC^1^2"),
    ]  # fmt: skip


@pytest.mark.parametrize("said", [{"state": "LOST"}, {"since": "yesterday"}, {"until": "0001-01-01"}])
def test_a_filter_that_is_none_is_refused_by_its_name(said):
    with pytest.raises(InvalidValue) as refusal:
        journal.wanted(said, "Asia/Tokyo")
    assert refusal.value.place == next(iter(said))


def test_a_time_without_a_zone_is_the_sites():
    assert journal.wanted({"since": "2025-12-01T12:00"}, "Asia/Tokyo").since == NOON
    assert journal.wanted({"since": "2025-12-01T03:00Z"}, "Asia/Tokyo").since == NOON
