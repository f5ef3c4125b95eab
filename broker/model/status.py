"""The status document of each order, kept encoded with its version, and the feed of all versions."""

import datetime as dt

from sqlalchemy import Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from broker.db import UTCDateTime
from broker.model.base import BigInt, Row, link


class OrderStatus(Row, table=True):
    __tablename__ = "order_status"
    order_pk: int = link("imaging_order.pk", index=False, unique=True)
    version: int
    state: str = Field(index=True)
    document: str = Field(sa_type=Text)
    changed_at: dt.datetime = Field(sa_type=UTCDateTime, index=True)


class StatusChange(SQLModel, table=True):
    """sequence: gap-free in commit order (taken under the Counter row's lock)."""

    __tablename__ = "status_change"
    __table_args__ = (UniqueConstraint("order_pk", "version"),)
    sequence: int = Field(primary_key=True, sa_type=BigInt, sa_column_kwargs={"autoincrement": False})
    order_pk: int = link("imaging_order.pk", index=False)
    version: int
    state: str
    document: str = Field(sa_type=Text)
    at: dt.datetime = Field(sa_type=UTCDateTime)


class Counter(SQLModel, table=True):
    __tablename__ = "counter"
    name: str = Field(primary_key=True)
    value: int = Field(default=0, sa_type=BigInt)
