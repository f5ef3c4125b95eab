"""Reports: kept with the order in all their versions; a final one closes it."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

from sqlmodel import Session, col, select

from broker import audit, outbox
from broker.config import Limits
from broker.errors import DuplicateKey, InvalidValue
from broker.model.orders import ImagingOrder, Report
from broker.mwl import order_finding as finding
from broker.mwl import said
from broker.mwl.commands import ReportCommand

CLOSING = ("final", "amended")
SAID_OF_IT = (*CLOSING, "cancelled")  # a preliminary version neither closes the order nor opens it again
CONTENTS = ("status", "title", "text", "document")


def apply(
    session: Session,
    command: ReportCommand,
    *,
    now: dt.datetime,
    actor: str,
    message_pk: int | None = None,
    limits: Limits | None = None,
) -> Report:
    """The row of this version: new, or the one that says the same already.

    Of the versions of one number (of one order, where it has none) the one that was issued last counts, whenever it
    comes. Raises UnknownKey for an order never heard of, DuplicateKey where numbers or patient disagree or the report
    is another order's, InvalidValue for a document over the limit."""
    largest = (limits or Limits()).report_document_bytes_max
    if len(command.document) > largest:
        raise InvalidValue(
            command.place or "document", f"is over {largest} bytes, report_document_bytes_max", err="102"
        )
    order = finding.known(session, replace(command.order, place=command.order.place or command.place))
    versions = _versions(session, order, command)
    issued = _issued_at(command, now)
    same = next((row for row in versions if _says(row, command, issued)), None)
    if same is not None:
        return same
    row = Report(
        order_pk=order.key, number=command.number, issuer=command.issuer, issued_at=issued or now,
        message_pk=message_pk,
        **{name: getattr(command, name) for name in CONTENTS},
    )  # fmt: skip
    session.add(row)
    session.flush()
    _rank([*versions, row])
    session.flush()
    _close(session, order, now)
    audit.record(
        session, "order.report", f"order:{order.key}", actor=actor, now=now, report=row.key, status=row.status,
        superseded=row.superseded,
    )  # fmt: skip
    outbox.touch(session, order.key)
    return row


def _versions(session: Session, order: ImagingOrder, command: ReportCommand) -> Sequence[Report]:
    query = select(Report).where(Report.number == command.number, Report.issuer == command.issuer)
    if not command.number:
        query = query.where(Report.order_pk == order.key)
    rows = session.exec(query.order_by(col(Report.pk))).all()
    if any(row.order_pk != order.key for row in rows):
        raise DuplicateKey(command.place or "report", "this report is another order's")
    return rows


def _issued_at(command: ReportCommand, now: dt.datetime) -> dt.datetime | None:
    """None: it does not say, or what cannot be (mwl/said.py)."""
    stated = (command.issued_at, command.at)
    return next((at for at in stated if at is not None and not said.is_far_ahead(at, now)), None)


def _says(row: Report, command: ReportCommand, issued: dt.datetime | None) -> bool:
    """issued: None = now, which says nothing of whether it is the same again."""
    contents = all(getattr(row, name) == getattr(command, name) for name in CONTENTS)
    return contents and issued in (None, row.issued_at) and (issued is not None or not row.superseded)


def _rank(versions: Sequence[Report]) -> None:
    last = max(versions, key=_issued)
    for row in versions:
        row.superseded = row is not last


def _issued(row: Report) -> tuple[dt.datetime, int]:
    """Of two at one time the later to arrive."""
    assert row.issued_at is not None
    return row.issued_at, row.key


def _close(session: Session, order: ImagingOrder, now: dt.datetime) -> None:
    """Reported while some report is final or amended, and not cancelled since."""
    told = (
        select(Report.number, Report.issuer, Report.status)
        .where(Report.order_pk == order.key, col(Report.status).in_(SAID_OF_IT))
        .order_by(col(Report.issued_at), col(Report.pk))
    )
    last = {(number, issuer): status for number, issuer, status in session.exec(told)}
    is_reported = any(status in CLOSING for status in last.values())
    order.reported_at = (order.reported_at or now) if is_reported else None
    session.add(order)
