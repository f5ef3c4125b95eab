"""Real databases for tests: one of each kind for a whole run, set back to a known state instead of made anew.

Making and dropping a PostgreSQL database costs ten times as much as setting its rows back."""

import json
import shutil
import sqlite3
import uuid
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine, create_engine, text

BUSY_SECONDS_MAX = 5
# Triggers and foreign keys must not stand in the way: audit_event is append only.
UNGUARDED = f"SET LOCAL session_replication_role = replica; SET LOCAL lock_timeout = '{BUSY_SECONDS_MAX}s'; "
ALL_TABLES = "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'"
ALL_SEQUENCES = "SELECT sequencename, coalesce(last_value, start_value), last_value IS NOT NULL FROM pg_sequences"
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


class Database(Protocol):
    name: str
    url: str

    def snapshot(self) -> Any:
        """What is in it, for `restore`."""

    def restore(self, snapshot: Any) -> None:
        """Rows, counters and (SQLite) schema as they were. Nobody may be in a transaction."""

    def remove(self) -> None: ...


class SqliteDatabase:
    def __init__(self, template: Path, folder: Path) -> None:
        self.name = f"t{uuid.uuid4().hex}"
        self.path = folder / f"{self.name}.sqlite3"
        shutil.copy(template, self.path)
        self.url = f"sqlite:///{self.path}"

    def snapshot(self) -> sqlite3.Connection:
        kept = sqlite3.connect(":memory:")
        with sqlite3.connect(self.path) as connection:
            connection.backup(kept)
        connection.close()
        return kept

    def restore(self, snapshot: sqlite3.Connection) -> None:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS_MAX, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")  # raises where somebody writes; backup would wait for ever
            connection.execute("ROLLBACK")
            snapshot.backup(connection)
        finally:
            connection.close()

    def remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)


class PostgresDatabase:
    """url: of the server's database `postgres`."""

    def __init__(self, url: str, template: str) -> None:
        self.name = f"t{uuid.uuid4().hex}"
        self._server = create_engine(url, isolation_level="AUTOCOMMIT")
        self._execute(self._server, f"CREATE DATABASE {self.name} TEMPLATE {template}")
        self.url = url.replace("/postgres?", f"/{self.name}?")
        self._inside = create_engine(self.url, pool_pre_ping=True)

    def snapshot(self) -> str:
        """The statements that bring it back."""
        with self._inside.begin() as connection:
            tables = connection.execute(text(ALL_TABLES)).scalars().all()
            statements = [f"DELETE FROM {table}" for table in tables]
            for table in tables:
                for row in connection.execute(text(f"SELECT row_to_json(t) FROM {table} t")).scalars():
                    literal = json.dumps(row).replace("'", "''")
                    statements.append(
                        f"INSERT INTO {table} SELECT * FROM json_populate_record(NULL::{table}, '{literal}')"
                    )
            for name, value, called in connection.execute(text(ALL_SEQUENCES)):
                statements.append(f"SELECT setval('{name}', {value}, {called})")
        return UNGUARDED + "; ".join(statements)

    def restore(self, snapshot: str) -> None:
        """Who was left behind inside a transaction (a killed process, a lost thread) is thrown out."""
        self._execute(self._inside, f"SELECT pg_terminate_backend(pid) {OTHERS} AND state <> 'idle'")
        with self._inside.begin() as connection:
            connection.connection.cursor().execute(snapshot)

    def remove(self) -> None:
        self._inside.dispose()
        self._execute(self._server, f"DROP DATABASE {self.name} WITH (FORCE)")
        self._server.dispose()

    @staticmethod
    def _execute(engine: Engine, statement: str) -> None:
        with engine.begin() as connection:
            connection.execute(text(statement))
