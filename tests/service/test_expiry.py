"""What leaves the worklist by itself, when, and how a person brings it back."""

import dataclasses
import datetime as dt
import re
from pathlib import Path

import pytest
import structlog.testing
from sqlalchemy.exc import TimeoutError as NoTurn
from sqlmodel import Session, select

from broker import casebook, clock, db
from broker.errors import MissingField, UnknownKey, WrongState
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, ScheduledStation, ScheduledStep
from broker.model.patients import Patient
from broker.model.site import Node
from broker.model.work import AuditEvent
from broker.mwl import dataset, exceptions, expiry, items, orders, visits
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand, VisitCommand
from broker.mwl.expiry import Facts, Term, decide
from broker.ris_bridge import rest_orders
from tests.service.exam import YAMADA, Exams

NOON = dt.datetime(2025, 7, 5, 3, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
WEEK = Term(7, 2)
STATES = "SCHEDULED ARRIVED READY STARTED COMPLETED DISCONTINUED CANCELED NO_SHOW EXPIRED ON_HOLD".split()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(expiry, "_after", 0)
    monkeypatch.setattr(expiry, "_failed", {})


# The rule


def facts(status="SCHEDULED", start=0, heard=-9, status_at=-9) -> Facts:
    """Days from NOON; None = unknown."""
    moments = (None if days is None else NOON + days * DAY for days in (start, heard, status_at))
    return Facts(status, *moments)


@pytest.mark.parametrize(
    ("said", "days", "why"),
    [
        (facts(), 7, "7 days since its scheduled start"),
        (facts(heard=3), 10, "7 days since the last message about its order"),
        (facts(status_at=5), 12, "7 days since its last change of state"),
        (facts(start=None, heard=1), 8, "7 days since the last message about its order"),
        (facts("ARRIVED"), 2, "2 days since its scheduled start"),
        (facts("READY", status_at=1), 3, "2 days since its last change of state"),
        (facts("ARRIVED", heard=2.5), 4.5, "2 days since the last message about its order"),
    ],
)
def test_a_step_expires_days_after_the_last_that_happened_to_it(said, days, why):
    verdict = decide(said, WEEK)
    assert verdict is not None
    assert (verdict.at, verdict.reason) == (NOON + days * DAY, why)


def test_who_is_here_never_waits_longer_than_who_is_not():
    verdict = decide(facts("ARRIVED"), Term(1, 5))
    assert verdict is not None
    assert verdict.at == NOON + DAY


@pytest.mark.parametrize("status", [one for one in STATES if one not in ("SCHEDULED", "ARRIVED", "READY")])
def test_what_has_begun_or_ended_or_is_on_hold_never_expires(status):
    assert decide(facts(status), WEEK) is None


# The pass


def age(exams: Exams, days: float, *, start: str = "20200101", order_pk: int = 1) -> None:
    """All that was said of the order, and all that happened to it, was so long ago."""
    at = clock.now() - dt.timedelta(days=days)
    exams.set(ImagingOrder, order_pk, last_event_at=at, updated_at=at)
    for step in exams.rows(ScheduledStep, order_pk=order_pk):
        exams.set(ScheduledStep, step.key, status_at=at, start_date=start)


def statuses(exams: Exams) -> list[str]:
    return [step.status for step in exams.rows(ScheduledStep)]


def move(exams: Exams, *events: str, step_pk: int = 1) -> None:
    def moved(session: Session) -> None:
        step = db.lock(session, ScheduledStep, step_pk)
        for event in events:
            orders.move_step(session, step, event, now=clock.now(), actor="test", cause="test")

    db.run(moved)


def carry_out(exams: Exams, control: str, at: dt.datetime | None = None, **more) -> None:
    command = OrderCommand(control, "ACC001", "RIS", patient=YAMADA, at=at, place="order_id", **more)  # type: ignore[arg-type]
    db.run(orders.carry_out, command, now=clock.now(), actor="test", site=exams.settings.site)


def test_a_step_that_nobody_speaks_of_expires_with_its_reason_and_the_status_says_so(exams):
    exams.place()
    age(exams, 8)
    assert expiry.work(exams.settings) == 1
    assert statuses(exams) == ["EXPIRED"]
    assert exams.status(1).state == "EXPIRED"
    (event,) = [one for one in exams.rows(AuditEvent, action="step.change") if one.detail["event"] == "expire"]
    assert (event.actor, event.detail["after"]) == ("broker", "EXPIRED")
    assert "7 days since" in event.detail["cause"]
    assert exams.rows(ScheduledStation)[0].is_open is False
    assert expiry.work(exams.settings) == 0


def test_what_was_placed_now_waits_for_its_days_however_old_its_date(exams):
    """A list that is loaded late, or an order whose message repeats an old ORC-9."""
    exams.place()
    exams.set(ImagingOrder, 1, last_event_at=NOON)
    assert expiry.work(exams.settings) == 0


@pytest.mark.parametrize("days", [0, 6])
def test_a_start_in_less_than_its_days_or_yet_to_come_keeps_a_step(exams, days):
    exams.place()
    age(exams, 30, start=clock.local(clock.now() - days * DAY, "Asia/Tokyo")[0])
    assert expiry.work(exams.settings) == 0
    age(exams, 30, start=clock.local(clock.now() + days * DAY, "Asia/Tokyo")[0])
    assert expiry.work(exams.settings) == 0


def test_the_start_counts_in_the_sites_zone(exams):
    exams.place()
    now = clock.now()
    start = now - 7 * DAY + dt.timedelta(minutes=5)  # in UTC it would lie nine hours before
    date, time = clock.local(start, exams.settings.site.timezone)
    age(exams, 30, start=date)
    exams.set(ScheduledStep, 1, start_time=time)
    age_of_order = now - 30 * DAY
    exams.set(ImagingOrder, 1, last_event_at=age_of_order, updated_at=age_of_order)
    assert db.read(expiry.due, exams.settings, now, 10) == []
    (one,) = db.read(expiry.due, exams.settings, now + dt.timedelta(minutes=6), 10)
    assert one.at == start.replace(microsecond=0) + 7 * DAY


@pytest.mark.parametrize(
    "control", ["XO", "note", "HD RL", "SS"], ids=["a change", "a note", "hold and release", "a question"]
)
def test_a_message_about_the_order_lets_it_wait_again_but_a_question_does_not(exams, control):
    exams.place()
    age(exams, 8)
    for one in control.split():
        carry_out(exams, one)
    assert expiry.work(exams.settings) == (control == "SS")


def test_a_message_that_repeats_the_time_of_the_order_lets_it_wait_again_too(exams):
    exams.place()
    age(exams, 8)
    carry_out(exams, "XO", at=exams.get(ImagingOrder, 1).last_event_at, priority="STAT")
    assert expiry.work(exams.settings) == 0


@pytest.mark.parametrize("event", ["arrive", "transfer"])
def test_what_happens_to_the_visit_of_an_order_counts_as_a_word_about_it(exams, event):
    exams.place()
    named = OrderCommand("note", "ACC001", "RIS")
    command = VisitCommand(
        event, PersonCommand((Identifier("0000012345", "HOSP"),)), order=named, location="7W", at=clock.now()
    )
    for _ in range(2):  # the second time it changes nothing
        age(exams, 8)
        db.run(visits.apply, command, now=clock.now(), actor="test", site=exams.settings.site)
        assert expiry.work(exams.settings) == 0


def test_who_came_and_was_not_begun_with_expires_sooner(exams):
    exams.place(steps=2)
    move(exams, "arrive", step_pk=2)
    age(exams, 3)
    assert expiry.work(exams.settings) == 1
    assert statuses(exams) == ["SCHEDULED", "EXPIRED"]


@pytest.mark.parametrize(("event", "after"), [("start", "STARTED"), ("hold", "ON_HOLD")])
def test_what_has_begun_or_is_on_hold_stays_for_ever(exams, event, after):
    exams.place()
    move(exams, event)
    age(exams, 400)
    assert expiry.work(exams.settings) == 0
    assert statuses(exams) == [after]


def add_nodes(*nodes: Node) -> None:
    db.run(lambda session: session.add_all(nodes))


def schedule(exams: Exams, *titles: str) -> None:
    db.run(lambda session: session.add_all([ScheduledStation(step_pk=1, ae_title=title) for title in titles]))


@pytest.mark.parametrize(
    ("nodes", "also", "days"),
    [
        ([Node(ae_title="CT1", expire_days=3)], (), 3),
        ([Node(ae_title="CT1", expire_days=30)], (), 30),
        ([Node(ae_title="CT1", expire_days=3), Node(ae_title="CT2", expire_days=5)], ("CT2",), 5),
        ([Node(ae_title="CT1", expire_days=3), Node(ae_title="CT2")], ("CT2",), 7),
        ([Node(ae_title="CT1", expire_days=3)], ("CT9",), 7),  # nobody knows it: the site's days count
        ([Node(ae_title="KOMODITY", aliases=["CT1"], expire_days=3)], (), 3),
        ([Node(ae_title="A", groups=["CT1"], expire_days=3), Node(ae_title="B", groups=["CT1"], expire_days=9)], (), 9),
        ([Node(ae_title="MR1", expire_days=1)], (), 7),
    ],
)  # fmt: skip
def test_the_longest_days_of_all_devices_that_may_do_it_count(exams, nodes, also, days):
    exams.place()
    schedule(exams, *also)
    add_nodes(*(Node(**one.model_dump(exclude={"pk"})) for one in nodes))
    age(exams, days - 0.1)
    assert expiry.work(exams.settings) == 0
    age(exams, days + 0.1)
    assert expiry.work(exams.settings) == 1


def test_one_that_fails_stops_no_other_and_is_not_tried_at_every_pass(exams, monkeypatch):
    for n in range(3):
        exams.place(f"ACC00{n}")
        age(exams, 8, order_pk=n + 1)
    move_step = expiry.steps.move_step

    def fail(session: Session, step: ScheduledStep, *args, **kwargs) -> None:
        if step.key == 2:
            raise ValueError("broken")
        move_step(session, step, *args, **kwargs)

    monkeypatch.setattr(expiry.steps, "move_step", fail)
    with structlog.testing.capture_logs() as told:
        assert expiry.work(exams.settings) == 2
        assert expiry.work(exams.settings) == 0
    assert statuses(exams) == ["EXPIRED", "SCHEDULED", "EXPIRED"]
    assert [one["event"] for one in told] == ["expiry.failed"]


def test_a_database_that_is_away_ends_the_pass_and_lets_nobody_rest(exams, monkeypatch):
    """The next goes on behind the one that found it so, and comes to that one at last."""
    for n in range(3):
        exams.place(f"ACC00{n}")
        age(exams, 8, order_pk=n + 1)
    expire = expiry.expire

    def away(session: Session, step_pk: int, *args, **kwargs) -> bool:
        if step_pk == 2:
            raise NoTurn("no connection in time")
        return expire(session, step_pk, *args, **kwargs)

    monkeypatch.setattr(expiry, "expire", away)
    with structlog.testing.capture_logs() as told, pytest.raises(NoTurn):
        expiry.work(exams.settings)
    assert statuses(exams) == ["EXPIRED", "SCHEDULED", "SCHEDULED"]
    assert [one for one in told if one["event"] == "expiry.failed"] == []
    assert expiry.work(exams.settings) == 1
    assert statuses(exams) == ["EXPIRED", "SCHEDULED", "EXPIRED"]
    monkeypatch.setattr(expiry, "expire", expire)
    assert expiry.work(exams.settings) == 1
    assert statuses(exams) == ["EXPIRED"] * 3


def test_a_pass_looks_at_no_more_than_its_limit_and_the_next_goes_on(exams):
    """What must wait long for its own device keeps nobody behind it."""
    add_nodes(Node(ae_title="CT1", expire_days=99))
    exams.settings.limits.list_items_max = 2
    for n in range(4):
        exams.place(f"ACC00{n}")
        age(exams, 8, order_pk=n + 1)

    def elsewhere(session: Session) -> None:
        for row in session.exec(select(ScheduledStation).where(ScheduledStation.step_pk == 4)):
            row.ae_title = "CT2"
            session.add(row)

    db.run(elsewhere)
    assert expiry.work(exams.settings) == 0
    assert expiry.work(exams.settings) == 1
    assert statuses(exams) == ["SCHEDULED", "SCHEDULED", "SCHEDULED", "EXPIRED"]
    assert [one.step_pk for one in db.read(expiry.due, exams.settings, clock.now() + 100 * DAY, 2)] == [1, 2]


def test_a_message_that_was_quicker_keeps_the_step(exams):
    exams.place()
    age(exams, 8)
    assert len(db.read(expiry.due, exams.settings, clock.now(), 10)) == 1
    carry_out(exams, "XO")
    assert db.run(expiry.expire, 1, exams.settings, now=clock.now()) is False


@pytest.mark.parametrize("at", ["of the order", "of now"])
def test_whatever_time_a_message_has_it_keeps_the_step_that_was_found_to_be_due(exams, at):
    """It came between the look at all steps and the lock of this one; many senders repeat the time of the order."""
    exams.place()
    age(exams, 8)
    assert len(db.read(expiry.due, exams.settings, clock.now(), 10)) == 1
    said_at = exams.get(ImagingOrder, 1).last_event_at
    carry_out(exams, "XO", at=said_at if at == "of the order" else clock.now(), priority="STAT")
    assert (exams.get(ImagingOrder, 1).last_event_at == said_at) == (at == "of the order")
    assert db.run(expiry.expire, 1, exams.settings, now=clock.now()) is False
    assert statuses(exams) == ["SCHEDULED"]


def test_a_message_of_a_clock_that_is_ahead_counts_from_its_own_time(exams):
    exams.place()
    age(exams, 8)
    now = clock.now()
    carry_out(exams, "XO", at=now + DAY / 2, priority="STAT")
    assert db.run(expiry.expire, 1, exams.settings, now=now + 7.4 * DAY) is False
    assert db.run(expiry.expire, 1, exams.settings, now=now + 7.6 * DAY) is True


def test_the_preview_tells_when_and_why(exams):
    exams.place()
    age(exams, 5)
    assert db.read(expiry.due, exams.settings, clock.now() + DAY, 10) == []
    (one,) = db.read(expiry.due, exams.settings, clock.now() + 3 * DAY, 10)
    assert (one.step_pk, one.accession_number, one.station_ae_titles) == (1, "ACC001", ("CT1",))
    assert "7 days since" in one.reason


# Back again


def reinstate(exams: Exams, sps_id: str = "") -> None:
    parts = (ProcedureCommand(steps=(StepCommand(sps_id),)),) if sps_id else ()
    carry_out(exams, "reinstate", procedures=parts, reason="the patient is here after all")


def ended(exams: Exams, event: str) -> dt.datetime:
    """The time of the message that ended it; it was placed an hour before."""
    said_at = clock.now()
    if event == "cancel":
        carry_out(exams, "CA", at=said_at)
    elif event == "no_show":
        carry_out(exams, "no_show", at=said_at)
    else:
        age(exams, 8)
        expiry.work(exams.settings)
    return said_at


@pytest.mark.parametrize("event", ["cancel", "no_show", "expire"])
def test_a_person_brings_back_what_ended_and_it_stays(exams, event):
    exams.place()
    ended(exams, event)
    exams.set(Patient, 1, name="YAMADA^JIRO=山田^次郎")
    reinstate(exams)
    assert statuses(exams) == ["SCHEDULED"]
    assert exams.status(1).state == "SCHEDULED"
    (step,) = exams.rows(ScheduledStep)
    assert "次郎".encode() in step.dataset, "what changed meanwhile is shown"
    assert (step.version, step.offerable, exams.rows(ScheduledStation)[0].is_open) == (2, True, True)
    assert expiry.work(exams.settings) == 0
    told = [one.detail for one in exams.rows(AuditEvent, action="order.status")]
    assert told[-1]["reason"] == "the patient is here after all"


def test_it_expires_its_days_after_it_was_brought_back(exams):
    exams.place()
    ended(exams, "expire")
    reinstate(exams)
    assert db.read(expiry.due, exams.settings, clock.now() + 6.9 * DAY, 10) == []
    assert len(db.read(expiry.due, exams.settings, clock.now() + 7.1 * DAY, 10)) == 1


@pytest.mark.parametrize("control", ["CA", "DC", "no_show", "HD"])
def test_an_end_or_a_hold_that_was_said_before_does_not_undo_it(exams, control):
    """The same message again under another control ID, or one that was long on its way."""
    exams.place()
    before = clock.now()
    ended(exams, "cancel")
    reinstate(exams)
    for at in (before, before + dt.timedelta(microseconds=1)):
        carry_out(exams, control, at=at)
    assert statuses(exams) == ["SCHEDULED"]


@pytest.mark.parametrize(("control", "after"), [("CA", "CANCELED"), ("HD", "ON_HOLD"), ("no_show", "NO_SHOW")])
def test_what_is_said_after_it_counts(exams, control, after):
    exams.place()
    ended(exams, "cancel")
    reinstate(exams)
    carry_out(exams, control, at=clock.now() + dt.timedelta(seconds=1))
    assert statuses(exams) == [after]


def test_a_cancel_that_was_on_its_way_does_not_count_after_a_hold_either(exams):
    exams.place()
    before = clock.now()
    ended(exams, "cancel")
    reinstate(exams)
    carry_out(exams, "HD", at=clock.now() + dt.timedelta(seconds=1))
    carry_out(exams, "CA", at=before)
    assert statuses(exams) == ["ON_HOLD"]


def test_an_older_message_that_names_a_further_step_of_it_brings_no_end_back(exams):
    """The cancel was said of the whole order, and the person took it back for all of it."""
    exams.place()
    first = clock.now()
    ended(exams, "cancel")
    reinstate(exams)
    more = ProcedureCommand("RPACC001", steps=(StepCommand("S9", "CT", ("CT1",), "20351201", "093000"),))
    carry_out(exams, "XO", at=first - dt.timedelta(seconds=1), procedures=(more,))
    assert statuses(exams) == ["SCHEDULED", "SCHEDULED"]


def test_an_arrival_of_before_does_not_count_for_who_comes_back(exams):
    exams.place()
    said_at = clock.now()
    carry_out(exams, "SC", at=said_at, status="IP")
    ended(exams, "cancel")
    reinstate(exams)
    carry_out(exams, "SC", at=said_at, status="IP")
    assert statuses(exams) == ["SCHEDULED"]


def test_one_step_comes_back_and_the_other_stays(exams):
    exams.place(steps=2)
    said_at = ended(exams, "cancel")
    reinstate(exams, "S1ACC001")
    assert statuses(exams) == ["CANCELED", "SCHEDULED"]
    carry_out(exams, "CA", at=said_at)
    assert statuses(exams) == ["CANCELED", "SCHEDULED"]


def test_a_hold_of_the_whole_order_does_not_reach_a_step_that_came_back_after_it(exams):
    """Not even when a message of before names the step."""
    exams.place()
    said_at = clock.now()
    carry_out(exams, "HD", at=said_at)
    carry_out(exams, "CA", at=said_at)
    reinstate(exams, "S0ACC001")
    step = ProcedureCommand("RPACC001", steps=(StepCommand("S0ACC001"),))
    carry_out(exams, "XO", at=said_at - dt.timedelta(hours=1), procedures=(step,))
    assert statuses(exams) == ["SCHEDULED"]


def test_a_cancel_of_before_the_order_does_not_reach_it_by_an_older_message_once_it_came_back(exams):
    exams.place()
    carry_out(exams, "CA", at=clock.now() - dt.timedelta(minutes=1))
    assert statuses(exams) == ["SCHEDULED"], "it was ordered after that"
    carry_out(exams, "no_show", at=clock.now())
    reinstate(exams, "S0ACC001")
    step = ProcedureCommand("RPACC001", steps=(StepCommand("S0ACC001"),))
    carry_out(exams, "XO", at=clock.now() - dt.timedelta(minutes=2), procedures=(step,))
    assert statuses(exams) == ["SCHEDULED"]


def test_it_reaches_no_step_that_was_ordered_after_it(exams):
    """A request that is looked at once more was said when it first came."""
    exams.place(steps=2)
    ended(exams, "no_show")
    born = clock.iso(clock.now() + dt.timedelta(seconds=1))
    exams.set(ScheduledStep, 2, said={**exams.get(ScheduledStep, 2).said, "born": born})
    carry_out(exams, "reinstate", at=clock.now(), reason="x")
    assert statuses(exams) == ["SCHEDULED", "NO_SHOW"]


def test_steps_that_ended_in_different_ways_do_not_come_back_together(exams):
    exams.place(steps=2)
    ended(exams, "no_show")
    carry_out(exams, "CA", at=clock.now(), procedures=(ProcedureCommand(steps=(StepCommand("S0ACC001"),)),))
    with pytest.raises(MissingField) as refused:
        reinstate(exams)
    assert refused.value.place == "sps_id"
    assert statuses(exams) == ["CANCELED", "NO_SHOW"]
    reinstate(exams, "S1ACC001")
    assert statuses(exams) == ["CANCELED", "SCHEDULED"]


def test_what_has_not_ended_or_is_not_there_cannot_come_back(exams):
    exams.place()
    with pytest.raises(WrongState):
        reinstate(exams)
    move(exams, "start", "complete")
    with pytest.raises(WrongState):
        reinstate(exams)
    with pytest.raises(UnknownKey):
        reinstate(exams, "S7")
    assert statuses(exams) == ["COMPLETED"]


# Complete or not shown


def lack(name: str) -> None:
    """The row without that value, as though nobody had said it."""
    column = {
        "PatientName": (Patient, "name"), "ScheduledProcedureStepStartDate": (ScheduledStep, "start_date"),
        "ScheduledProcedureStepStartTime": (ScheduledStep, "start_time"), "Modality": (ScheduledStep, "modality"),
    }  # fmt: skip

    def taken(session: Session) -> None:
        if name == "ScheduledStationAETitle":
            for row in session.exec(select(ScheduledStation)):
                session.delete(row)
        else:
            table, field = column[name]
            row = session.get_one(table, 1)
            setattr(row, field, "")
            session.add(row)
        session.flush()
        items.rebuild(session, 1, now=clock.now())

    db.run(taken)


LACKING = [
    "PatientName", "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime",
    "Modality",
]  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
def test_a_step_without_a_value_of_type_1_is_kept_out_and_told_with_how_to_mend_it(exams, name):
    exams.place()
    lack(name)
    assert exams.rows(ScheduledStep)[0].offerable is False
    (told,), following = db.read(exceptions.listing, 10)
    assert (told["order_id"], told["step_id"], told["sps_id"], following) == (1, 1, "S0ACC001", None)
    assert [one["attribute"] for one in told["missing"]] == [name]
    assert told["missing"][0]["rest"]
    assert told["missing"][0]["hl7"]
    assert told["missing"][0]["words"] in told["says"]
    assert "山田" not in str(told)


@pytest.mark.parametrize("nothing", ["", " "])
@pytest.mark.parametrize("name", ["StudyInstanceUID", "RequestedProcedureID", "PatientID", "ScheduledProcedureStepID"])
def test_numbers_that_are_always_made_are_asked_for_all_the_same(name, nothing):
    """No road leaves them out; a merge that is taken back may leave a patient without a number."""
    said = {"name": "A", "pk": "1", "uid": "1.2", "rp": "R", "sps": "S"}
    said[{"StudyInstanceUID": "uid", "RequestedProcedureID": "rp", "PatientID": "pk"}.get(name, "sps")] = nothing
    from types import SimpleNamespace as Row

    patient = Row(name=said["name"])
    known = [Row(value=said["pk"])] if said["pk"] else []
    procedure = Row(study_instance_uid=said["uid"], requested_procedure_id=said["rp"])
    step = Row(start_date="20250101", start_time="0900", modality="CT", sps_id=said["sps"])
    assert items.missing_of(patient, known, procedure, step, ["CT1"]) == [name]  # type: ignore[arg-type]
    assert name in exceptions.MENDS


def test_remedies_name_fields_that_are_read_and_places_that_a_body_has():
    fields = (Path(__file__).parents[2] / "docs" / "conformance" / "hl7-fields.md").read_text("utf-8")
    for mend in (*exceptions.MENDS.values(), exceptions.ROMAJI):
        for field in re.findall(r"[A-Z][A-Z0-9]{2}-[0-9]+", mend.hl7):
            assert f"| {field} |" in fields, field
        if mend.rest:
            *parents, name = mend.rest.split(".")
            assert name in MODELS[".".join(parents)].model_fields, mend.rest
    assert exceptions.MENDS.keys() == {*dataset.TYPE_1, *dataset.STEP_TYPE_1}


MODELS = {
    "patient": rest_orders.PatientBody, "patient.name": rest_orders.Name,
    "requested_procedures": rest_orders.ProcedureBody, "requested_procedures.steps": rest_orders.StepBody,
}  # fmt: skip


def test_all_that_is_missing_is_told_at_once_and_mending_one_thing_leaves_the_other(exams):
    exams.place()
    lack("ScheduledStationAETitle")
    lack("Modality")
    (told,), _ = db.read(exceptions.listing, 10)
    assert {one["attribute"] for one in told["missing"]} == {"ScheduledStationAETitle", "Modality"}
    assert exams.rows(ReconciliationCase)[0].reasons == ["step S0ACC001 lacks ScheduledStationAETitle, Modality"]


@pytest.mark.parametrize("event", ["cancel", "expire"])
def test_what_has_ended_is_no_exception_any_more(exams, event):
    exams.place()
    lack("ScheduledStationAETitle")
    ended(exams, event)
    assert statuses(exams) != ["SCHEDULED"]
    assert db.read(exceptions.listing, 10) == ([], None)
    assert [(one.state, one.resolution) for one in exams.rows(ReconciliationCase)] == [
        ("RESOLVED", {"action": "ended"})
    ]
    reinstate(exams)
    assert len(db.read(exceptions.listing, 10)[0]) == 1


def test_what_one_device_cannot_show_stands_with_it_and_the_device(exams):
    exams.place()
    step = exams.rows(ScheduledStep)[0]
    why = "romaji missing"
    db.run(items.ask_about_characters, "CT 1", [(step.key, step.version, why)], now=clock.now())
    (told,), _ = db.read(exceptions.listing, 10)
    assert (told["kind"], told["ae_title"], told["says"]) == (
        items.CHARACTERS,
        "CT 1",
        f"CT 1 is not shown it: {why}",
    )
    assert told["missing"][0]["rest"] == "patient.name.alphabetic"
    ended(exams, "cancel")
    assert exams.rows(ReconciliationCase)[0].state == "RESOLVED"
    reinstate(exams)
    db.run(items.ask_about_characters, "CT 1", [(step.key, step.version, why)], now=clock.now())
    assert len(db.read(exceptions.listing, 10)[0]) == 1, "nobody has looked at it: the broker closed the case"


def test_what_a_person_has_seen_is_not_asked_again(exams):
    exams.place()
    why = [(1, 1, "romaji missing")]
    db.run(items.ask_about_characters, "CT1", why, now=clock.now())

    def seen(session: Session) -> None:
        case = casebook.find_open(session, items.CHARACTERS, "order:1")
        assert case is not None
        casebook.close_case(session, case, now=clock.now(), actor="person", resolution={"action": "seen"})

    db.run(seen)
    db.run(items.ask_about_characters, "CT1", why, now=clock.now())
    assert db.read(exceptions.listing, 10) == ([], None)


def test_exceptions_come_in_pages(exams):
    for n in range(3):
        exams.place(f"ACC00{n}")

    def without_stations(session: Session) -> None:
        for row in session.exec(select(ScheduledStation)):
            session.delete(row)
        session.flush()
        for order_pk in (1, 2, 3):
            items.rebuild(session, order_pk, now=clock.now())

    db.run(without_stations)
    first, following = db.read(exceptions.listing, 2)
    rest, end = db.read(exceptions.listing, 2, following)
    assert ([one["order_id"] for one in (*first, *rest)], end) == ([1, 2, 3], None)


# Labels


def test_a_label_is_that_of_the_step_else_of_its_sender_and_changes_by_what_is_said_later(exams):
    exams.place()
    assert exams.rows(ScheduledStep)[0].label == ""

    def step(name: str, label: str | None) -> ProcedureCommand:
        return ProcedureCommand(
            "RPACC001", steps=(StepCommand(name, "CT", ("CT1",), "20351201", "093000", label=label),)
        )

    carry_out(exams, "XO", procedures=(step("S5", None),), label="HEART")
    carry_out(exams, "XO", procedures=(step("S6", "LUNG"),), label="HEART")
    carry_out(exams, "XO", procedures=(step("S7", ""),), label="HEART")
    assert [one.label for one in exams.rows(ScheduledStep)] == ["", "HEART", "LUNG", ""]
    carry_out(exams, "XO", procedures=(step("S5", None), step("S6", "")), label="OTHER")
    assert [one.label for one in exams.rows(ScheduledStep)] == ["", "HEART", "", ""]
    carry_out(exams, "XO", at=clock.now() - dt.timedelta(hours=1), procedures=(step("S6", "LATE"), step("S5", "EARLY")))
    assert [one.label for one in exams.rows(ScheduledStep)] == ["", "EARLY", "", ""]


def test_two_labels_of_one_step_in_one_message_contradict():
    from broker.ris_bridge import alike

    one = StepCommand("S1", label="A")
    assert alike.contradict(one, dataclasses.replace(one, label="B"), in_station=False)
    assert not alike.contradict(one, dataclasses.replace(one, label=None))
    assert alike.both(dataclasses.replace(one, label=None), one).label == "A"
