"""What happens to databases: somebody holds a lock, the server hangs, nobody is let in."""

import contextlib
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import create_engine, text

from tests.databases import Database, PostgresDatabase, SqliteDatabase


@contextlib.contextmanager
def locked(database: Database, table: str) -> Iterator[None]:
    """Somebody else writes to the table (on SQLite: to all), and does not end."""
    if isinstance(database, SqliteDatabase):
        connection = sqlite3.connect(database.path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
            connection.close()
        return
    assert isinstance(database, PostgresDatabase)
    with database._inside.begin() as other:
        other.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
        yield


@contextlib.contextmanager
def gone(database: Database) -> Iterator[None]:
    """Nobody is let in any more, and all who were in are thrown out."""
    assert isinstance(database, PostgresDatabase)
    with database._server.connect() as server:
        server.execute(text(f"ALTER DATABASE {database.name} WITH ALLOW_CONNECTIONS false"))
        server.execute(
            text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database.name}'")
        )
        try:
            yield
        finally:
            server.execute(text(f"ALTER DATABASE {database.name} WITH ALLOW_CONNECTIONS true"))


@contextlib.contextmanager
def hung(url: str) -> Iterator[None]:
    """The server's processes stand still, while its host still confirms every packet. url: of any of its databases."""
    engine = create_engine(url)
    with engine.connect() as connection:
        postmaster = _parent(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
    engine.dispose()
    stopped: list[int] = []
    try:
        for pid in [postmaster, *_children(postmaster)]:  # the first of them makes no more of the others
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _children(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if _parent(int(folder.name)) == pid:
                found.append(int(folder.name))
    return found
