"""Worklist providers that are asked for what they list, and what each of them listed."""

import datetime as dt
from typing import Any

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from broker.db import UTCDateTime
from broker.model.base import BigInt, Row, json_field, link, moment


class Upstream(Row, table=True):
    """A worklist provider (C-FIND SCP). ae_title: its own. calling_ae_title: ours, empty = the setting's. modality,
    station_ae_title, keys (by keyword): what is asked for. days_before, days_after: today; -1 = no border.
    character_set: named in our question, and what its answers are read in that name none. patient_id_issuer,
    accession_issuer, label: where an entry names none. priority: of two that say different things of one exam the
    smaller number counts. gone: what becomes of an entry that it lists no more, `keep` or `cancel`, after gone_after
    complete answers without it.

    next_at: when it is asked, and lease in one (intakes.py). failures: in a row. answered_at: its last complete answer.
    stale_since: it is away since then, and its entries are served as they were. counts: of its last answer."""

    __tablename__ = "upstream"
    name: str = Field(unique=True)
    host: str
    port: int
    ae_title: str
    calling_ae_title: str = ""
    modality: str = ""
    station_ae_title: str = ""
    days_before: int = 0
    days_after: int = 1
    keys: dict[str, str] = json_field()
    every_seconds: float = 60
    patient_id_issuer: str = ""
    accession_issuer: str = ""
    label: str = ""
    character_set: str = ""
    enabled: bool = True
    priority: int = 100
    gone: str = "keep"
    gone_after: int = 3
    next_at: dt.datetime | None = moment()
    failures: int = 0
    tried_at: dt.datetime | None = moment()
    answered_at: dt.datetime | None = moment()
    stale_since: dt.datetime | None = moment()
    last_error: str = ""
    counts: dict[str, Any] = json_field()


class UpstreamEntry(Row, table=True):
    """One entry of its list. identity: by what it is known there. digest: of what it says, and of how that is read.
    message_pk: of the journal, where it says so. order_pk, step_pk: what it became. refusal: why it was refused last;
    empty = taken. last_at: when it was listed last. missed: complete answers without it since. gone_at: since when it
    counts as gone."""

    __tablename__ = "upstream_entry"
    __table_args__ = (
        UniqueConstraint("upstream_pk", "identity"),
        Index("ix_upstream_entry_order_pk", "order_pk"),
    )
    upstream_pk: int = link("upstream.pk", index=False, ondelete="CASCADE")
    identity: str
    digest: str = ""
    message_pk: int | None = Field(default=None, sa_type=BigInt)
    order_pk: int | None = link("imaging_order.pk", nullable=True, index=False)
    step_pk: int | None = link("scheduled_step.pk", nullable=True)
    refusal: str = ""
    last_at: dt.datetime = Field(sa_type=UTCDateTime)
    missed: int = 0
    gone_at: dt.datetime | None = moment()
