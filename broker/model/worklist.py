"""What devices asked of the worklist, and what they were shown: enough to say later why an exam was not there."""

import datetime as dt
from typing import Any

from sqlalchemy import Index
from sqlmodel import Field

from broker.db import UTCDateTime
from broker.model.base import Row, blob, json_field, link


class WorklistKeys(Row, table=True):
    """An identifier, once by content. dataset: Explicit VR LE and UTF-8; empty where it could not be read.
    character_set: the (0008,0005) that it declared."""

    __tablename__ = "worklist_keys"
    digest: str = Field(unique=True)
    dataset: bytes = blob()
    character_set: str = ""


class WorklistAnswer(Row, table=True):
    """A set of item versions, once by content. items: [step, version, status] each, as they were sent."""

    __tablename__ = "worklist_answer"
    digest: str = Field(unique=True)
    items: list[list[Any]] = json_field(list)


class WorklistQuery(Row, table=True):
    """A run of C-FINDs of one device with the same keys and the same end: the first and the last of them, and how many
    there were. status: the final one. considered: items that the device could have been shown before its keys counted.
    removed: [key, how many items it took away] in the order in which they count; empty = not counted.
    character_set: what was answered in."""

    __tablename__ = "worklist_query"
    __table_args__ = (Index("ix_worklist_query_ae_title", "ae_title", "last_at"),)
    ae_title: str
    called: str = ""
    address: str = ""
    keys_pk: int = link("worklist_keys.pk")
    answer_pk: int = link("worklist_answer.pk")
    status: int = 0
    character_set: str = ""
    considered: int = 0
    removed: list[list[Any]] = json_field(list)
    first_at: dt.datetime = Field(sa_type=UTCDateTime)
    last_at: dt.datetime = Field(sa_type=UTCDateTime, index=True)
    times: int = 1
