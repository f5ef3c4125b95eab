"""What is to be sent, what is to be done, what was done by whom."""

import datetime as dt
from typing import Any

from sqlalchemy import Index
from sqlmodel import Field

from broker.db import UTCDateTime
from broker.model.base import Row, json_field, link, moment


class Destination(Row, table=True):
    """Where events go. events: names (contract.md 4), empty = all. order_free: a dead row does not stop its lane."""

    __tablename__ = "destination"
    name: str = Field(unique=True)
    kind: str
    target: dict[str, Any] = json_field()
    events: list[str] = json_field(list)
    order_free: bool = False


class Outbox(Row, table=True):
    """lane: destination + accession number; kept in order. state: states.OUTBOX. control_id: the same at each try."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_due", "state", "due_at"), Index("ix_outbox_lane", "lane", "pk"))
    destination_pk: int = link("destination.pk")
    lane: str
    kind: str
    event: str
    body: dict[str, Any] = json_field()
    control_id: str
    state: str = "DUE"
    attempts: int = 0
    due_at: dt.datetime = Field(sa_type=UTCDateTime)
    lease_until: dt.datetime | None = moment()
    last_error: str = ""


class Job(Row, table=True):
    __tablename__ = "job"
    name: str = Field(unique=True)
    next_due: dt.datetime = Field(sa_type=UTCDateTime)
    lease_owner: str = ""
    lease_until: dt.datetime | None = moment()
    cursor: str = ""
    last_error: str = ""


class AuditEvent(Row, table=True):
    """Append only (a database trigger refuses UPDATE and DELETE). actor: AE title, sender, token name or `broker`.
    subject: `order:17`, `patient:3`, `study:5`: keys, no names."""

    __tablename__ = "audit_event"
    __table_args__ = (Index("ix_audit_subject", "subject"),)
    at: dt.datetime = Field(sa_type=UTCDateTime, index=True)
    actor: str
    action: str
    subject: str
    outcome: str = "ok"
    detail: dict[str, Any] = json_field()
