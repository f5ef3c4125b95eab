"""The engine, and the only places that open a transaction: `run` to write, `read` to look.

`run` replays the whole function when the database asks for it, so a service must be free of side effects other
than rows. Every transaction ends by calling the finishers (status documents follow their rows, ADR 0005)."""

import contextlib
import datetime as dt
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import DateTime, TypeDecorator
from sqlmodel import Session, SQLModel, create_engine, select

from broker import log

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=SQLModel)
REPLAYS_MAX = 8
UNIQUE_REPLAYS_MAX = 3  # a race for the same new row is won by the second look; a third loss is a real conflict

_engine: Engine | None = None
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


def make_engine(url: str, *, pool: int = 40, wait_seconds: float = 10) -> Engine:
    """SQLite: WAL, FULL (an answer must survive a power cut), BEGIN IMMEDIATE for writers. PostgreSQL: its default."""
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            url,
            connect_args={"timeout": wait_seconds, "check_same_thread": False},
            pool_size=pool,
            max_overflow=0,
            pool_timeout=wait_seconds,
            hide_parameters=True,  # error texts would carry patient data
        )
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
        return engine
    return create_engine(
        url,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=wait_seconds,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "options": f"-c lock_timeout={int(wait_seconds * 1000)} -c idle_in_transaction_session_timeout=60000"
            " -c timezone=UTC -c synchronous_commit=on"
        },
    )


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: the driver's deferred BEGIN loses read-then-write races
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def open_engine(url: str, *, pool: int = 40, wait_seconds: float = 10) -> Engine:
    global _engine
    _engine = make_engine(url, pool=pool, wait_seconds=wait_seconds)
    return _engine


def close_engine() -> None:
    global _engine
    if _engine is not None:
        _engine.dispose()
    _engine = None


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


def run(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run fn(session, …) as one transaction; replay it when the database asks us to."""
    for n in range(REPLAYS_MAX):
        try:
            with _turn(), Session(engine(), expire_on_commit=False) as session, session.begin():
                result = fn(session, *args, **kwargs)
                session.flush()
                for finisher in _finishers:
                    finisher(session)
            return result
        except DBAPIError as error:  # BrokerErrors pass through: rollback, no replay
            limit = UNIQUE_REPLAYS_MAX if is_unique_violation(error) else REPLAYS_MAX
            if n + 1 >= limit or not _worth_a_replay(error):
                raise
            log.get().info("db.replay", attempt=n + 1, kind=type(error.orig).__name__)
            time.sleep(random.random() * 0.01 * 2**n)  # noqa: S311  jitter: two losers must not meet again
    raise AssertionError("unreachable")


def lock(session: Session, table: type[R], pk: int) -> R:
    """The row as it is now, ours until the transaction ends. Lock in the order patient, order, study."""
    query = select(table).where(table.pk == pk).with_for_update()  # type: ignore[attr-defined]
    return session.exec(query.execution_options(populate_existing=True)).one()


def _turn() -> contextlib.AbstractContextManager[object]:
    return _writing if is_sqlite() else contextlib.nullcontext()


def read(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run fn(session, …) on one snapshot that is never written."""
    options: dict[str, Any] = {"read_only": True}
    if not is_sqlite():
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    bound = engine().execution_options(**options)
    with Session(bound, expire_on_commit=False) as session, session.begin():
        return fn(session, *args, **kwargs)


def _sqlstate(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def is_unique_violation(error: DBAPIError) -> bool:
    return _sqlstate(error) == "23505" or "UNIQUE constraint failed" in str(error.orig)


def _worth_a_replay(error: DBAPIError) -> bool:
    """40001 serialisation, 40P01 deadlock, SQLite's lock, and unique violations: with READ COMMITTED two transactions
    that both create the first row of a study are normal, and the loser finds the row on its second look."""
    return (
        _sqlstate(error) in ("40001", "40P01") or "database is locked" in str(error.orig) or is_unique_violation(error)
    )
