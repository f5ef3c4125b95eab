"""The worklist as it was a moment ago, in a file of its own: what devices are shown while the database is away
(durability.md 1.7). The same statements are asked of it (mwl/plan.py), so nothing is said twice."""

import datetime as dt
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Engine, MetaData, Table, and_, create_engine, event, or_
from sqlalchemy.engine import Connection
from sqlmodel import Session, col, select

from broker import clock, db, log
from broker.config import Settings, Worklist
from broker.dicom import habits
from broker.errors import DatabaseAway
from broker.model.orders import RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.site import Node
from broker.mwl import view

FILE = "worklist.snapshot"
ROWS = 1_000  # at once
AGAIN_SECONDS = 2.0  # between two looks whether the database is back
WAIT_SECONDS_MAX = 1.5  # that a device waits for the database before the snapshot answers
REFRESH_SECONDS_MAX, STOP_SECONDS_MAX = 60.0, 5.0
CONNECTIONS_MAX, TURN_SECONDS_MAX = 16, 2.0  # to the file
BEGUN, BEGUN_HOURS = ("STARTED", *view.FINISHED), 72

# Copies of the tables, with the columns that queries look at. Of a step all but its data set tells whether it changed.
COPIES = MetaData()


def _copy(table: Any, *names: str) -> Table:
    columns = [table.__table__.columns[name] for name in names]
    return Table(
        table.__tablename__, COPIES, *[Column(one.name, one.type, primary_key=one.name == "pk") for one in columns]
    )


STEPS = _copy(
    ScheduledStep, "pk", "version", "status", "status_at", "start_date", "start_time", "sps_id", "modality",
    "patient_id", "accession_number", "label", "name_key", "offerable", "requested_procedure_pk", "dataset",
)  # fmt: skip
STATIONS = _copy(ScheduledStation, "pk", "step_pk", "ae_title", "start_date", "is_open")
PROCEDURES = _copy(RequestedProcedure, "pk", "requested_procedure_id", "study_instance_uid")
ORIGINALS: dict[str, Any] = {name: ScheduledStep.metadata.tables[name] for name in COPIES.tables}
LIGHT = [
    column for column in ORIGINALS["scheduled_step"].columns if column.name in {*STEPS.columns.keys()} - {"dataset"}
]


@dataclass
class Snapshot:
    """One for a process that answers devices; it refreshes itself. stale_since: the first query that it answered since
    the database went, None = the database answers."""

    settings: Settings
    stale_since: dt.datetime | None = None
    taken_at: dt.datetime | None = None
    _look_again: float = 0.0  # monotonic
    _failures: int = 0  # in a row
    _known: dict[int, int] = field(default_factory=dict)  # hash of what tells whether it changed, by step
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._engine = _open(self.settings.data_dir.resolve() / FILE)
        self._thread = threading.Thread(target=self._run, name="snapshot", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(STOP_SECONDS_MAX)  # it may hang with the database, and has nothing to lose
        self._engine.dispose()

    @property
    def age_seconds(self) -> float | None:
        return None if self.taken_at is None else (clock.now() - self.taken_at).total_seconds()

    @property
    def is_asked_first(self) -> bool:
        """A moment ago the database was away: not every device need find out by itself."""
        return self.stale_since is not None and time.monotonic() < self._look_again

    def is_needed(self, error: BaseException) -> None:
        """The database has not answered. One query that took too long is that query's matter; a second one in a row, or
        a connection that is lost, is everybody's."""
        self._failures += 1
        if self._failures > 1 or db.is_lost(error):
            self._look_again = time.monotonic() + AGAIN_SECONDS
            self.stale_since = self.stale_since or clock.now()

    def engine(self, ae_title: str) -> Engine:
        """To be asked in place of the database. Raises DatabaseAway where it is too old, or there is none."""
        age = self.age_seconds
        if age is None or age > self.settings.worklist.snapshot_hours_max * 3600:
            raise DatabaseAway("worklist", "the database is away, and its snapshot is too old")
        log.get().warning("worklist.stale", ae_title=ae_title, age_seconds=round(age))
        return self._engine

    def is_over(self) -> None:
        """The database has answered."""
        self._failures = 0
        if self.stale_since is not None:
            log.get().warning("worklist.fresh", stale_since=clock.iso(self.stale_since))
            self.stale_since = None

    def forget(self) -> None:
        """As if it had just been made."""
        with self._engine.begin() as copy:
            for table in COPIES.sorted_tables:
                copy.execute(table.delete())
        self._known, self.taken_at, self.stale_since, self._failures = {}, None, None, 0

    def refresh(self) -> None:
        """Only what has changed is written; all of it is of one state of the database."""
        with db.unhurried(), db.within(max(self.settings.worklist.snapshot_seconds, REFRESH_SECONDS_MAX)):
            db.read(self._take, clock.now())

    def _take(self, session: Session, now: dt.datetime) -> None:
        found = {row[0]: hash(tuple(row)) for row in _live(session, self.settings, now)}
        changed = [pk for pk, row in found.items() if self._known.get(pk) != row]
        gone = [pk for pk in self._known if pk not in found]
        with self._engine.begin() as copy:
            for some in _parts(gone):
                _forget(copy, some)
            for some in _parts(changed):
                _forget(copy, some)
                _add(session, copy, some)
        self._known, self.taken_at = found, now  # what the file holds, whatever becomes of the read

    def _run(self) -> None:
        while True:
            try:
                self.refresh()
            except Exception as error:
                if db.is_away(error):
                    log.get().warning("snapshot.database", kind=type(error).__name__)
                else:
                    log.get().exception("snapshot.failed")
            if self._stopping.wait(self.settings.worklist.snapshot_seconds):
                return


def _open(path: Path) -> Engine:
    """Always a new one: what an earlier process left is as old as that process."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.touch(mode=0o600)  # names are in it
    engine = create_engine(
        f"sqlite:///{path}", connect_args={"check_same_thread": False}, hide_parameters=True,
        pool_size=CONNECTIONS_MAX, max_overflow=0, pool_timeout=TURN_SECONDS_MAX,
    )  # fmt: skip
    event.listen(engine, "connect", _prepare)
    COPIES.create_all(engine)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    """It need not survive a power cut; and who reads it is not kept by who writes it."""
    for pragma in ("journal_mode=WAL", "synchronous=OFF"):
        connection.execute(f"PRAGMA {pragma}").close()


def _live(session: Session, settings: Settings, now: dt.datetime) -> Iterable[Any]:
    """What some device may be shown: of what has begun or ended, as long as the longest of them may, by
    the site's hours or its own."""
    everybody: list[Worklist | habits.Habits] = [settings.worklist, *map(habits.of, session.exec(select(Node)))]
    hours = max(BEGUN_HOURS, *(said or 0 for one in everybody for said in (one.started_hours, one.finished_hours)))
    recent = col(ScheduledStep.status_at) >= now - dt.timedelta(hours=hours)
    status = col(ScheduledStep.status)
    return session.connection().execute(
        db.columns(*LIGHT).where(
            col(ScheduledStep.offerable), or_(status.in_(view.WAITING), and_(status.in_(BEGUN), recent))
        ),
        execution_options={"yield_per": ROWS},
    )


def _parts(keys: Sequence[int]) -> Iterable[Sequence[int]]:
    return (keys[at : at + ROWS] for at in range(0, len(keys), ROWS))


def _forget(copy: Connection, steps: Sequence[int]) -> None:
    copy.execute(STATIONS.delete().where(STATIONS.c.step_pk.in_(steps)))
    copy.execute(STEPS.delete().where(STEPS.c.pk.in_(steps)))


def _add(session: Session, copy: Connection, steps: Sequence[int]) -> None:
    """A procedure that is no longer asked for stays; nothing leads to it."""
    procedures = db.columns(ScheduledStep.requested_procedure_pk).where(col(ScheduledStep.pk).in_(steps))
    for table, rows in (
        (STEPS, col(ScheduledStep.pk).in_(steps)),
        (STATIONS, col(ScheduledStation.step_pk).in_(steps)),
        (PROCEDURES, col(RequestedProcedure.pk).in_(procedures)),
    ):
        of = ORIGINALS[table.name]
        found = (
            session.connection().execute(db.columns(*[of.columns[one.name] for one in table.columns]).where(rows)).all()
        )
        if found:
            copy.execute(table.insert().prefix_with("OR REPLACE"), [row._asdict() for row in found])
