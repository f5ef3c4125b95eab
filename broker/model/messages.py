"""The journal: every inbound message byte-identical, with its answer."""

import datetime as dt

from sqlalchemy import Index, UniqueConstraint
from sqlmodel import Field

from broker.db import UTCDateTime
from broker.model.base import Row, blob, link


class Message(Row, table=True):
    """sender: MSH-3|MSH-4 (or the REST sender's name). raw: as received, never changed. sha256: of raw. state:
    states.MESSAGE. answer: bytes sent back, of the last time that the message was looked at. answer_sent: whether they
    reached the socket; APPLIED without it: the sender may not know. error_*: of the answer. became: what it changed, in
    words without patient data. mapping: name and version of the profile that read it. noted: why a person needs no more
    of a refused one."""

    __tablename__ = "message"
    __table_args__ = (
        UniqueConstraint("sender", "control_id", "sha256"),
        Index("ix_message_received", "received_at"),
        Index("ix_message_state", "state", "pk"),
        Index("ix_message_type", "type", "pk"),
        Index("ix_message_sender", "sender", "pk"),
        Index("ix_message_protocol", "protocol", "pk"),
    )
    direction: str = "in"
    protocol: str = "hl7"
    peer: str = ""
    sender: str = ""
    control_id: str = ""
    message_time: str = ""
    type: str = ""
    raw: bytes = blob()
    sha256: str
    state: str = "RECEIVED"
    answer: bytes = blob()
    answer_sent: bool = False
    error_code: str = ""
    error_place: str = ""
    error_text: str = ""
    became: str = ""
    mapping: str = ""
    noted: str = ""
    order_pk: int | None = link("imaging_order.pk", nullable=True)
    received_at: dt.datetime = Field(sa_type=UTCDateTime)


class MessageKey(Row, table=True):
    """By which a message is found. kind: accession, patient, placer, filler, appointment, study."""

    __tablename__ = "message_key"
    __table_args__ = (Index("ix_message_key", "value", "kind", "message_pk"),)
    message_pk: int = link("message.pk")
    kind: str
    value: str
