"""A running broker in this process with everything around it: what wire and flow tests stand in."""

import time
from collections.abc import Callable
from typing import TypeVar

from sqlmodel import Session, SQLModel, select

from broker import access, clock, config, db, site
from broker.serve import ROLES, Broker
from broker.sim.ehr import Ehr
from broker.sim.modality import Modality
from broker.sim.ris import Order, Ris, code_of, omi

T = TypeVar("T")
R = TypeVar("R", bound=SQLModel)
DEVICES = {"CT1": "CT", "CT2": "CT", "MR1": "MR", "US1": "US", "CR1": "CR"}
PATIENCE_SECONDS = 20


class House:
    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings
        self.server = Broker(settings)
        self._closers: list[Callable[[], None]] = []
        self._placing: Ris | None = None

    def open(self, roles: tuple[str, ...] = ROLES) -> None:
        access.forget()
        self.server = Broker(self.settings, roles)
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

    def close(self) -> None:
        while self._closers:
            self._closers.pop()()
        self._placing = None
        self.server.stop()

    def restart(self) -> None:
        self.close()
        self.open()

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
