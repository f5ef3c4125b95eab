"""The file that answers while the database is away: as new as it can be, and asked only when it must be."""

import datetime as dt

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from broker import access, clock, db
from broker.dicom import habits
from broker.dicom.habits import Directory
from broker.dicom.service import NodeInfo
from broker.model.orders import ScheduledStation, ScheduledStep
from broker.model.site import Node
from broker.mwl import orders, view, worklist
from broker.mwl.snapshot import FILE, Snapshot
from tests.service.exam import Exams

STATION = 0x00400001


@pytest.fixture
def taken(exams: Exams, settings) -> Snapshot:
    exams.place("ACC001")
    made = Snapshot(settings)
    made.refresh()
    return made


def found(snapshot: Snapshot, station: str = "CT1", node: NodeInfo | None = None) -> int:
    what = view.of(node, "CT1", snapshot.settings, clock.now())
    query = {0x00400100: ("SQ", [{STATION: ("AE", station)}])}
    return len(worklist.search(query, what, Directory(), on=snapshot.engine("CT1")))


def cancel(session) -> None:
    step = session.exec(select(ScheduledStep)).one()
    orders.move_step(session, step, "cancel", now=clock.now(), actor="test", cause="test")


def test_what_an_earlier_process_left_is_shown_to_nobody(taken, settings):
    assert found(taken) == 1
    db.run(cancel)
    after = Snapshot(settings)
    assert after.taken_at is None
    after.refresh()
    assert found(after) == 0


def test_an_exam_that_moved_to_another_device_is_no_longer_at_the_first(taken):
    def move(session):
        step = session.exec(select(ScheduledStep)).one()
        session.exec(select(ScheduledStation)).one().ae_title = "CT2"
        step.version += 1

    db.run(move)
    taken.refresh()
    assert (found(taken, "CT1"), found(taken, "CT2")) == (0, 1)


def test_an_exam_that_was_given_to_another_device_is_no_longer_at_the_first(taken):
    """With a new row for its station, whose key may be another."""

    def give(session):
        step = session.exec(select(ScheduledStep)).one()
        session.delete(session.exec(select(ScheduledStation)).one())
        session.add(ScheduledStation(step_pk=step.key, pk=77, ae_title="CT2", start_date=step.start_date))
        step.version += 1

    db.run(give)
    taken.refresh()
    assert (found(taken, "CT1"), found(taken, "CT2")) == (0, 1)


@pytest.mark.parametrize(
    ("own", "event", "hours", "count"),
    [
        ({"started_hours": 200.0}, "start", 199, 1),
        ({"started_hours": 200.0}, "start", 201, 0),
        ({"finished_hours": 8784.0}, "complete", 8783, 1),
        ({"profile": "long-days"}, "start", 299, 1),
        ({}, "start", 199, 0),
    ],
)
def test_it_holds_what_has_begun_as_long_as_the_device_with_the_longest_hours_is_shown_it(
    exams, settings, monkeypatch, own, event, hours, count
):
    monkeypatch.setattr(habits, "PROFILES", {"long-days": habits.Habits(started_hours=300.0)})
    exams.place("ACC001")

    def begin(session):
        session.add(Node(ae_title="CT1", hide=["CANCELED"], **own))
        session.add(Node(ae_title="MR1"))
        step = session.exec(select(ScheduledStep)).one()
        for one in dict.fromkeys(["start", event]):
            at = clock.now() - dt.timedelta(hours=hours)
            orders.move_step(session, step, one, now=at, actor="test", cause="test")

    db.run(begin)
    access.forget()
    made = Snapshot(settings)
    made.refresh()
    node = access.find_node("CT1")
    assert found(made, node=node) == count
    assert len(made._known) == count
    what = view.of(node, "CT1", settings, clock.now())
    assert len(worklist.search({}, what, Directory())) == count, "the database says another"


def test_what_began_three_days_ago_is_in_it_however_few_the_hours_are(exams, settings):
    exams.place("ACC001")

    def begin(session):
        step = session.exec(select(ScheduledStep)).one()
        orders.move_step(session, step, "start", now=clock.now() - dt.timedelta(hours=71), actor="test", cause="test")

    db.run(begin)
    settings.worklist.started_hours = settings.worklist.finished_hours = 1
    made = Snapshot(settings)
    made.refresh()
    assert len(made._known) == 1


def test_what_is_cancelled_goes_with_the_next_refresh_though_the_one_before_ended_badly(taken, monkeypatch):
    take = taken._take

    def lost(session, now):
        take(session, now)
        raise OperationalError("", None, ConnectionError("gone"))

    with monkeypatch.context() as broken:
        broken.setattr(taken, "_take", lost)
        with pytest.raises(OperationalError):
            taken.refresh()
    db.run(cancel)
    taken.refresh()
    assert found(taken) == 0


def test_what_could_not_be_written_is_written_by_the_next_refresh(taken, exams):
    exams.place("ACC002")

    def full(_connection):
        raise OSError("no space left on device")

    event.listen(taken._engine, "commit", full)
    with pytest.raises(OSError, match="no space"):
        taken.refresh()
    event.remove(taken._engine, "commit", full)
    assert found(taken) == 1
    taken.refresh()
    assert found(taken) == 2


def test_one_slow_query_is_its_own_matter_a_second_one_is_everybodys(taken):
    class Slow(Exception):
        sqlstate = "57014"

    slow = OperationalError("", None, Slow())
    taken.is_needed(slow)
    assert taken.stale_since is None
    assert not taken.is_asked_first
    taken.is_over()
    taken.is_needed(slow)
    assert not taken.is_asked_first
    taken.is_needed(slow)
    assert taken.is_asked_first
    taken.is_over()
    assert (taken.stale_since, taken.is_asked_first) == (None, False)


def test_a_lost_connection_is_everybodys_at_once(taken):
    taken.is_needed(OperationalError("", None, ConnectionError("gone"), connection_invalidated=True))
    assert taken.is_asked_first


def test_nobody_but_its_owner_reads_the_file(taken):
    assert (taken.settings.data_dir / FILE).stat().st_mode & 0o077 == 0
