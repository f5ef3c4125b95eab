"""What the site looks like: live, exported as one TOML."""

import datetime as dt

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from broker.db import UTCDateTime
from broker.model.base import Row, json_field, maybe, moment

DEFAULT_RIGHTS = ["worklist", "mpps", "store", "commitment"]


class Node(Row, table=True):
    """A remote application entity. host: checked against the source address unless any_address. device: AE titles with
    the same device are one machine. rights: worklist, mpps, store, commitment, query, retrieve. character_set: what it
    is answered in (conformance.md 1.6), empty = the site's. kind: `modality`; `mobile`, which sends when it is docked
    again; `qa`; `import`. station_names: values of (0008,1010) by which objects name the machine.

    From `profile` on, what it is shown of the worklist and how (dicom/habits.py); None: as its profile has it."""

    __tablename__ = "node"
    ae_title: str = Field(unique=True)
    host: str = ""
    port: int = 0
    any_address: bool = False
    device: str = ""
    kind: str = "modality"
    modality: str = ""
    station_names: list[str] = json_field(list)
    rights: list[str] = json_field(lambda: list(DEFAULT_RIGHTS))
    character_set: str = ""
    mpps_strict: bool | None = Field(default=None)
    accession_issuer: str = ""
    patient_id_issuer: str = ""
    profile: str = ""
    aliases: list[str] = json_field(list)
    groups: list[str] = json_field(list)
    sees: list[str] | None = maybe()
    labels: list[str] | None = maybe()
    hide: list[str] | None = maybe()
    started_hours: float | None = Field(default=None)
    finished_hours: float | None = Field(default=None)
    matches_max: int | None = Field(default=None)
    days_before: int | None = Field(default=None)
    days_after: int | None = Field(default=None)
    character_sets_also: list[str] | None = maybe()
    lengths: dict[str, int] | None = maybe()
    requires: list[str] | None = maybe()
    quirks: list[str] | None = maybe()
    expire_days: float | None = Field(default=None)
    idle_days: float | None = Field(default=None)


class UnknownPeer(Row, table=True):
    """Who knocked and was refused. called: the title it asked for."""

    __tablename__ = "unknown_peer"
    __table_args__ = (UniqueConstraint("ae_title", "address", "reason"),)
    ae_title: str
    address: str
    called: str = ""
    reason: str
    times: int = 1
    last_at: dt.datetime = Field(sa_type=UTCDateTime)


class Sender(Row, table=True):
    """An HL7 sender. address: source address, empty = any. tls_subject: common name of its client certificate, empty =
    any or none. messages: allowed types (`ORM`, `ADT^A40`), empty = all. label: of the worklist on which its orders
    stand. character_set: used in place of MSH-18,
    empty = MSH-18. mapping: the profile that reads its messages, empty = by message type. on_trouble: what it gets
    where we cannot take a message, `close` or `AE`; empty = the setting. order_responses: ORR, ORI and ORG in place of
    a plain ACK."""

    __tablename__ = "sender"
    name: str = Field(unique=True)
    application: str = ""
    facility: str = ""
    address: str = ""
    messages: list[str] = json_field(list)
    character_set: str = ""
    tls_subject: str = ""
    mapping: str = ""
    on_trouble: str = ""
    order_responses: bool = False
    label: str = Field(default="", sa_column_kwargs={"server_default": ""})


class Intake(Row, table=True):
    """Where orders are fetched. kind: `folder`, watched at `path`; `poll`, asked at `url` from `cursor` on, with the
    bearer token in `secret_file`. format: hl7, csv, json. mapping, character_set: as of a sender."""

    __tablename__ = "intake"
    name: str = Field(unique=True)
    kind: str
    path: str = ""
    url: str = ""
    secret_file: str = ""
    format: str = "hl7"
    mapping: str = ""
    character_set: str = ""
    every_seconds: float = 10
    cursor: str = ""
    next_at: dt.datetime | None = moment()
    last_error: str = ""


class MappingProfile(Row, table=True):
    """One version of a mapping profile, as its author wrote it. active: the one in use; at most one of a name."""

    __tablename__ = "mapping_profile"
    __table_args__ = (UniqueConstraint("name", "version"),)
    name: str
    version: int
    text: str
    active: bool = False
    made_by: str = ""


class ApiToken(Row, table=True):
    """digest: SHA-256 of the token, which is shown once. role: ris, ehr, qc, admin."""

    __tablename__ = "api_token"
    name: str = Field(unique=True)
    role: str
    digest: str = Field(unique=True)
    last_used_at: dt.datetime | None = moment()
    disabled: bool = False
