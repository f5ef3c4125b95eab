"""What devices were shown is on record, whatever happens to the record; and no device waits long for it."""

import datetime as dt
import time

import pytest
from sqlalchemy.exc import DataError, OperationalError
from sqlmodel import select

from broker import clock, config, db
from broker.dicom import tree
from broker.model.orders import OfferedItem, ScheduledStep
from broker.model.worklist import WorklistKeys, WorklistQuery
from broker.mwl import funnel, items, offered, query_log
from broker.mwl.offered import Asked, Loss, Recorder, Source
from tests.service.exam import Exams

KEYS = tree.write({0x00100010: ("PN", "")}, tree.IMPLICIT_LE, ("",))


@pytest.fixture
def step(exams: Exams) -> int:
    exams.place("ACC001")
    return rows(ScheduledStep)[0].key


@pytest.fixture
def recorder(database, settings) -> Recorder:
    """Whose thread does not run: what is written is written by the test."""
    return Recorder(settings)


def source(ae_title: str = "CT1", identifier: bytes = KEYS) -> Source:
    return Source(ae_title, "BROKER", "127.0.0.1", identifier, tree.IMPLICIT_LE)


def asked(shown=(), *, at: dt.datetime | None = None, of: Source | None = None, status: int = 0) -> Asked:
    return Asked(of or source(), at or clock.now(), tuple(shown), status)


def rows(table):
    return db.read(lambda session: session.exec(select(table).order_by(table.pk)).all())


def away(*_args, **_kwargs):
    raise OperationalError("", None, ConnectionError("gone"), connection_invalidated=True)


def test_a_first_offer_is_on_record_before_its_answer_ends(recorder, step):
    recorder.before_the_end("CT1", [(step, 1, "SCHEDULED")], clock.now())
    assert [(row.ae_title, row.step_pk, row.version) for row in rows(OfferedItem)] == [("CT1", step, 1)]


def test_an_offer_that_could_not_be_recorded_is_recorded_later_and_nobody_waits_meanwhile(recorder, step, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(db, "run", away)
        recorder.before_the_end("CT1", [(step, 1, "SCHEDULED")], clock.now())
        broken.setattr(query_log, "offer", lambda *_: pytest.fail("nobody tries again at once"))
        recorder.before_the_end("CT2", [(step, 1, "SCHEDULED")], clock.now())
    recorder.flush()
    assert sorted(row.ae_title for row in rows(OfferedItem)) == ["CT1", "CT2"]


def test_while_another_writes_without_end_a_device_waits_no_longer_than_it_must(recorder, step, monkeypatch):
    monkeypatch.setattr(offered, "RECORD_SECONDS_MAX", 0.2)
    with recorder._writing_firsts:
        began = time.monotonic()
        recorder.before_the_end("CT1", [(step, 1, "SCHEDULED")], clock.now())
        recorder.before_the_end("CT2", [(step, 1, "SCHEDULED")], clock.now())
        assert 0.2 <= time.monotonic() - began < 2
    recorder.flush()
    assert len(rows(OfferedItem)) == 2


def test_a_query_that_cannot_be_written_does_not_keep_the_others_from_it(recorder, step, monkeypatch):
    write = query_log.write

    def picky(session, batch):
        if any(run.asked.source.ae_title == "BAD" for run, _ in batch.runs):
            raise DataError("", None, ValueError("a character that the database does not take"))
        return write(session, batch)

    monkeypatch.setattr(query_log, "write", picky)
    for title in ("CT1", "BAD", "CT2"):
        recorder.note(asked(of=source(title)))
    recorder.flush()
    assert [row.ae_title for row in rows(WorklistQuery)] == ["CT1", "CT2"]
    recorder.flush()
    assert len(rows(WorklistQuery)) == 2


def test_queries_wait_until_the_database_is_back(recorder, monkeypatch):
    recorder.note(asked())
    with monkeypatch.context() as broken:
        broken.setattr(db, "run", away)
        with pytest.raises(OperationalError):
            recorder.flush()
    recorder.flush()
    assert [row.times for row in rows(WorklistQuery)] == [1]


def test_a_set_that_a_device_declares_with_a_nul_is_kept(recorder):
    declared = tree.write({tree.CHARSET: ("CS", "ISO_IR\0 100")}, tree.IMPLICIT_LE, ("",))
    recorder.note(asked(of=source(identifier=declared + KEYS)))
    recorder.flush()
    assert len(rows(WorklistQuery)) == 1
    assert "\0" not in rows(WorklistKeys)[0].character_set


def test_what_came_again_while_a_run_was_written_is_counted_though_another_took_its_place(recorder, monkeypatch):
    write = query_log.write

    def slowly(session, batch):
        made = write(session, batch)
        if len(batch.runs) == 1 and batch.runs[0][0].pk is None and recorder.queries == 1:
            recorder.note(asked())
            recorder.note(asked(status=0xA900))
        return made

    recorder.note(asked())
    monkeypatch.setattr(query_log, "write", slowly)
    recorder.flush()
    recorder.flush(repeats=True)
    assert [(row.status, row.times) for row in rows(WorklistQuery)] == [(0, 2), (0xA900, 1)]


def test_after_an_hour_of_silence_the_same_question_is_a_run_of_its_own(recorder):
    at = clock.now()
    for hours in (0, 0.5, 1.2, 3):
        recorder.note(asked(at=at + dt.timedelta(hours=hours)))
    recorder.flush(repeats=True)
    assert [row.times for row in rows(WorklistQuery)] == [3, 1]


def test_runs_that_are_over_are_forgotten(recorder):
    at = clock.now()
    recorder.note(asked(at=at))
    recorder.flush()
    recorder.note(asked(at=at + dt.timedelta(hours=2), of=source("CT2")))
    recorder.flush(repeats=True)
    assert [run.asked.source.ae_title for run in recorder._runs.values()] == ["CT2"]


def test_what_is_remembered_of_rows_is_bounded(recorder, step):
    recorder._max = 3
    for n in range(5):
        recorder.before_the_end(f"CT{n}", [(step, 1, "SCHEDULED")], clock.now())
    assert list(recorder._recorded) == [(f"CT{n}", step, 1) for n in (2, 3, 4)]
    recorder.before_the_end("CT0", [(step, 1, "SCHEDULED")], clock.now())
    assert len(rows(OfferedItem)) == 5


def test_what_is_due_is_bounded_and_the_log_says_so(recorder):
    recorder._max = 3
    for n in range(5):
        recorder.note(asked(of=source(f"CT{n}")))
    recorder.flush()
    assert [row.ae_title for row in rows(WorklistQuery)] == ["CT3", "CT4"]


def test_stopping_writes_what_is_due(recorder):
    recorder.start()
    recorder.note(asked())
    recorder.note(asked())
    recorder.stop()
    assert [row.times for row in rows(WorklistQuery)] == [2]


def test_a_case_that_could_not_be_opened_is_opened_at_the_next_query(recorder, step, monkeypatch):
    opened = []
    loss = Loss(step, 1, frozenset(), "romaji missing")

    def ask(_session, ae_title, *_, **__):
        opened.append(ae_title)
        if len(opened) == 1:
            raise OperationalError("", None, ConnectionError("gone"))

    monkeypatch.setattr(items, "ask_about_characters", ask)
    for _ in range(3):
        recorder.tell("CT1", [loss], clock.now())
    assert opened == ["CT1", "CT1"]


def test_keys_are_counted_once_in_a_while_for_each_source(recorder, monkeypatch):
    from broker.dicom.habits import Directory
    from broker.mwl import plan, view

    counted = []
    monkeypatch.setattr(funnel, "count", lambda *_: counted.append(1) or funnel.Counts(7, (("Modality", 3),)))
    at, what = clock.now(), view.of(None, "CT1", config.Settings(), clock.now())
    for n in range(3):
        one = Asked(
            source(), at + dt.timedelta(seconds=n), (), n, "", plan.of({}, what, Directory()), what, Directory()
        )
        recorder.note(one)
        recorder.flush()
    assert len(counted) == 1
    assert [row.removed for row in rows(WorklistQuery)] == [[["Modality", 3]]] * 3
