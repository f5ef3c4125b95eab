"""A running broker in this process with everything around it: what wire and flow tests stand in."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from sqlmodel import Session, SQLModel, select

from broker import access, clock, config, db, site
from broker.dicom.listener import Listener
from broker.mwl.offered import Recorder
from broker.mwl.snapshot import Snapshot
from broker.ris_bridge.hl7.mllp import MllpServer
from broker.serve import ROLES, Broker
from broker.sim.ehr import Ehr
from broker.sim.modality import Modality
from broker.sim.ris import Order, Ris, code_of, omi

T = TypeVar("T")
R = TypeVar("R", bound=SQLModel)
DEVICES = {"CT1": "CT", "CT2": "CT", "MR1": "MR", "US1": "US", "CR1": "CR"}
PATIENCE_SECONDS = 20
QUIET_SECONDS_MAX = 2
BUSY_PARTS = (BackgroundScheduler, Recorder, Snapshot, Listener, MllpServer, uvicorn.Server)


class House:
    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings
        self.server = Broker(settings)
        self.restarted = False
        self._closers: list[Callable[[], None]] = []
        self._placing: Ris | None = None

    def open(self, roles: tuple[str, ...] = ROLES) -> None:
        access.forget()
        self.server = Broker(self.settings, roles)
        with watching(*BUSY_PARTS) as self._parts:
            self.server.start()
        self.ports = self.server.ports
        for ae_title, modality in DEVICES.items():
            db.run(
                site.add_node, ae_title, host="127.0.0.1", port=11999, modality=modality,
                actor="test", now=clock.now(),
            )  # fmt: skip
        self.tokens = {
            role: db.run(site.create_token, f"{role}-{clock.now().timestamp()}", role, actor="test", now=clock.now())
            for role in ("ris", "ehr", "qc", "admin")
        }
        self._opened = (db.engine(), self.settings.model_dump_json())
        self._files = self._found()

    def close(self) -> None:
        self._hang_up()
        self.server.stop()

    def restart(self) -> None:
        self.close()
        self.open()
        self.restarted = True

    # from test to test

    def spoiled(self) -> bool:
        """No longer what was opened: another process life, other settings, another database."""
        return self.restarted or self._opened != (db.engine(), self.settings.model_dump_json())

    def quiet(self) -> bool:
        """Nobody is connected, nothing is under way and no job begins, until `go_on`; False: it would not be quiet."""
        self._hang_up()
        for scheduler in self._parts[BackgroundScheduler]:
            scheduler.pause()
            scheduler.get_jobs()  # takes the lock that a turn holds which began before the pause
        if not eventually(lambda: not any(self._under_way()), QUIET_SECONDS_MAX):
            return False
        for recorder in self._parts[Recorder]:
            recorder.flush()
        return True

    def go_on(self) -> None:
        """After `quiet`, when the rows are those of the start: so are the files and what was remembered of rows."""
        for path in self._found() - self._files:
            path.unlink()
        access.forget()
        for recorder in self._parts[Recorder]:
            recorder.forget()
        for snapshot in self._parts[Snapshot]:
            snapshot.forget()
        for scheduler in self._parts[BackgroundScheduler]:
            scheduler.resume()

    def _hang_up(self) -> None:
        while self._closers:
            self._closers.pop()()
        self._placing = None

    def _found(self) -> set[Path]:
        return {path for path in self.settings.data_dir.rglob("*") if path.is_file()}

    def _under_way(self) -> Iterator[object]:
        """What keeps each part busy."""
        for listener in self._parts[Listener]:
            yield listener._connections
        for server in self._parts[MllpServer]:
            yield server._tasks
        for server in self._parts[uvicorn.Server]:
            yield server.server_state.tasks
        for scheduler in self._parts[BackgroundScheduler]:
            yield from (any(executor._instances.values()) for executor in scheduler._executors.values())

    def dicom_connections(self) -> list[str]:
        """The addresses of those that are open."""
        return [one.address for listener in self._parts[Listener] for one in list(listener._connections)]

    # who talks to it

    def ris(self) -> Ris:
        ris = Ris("127.0.0.1", self.ports["hl7"])
        self._closers.append(ris.close)
        return ris

    def ehr(self, role: str = "ehr") -> Ehr:
        ehr = Ehr(f"http://127.0.0.1:{self.ports['http']}", self.tokens[role])
        self._closers.append(ehr.close)
        return ehr

    def modality(self, ae_title: str = "CT1") -> Modality:
        return Modality(ae_title, "127.0.0.1", self.ports["dicom"], modality=DEVICES.get(ae_title, "CT"))

    # short ways

    def place(self, order: Order, control: str = "NW") -> None:
        """Send the order over HL7; it must be accepted."""
        self._placing = self._placing or self.ris()
        answer = self._placing.send(omi(order, control))
        assert code_of(answer) == "AA", answer

    def rows(self, table: type[R], **where: object) -> list[R]:
        """Rows of a table, oldest first."""

        def fetch(session: Session) -> list[R]:
            query = select(table).order_by(next(iter(table.__table__.primary_key.columns)))  # type: ignore[attr-defined]
            for name, value in where.items():
                query = query.where(getattr(table, name) == value)
            return list(session.exec(query).all())

        return db.read(fetch)

    def status(self, accession: str, state: str, seconds: float = PATIENCE_SECONDS) -> dict:
        """The status document once it shows `state`; fails with what it showed instead."""
        document = self.ehr().wait_for(accession, state, seconds)
        assert document.get("state") == state, document
        return document


def eventually(check: Callable[[], T], seconds: float = PATIENCE_SECONDS) -> T:
    """The first truthy result of `check`; its last result when the time is over."""
    deadline = time.monotonic() + seconds
    while not (result := check()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return result


@contextlib.contextmanager
def watching(*kinds: type) -> Iterator[dict[type, list[Any]]]:
    """The objects of these kinds that are made meanwhile."""
    made: dict[type, list[Any]] = {kind: [] for kind in kinds}

    def noting(kind: type, begin: Callable[..., None]) -> Callable[..., None]:
        def init(self: object, *args: object, **kwargs: object) -> None:
            made[kind].append(self)
            begin(self, *args, **kwargs)

        return init

    with contextlib.ExitStack() as patches:
        for kind in kinds:
            patches.enter_context(mock.patch.object(kind, "__init__", noting(kind, kind.__init__)))  # type: ignore[misc]
        yield made
