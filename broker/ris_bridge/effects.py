"""What a command does: each kind has one service."""

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlmodel import Session

from broker.archive import status
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


@dataclass(frozen=True)
class Asked:
    """All that one request asks for, where its answer shows what became of it. check: raises what forbids it, in the
    same transaction. tell: the answer, when it is done."""

    commands: tuple[Command, ...]
    tell: Callable[[Session, Sequence[Done], Cause], bytes]
    check: Callable[[Session], None] | None = None


@dataclass(frozen=True)
class Told(Done):
    answer: bytes = b""


def _asked(session: Session, asked: Asked, cause: Cause) -> Told:
    if asked.check:
        asked.check(session)
    done = [carry_out(session, one, cause) for one in asked.commands]
    session.flush()
    status.publish(session)  # the answer shows the documents of this transaction
    return Told(
        words="; ".join(dict.fromkeys(one.words for one in done)) or "nothing",
        order_pk=next((one.order_pk for one in reversed(done) if one.order_pk), None),
        answer=asked.tell(session, done, cause),
    )


EFFECTS: dict[type, Callable[..., Done]] = {
    OrderCommand: _order, PatientCommand: _patient, VisitCommand: _visit, ReportCommand: _report,
    Asked: _asked,
}  # fmt: skip
