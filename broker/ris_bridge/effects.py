"""What a command does: each kind has one service."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass

from sqlmodel import Session

from broker.config import Site
from broker.mwl import orders, patients
from broker.mwl.commands import Command, OrderCommand, Outcome, PatientCommand


@dataclass(frozen=True)
class Cause:
    now: dt.datetime
    actor: str
    site: Site
    message_pk: int


@dataclass(frozen=True)
class Done:
    """words: what it became, without patient data. outcome: of an order command, for an order response."""

    words: str
    order_pk: int | None = None
    outcome: Outcome | None = None


def carry_out(session: Session, command: Command, cause: Cause) -> Done:
    return EFFECTS[type(command)](session, command, cause)


def _order(session: Session, command: OrderCommand, cause: Cause) -> Done:
    order = orders.apply(
        session, command, now=cause.now, actor=cause.actor, site=cause.site, message_pk=cause.message_pk
    )
    return Done(f"{command.control} order {order.key}", order.key)


def _patient(session: Session, command: PatientCommand, cause: Cause) -> Done:
    patient = patients.apply(session, command, now=cause.now, actor=cause.actor)
    return Done(f"{command.event} patient {patient.key}")


EFFECTS: dict[type, Callable[..., Done]] = {OrderCommand: _order, PatientCommand: _patient}
