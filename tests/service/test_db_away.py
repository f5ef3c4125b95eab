"""A database that is locked, slow, hung or gone: whoever waits is told in time, and what is said is the truth."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlmodel import Session

from broker import db
from broker.model.patients import Patient, PatientIdentifier
from tests.databases import Database, SqliteDatabase
from tests.premises import Premises
from tests.trouble import hung, locked

WAIT = 1.0


@pytest.fixture
def impatient(premises: Premises, database_url: str) -> Iterator[Database]:
    db.open_engine(database_url, pool=4, wait_seconds=WAIT, statement_seconds=0.5)
    yield premises._database
    db.close_engine()


def add_patient(session: Session) -> None:
    session.add(Patient(name="YAMADA^TARO"))


def failure(call: Callable[[], object]) -> tuple[BaseException, float]:
    """What it raises, and after how many seconds."""
    started = time.monotonic()
    with pytest.raises(Exception) as caught:
        call()
    return caught.value, time.monotonic() - started


def test_nobody_waits_longer_for_a_locked_database_than_the_limit_says_however_many_wait(impatient):
    told = []
    with locked(impatient, "patient"):
        threads = [threading.Thread(target=lambda: told.append(failure(lambda: db.run(add_patient)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [db.is_away(error) for error, _ in told] == [True] * 3
    assert max(seconds for _, seconds in told) < WAIT + 0.7
    db.run(add_patient)


def test_who_has_less_time_is_told_earlier(impatient):
    def within_less() -> None:
        with db.within(0.2):
            db.run(add_patient)

    with locked(impatient, "patient"):
        error, seconds = failure(within_less)
    assert db.is_away(error)
    assert seconds < WAIT


def test_a_lock_that_ends_in_time_is_waited_for(impatient):
    def add_meanwhile() -> None:
        db.run(add_patient)
        done.append(time.monotonic())

    done: list[float] = []
    with locked(impatient, "patient"):
        writer = threading.Thread(target=add_meanwhile)
        writer.start()
        time.sleep(WAIT * 0.6)
        freed = time.monotonic()
    writer.join()
    assert done
    assert done[0] > freed


def test_a_transaction_of_many_statements_has_one_deadline(impatient):
    def many(session: Session) -> None:
        for _ in range(100):
            session.connection().execute(text("SELECT 1"))
            time.sleep(0.1)

    for call in (db.run, db.read):
        error, seconds = failure(lambda call=call: call(many))
        assert db.is_away(error)
        assert seconds < WAIT + 0.5


def test_a_pool_without_a_free_connection_is_told_in_time(impatient):
    enough, entered = threading.Event(), threading.Barrier(5)

    def hold(session: Session) -> None:
        session.connection()
        entered.wait(5)
        enough.wait(5)

    holders = [threading.Thread(target=db.read, args=[hold]) for _ in range(4)]
    for holder in holders:
        holder.start()
    entered.wait(5)
    error, seconds = failure(lambda: db.read(lambda session: session.connection()))
    enough.set()
    for holder in holders:
        holder.join()
    assert db.is_away(error)
    assert seconds < WAIT + 0.5


def same_number_twice(session: Session) -> None:
    patient = Patient()
    session.add(patient)
    session.flush()
    for _ in range(2):
        session.add(PatientIdentifier(patient_pk=patient.key, value="7", issuer=""))
    session.flush()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda session: session.connection().execute(text("SELECT * FROM no_such_table")),
        lambda session: session.connection().execute(text("SELEC 1")),
        same_number_twice,
    ],
)
def test_a_wrong_statement_is_not_taken_for_a_database_that_is_away(impatient, wrong):
    error, _ = failure(lambda: db.run(wrong))
    assert isinstance(error, DBAPIError)
    assert not db.is_away(error)


def test_a_value_that_no_column_takes_is_not_taken_for_a_database_that_is_away(premises, impatient):
    if isinstance(impatient, SqliteDatabase):
        assert not db.is_away(IntegrityError("", {}, sqlite3.IntegrityError("UNIQUE constraint failed: a.b")))
        return
    error, _ = failure(lambda: db.run(lambda session: session.add(Patient(name="A\0B"))))
    assert isinstance(error, DBAPIError)
    assert not db.is_away(error)


# PostgreSQL alone


@pytest.fixture
def server(postgresql: str) -> Iterator[str]:
    db.open_engine(postgresql, pool=4, wait_seconds=2, statement_seconds=0.5, job_seconds=20)
    yield postgresql
    db.close_engine()


def sleep(session: Session) -> None:
    session.connection().execute(text("SELECT pg_sleep(1.2)"))


def test_a_statement_that_takes_too_long_is_cut_where_a_peer_waits(server):
    error, seconds = failure(lambda: db.run(sleep))
    assert db.is_away(error)
    assert seconds < 1.2


def test_a_job_and_a_migration_take_their_time(server):
    with db.unhurried():
        db.run(sleep)
        db.read(sleep)
    with db.engine().begin() as connection:
        connection.execute(text("SELECT pg_sleep(2.5)"))


def test_a_server_that_hangs_is_told_in_time_and_used_again_when_it_goes_on(server):
    db.read(lambda session: session.connection().execute(text("SELECT 1")))
    with hung(server):
        for call in (db.run, db.read):
            error, seconds = failure(lambda call=call: call(sleep))
            assert db.is_away(error)
            assert seconds < 2 + db.HUNG_SECONDS + 3  # and the time for a new connection
    assert db.read(lambda session: session.connection().execute(text("SELECT 1")).scalar_one()) == 1


def test_a_lookout_asks_once_at_a_time_and_keeps_no_asker_waiting(server):
    asked = []

    def question(session: Session) -> int:
        asked.append(1)
        return session.connection().execute(text("SELECT 7")).scalar_one()

    lookout = db.Lookout(question)
    assert lookout.ask().result(5) == 7
    with hung(server):
        for _ in range(10):
            with pytest.raises(TimeoutError):
                lookout.ask().result(0.05)
        with pytest.raises(Exception) as caught:
            lookout.ask().result(10)
    assert db.is_away(caught.value)
    assert len(asked) <= 2
    assert lookout.ask().result(5) == 7
