"""The engine, and the only places that open a transaction: `run` to write, `read` to look.

`run` replays the whole function when the database asks for it, so a service must be free of side effects other
than rows. Every transaction ends by calling the finishers (status documents follow their rows, ADR 0005).

Two ways to the rows. `session.exec` is the rule; what every message asks goes by statements that are made once, which
cost a fifth (statements.py, whose names are found here too). All that is written is written by those.

Nobody waits without end (durability.md 1.7): a transaction has its time, with all its turns, locks and replays. Over it
an error is raised of which `is_away` says that it is nobody's fault but the database's."""

import contextlib
import datetime as dt
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoTurn
from sqlalchemy.types import DateTime, TypeDecorator
from sqlmodel import Session, create_engine

from broker import deadline, log
from broker.deadline import within as within
from broker.statements import CONNECTION, Writing, refuse_failed
from broker.statements import Entities as Entities
from broker.statements import Prepared as Prepared
from broker.statements import append as append
from broker.statements import columns as columns
from broker.statements import get as get
from broker.statements import insert as insert
from broker.statements import insert_new as insert_new
from broker.statements import lock as lock
from broker.statements import update as update
from broker.statements import with_defaults as with_defaults

P = ParamSpec("P")
T = TypeVar("T")
REPLAYS_MAX = 8
UNIQUE_REPLAYS_MAX = 3  # a race for the same new row is won by the second look; a third loss is a real conflict

LOOK_TURN_SECONDS = 1.0  # for a connection of `look`
GONE = ("57P01", "57P02", "57P03")  # the server stops, has crashed, is starting
HUNG_SECONDS = 1.0  # beyond its time: a server that lives has cut the statement itself by then

_unhurried: ContextVar[bool] = ContextVar("unhurried", default=False)


@dataclass(frozen=True)
class Patience:
    """Seconds. wait: for one transaction in all. statement: for one of its statements, on PostgreSQL. job: for both,
    inside `unhurried`. connect: for a new connection."""

    wait: float = 10
    statement: float = 2
    job: float = 300
    connect: float = 2


_engine: Engine | None = None
_look_engine: Engine | None = None
_patience = Patience()
_writing = threading.Lock()  # SQLite has one writer anyway; a queue in the process is fairer than its busy timeout
_finishers: list[Callable[[Session], None]] = []


class UTCDateTime(TypeDecorator[dt.datetime]):
    """Aware UTC in, aware UTC out, on both databases (SQLite keeps no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive time")
        return value.astimezone(dt.UTC)

    def process_result_value(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def open_engine(
    url: str,
    *,
    pool: int = 40,
    wait_seconds: float = Patience.wait,
    statement_seconds: float = Patience.statement,
    job_seconds: float = Patience.job,
    connect_seconds: float = Patience.connect,
    look_pool: int = 4,
) -> Engine:
    """look_pool: connections for `look` alone."""
    global _engine, _look_engine, _patience
    _patience = Patience(wait_seconds, statement_seconds, job_seconds, connect_seconds)
    make = _make_sqlite if url.startswith("sqlite") else _make_postgres
    _engine = make(url, pool)
    _look_engine = make(url, look_pool, for_looks=True)
    return _engine


def _make_sqlite(url: str, pool: int, *, for_looks: bool = False) -> Engine:
    """WAL, FULL (an answer must survive a power cut), BEGIN IMMEDIATE for writers."""
    Path(url.removeprefix("sqlite:///")).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(
        url,
        connect_args={"timeout": _patience.wait, "check_same_thread": False},
        pool_size=pool,
        max_overflow=0,
        pool_timeout=LOOK_TURN_SECONDS if for_looks else _patience.wait / 2,  # the other half is for the work
        hide_parameters=True,  # error texts would carry patient data
    )
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    event.listen(engine, "before_cursor_execute", deadline.check)
    return engine


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: the driver's deferred BEGIN loses read-then-write races
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    if connection.get_execution_options().get("read_only"):
        connection.exec_driver_sql("BEGIN")
        return
    driver: Any = connection.connection.driver_connection
    driver.execute(f"PRAGMA busy_timeout={_milliseconds(min(_left(), _patience.wait))}").close()
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _make_postgres(url: str, pool: int, *, for_looks: bool = False) -> Engine:
    """A lock is waited for less long than a statement may take: so it is the lock that is told, and tried again."""
    settings = {
        "lock_timeout": _milliseconds(_patience.statement * 0.75),
        "statement_timeout": _milliseconds(_patience.statement),
        "idle_in_transaction_session_timeout": 60_000,
        "timezone": "UTC",
        "synchronous_commit": "on",
    }
    engine = create_engine(
        url,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=LOOK_TURN_SECONDS if for_looks else _patience.wait / 2,  # the other half is for the work
        pool_pre_ping=not for_looks,  # one more question, of which a server that hangs makes a long wait
        isolation_level="AUTOCOMMIT" if for_looks else None,
        hide_parameters=True,
        connect_args={
            "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
            "connect_timeout": max(2, round(_patience.connect)),  # libpq knows no shorter one
            "tcp_user_timeout": _milliseconds(_patience.wait),
            "keepalives_idle": 30,
            "keepalives_interval": 10,
            "keepalives_count": 3,
        },
    )
    event.listen(engine, "connect", _postgres_connect)
    event.listen(engine, "begin", _postgres_begin)
    event.listen(engine, "before_cursor_execute", deadline.check)
    return engine


def _postgres_connect(connection: Any, _record: Any) -> None:
    """A server that hangs heeds no time-out, and its host confirms every packet: then it is we who hang up."""
    wait = connection.wait

    def wait_no_longer(answer: Any, *args: Any, **kwargs: Any) -> Any:
        if deadline.left() is None:
            return wait(answer, *args, **kwargs)
        longest = _patience.job if _unhurried.get() else _patience.statement
        seconds = min(_left(), longest) + HUNG_SECONDS
        until = time.monotonic() + seconds
        try:
            return wait(answer, *args, **{**kwargs, "timeout": seconds})
        except Exception:
            if time.monotonic() >= until:
                connection.pgconn.finish()  # nobody knows what it is at
            raise

    connection.wait = wait_no_longer


def _postgres_begin(connection: Connection) -> None:
    """Connections are made for those who wait for an answer."""
    if deadline.left() is not None and not _unhurried.get():
        return
    statement = 0 if deadline.left() is None else _milliseconds(_patience.job)
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {statement}")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_milliseconds(_patience.wait)}")


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))  # 0 would be: for ever


def close_engine() -> None:
    global _engine, _look_engine
    for one in (_engine, _look_engine):
        if one is not None:
            one.dispose()
    _engine = _look_engine = None


def engine() -> Engine:
    if _engine is None:
        raise RuntimeError("no database is open")
    return _engine


def is_sqlite() -> bool:
    return engine().dialect.name == "sqlite"


def on_finish(finisher: Callable[[Session], None]) -> None:
    """Register what every writing transaction does last, before its commit."""
    if finisher not in _finishers:
        _finishers.append(finisher)


@contextlib.contextmanager
def unhurried() -> Iterator[None]:
    """For jobs, recovery and the command line, where no peer waits: a statement may take as long as a job may."""
    token = _unhurried.set(True)
    try:
        yield
    finally:
        _unhurried.reset(token)


def _time() -> contextlib.AbstractContextManager[None]:
    return within(_patience.job if _unhurried.get() else _patience.wait)


def _left() -> float:
    seconds = deadline.left()
    return _patience.wait if seconds is None else seconds


def run(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run fn(session, …) as one transaction; replay it when the database asks us to."""
    give_up_at = time.monotonic() + _patience.wait  # also for jobs, which come again by themselves
    with _time():
        for n in range(REPLAYS_MAX):
            try:
                with _turn(), Writing(engine(), expire_on_commit=False) as session, session.begin():
                    session.info[CONNECTION] = session.connection()
                    result = fn(session, *args, **kwargs)
                    session.flush()
                    for finisher in _finishers:
                        finisher(session)
                    session.flush()
                    refuse_failed(session)
                return result
            except DBAPIError as error:  # BrokerErrors pass through: rollback, no replay
                limit = UNIQUE_REPLAYS_MAX if is_unique_violation(error) else REPLAYS_MAX
                pause = random.random() * 0.01 * 2**n  # noqa: S311  jitter: two losers must not meet again
                late = time.monotonic() + pause >= give_up_at or pause >= _left()
                if n + 1 >= limit or late or not _worth_a_replay(error):
                    raise
                log.get().info("db.replay", attempt=n + 1, kind=type(error.orig).__name__)
                time.sleep(pause)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _turn() -> Iterator[None]:
    if not is_sqlite():
        yield
        return
    if not _writing.acquire(timeout=min(_left(), _patience.wait)):
        raise NoTurn("no turn to write in time")  # what the pool says when it has no connection in time
    try:
        yield
    finally:
        _writing.release()


def read(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run fn(session, …) on one snapshot that is never written."""
    return read_from(engine(), fn, *args, **kwargs)


def read_from(source: Engine, fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """As `read`, from another engine than the open one."""
    options: dict[str, Any] = {"read_only": True}
    if source.dialect.name != "sqlite":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    bound = source.execution_options(**options)
    with _time(), Session(bound, expire_on_commit=False) as session, session.begin():
        session.info[CONNECTION] = session.connection()
        return fn(session, *args, **kwargs)


def look(statement: Prepared, values: Mapping[str, Any], *, on: Engine | None = None) -> Sequence[Any]:
    """One statement that reads, which needs no transaction to see one state: for what is asked most.

    on: another engine than the open one."""
    with _time():
        source = on or _looking()
        try:
            with source.connect() as connection:
                return statement.on(connection, values)
        except DBAPIError as error:
            if not error.connection_invalidated or _left() < LOOK_TURN_SECONDS:
                raise
            source.dispose()  # the server was started anew: all of these connections are lost
            with source.connect() as connection:
                return statement.on(connection, values)


def _looking() -> Engine:
    """Connections of their own, so that no other work keeps a device from its worklist; no transaction is begun."""
    if _look_engine is None:
        raise RuntimeError("no database is open")
    return _look_engine


def is_lost(error: BaseException) -> bool:
    """Whether it is the connection that is at fault, not a statement that took too long."""
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or _sqlstate(error) in ("", *GONE) or _sqlstate(error).startswith("08")
    )


class Lookout(Generic[T]):
    """A read that its askers can do without: in a thread of its own and one at a time, so that a database that hangs
    costs each of them no longer than he likes to wait for the answer."""

    def __init__(self, question: Callable[[Session], T]) -> None:
        self._question, self._lock = question, threading.Lock()
        self._answer: Future[T] | None = None

    def ask(self) -> Future[T]:
        """The answer that is under way, or to come."""
        with self._lock:
            if self._answer is None or self._answer.done():
                self._answer = Future()
                try:
                    threading.Thread(target=self._look, args=[self._answer], name="lookout", daemon=True).start()
                except RuntimeError as error:  # out of threads
                    self._answer.set_exception(error)
            return self._answer

    def _look(self, answer: Future[T]) -> None:
        try:
            answer.set_result(read(self._question))
        except BaseException as error:
            answer.set_exception(error)


def is_away(error: BaseException) -> bool:
    """Whether the database cannot be reached, is locked or gives no answer in time: the same thing works later. Any
    other error of it (a value that does not fit, a statement that is wrong) is a bug of ours, now and later."""
    if isinstance(error, NoTurn):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_MISUSE)
        return isinstance(error, OperationalError) and code not in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISUSE)
    # 25006: a server that has become the standby
    return isinstance(error, OperationalError | InterfaceError) or _sqlstate(error) == "25006"


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def is_unique_violation(error: DBAPIError) -> bool:
    return _sqlstate(error) == "23505" or "UNIQUE constraint failed" in str(error.orig)


def _worth_a_replay(error: DBAPIError) -> bool:
    """40001 serialisation, 40P01 deadlock, 55P03 lock, SQLite's lock, and unique violations: with READ COMMITTED two
    transactions that both create the first row of a study are normal, and the loser finds it on its second look."""
    return (
        _sqlstate(error) in ("40001", "40P01", "55P03")
        or "database is locked" in str(error.orig)
        or is_unique_violation(error)
    )
