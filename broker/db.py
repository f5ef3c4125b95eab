"""The engine, and the only places that open a transaction: `run` to write, `read` to look.

`run` replays the whole function when the database asks for it, so a service must be free of side effects other
than rows. Every transaction ends by calling the finishers (status documents follow their rows, ADR 0005).

Two ways to the rows. Entities (`session.exec`, `session.add`) are the rule. What every message asks and writes goes by
`Prepared` statements, `insert`, `update` and `append`: plain columns, at a tenth of the cost.

Nobody waits without end (durability.md 1.7): a transaction has its time, with all its turns, locks and replays. Over it
an error is raised of which `is_away` says that it is nobody's fault but the database's."""

import contextlib
import datetime as dt
import random
import sqlite3
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar

from sqlalchemy import Table, bindparam, event, inspect
from sqlalchemy import insert as sa_insert
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.exc import DBAPIError, InterfaceError, NoResultFound, OperationalError
from sqlalchemy.exc import TimeoutError as NoTurn
from sqlalchemy.orm import make_transient, make_transient_to_detached
from sqlalchemy.orm.util import identity_key
from sqlalchemy.types import DateTime, TypeDecorator
from sqlmodel import Session, SQLModel, create_engine, select
from sqlmodel.sql.expression import SelectOfScalar

from broker import log

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=SQLModel)
REPLAYS_MAX = 8
UNIQUE_REPLAYS_MAX = 3  # a race for the same new row is won by the second look; a third loss is a real conflict

HUNG_SECONDS = 1.0  # beyond its time: a server that lives has cut the statement itself by then

# When the transaction under way must be over (monotonic); None outside of `run` and `read`: migrations take their time.
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
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
) -> Engine:
    global _engine, _patience
    _patience = Patience(wait_seconds, statement_seconds, job_seconds, connect_seconds)
    _engine = _make_sqlite(url, pool) if url.startswith("sqlite") else _make_postgres(url, pool)
    return _engine


def _make_sqlite(url: str, pool: int) -> Engine:
    """WAL, FULL (an answer must survive a power cut), BEGIN IMMEDIATE for writers."""
    Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(
        url,
        connect_args={"timeout": _patience.wait, "check_same_thread": False},
        pool_size=pool,
        max_overflow=0,
        pool_timeout=_patience.wait / 2,  # the other half is for what it is wanted for
        hide_parameters=True,  # error texts would carry patient data
    )
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    event.listen(engine, "before_cursor_execute", _in_time)
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


def _make_postgres(url: str, pool: int) -> Engine:
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
        pool_timeout=_patience.wait / 2,  # the other half is for what it is wanted for
        pool_pre_ping=True,
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
    event.listen(engine, "before_cursor_execute", _in_time)
    return engine


def _postgres_connect(connection: Any, _record: Any) -> None:
    """A server that hangs heeds no time-out, and its host confirms every packet: then it is we who hang up."""
    wait = connection.wait

    def wait_no_longer(answer: Any, *args: Any, **kwargs: Any) -> Any:
        if _deadline.get() is None:
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
    if _deadline.get() is not None and not _unhurried.get():
        return
    statement = 0 if _deadline.get() is None else _milliseconds(_patience.job)
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {statement}")
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_milliseconds(_patience.wait)}")


def _in_time(*_: Any) -> None:
    if _deadline.get() is not None and not _left():
        raise NoTurn("the time of this transaction is over")


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))  # 0 would be: for ever


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


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is asked of the database inside has this much time in all, or less where somebody outside said so."""
    before = _deadline.get()
    until = time.monotonic() + seconds
    token = _deadline.set(until if before is None else min(before, until))
    try:
        yield
    finally:
        _deadline.reset(token)


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
    deadline = _deadline.get()
    return _patience.wait if deadline is None else max(0, deadline - time.monotonic())


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


def lock(session: Session, table: type[R], pk: int) -> R:
    """The row as it is now, ours until the transaction ends. Lock in the order patient, order, study."""
    return _locking(table).one(session, key=pk)


def get(session: Session, table: type[R], pk: int) -> R:
    """The row as this session has met it, or as it is. Raises NoResultFound."""
    return session.identity_map.get(identity_key(table, pk)) or _of_key(table).one(session, key=pk)


@cache
def _of_key(table: type[R]) -> "Entities[R]":
    return Entities(select(table).where(table.pk == bindparam("key")))  # type: ignore[attr-defined]


@cache
def _locking(table: type[R]) -> "Entities[R]":
    return Entities(select(table).where(table.pk == bindparam("key")).with_for_update())  # type: ignore[attr-defined]


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
    options: dict[str, Any] = {"read_only": True}
    if not is_sqlite():
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    bound = engine().execution_options(**options)
    with _time(), Session(bound, expire_on_commit=False) as session, session.begin():
        session.info[CONNECTION] = session.connection()
        return fn(session, *args, **kwargs)


# Statements made once. A database answers a small one sooner than an entity is made of its row.


def columns(*wanted: Any) -> Any:
    """A select whose rows are columns, as many as one likes (sqlmodel's types know up to four)."""
    return sa_select(*wanted)


class Prepared:
    """`STEPS = Prepared(select(…))`, and then again and again `STEPS.rows(session, …)`.

    SQLAlchemy compiles it, once for each database; its types count, and its errors are raised. The text then goes to
    the driver itself. A list to expand (`IN`) is left to SQLAlchemy, and costs what it costs there."""

    def __init__(self, statement: Any, columns: Sequence[str] | None = None) -> None:
        """columns: to be written, where the statement does not say it itself."""
        self._statement, self._columns = statement, columns
        self._ready: _Ready | None = None

    def rows(self, session: Session, **values: Any) -> Sequence[Any]:
        """With the columns as attributes: as they are now, not as this session met them before. They show what it has
        changed, but not what was appended."""
        if isinstance(session, Writing):
            session.write_entities()
        return self.execute(session, values)

    def execute(self, session: Session, values: Mapping[str, Any]) -> Sequence[Any]:
        """As they are in the database, whatever this session has changed."""
        connection = _connection(session)
        ready = self._for(connection.dialect)
        if ready.expands:
            return connection.execute(self._statement, values).all()
        return ready.execute(connection, ready.bound(values))

    def first(self, session: Session, **values: Any) -> Any:
        return next(iter(self.rows(session, **values)), None)

    def execute_many(self, session: Session, values: Sequence[Mapping[str, Any]]) -> None:
        connection = _connection(session)
        ready = self._for(connection.dialect)
        ready.execute(connection, [ready.bound(one) for one in values], many=True)

    def _for(self, dialect: Dialect) -> "_Ready":
        if self._ready is None or self._ready.dialect is not dialect:
            self._ready = _Ready(self._statement, self._columns, dialect)
        return self._ready


class Entities(Generic[R]):
    """`STEPS = Entities(select(ScheduledStep).where(…))`, and then again and again `STEPS.all(session, …)`: rows of one
    table as they are now, also those that this session has met before."""

    def __init__(self, statement: SelectOfScalar[R]) -> None:
        self._table: type[R] = statement.column_descriptions[0]["entity"]
        self._prepared = Prepared(statement.with_only_columns(*_table(self._table).columns, maintain_column_froms=True))

    def all(self, session: Session, **values: Any) -> list[R]:
        return [self._met(session, row._asdict()) for row in self._prepared.rows(session, **values)]

    def first(self, session: Session, **values: Any) -> R | None:
        return next(iter(self.all(session, **values)), None)

    def one(self, session: Session, **values: Any) -> R:
        """Raises NoResultFound, as a select does."""
        found = self.all(session, **values)
        if not found:
            raise NoResultFound("there is no such row")
        return found[0]

    def _met(self, session: Session, values: dict[str, Any]) -> R:
        mapper: Any = inspect(self._table)
        key = mapper.identity_key_from_primary_key([values[column.key] for column in mapper.primary_key])
        row: R | None = session.identity_map.get(key)
        if row is None:
            row = mapper.class_manager.new_instance()
            row.__dict__.update(values)
            make_transient_to_detached(row)
            session.add(row)
        elif inspect(row).expired_attributes:
            session.expunge(row)
            return self._met(session, values)
        else:
            row.__dict__.update(values)
        return row


class _Ready:
    """A statement as the driver of one database takes it."""

    def __init__(self, statement: Any, columns: Sequence[str] | None, dialect: Dialect) -> None:
        self.dialect = dialect
        compiled = statement.compile(dialect=dialect, column_keys=columns)
        self._text = str(compiled)
        self._places = compiled.positiontup if compiled.positional else None
        self.expands = any(bind.expanding for bind in compiled.bind_names)
        binds = {name: bind for bind, name in compiled.bind_names.items()}
        processors = {name: bind.type.dialect_impl(dialect).bind_processor(dialect) for name, bind in binds.items()}
        self._bind = {name: process for name, process in processors.items() if process}
        self._constants = {name: compiled.params[name] for name, bind in binds.items() if not bind.required}
        read = list(statement.exported_columns)
        self._row: Any = namedtuple("Row", [column.key for column in read], rename=True) if read else None
        results = [column.type.dialect_impl(dialect).result_processor(dialect, None) for column in read]
        self._read = [(place, process) for place, process in enumerate(results) if process]

    def bound(self, values: Mapping[str, Any]) -> Any:
        """By place or by name, as the driver wants it."""
        said = {**self._constants, **values}
        for name, process in self._bind.items():
            said[name] = process(said[name])
        return said if self._places is None else [said[name] for name in self._places]

    def execute(self, connection: Connection, bound: Any, *, many: bool = False) -> list[Any]:
        _in_time()
        driver: Any = connection.connection
        cursor = driver.cursor()
        try:
            (cursor.executemany if many else cursor.execute)(self._text, bound)
            return [self._made(row) for row in cursor.fetchall()] if self._row else []
        except self.dialect.loaded_dbapi.Error as error:
            raise self._told(connection, error) from error
        finally:
            cursor.close()

    def _made(self, row: Sequence[Any]) -> Any:
        if self._read:
            row = list(row)
            for place, process in self._read:
                row[place] = process(row[place])
        return self._row._make(row)

    def _told(self, connection: Connection, error: Any) -> BaseException:
        """The error as SQLAlchemy raises it: a connection that is lost is not used again."""
        is_lost = self.dialect.is_disconnect(error, connection.connection, None)
        if is_lost:
            connection.invalidate(error)
        return DBAPIError.instance(
            self._text, None, error, self.dialect.loaded_dbapi.Error, hide_parameters=True,
            connection_invalidated=is_lost, dialect=self.dialect,
        )  # fmt: skip


def _connection(session: Session) -> Connection:
    """Asked for once in a transaction: SQLAlchemy looks for it each time."""
    connection: Connection = session.info.get(CONNECTION) or session.connection()
    return connection


def insert(session: Session, table: type[SQLModel], values: Mapping[str, Any]) -> int:
    """The key of the new row. What is not said is the column's default."""
    key: int = _inserting(table, False).first(session, **with_defaults(table, values))[0]
    return key


def insert_new(session: Session, table: type[SQLModel], values: Mapping[str, Any]) -> int | None:
    """None where a row with the same unique key is there; who inserts it at this moment is waited for."""
    made = _inserting_new(table, is_sqlite()).first(session, **with_defaults(table, values))
    return made and made[0]


def update(session: Session, table: type[SQLModel], key: int, values: Mapping[str, Any]) -> None:
    """One row by its key. An entity of it that this session has does not know."""
    if isinstance(session, Writing):
        session.write_entities()
    _update(session, table, key, values)


def _update(session: Session, table: type[SQLModel], key: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """With what each change of a row says by itself."""
    said = {name: make(None) for name, make in _on_update(table)} | dict(values)
    _updating(table, tuple(said)).execute(session, {**said, "the_key": key})
    return said


def append(session: Session, table: type[SQLModel], values: Mapping[str, Any]) -> None:
    """A row that nobody asks for before the next flush, which writes all of them in the order in which they came."""
    assert isinstance(session, Writing), "rows are appended inside of run"
    session.info.setdefault(APPENDED, {}).setdefault(table, []).append(with_defaults(table, values))


APPENDED, CONNECTION = "appended rows", "connection"


class Writing(Session):
    """The session of a writing transaction. Our tables have no relationships: their rows are written in the order in
    which they were added, then what changed in the order of keys, and a unit of work has nothing to find out."""

    has_new = False

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        self.write_entities()
        for table, rows in self.info.pop(APPENDED, {}).items():
            _appending(table).execute_many(self, rows)

    def add(self, instance: Any, **how: Any) -> None:
        """Services add what they have changed, which is here already."""
        if instance not in self:
            super().add(instance, **how)
            self.has_new = True

    def write_entities(self) -> None:
        """All but what was appended."""
        if self.has_new:
            for row in self.new:
                self._insert(row)
            self.has_new = False
        if self.identity_map.check_modified():
            for row in sorted(self.dirty, key=_in_order):
                self._update(row)
        if self.deleted:
            super().flush()

    def _insert(self, row: Any) -> None:
        table: type[SQLModel] = type(row)
        values, number = row.__dict__, _table(table).autoincrement_column
        is_numbered = number is not None and values.get(number.key) is not None
        names = _columns(table) if is_numbered else _written(table)
        said = with_defaults(table, {name: values[name] for name in names if name in values})
        key = _inserting(table, is_numbered).execute(self, said)[0]
        self.expunge(row)
        values.update(said, **key._asdict())
        self._keep(row)

    def _update(self, row: Any) -> None:
        values, before = row.__dict__, inspect(row).committed_state
        said = {name: values[name] for name, old in before.items() if values[name] != old}
        if said:
            values.update(_update(self, type(row), inspect(row).identity[0], said))
        make_transient(row)
        self._keep(row)

    def _keep(self, row: Any) -> None:
        """As though it had been read just now."""
        make_transient_to_detached(row)
        super().add(row)


def _in_order(row: Any) -> tuple[str, Any]:
    return _table(type(row)).name, inspect(row).identity


@event.listens_for(Writing, "after_soft_rollback")
def _forget_appended(session: Session, _transaction: Any) -> None:
    """A savepoint begins with a flush: what is not written was appended since."""
    session.info.pop(APPENDED, None)


def _table(table: type[SQLModel]) -> Table:
    return table.__table__  # type: ignore[attr-defined]


@cache
def _inserting(table: type[SQLModel], is_numbered: bool) -> Prepared:
    rows = _table(table)
    return Prepared(sa_insert(rows).returning(*rows.primary_key), _columns(table) if is_numbered else _written(table))


@cache
def _inserting_new(table: type[SQLModel], is_sqlite: bool) -> Prepared:
    rows = _table(table)
    statement = (sqlite.insert if is_sqlite else postgresql.insert)(rows).on_conflict_do_nothing()
    return Prepared(statement.returning(*rows.primary_key), _written(table))


@cache
def _appending(table: type[SQLModel]) -> Prepared:
    return Prepared(sa_insert(_table(table)).inline(), _written(table))


@cache
def _updating(table: type[SQLModel], columns: tuple[str, ...]) -> Prepared:
    rows = _table(table)
    assert set(columns) <= set(rows.columns.keys()), f"{table.__name__}: there is no column of that name"
    (key,) = rows.primary_key
    return Prepared(sa_update(rows).where(key == bindparam("the_key")), columns)


@cache
def _columns(table: type[SQLModel]) -> list[str]:
    return [column.key for column in _table(table).columns]


@cache
def _written(table: type[SQLModel]) -> list[str]:
    """All but the key that the database counts."""
    rows = _table(table)
    return [column.key for column in rows.columns if column is not rows.autoincrement_column]


def with_defaults(table: type[SQLModel], values: Mapping[str, Any]) -> dict[str, Any]:
    constants, makers = _defaults(table)
    said = {**constants, **values}
    for name, make in makers:
        if name not in said:
            said[name] = make(None)
    assert said.keys() <= set(_columns(table)), f"{table.__name__}: there is no column of that name"
    assert said.keys() >= set(_written(table)), f"{table.__name__}: a column is missing"
    return said


@cache
def _defaults(table: type[SQLModel]) -> tuple[dict[str, Any], list[tuple[str, Callable[[Any], Any]]]]:
    """Of columns that say one; and those that are made anew for each row."""
    said: list[Any] = [column for column in _table(table).columns if column.default is not None]
    nullable = {column.key: None for column in _table(table).columns if column.nullable and column.default is None}
    constants = {column.key: column.default.arg for column in said if column.default.is_scalar}
    return nullable | constants, [(column.key, column.default.arg) for column in said if column.default.is_callable]


@cache
def _on_update(table: type[SQLModel]) -> list[tuple[str, Callable[[Any], Any]]]:
    columns: list[Any] = [column for column in _table(table).columns if column.onupdate is not None]
    return [(column.key, column.onupdate.arg) for column in columns]


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
