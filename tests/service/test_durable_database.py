"""What an answer stands on: a COMMIT that survives a power cut (durability.md 1.2), as the database itself says."""

import pytest
from sqlalchemy import text
from sqlmodel import Session

from broker import db

pytestmark = pytest.mark.usefixtures("database")


def ask(question: str) -> str:
    """In a transaction of `db.run`: it is its connection that counts."""

    def run(session: Session) -> str:
        return str(session.connection().execute(text(question)).scalar_one())

    return db.run(run)


def test_a_commit_waits_until_it_is_on_the_disk():
    if db.is_sqlite():
        assert (ask("PRAGMA journal_mode"), ask("PRAGMA synchronous")) == ("wal", "2")  # FULL
    else:
        assert (ask("SHOW synchronous_commit"), ask("SHOW fsync")) == ("on", "on")


def test_foreign_keys_are_kept():
    if db.is_sqlite():  # off unless asked for
        assert ask("PRAGMA foreign_keys") == "1"
    else:
        assert ask("SHOW session_replication_role") == "origin"
