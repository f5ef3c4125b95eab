"""What a command does: each kind has one service."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlmodel import Session

from broker.config import Limits, Site
from broker.mwl import orders, patients, reports, visits
from broker.mwl.commands import Command, OrderCommand, Outcome, PatientCommand, ReportCommand, VisitCommand


@dataclass(frozen=True)
class Cause:
    """said_at: of a message that came before and is looked at again, when it came: what has no time of its own was said
    then."""

    now: dt.datetime
    actor: str
    site: Site
    limits: Limits
    message_pk: int
    said_at: dt.datetime | None = None


@dataclass(frozen=True)
class Done:
    """words: what it became, without patient data. outcome: of an order command, for an order response."""

    words: str
    order_pk: int | None = None
    outcome: Outcome | None = None


# What the journal says of a command that was taken and did not do what it asks for.
LATE = {"UC": "not cancelled", **dict.fromkeys(("UX", "UH", "UR"), "older than what is known")}


def carry_out(session: Session, command: Command, cause: Cause) -> Done:
    if cause.said_at and getattr(command, "at", cause.said_at) is None:
        command = replace(command, at=cause.said_at)
    return EFFECTS[type(command)](session, command, cause)


def _order(session: Session, command: OrderCommand, cause: Cause) -> Done:
    outcome = orders.carry_out(
        session, command, now=cause.now, actor=cause.actor, site=cause.site, message_pk=cause.message_pk
    )
    late = f" ({LATE[outcome.reply]})" if outcome.reply in LATE else ""
    return Done(f"{command.control} order {outcome.order_pk}{late}", outcome.order_pk, outcome)


def _patient(session: Session, command: PatientCommand, cause: Cause) -> Done:
    patient = patients.apply(session, command, now=cause.now, actor=cause.actor)
    return Done(f"{command.event} patient {patient.key}")


def _visit(session: Session, command: VisitCommand, cause: Cause) -> Done:
    reached, words = visits.apply(session, command, now=cause.now, actor=cause.actor, site=cause.site)
    return Done(words, reached[0] if reached else None)


def _report(session: Session, command: ReportCommand, cause: Cause) -> Done:
    report = reports.apply(
        session, command, now=cause.now, actor=cause.actor, message_pk=cause.message_pk, limits=cause.limits
    )
    return Done(f"{command.status} report {report.key} on order {report.order_pk}", report.order_pk)


EFFECTS: dict[type, Callable[..., Done]] = {
    OrderCommand: _order, PatientCommand: _patient, VisitCommand: _visit, ReportCommand: _report,
}  # fmt: skip
