"""Statements made once, and the session that writes by them.

A database answers a small one sooner than SQLAlchemy builds it, looks it up, and makes an entity of its row: an order
costs three times as much without (bench/hl7.py). Types, errors and dialects are SQLAlchemy's all the same.

`Prepared` asks for columns, `Entities` for rows of one table; `insert`, `update` and `append` write columns; and what
services add to a session or change in it is written by `Writing`."""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

from sqlalchemy import Table, bindparam, event, inspect
from sqlalchemy import insert as sa_insert
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError, InvalidRequestError, NoResultFound
from sqlalchemy.orm import SessionTransaction, make_transient, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.orm.util import identity_key
from sqlmodel import Session, SQLModel, select
from sqlmodel.sql.expression import SelectOfScalar

from broker import deadline

R = TypeVar("R", bound=SQLModel)
# In Session.info
APPENDED, CONNECTION, FAILED, INSERTED = "appended rows", "connection", "failed", "inserted since the savepoint"


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
        return _executed(session, ready, connection, ready.bound(values))

    def stream(self, session: Session, values: Mapping[str, Any], rows: int) -> Iterable[Any]:
        """Without holding all of them: so many at a time."""
        connection = _connection(session).execution_options(yield_per=rows)
        return connection.execute(self._statement, values)

    def on(self, connection: Connection, values: Mapping[str, Any]) -> Sequence[Any]:
        """Without a session or a transaction; rows as tuples."""
        ready = self._for(connection.dialect)
        return ready.fetch(connection, ready.bound(values))

    def first(self, session: Session, **values: Any) -> Any:
        return next(iter(self.rows(session, **values)), None)

    def execute_many(self, session: Session, values: Sequence[Mapping[str, Any]]) -> None:
        connection = _connection(session)
        ready = self._for(connection.dialect)
        _executed(session, ready, connection, [ready.bound(one) for one in values], many=True)

    def _for(self, dialect: Dialect) -> "_Ready":
        ready = self._ready
        if ready is None or ready.dialect is not dialect:
            self._ready = ready = _Ready(self._statement, self._columns, dialect)
        return ready


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
            for name, value in values.items():
                set_committed_value(row, name, value)
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
        rows = self.fetch(connection, bound, many=many)
        return [self._row._make(row) for row in rows]

    def fetch(self, connection: Connection, bound: Any, *, many: bool = False) -> list[Any]:
        deadline.check()
        driver: Any = connection.connection
        cursor = driver.cursor()
        try:
            (cursor.executemany if many else cursor.execute)(self._text, bound)
            rows: list[Any] = cursor.fetchall() if self._row else []
            return [self._read_from(row) for row in rows] if self._read else rows
        except self.dialect.loaded_dbapi.Error as error:
            raise self._told(connection, error) from error
        finally:
            cursor.close()

    def _read_from(self, row: Sequence[Any]) -> Sequence[Any]:
        values = list(row)
        for place, process in self._read:
            values[place] = process(values[place])
        return values

    def _told(self, connection: Connection, error: Any) -> BaseException:
        """The error as SQLAlchemy raises it."""
        is_lost = self.dialect.is_disconnect(error, connection.connection, None)
        return DBAPIError.instance(
            self._text, None, error, self.dialect.loaded_dbapi.Error, hide_parameters=True,
            connection_invalidated=is_lost, dialect=self.dialect,
        )  # fmt: skip


def _connection(session: Session) -> Connection:
    """Asked for once in a transaction: SQLAlchemy looks for it each time."""
    connection: Connection = session.info.get(CONNECTION) or session.connection()
    return connection


def _executed(session: Session, ready: _Ready, connection: Connection, bound: Any, *, many: bool = False) -> list[Any]:
    """Who goes on after an error would commit half of what he wanted; PostgreSQL would commit nothing, and say well."""
    try:
        return ready.execute(connection, bound, many=many)
    except DBAPIError:
        session.info[FAILED] = True
        raise


def refuse_failed(session: Session) -> None:
    """Before a commit. Raises InvalidRequestError where a statement failed and nothing was rolled back."""
    if session.info.get(FAILED):
        raise InvalidRequestError("a statement of this transaction has failed: it cannot be committed")


def insert(session: Session, table: type[SQLModel], values: Mapping[str, Any]) -> int:
    """The key of the new row. What is not said is the column's default."""
    key: int = _inserting(table, False).first(session, **with_defaults(table, values))[0]
    return key


def insert_new(session: Session, table: type[SQLModel], values: Mapping[str, Any]) -> int | None:
    """None where a row with the same unique key is there; who inserts it at this moment is waited for."""
    is_sqlite = _connection(session).dialect.name == "sqlite"
    made = _inserting_new(table, is_sqlite).first(session, **with_defaults(table, values))
    return made and made[0]


def update(session: Session, table: type[SQLModel], key: int, values: Mapping[str, Any]) -> None:
    """One row by its key. An entity of it that this session has does not know."""
    if isinstance(session, Writing):
        session.write_entities()
    _update(session, table, key, values)


def _update(session: Session, table: type[SQLModel], key: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """With what each change of a row says by itself. Raises StaleDataError where the row is gone."""
    said = {name: make(None) for name, make in _on_update(table)} | dict(values)
    if not _updating(table, tuple(sorted(said))).execute(session, {**said, "the_key": key}):
        raise StaleDataError(f"{table.__name__}: the row is gone")
    return said


def append(session: Session, table: type[SQLModel], values: Mapping[str, Any]) -> None:
    """A row that nobody asks for before the next flush, which writes all of them in the order in which they came."""
    assert isinstance(session, Writing), "rows are appended inside of run"
    session.info.setdefault(APPENDED, {}).setdefault(table, []).append(with_defaults(table, values))


class Writing(Session):
    """The session of a writing transaction. Our tables have no relationships: their rows are written in the order in
    which they were added, then what changed in the order of keys, and a unit of work has nothing to find out."""

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        self.write_entities()
        for table, rows in self.info.pop(APPENDED, {}).items():
            _appending(table).execute_many(self, rows)

    def add(self, instance: Any, **how: Any) -> None:
        """Services add what they have changed, which is here already."""
        if instance not in self:
            super().add(instance, **how)

    def begin_nested(self) -> SessionTransaction:
        """A savepoint is set when somebody asks for the connection: now, as our statements do not ask again."""
        assert not self.in_nested_transaction(), "a savepoint inside another is not supported"
        nested = super().begin_nested()
        self.connection()
        self.info[INSERTED] = []
        return nested

    def write_entities(self) -> None:
        """All but what was appended."""
        for row in self.new:
            self._insert(row)
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
        self.info.get(INSERTED, []).append(row)

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


def _in_order(row: Any) -> tuple[int, Any]:
    return _places()[_table(type(row)).name], inspect(row).identity


@cache
def _places() -> dict[str, int]:
    """Of the tables: what is pointed to comes first, as locks are taken (architecture.md 7)."""
    return {table.name: place for place, table in enumerate(SQLModel.metadata.sorted_tables)}


@event.listens_for(Writing, "after_soft_rollback")
def _forget(session: Session, _transaction: Any) -> None:
    """A savepoint begins with a flush: what is not written was appended since. What was written since is not there."""
    session.info.pop(APPENDED, None)
    session.info.pop(FAILED, None)
    for row in session.info.pop(INSERTED, []):
        make_transient(row)
    session.expire_all()


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
    return Prepared(sa_update(rows).where(key == bindparam("the_key")).returning(key), columns)


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


def get(session: Session, table: type[R], pk: int) -> R:
    """The row as this session has met it, or as it is. Raises NoResultFound."""
    return session.identity_map.get(identity_key(table, pk)) or _of_key(table).one(session, key=pk)


@cache
def _of_key(table: type[R]) -> "Entities[R]":
    return Entities(select(table).where(table.pk == bindparam("key")))  # type: ignore[attr-defined]


@cache
def _locking(table: type[R]) -> "Entities[R]":
    return Entities(select(table).where(table.pk == bindparam("key")).with_for_update())  # type: ignore[attr-defined]


def lock(session: Session, table: type[R], pk: int) -> R:
    """The row as it is now, ours until the transaction ends. Lock in the order patient, order, study."""
    return _locking(table).one(session, key=pk)
