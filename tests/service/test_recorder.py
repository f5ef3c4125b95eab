"""What devices were shown is on record, whatever happens to the record; and no device waits long for it."""

import datetime as dt
import time

import pytest
import structlog.testing
from sqlalchemy.exc import DataError, OperationalError
from sqlmodel import select

from broker import clock, config, db
from broker.dicom import tree
from broker.dicom.service import C_FIND_RQ, Command, Request
from broker.model.orders import OfferedItem, ScheduledStep
from broker.model.worklist import WorklistAnswer, WorklistKeys, WorklistQuery
from broker.mwl import funnel, history, items, offered, query_log, scp
from broker.mwl.offered import Asked, Loss, Recorder, Source
from broker.mwl.snapshot import Snapshot
from tests.objects import PEER
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


def source(ae_title: str = "CT1", identifier: bytes | None = KEYS) -> Source:
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


def test_of_more_sources_than_are_remembered_no_query_is_lost(recorder, monkeypatch):
    monkeypatch.setattr(offered, "SOURCES_MAX", 2)
    for ae_title in ("CT1", "CT1", "CT2", "CT3", "CT1"):
        recorder.note(asked(of=source(ae_title)))
    assert len(recorder._runs) == 2
    recorder.flush()
    assert [(row.ae_title, row.times) for row in rows(WorklistQuery)] == [
        ("CT1", 2),
        ("CT2", 1),
        ("CT3", 1),
        ("CT1", 1),
    ]


def test_what_is_remembered_of_rows_is_bounded(recorder, step):
    recorder.settings.limits.offered_items_max = 3
    for n in range(5):
        recorder.before_the_end(f"CT{n}", [(step, 1, "SCHEDULED")], clock.now())
    assert list(recorder._recorded) == [(f"CT{n}", step, 1) for n in (2, 3, 4)]
    recorder.before_the_end("CT0", [(step, 1, "SCHEDULED")], clock.now())
    assert len(rows(OfferedItem)) == 5


def test_of_first_offers_that_wait_the_oldest_give_way(recorder, step):
    recorder.settings.limits.offered_items_max = 3
    with structlog.testing.capture_logs() as logs:
        for n in range(5):
            recorder.before_the_end(f"CT{n}", [(step, 1, "SCHEDULED")], clock.now(), waits=False)
    recorder.flush()
    assert [row.ae_title for row in rows(OfferedItem)] == ["CT2", "CT3", "CT4"]
    assert [one["items"] for one in logs if one["event"] == "offers.lost"] == [2]


def test_lists_of_many_devices_do_not_push_each_other_out(recorder, step, monkeypatch):
    recorder.settings.limits.offer_queue_max = 3
    for n in range(9):
        recorder.before_the_end(f"CT{n}", [(step, 1, "SCHEDULED")], clock.now())
    monkeypatch.setattr(query_log, "offer", lambda *_: pytest.fail("all of them are on record"))
    for n in range(9):
        recorder.before_the_end(f"CT{n}", [(step, 1, "SCHEDULED")], clock.now())


def test_of_what_is_due_the_oldest_give_way_and_the_log_says_so(recorder):
    recorder.settings.limits.offer_queue_max = 10
    with structlog.testing.capture_logs() as logs:
        for n in range(12):
            recorder.note(asked(of=source(f"CT{n}")))
    recorder.flush()
    assert [row.ae_title for row in rows(WorklistQuery)] == [f"CT{n}" for n in range(2, 12)]
    assert [one["runs"] for one in logs if one["event"] == "offers.queries_lost"] == [2]


def test_a_device_whose_query_gave_way_is_on_record_with_its_next_one(recorder):
    recorder.settings.limits.offer_queue_max = 3
    at = clock.now()
    recorder.note(asked(at=at))
    for status in range(3):
        recorder.note(asked(of=source("CT2"), at=at, status=status))
    for minutes in (1, 2):
        recorder.note(asked(at=at + dt.timedelta(minutes=minutes)))
    recorder.flush()
    assert [row.times for row in rows(WorklistQuery) if row.ae_title == "CT1"] == [2]


def test_a_query_that_could_not_be_written_is_on_record_with_its_next_one(recorder, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(query_log, "write", lambda *_: int("a bug"))
        recorder.note(asked())
        recorder.flush()
    recorder.note(asked())
    recorder.flush()
    assert [row.times for row in rows(WorklistQuery)] == [1]


def test_much_is_written_in_parts_and_what_is_written_stays_written(recorder, monkeypatch):
    monkeypatch.setattr(offered, "RUNS_AT_ONCE", 2)
    sizes, write = [], query_log.write

    def fail_at_the_third(session, batch):
        sizes.append(len(batch.runs))
        return away() if len(sizes) == 3 else write(session, batch)

    monkeypatch.setattr(query_log, "write", fail_at_the_third)
    for n in range(7):
        recorder.note(asked(of=source(f"CT{n}")))
    with pytest.raises(OperationalError):
        recorder.flush()
    assert len(rows(WorklistQuery)) == 4
    recorder.flush()
    assert sorted(row.ae_title for row in rows(WorklistQuery)) == [f"CT{n}" for n in range(7)]
    assert sizes == [2, 2, 2, 2, 1]


def test_long_lists_are_written_in_smaller_parts(recorder, monkeypatch):
    monkeypatch.setattr(offered, "ITEMS_AT_ONCE", 3)
    sizes, write = [], query_log.write
    monkeypatch.setattr(
        query_log, "write", lambda session, batch: sizes.append(len(batch.runs)) or write(session, batch)
    )
    for n in range(5):
        recorder.note(asked([(n, 1, "SCHEDULED"), (n, 2, "SCHEDULED")], of=source(f"CT{n}")))
    recorder.flush()
    assert sizes == [2, 2, 1]


def test_many_first_offers_are_written_in_parts(recorder, step, monkeypatch):
    monkeypatch.setattr(offered, "FIRSTS_AT_ONCE", 2)
    sizes, offer = [], query_log.offer

    def fail_at_the_second(session, firsts):
        sizes.append(len(firsts))
        return away() if len(sizes) == 2 else offer(session, firsts)

    monkeypatch.setattr(query_log, "offer", fail_at_the_second)
    for n in range(5):
        recorder.before_the_end(f"CT{n}", [(step, 1, "SCHEDULED")], clock.now(), waits=False)
    with pytest.raises(OperationalError):
        recorder.flush()
    assert len(rows(OfferedItem)) == 2
    recorder.flush()
    assert len(rows(OfferedItem)) == 5
    assert sizes == [2, 2, 2, 1]


def test_repeats_are_counted_once_though_they_had_to_wait(recorder, step, monkeypatch):
    """The item is counted with the runs that showed it."""
    at, shown = clock.now(), [(step, 1, "SCHEDULED")]
    recorder.before_the_end("CT1", shown, at)
    recorder.note(asked(shown, at=at))
    recorder.flush()
    recorder.note(asked(shown, at=at))
    with monkeypatch.context() as broken:
        broken.setattr(db, "run", away)
        with pytest.raises(OperationalError):
            recorder.flush(repeats=True)
    recorder.note(asked(shown, at=at))
    recorder.flush(repeats=True)
    recorder.flush(repeats=True)
    assert [row.times for row in rows(WorklistQuery)] == [3]
    assert [row.times for row in rows(OfferedItem)] == [3]


def test_an_identifier_too_large_to_be_kept_is_no_empty_query(recorder):
    recorder.note(asked(of=source(identifier=None)))
    recorder.note(asked(of=source("CT2", identifier=b"")))
    recorder.flush()
    assert [run.keys is None for title in ("CT1", "CT2") for run in db.read(history.last_runs, title)] == [True, False]


@pytest.mark.parametrize(("size", "is_kept"), [(scp.KEPT_BYTES_MAX, True), (scp.KEPT_BYTES_MAX + 1, False)])
def test_what_no_device_sends_is_too_large_to_be_kept(size, is_kept):
    kept = scp._source(Request(PEER, Command(C_FIND_RQ, 1), tree.IMPLICIT_LE, bytes(size))).identifier
    assert kept == (bytes(size) if is_kept else None)


def test_of_a_cancelled_list_only_what_was_sent_counts_as_shown(exams, recorder, settings):
    for n in range(3):
        exams.place(f"ACC00{n}")
    settings.dicom.unknown_ae = "accept"
    service = scp.WorklistService(settings, recorder, Snapshot(settings))
    cancelled = Request(
        PEER, Command(C_FIND_RQ, 1), tree.IMPLICIT_LE, KEYS, cancelled_at_the_end=lambda: True, sent=lambda: 1
    )
    assert [one.status for one in service.handle(cancelled)] == [scp.MATCH] * 3 + [scp.CANCELLED]
    recorder.flush()
    assert [len(row.items) for row in rows(WorklistAnswer)] == [len(rows(OfferedItem))] == [1]


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


def test_so_many_sources_are_counted_at_one_turn_and_forgotten_after_a_while(recorder, monkeypatch):
    from broker.dicom.habits import Directory
    from broker.mwl import plan, view

    monkeypatch.setattr(offered, "COUNTED_MAX", 2)
    monkeypatch.setattr(funnel, "count", lambda *_: funnel.Counts(7, ()))
    what, directory = view.of(None, "CT1", config.Settings(), clock.now()), Directory()

    def turn(*ae_titles: str) -> None:
        for one in ae_titles:
            recorder.note(Asked(source(one), clock.now(), (), 0, "", plan.of({}, what, directory), what, directory))
        recorder.flush()

    turn("CT1", "CT2", "CT3")
    turn("CT4")
    assert [row.considered for row in rows(WorklistQuery)] == [7, 7, 0, 7]
    monkeypatch.setattr(offered, "COUNTED_SECONDS", 0.0)
    turn("CT5")
    assert [one.ae_title for one in recorder._counted] == ["CT5"]
