"""What all tables share. Tables only: no behaviour, no validation (SQLModel does not validate table models)."""

import datetime as dt
from typing import Any

from sqlalchemy import JSON, BigInteger, Integer, LargeBinary
from sqlmodel import Field, SQLModel

from broker import clock, db
from broker.db import UTCDateTime

BigInt = BigInteger().with_variant(Integer, "sqlite")  # SQLite autoincrements INTEGER PRIMARY KEY only


class Row(SQLModel):
    pk: int | None = Field(default=None, primary_key=True, sa_type=BigInt)
    created_at: dt.datetime = Field(default_factory=clock.now, sa_type=UTCDateTime)
    updated_at: dt.datetime = Field(
        default_factory=clock.now, sa_type=UTCDateTime, sa_column_kwargs={"onupdate": clock.now}
    )

    def __init__(self, **said: Any) -> None:
        """What is not said is the column's default."""
        self.__dict__.update(db.with_defaults(type(self), said))

    @property
    def key(self) -> int:
        """The primary key of a row that has been flushed."""
        assert self.pk is not None, f"{type(self).__name__} is not flushed"
        return self.pk


def link(column: str, *, nullable: bool = False, index: bool = True, **kwargs: Any) -> Any:
    """A foreign key to `table.pk`."""
    return Field(
        default=None if nullable else ..., foreign_key=column, sa_type=BigInt, nullable=nullable, index=index, **kwargs
    )


def moment(*, index: bool = False) -> Any:
    """An aware UTC time that may be absent."""
    return Field(default=None, sa_type=UTCDateTime, nullable=True, index=index)


def json_field(factory: Any = dict) -> Any:
    """A JSON column. Assign a new value: changes inside are not seen."""
    return Field(default_factory=factory, sa_type=JSON, nullable=False)


def maybe() -> Any:
    """A JSON column that may be absent."""
    return Field(default=None, sa_type=JSON(none_as_null=True), nullable=True)


def blob() -> Any:
    return Field(default=b"", sa_type=LargeBinary, nullable=False)
