"""What tests of folders and of systems that are asked share."""

import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import Session, SQLModel, select

from broker import db
from broker.model.orders import ImagingOrder
from broker.model.site import Intake
from broker.ris_bridge import inbox


def rows(table: type[SQLModel]) -> list:
    return db.read(lambda session: list(session.exec(select(table).order_by(table.pk)).all()))


def numbers() -> list[str]:
    """Accession numbers of the orders that are there."""
    return sorted(one.accession_number for one in rows(ImagingOrder))


def intake() -> Intake:
    """The only one."""
    return db.read(lambda session: session.exec(select(Intake)).one())


def change_intake(**fields: object) -> None:
    """The only one, whether that makes sense or not. next_at=None: its time has come."""

    def write(session: Session) -> None:
        row = session.exec(select(Intake)).one()
        for name, value in fields.items():
            setattr(row, name, value)

    db.run(write)


@contextlib.contextmanager
def away_at(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[None]:
    """The database goes away at that message."""
    take, calls = inbox.take, []

    def away(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise OperationalError("", {}, Exception("gone"))
        return take(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(OperationalError):
        patch.setattr(inbox, "take", away)
        yield
