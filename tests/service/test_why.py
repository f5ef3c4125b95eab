"""Why an exam is not on a device's list: what is read of it, and that what is told is what the database does."""

import dataclasses
import datetime as dt
import itertools

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlmodel import Session, select

from broker import access, clock, db, site
from broker.dicom import habits, tree
from broker.dicom.habits import NEVER_SHOWN, Habits
from broker.dicom.service import NodeInfo
from broker.errors import InvalidValue
from broker.model.messages import Message, MessageKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep, StepVersion
from broker.model.worklist import WorklistAnswer, WorklistKeys, WorklistQuery
from broker.mwl import expiry, funnel, history, orders, plan, query_log, replay, view, why_reads, worklist
from broker.mwl.commands import OrderCommand, ProcedureCommand, StepCommand
from broker.mwl.query_log import Asked, Batch, Run, Source
from broker.mwl.why_facts import Asked as Question
from tests.service.exam import SATO, YAMADA, Exams

NOON = dt.datetime(2025, 12, 1, 3, tzinfo=dt.UTC)  # 12:00 in Tokyo
DAY = dt.timedelta(days=1)
STATION, MODALITY, DATE, TIME, STATUS, SPS = 0x00400001, 0x00080060, 0x00400002, 0x00400003, 0x00400020, 0x00400009
NAME, PATIENT, STEPS = 0x00100010, 0x00100020, 0x00400100


@pytest.fixture(autouse=True)
def _nodes():
    access.forget()
    yield
    access.forget()


def place(exams: Exams, accession: str, person=YAMADA, issuer: str = "RIS", **step: object) -> None:
    said = {"modality": "CT", "station_ae_titles": ("CT1",), "start_date": "20251201", "start_time": "093000", **step}
    wanted = StepCommand(f"S{accession}", **said)
    procedure = ProcedureCommand(
        requested_procedure_id=f"R{accession}", study_instance_uid=exams.uid(accession + issuer),
        placer_number=f"P{accession}{issuer}", description="CT", steps=(wanted,),
    )  # fmt: skip
    command = OrderCommand(
        control="NW", accession_number=accession, accession_issuer=issuer, patient=person, at=NOON,
        procedures=(procedure,),
    )  # fmt: skip
    db.run(orders.apply, command, now=NOON, actor="test", site=exams.settings.site)


def add_node(ae_title: str = "CT1", **fields: object) -> None:
    said = {"host": "127.0.0.1", "port": 104, "modality": "CT", **fields}
    db.run(site.add_node, ae_title, actor="test", now=NOON, **said)
    access.forget()


def causes(exams: Exams, accession: str = "ACC001", ae: str = "CT1", now: dt.datetime = NOON, **more) -> list[dict]:
    found = db.read(why_reads.explain, Question(accession, ae, **more), exams.settings, now=now)
    (item,) = found["items"]
    return item["causes"]


def codes(exams: Exams, *args, **more) -> list[str]:
    return [one["code"] for one in causes(exams, *args, **more)]


def edit(accession: str, **values: object) -> None:
    def change(session: Session) -> None:
        step = session.exec(select(ScheduledStep).where(ScheduledStep.accession_number == accession)).one()
        for name, value in values.items():
            setattr(step, name, value)
        session.add(step)

    db.run(change)


def query(step: dict[int, str] | None = None, **keys: str) -> tree.Tree:
    """keys: `x00100010="…"`."""
    made: tree.Tree = {
        int(name[1:], 16): (tree.vr_of(int(name[1:], 16)), value) for name, value in sorted(keys.items())
    }
    made[STEPS] = ("SQ", [{tag: (tree.vr_of(tag), value) for tag, value in sorted((step or {}).items())}])
    return made


def record(exams: Exams, asked: tree.Tree, *, at: dt.datetime = NOON, shown=(), status: int = 0, times: int = 1,
           ae_title: str = "CT1") -> None:  # fmt: skip
    """As the recorder writes a run of queries."""
    identifier = tree.write({tree.CHARSET: ("CS", "ISO_IR 192"), **asked}, tree.EXPLICIT_LE, ("ISO_IR 192",))
    source = Source(ae_title, "BROKER", "127.0.0.1", identifier, tree.EXPLICIT_LE)
    run = Run(Asked(source, at, tuple(shown), status, "ISO_IR 192"), at, times)
    counts = {id(run): funnel.NOT_COUNTED}
    db.run(query_log.write, Batch([(run, times)], counts))


# What is told is what happens

NODES = {
    "CT1": Habits(aliases=frozenset({"CT_1"}), groups=frozenset({"POOL"})),
    "CT2": Habits(groups=frozenset({"POOL"})),
    "MR1": Habits(),
}
DEVICES = [
    Habits(), Habits(sees=("own",)), Habits(sees=("modality", "ae:MR1")), Habits(sees=("own", "location:ROOM 1")),
    Habits(labels=frozenset({"ER"})), Habits(days_before=0, days_after=1),
    Habits(days_before=1, days_after=1, quirks=frozenset({"today_is_window"})),
    Habits(hide=NEVER_SHOWN | {"SCHEDULED", "COMPLETED", "DISCONTINUED"}, started_hours=2),
    Habits(hide=NEVER_SHOWN | {"STARTED"}, finished_hours=2), Habits(hide=NEVER_SHOWN, finished_hours=4),
]  # fmt: skip
QUERIES = [
    query(), query({STATION: "CT1"}), query({STATION: "CT_1"}), query({STATION: "POOL"}), query({STATION: "CT9"}),
    query({STATION: "CT*"}), query({MODALITY: "CT"}), query({MODALITY: "MR"}), query({DATE: "20251201"}),
    query({DATE: "20251130-"}), query({DATE: "20251202"}), query({TIME: "09"}), query({TIME: "1000-"}),
    query({DATE: "20251201-20251202", TIME: "1000-0900"}), query({STATUS: "SCHEDULED"}), query({STATUS: "STARTED"}),
    query({SPS: "SACC1"}), query({STATION: "CT1", DATE: "20251202", MODALITY: "CT"}), query(x00100010="YAMADA*"),
    query({STATION: "CT1"}, x00100010="SATO*"), query(x00100020="0000012345"), query(x00080050="ACC2"),
    query(x00100030="19700101"), query({0x00400011: "ROOM 1"}), query({SPS: "SACC?"}), query(x00080050="*CC2"),
    query(x00100020="00000*"), query({STATUS: "DEPARTED"}),
]  # fmt: skip


@pytest.fixture
def world(exams) -> list[tuple[ScheduledStep, replay.Item]]:
    place(exams, "ACC1")
    place(exams, "ACC2", SATO, station_ae_titles=("CT2",), start_time="103000")
    place(exams, "ACC3", station_ae_titles=("CT_1", "MR1"), start_date="20251202")
    place(exams, "ACC4", station_ae_titles=("POOL",), start_date="20251130")
    place(exams, "ACC5", SATO, station_ae_titles=("MR1",), modality="MR")
    place(exams, "ACC6", station_ae_titles=("CT_9",))
    edit("ACC2", label="ER")
    for accession, status, hours in (("ACC4", "ARRIVED", 1), ("ACC3", "STARTED", 1), ("ACC6", "STARTED", 3)):
        edit(accession, status=status, status_at=NOON - dt.timedelta(hours=hours))
    place(exams, "ACC7")
    edit("ACC7", status="CANCELED", status_at=NOON)
    place(exams, "ACC8", station_ae_titles=("CT1",))
    edit("ACC8", status="COMPLETED", status_at=NOON - dt.timedelta(hours=3))
    return db.read(read_items)


def read_items(session: Session) -> list[tuple[ScheduledStep, replay.Item]]:
    found = []
    for step in session.exec(select(ScheduledStep)).all():
        procedure = session.get_one(RequestedProcedure, step.requested_procedure_pk)
        titles = select(ScheduledStation.ae_title).where(ScheduledStation.step_pk == step.pk)
        found.append((step, why_reads._item(step, procedure, tuple(session.exec(titles).all()))))
    return found


def test_an_item_fails_nothing_exactly_where_the_database_finds_it_and_the_funnel_counts_the_same(exams, world):
    directory = habits.directory(NODES)
    seen = set()
    for device, asked in itertools.product(DEVICES, QUERIES):
        node = NodeInfo(1, "CT1", "", False, "CT1", frozenset(), "", None, "CT", device)
        what = view.of(node, "CT1", exams.settings, NOON)
        wanted = plan.of(asked, what, directory)
        found = {one.step_pk for one in worklist.find(wanted, what, directory)}
        passed = {step.pk for step, item in world if not replay.failing(wanted, what, directory, item)}
        assert passed == found, (device, asked)
        counts = funnel.count(wanted, what, directory)
        assert counts.considered - sum(count for _, count in counts.removed) == len(found), (device, asked)
        seen.add(len(found))
    assert seen >= {0, 1, 2, 3, 4}, "the table tells something apart"


# What is read


def test_what_has_expired_is_told_with_its_reason(exams, monkeypatch):
    add_node()
    place(exams, "ACC001")
    edit("ACC001", status_at=NOON)
    step = exams.rows(ScheduledStep)[0]
    assert db.run(expiry.expire, step.key, exams.settings, now=clock.now() + 10 * DAY)
    (cause, *_) = causes(exams)
    assert (cause["code"], cause["evidence"]["by"], cause["evidence"]["event"]) == ("expired", "broker", "expire")
    assert "7 days since" in cause["says"]
    assert cause["mend"] == "broker order reinstate 1 --step SACC001 --reason …"


def test_a_conflict_about_the_patient_is_told_with_its_case(exams):
    add_node()
    place(exams, "ACC001")
    place(exams, "ACC001", dataclasses.replace(SATO, identifiers=YAMADA.identifiers))
    assert exams.rows(ImagingOrder)[0].withheld == "patient_conflict"
    (cause, *_) = causes(exams)
    assert (cause["code"], cause["evidence"]["case_id"]) == ("order_withheld", 1)
    assert "SATO" not in str(cause)


def test_what_an_item_lacks_is_told_with_its_place(exams):
    add_node()
    place(exams, "ACC001", modality="", start_time="")
    (cause, *_) = causes(exams)
    assert cause["code"] == "incomplete"
    assert cause["evidence"]["missing"] == ["ScheduledProcedureStepStartTime", "Modality"]
    assert "IPC-5" in cause["mend"]


def test_several_orders_of_one_number_are_all_told(exams):
    add_node()
    place(exams, "ACC001", issuer="RIS")
    place(exams, "ACC001", SATO, issuer="OTHER")
    found = db.read(why_reads.explain, Question("ACC001", "CT1"), exams.settings, now=NOON)
    assert [item["accession_issuer"] for item in found["items"]] == ["RIS", "OTHER"]
    assert codes(exams, issuer="OTHER")[0] == "never_asked"


def test_a_message_that_waits_and_a_change_that_was_refused_are_told(exams):
    def journal(session: Session, state: str) -> None:
        message = Message(sha256=state, state=state, type="OMI^O23", sender="HIS|HOSP", received_at=NOON)
        session.add(message)
        session.flush()
        session.add(MessageKey(message_pk=message.key, kind="accession", value="ACC001"))

    add_node()
    db.run(journal, "RECEIVED")
    assert codes(exams) == ["message_unread", "no_order"]
    db.run(journal, "DISMISSED")
    assert codes(exams) == ["message_refused", "message_unread", "no_order"]
    place(exams, "ACC001")
    db.run(journal, "REJECTED")
    assert [(one["code"], one["in_the_way"]) for one in causes(exams)] == [
        ("never_asked", True), ("change_refused", False), ("message_unread", False),
    ]  # fmt: skip


def test_a_title_of_several_devices_is_no_device(exams):
    add_node("CT1", groups=["POOL"])
    add_node("CT2", groups=["POOL"])
    with pytest.raises(InvalidValue, match="CT1, CT2"):
        causes(exams, ae="POOL")


def test_an_open_test_bench_knows_no_unknown_device(exams):
    place(exams, "ACC001", station_ae_titles=("CT9",))
    assert codes(exams, ae="CT9") == ["unknown_device", "never_asked"]
    exams.settings.dicom.unknown_ae = "accept"
    assert codes(exams, ae="CT9") == ["never_asked"]


def test_what_brings_a_step_back_makes_an_older_query_count_no_more(exams):
    add_node()
    place(exams, "ACC001")
    record(exams, query({STATION: "CT1"}), at=clock.now())
    assert codes(exams)[0] == "nothing_in_the_way"
    later = clock.now() + DAY
    for event in ("cancel", "reinstate"):
        db.run(move, event, later)
    assert codes(exams, now=later)[0] == "not_asked_since"


def move(session: Session, event: str, now: dt.datetime, accession: str = "ACC001") -> None:
    step = session.exec(select(ScheduledStep).where(ScheduledStep.accession_number == accession)).one()
    orders.move_step(session, step, event, now=now, actor="test", cause="a word about Sato")


def test_what_a_person_typed_may_name_somebody_and_is_not_told(exams):
    add_node()
    place(exams, "ACC001")
    db.run(move, "hold", NOON)
    (cause, *_) = causes(exams)
    assert (cause["code"], cause["evidence"]["since"]) == ("on_hold", "2025-12-01T03:00:00.000000Z")
    assert "Sato" not in str(cause)


def test_a_query_level_that_is_ignored_of_a_device_is_ignored_here(exams):
    add_node(matches_max=1, quirks=["query_level"])
    place(exams, "ACC001")
    place(exams, "ACC002", SATO)
    edit_made(NOON - DAY)
    record(exams, query({STATION: "CT1"}, x00080052="STUDY"))
    assert codes(exams) == ["too_many"]


def test_whether_a_zone_was_negotiated_is_not_known_so_the_database_is_not_asked(exams):
    add_node()
    place(exams, "ACC001")
    edit_made(NOON - DAY)
    shown = [(1, 1, "SCHEDULED")]
    record(exams, query({DATE: "20251130"}, x00080201="-1000"), shown=shown)
    assert codes(exams) == ["on_the_list"]
    exams.settings.worklist.fuzzy_names = True
    record(exams, query({DATE: "20251201"}, x00100010="TARO^YAM"), shown=shown, at=NOON + DAY)
    assert codes(exams, now=NOON + 2 * DAY) == ["on_the_list"], "nor whether names were matched loosely"


def test_a_question_that_it_asked_for_yesterday_alone_is_told_as_not_asked_today(exams):
    add_node()
    place(exams, "ACC001")
    edit_made(NOON - 3 * DAY)
    record(exams, query({STATION: "CT1", DATE: "20251130"}), at=NOON - DAY)
    assert codes(exams) == ["not_asked_today"]
    record(exams, query({STATION: "CT1", DATE: "20251201"}), at=NOON)
    assert codes(exams) == ["nothing_in_the_way"]


def edit_made(at: dt.datetime) -> None:
    def change(session: Session) -> None:
        for row in session.exec(select(StepVersion)).all():
            row.created_at = at
            session.add(row)

    db.run(change)


def test_an_old_question_that_found_it_does_not_hide_that_the_present_one_does_not(exams):
    add_node()
    place(exams, "ACC001")
    edit_made(NOON - 9 * DAY)
    record(exams, query({STATION: "CT1"}), at=NOON - 3 * DAY)
    record(exams, query({STATION: "CT1", MODALITY: "MR"}), at=NOON)
    assert codes(exams) == ["modality"]
    record(exams, query({STATION: "CT1"}), at=NOON - DAY / 2)
    assert codes(exams) == ["nothing_in_the_way"]


def test_a_query_that_was_broken_off_before_the_item_came_is_told(exams):
    add_node()
    place(exams, "ACC001")
    edit_made(NOON - DAY)
    record(exams, query({STATION: "CT1"}), status=0xFE00)
    assert codes(exams) == ["query_cancelled"]
    record(exams, query({STATION: "CT1"}), status=0xFE00, shown=[(1, 1, "SCHEDULED")], at=NOON + DAY / 24)
    assert codes(exams, now=NOON + DAY / 12) == ["on_the_list"]


def test_few_questions_of_a_device_are_asked_again_however_many_there_were(exams):
    add_node()
    place(exams, "ACC001")
    edit_made(NOON - DAY)
    for n in range(30):
        record(exams, query({STATION: f"X{n}"}), at=NOON + dt.timedelta(seconds=n))
    assert codes(exams, now=NOON + DAY) == ["asks_for_unknown_station"] * 5


def test_whether_it_finds_too_many_is_not_counted_item_by_item_without_end(exams, monkeypatch):
    add_node(matches_max=1)
    place(exams, "ACC001")
    place(exams, "ACC002", SATO)
    edit_made(NOON - DAY)
    by_name = query({STATION: "CT1"}, x00100010="*TA*")
    record(exams, by_name)
    assert codes(exams) == ["nothing_in_the_way"], "it finds one"
    record(exams, query({STATION: "CT1"}, x00100010="*A*"), at=NOON + DAY / 24)
    record(exams, by_name, status=0xA700, at=NOON + 2 * DAY)
    monkeypatch.setattr(funnel, "ITEMS_MAX", 0)
    assert codes(exams, now=NOON + 2 * DAY) == ["too_many"], "as it ended last"


def test_keys_of_which_nothing_could_be_kept_are_told_as_such(exams):
    add_node()
    place(exams, "ACC001")
    edit_made(NOON - DAY)
    source = Source("CT1", "BROKER", "127.0.0.1", b"\xff\xff\xff", tree.EXPLICIT_LE)
    run = Run(Asked(source, NOON, (), 0xC001), NOON)
    db.run(query_log.write, Batch([(run, 1)], {id(run): funnel.NOT_COUNTED}))
    assert codes(exams) == ["query_refused"]
    at = db.read(history.shown_at, "CT1", NOON, exams.settings, NOON)
    assert (at["queries"][0]["status"], at["queries"][0]["keys"]) == ("C001", [])


# In one state of the database


def three_questions(exams: Exams) -> None:
    """The database is asked for each, and for how many items each finds."""
    add_node(matches_max=1)
    place(exams, "ACC001")
    place(exams, "ACC002", SATO, station_ae_titles=("CT2",))
    edit_made(NOON - DAY)
    for asked in (query({STATION: "CT1"}), query(x00100010="*YAMADA*"), query({STATION: "CT1", MODALITY: "CT"})):
        record(exams, asked)


def test_all_is_read_by_one_connection(exams, monkeypatch):
    """Of a pool that has no other."""
    three_questions(exams)
    access.directory()
    here, most = [], []

    def taken(*_args) -> None:
        here.append(1)
        most.append(len(here))

    def look(*_args, **_kwargs) -> None:
        raise AssertionError("another connection")

    monkeypatch.setattr(db, "look", look)
    sqlalchemy_event.listen(db.engine(), "checkout", taken)
    sqlalchemy_event.listen(db.engine(), "checkin", lambda *_args: here.pop())
    assert codes(exams) == ["nothing_in_the_way"]
    assert max(most) == 1


def test_what_happens_meanwhile_makes_no_riddle_of_it(exams, monkeypatch):
    three_questions(exams)
    looked = why_reads._looked

    def later(*args):
        db.run(move, "cancel", NOON)
        return looked(*args)

    monkeypatch.setattr(why_reads, "_looked", later)
    assert codes(exams) == ["nothing_in_the_way"]
    monkeypatch.undo()
    assert codes(exams)[0] == "cancelled"


# The list as it was


def test_the_run_that_holds_at_a_time_is_the_last_that_had_begun(exams):
    add_node()
    place(exams, "ACC001")
    shown = [(1, 1, "SCHEDULED")]
    record(exams, query({STATION: "CT1"}), at=NOON, shown=shown)
    record(exams, query({STATION: "CT1"}), at=NOON + DAY, shown=[])
    for at, count in ((NOON, 1), (NOON + DAY / 2, 1), (NOON + DAY, 0)):
        (asked,) = db.read(history.shown_at, "CT1", at, exams.settings, NOON + 2 * DAY)["queries"]
        assert asked["count"] == count, at
    none = db.read(history.shown_at, "CT1", NOON - DAY, exams.settings, NOON)
    assert (none["queries"], "2025-12-01 12:00:00" in none["says"]) == ([], True)
    assert "or later" in db.read(history.shown_at, "CT2", NOON, exams.settings, NOON)["says"]


def test_a_run_that_went_on_after_that_time_holds_and_comes_before_a_question_that_ended_earlier(exams):
    add_node()
    record(exams, query({STATION: "CT1"}), at=NOON)
    row = exams.rows(WorklistQuery)[0]
    record(exams, query({STATION: "CT2"}), at=NOON + DAY / 24)
    again = {"key": row.pk, "at": NOON + DAY, "now": 9}
    db.run(lambda session: query_log.LONGER.execute_many(session, [again]))
    found = db.read(history.shown_at, "CT1", NOON + DAY / 12, exams.settings, NOON + DAY)
    assert [one["query_id"] for one in found["queries"]] == [row.pk, row.pk + 1]


def test_what_is_not_kept_of_an_item_is_told_as_such(exams):
    add_node()
    place(exams, "ACC001")
    record(exams, query({STATION: "CT1"}), shown=[(1, 1, "SCHEDULED"), (99, 1, "SCHEDULED")])
    found = db.read(history.shown_at, "CT1", NOON, exams.settings, NOON)
    first, second = found["queries"][0]["items"]
    assert first["shown"] == {"Scheduled Station AE Title": "CT1"}
    assert (second["step_id"], second["shown"]) == (99, None)
    assert "    how it looked cannot be told any more" in list(history.lines(found))


def test_no_more_items_and_questions_are_told_than_the_limits_say(exams):
    add_node()
    place(exams, "ACC001")
    for n in range(history.RUNS_MAX + 1):
        record(exams, query({STATION: f"CT{n}"}), shown=[(1, 1, "SCHEDULED")])
    exams.settings.limits.list_items_max = 3
    found = db.read(history.shown_at, "CT1", NOON, exams.settings, NOON)
    assert len(found["queries"]) == history.RUNS_MAX
    assert [len(one["items"]) for one in found["queries"][:4]] == [1, 1, 1, 0]
    assert "more than 20" in found["says"]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("09:42", "2025-12-01T00:42"), ("09:42:30", "2025-12-01T00:42:30"), ("2025-11-30T09:42", "2025-11-30T00:42"),
        ("2025-11-30T09:42+00:00", "2025-11-30T09:42"), ("2025-11-30", "2025-11-29T15:00"),
    ],
)  # fmt: skip
def test_a_time_is_of_the_site_and_of_today_unless_it_says_more(text, at):
    wanted = dt.datetime.fromisoformat(at + "+00:00")
    assert history.moment("time", text, "Asia/Tokyo", NOON) == wanted


@pytest.mark.parametrize("text", ["", "noon", "25:00", "0001-01-01", "9999-12-31"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(InvalidValue):
        history.moment("time", text, "Asia/Tokyo", NOON)


# Forgetting


def test_old_queries_go_with_the_keys_and_answers_that_are_no_others(exams, monkeypatch):
    place(exams, "ACC001")
    old, new = NOON - 31 * DAY, NOON
    shown = [(1, 1, "SCHEDULED")]
    record(exams, query({STATION: "CT1"}), at=old, shown=shown)
    record(exams, query({STATION: "CT2"}), at=old)
    record(exams, query({STATION: "CT1"}), at=new, shown=shown)
    monkeypatch.setattr(clock, "now", lambda: NOON)
    assert history.work(exams.settings) == 2
    assert history.work(exams.settings) == 0
    assert [len(exams.rows(table)) for table in (WorklistQuery, WorklistKeys, WorklistAnswer)] == [1, 1, 1]
    monkeypatch.setattr(clock, "now", lambda: NOON + 31 * DAY)
    assert history.work(exams.settings) == 1
    assert [len(exams.rows(table)) for table in (WorklistQuery, WorklistKeys, WorklistAnswer)] == [0, 0, 0]


def test_a_pass_forgets_no_more_than_it_may(exams, monkeypatch):
    for n in range(5):
        record(exams, query({STATION: "CT1"}), at=NOON - (40 - n) * DAY)
    monkeypatch.setattr(history, "AT_ONCE", 2)
    monkeypatch.setattr(clock, "now", lambda: NOON)
    assert [history.work(exams.settings) for _ in range(4)] == [2, 2, 1, 0]
    assert exams.rows(WorklistKeys) == []


def test_a_run_that_goes_on_is_as_old_as_its_last_query(exams, monkeypatch):
    record(exams, query({STATION: "CT1"}), at=NOON - 40 * DAY)
    row = exams.rows(WorklistQuery)[0]
    db.run(lambda session: query_log.LONGER.execute_many(session, [{"key": row.pk, "at": NOON, "now": 9}]))
    monkeypatch.setattr(clock, "now", lambda: NOON)
    assert history.work(exams.settings) == 0
