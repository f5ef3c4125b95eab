"""Bring a database to this code's schema, and refuse one that differs."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from broker import db
from broker.errors import ConfigError

MIGRATIONS = Path(__file__).parent / "migrations"


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def head() -> str:
    return ScriptDirectory.from_config(_config()).get_current_head() or ""


def current(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""


def upgrade() -> None:
    """To the newest revision, in one transaction: a kill leaves the old schema or the new one."""
    config = _config()
    with db.engine().begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(6174)")  # two processes may start at once
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def prepare() -> None:
    """What `serve` does: fill an empty database, refuse one whose schema is not this code's."""
    with db.engine().connect() as connection:
        have = current(connection)
        empty = not inspect(connection).get_table_names()
    if empty:
        upgrade()
    elif have != head():
        raise ConfigError(
            "database",
            f"its schema is {have or 'not from ris-broker'}, this program needs {head()}; run: broker db upgrade",
        )
