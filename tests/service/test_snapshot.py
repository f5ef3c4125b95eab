"""The file that answers while the database is away: as new as it can be, and asked only when it must be."""

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import select

from broker import clock, db
from broker.dicom.habits import Directory
from broker.model.orders import ScheduledStation, ScheduledStep
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


def found(snapshot: Snapshot, station: str = "CT1") -> int:
    what = view.of(None, "CT1", snapshot.settings, clock.now())
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
