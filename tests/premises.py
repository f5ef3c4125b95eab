"""One database of a run and the one broker that stands on it: kept from test to test while nothing spoils it."""

from pathlib import Path

from sqlalchemy import Engine

from broker import config, db
from tests.databases import Database
from tests.house import House


class Premises:
    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder
        self._blank = database.snapshot()
        self._engine: Engine | None = None
        self._house: House | None = None
        self._houses = 0

    def empty_database(self) -> str:
        """Its URL. The broker leaves first: the engine is one for the process."""
        self._close_house()
        self._database.restore(self._blank)
        return self._database.url

    def open_engine(self) -> None:
        """An engine remembers how each statement is compiled: it is kept as long as it is the one in use."""
        if self._engine is None or db._engine is not self._engine:
            self._dispose()
            self._engine = db.open_engine(self._database.url)

    def house(self) -> House:
        """A broker in the state in which it started."""
        if self._house is None or self._house.spoiled():
            self._dispose()
            url = self.empty_database()
            self._houses += 1
            self._house = House(make_settings(url, self._folder / f"{self._database.name}-{self._houses}"))
            self._house.open()
            self._furnished = self._database.snapshot()
        return self._house

    def set_back(self) -> None:
        """After a test: the broker as it was when it had just started, or none."""
        house = self._house
        assert house is not None
        if house.spoiled() or not house.quiet():
            self._close_house()
            return
        self._database.restore(self._furnished)
        house.go_on()

    def leave(self) -> None:
        self._close_house()
        self._dispose()

    def _close_house(self) -> None:
        if self._house is not None:
            self._house.close()
        self._house = None

    def _dispose(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
        self._engine = None


def make_settings(database_url: str, folder: Path) -> config.Settings:
    """Every port free, studies settle in a moment, jobs run often."""
    settings = config.Settings(data_dir=folder / "data", database_url=database_url)
    settings.dicom.port = settings.hl7.port = settings.http.port = 0
    settings.reconcile.settle_seconds = 0.3
    settings.limits.job_seconds_between = 0.2
    settings.limits.staging_free_bytes_min = 1024 * 1024
    return settings
