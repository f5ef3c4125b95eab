"""Which of a device's queries are looked at, however many it sent."""

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from sqlmodel import Session, select

from broker import db
from broker.dicom import tree
from broker.model.worklist import WorklistAnswer, WorklistKeys, WorklistQuery
from broker.mwl import history

pytestmark = pytest.mark.usefixtures("database")
NOON = dt.datetime(2025, 12, 1, 3, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
STATION, PATIENT, STEPS = 0x00400001, 0x00100020, 0x00400100


def asked(hours: float, *, station: str = "CT1", patient: str = "", ae_title: str = "CT1") -> None:
    """hours: ago."""
    step: tree.Tree = {STATION: ("AE", station)}
    keys: tree.Tree = {PATIENT: ("LO", patient), STEPS: ("SQ", [step])}

    def write(session: Session) -> None:
        digest = f"{station}/{patient}"
        known = session.exec(select(WorklistKeys).where(WorklistKeys.digest == digest)).first()
        kept = known or WorklistKeys(digest=digest, dataset=tree.write(keys, tree.EXPLICIT_LE, ("",)))
        answer = session.exec(select(WorklistAnswer)).first() or WorklistAnswer(digest="none")
        session.add_all([kept, answer])
        session.flush()
        at = NOON - hours * HOUR
        said = {"keys_pk": kept.key, "answer_pk": answer.key, "first_at": at, "last_at": at}
        session.add(WorklistQuery(ae_title=ae_title, **said))

    db.run(write)


def stations() -> list[str]:
    """Of the runs that are no search, the newest first, with the hours since the first of all."""
    runs = db.read(history.last_runs, "CT1")
    assert [run.last_at for run in runs] == sorted((run.last_at for run in runs), reverse=True)
    plain = [run for run in runs if run.keys and not run.keys[PATIENT][1]]
    return [f"{run.keys[STEPS][1][0][STATION][1]} {(NOON - run.last_at) / HOUR:g}" for run in plain]


def test_searches_do_not_push_out_the_questions_of_a_day_that_stand():
    for n in range(history.RUNS_MAX):
        asked(n / 100, patient=f"X{n}")
    asked(2, patient="X99")
    for hours, station in ((3, "CT1"), (4, "CT1"), (5, "CT2"), (25, "OLD")):
        asked(hours, station=station)
    asked(1, ae_title="MR1")
    asked(1, station="MR1", ae_title="MR1")
    assert stations() == ["CT1 3", "CT2 5"]
    assert len(db.read(history.last_runs, "CT1")) == history.RUNS_MAX + 2
    for n in range(9):
        asked(6 + n, station=f"S{n}")
    assert stations() == ["CT1 3", "CT2 5", "S0 6", "S1 7", "S2 8"], "no more than are asked again"


def test_who_sent_few_is_looked_at_whole_and_nobody_is_read_twice():
    asked(30)
    asked(1, patient="X1")
    assert stations() == ["CT1 30"]
    for n in range(history.RUNS_MAX):
        asked(n / 100, station=f"S{n}")
    asked(3, station="S5")
    assert stations()[: history.RUNS_MAX] == [f"S{n} {n / 100:g}" for n in range(history.RUNS_MAX)]
    assert stations()[history.RUNS_MAX :] == []


def test_keys_and_answers_go_with_the_last_query_that_has_them():
    for hours in (30, 1):
        asked(hours, station="CT1")
    asked(30, station="CT2")

    def left(table: type) -> int:
        return len(db.read(lambda session: session.exec(select(table)).all()))

    assert db.run(history.forget, NOON - 2 * HOUR) == 2
    assert [left(table) for table in (WorklistQuery, WorklistKeys, WorklistAnswer)] == [1, 1, 1]
    assert db.run(history.forget, NOON) == 1
    assert [left(table) for table in (WorklistQuery, WorklistKeys, WorklistAnswer)] == [0, 0, 0]


def test_a_page_has_the_times_of_the_site():
    found = {"says": "x", "queries": [{"keys": [], "first_at": "2025-12-01T03:00:00.000000Z", "last_at": "2025-12-01T03:00:01.5Z",
                                       "times": 2, "status": "0000", "count": 0, "character_set": "", "items": []}]}  # fmt: skip
    (_, line) = history.lines(found, ZoneInfo("Asia/Tokyo"))
    assert "from 2025-12-01 12:00:00+09:00 to 2025-12-01 12:00:01+09:00, 2 times" in line
