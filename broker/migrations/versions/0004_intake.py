"""Order intake: by which a message is found, who lost what to whom, reports, mapping profiles, folders and polls."""

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op

import broker.db
from broker import clock

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = broker.db.UTCDateTime(timezone=True)
TEXTS = {
    "scheduled_step": ("appointment_number", "appointment_issuer"),
    "message": ("mapping", "noted"),
    "sender": ("tls_subject", "mapping", "on_trouble"),
}

# What is there already. Names in `said` as mwl/said.py writes them.
ROWS_AT_ONCE = 500
PERSON = ("name", "birth_date", "sex")
ORDER_FIELDS = ("priority",)
PROCEDURE_FIELDS = ("description", "code_value", "code_scheme", "code_meaning")
STEP_FIELDS = ("modality", "start_date", "start_time", "description", "stations")
# status of a step -> what was said of it. Whatever is not held was released: an older hold comes too late.
WORDS = {"ON_HOLD": ("hold",), "CANCELED": ("release", "cancel", "ended"), "ARRIVED": ("release", "arrive"),
         "READY": ("release", "arrive"), "NO_SHOW": ("release", "no_show", "ended")}  # fmt: skip
OF_ALL = ("release", "cancel")  # said of the order, where it is true of all its steps
# Of a patient nothing tells when the message was made, only when we took it; the sender's clock may be slower.
CLOCKS_APART = dt.timedelta(hours=1)
KEY_CHARACTERS_MAX = 256


def upgrade() -> None:
    for table, names in TEXTS.items():
        for name in names:
            op.add_column(table, sa.Column(name, sa.String(), nullable=False, server_default=""))
    for table in ("patient", "imaging_order", "requested_procedure", "scheduled_step"):
        op.add_column(table, sa.Column("said", sa.JSON(), nullable=False, server_default="{}"))
    for table, name in (("patient", "romanised"), ("sender", "order_responses")):
        op.add_column(table, sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    # In place: Alembic would copy the table on SQLite, and its rows point at each other.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    for name, target in (("identifier_pk", "patient_identifier"), ("replaces_pk", "imaging_order")):
        op.execute(f"ALTER TABLE imaging_order ADD COLUMN {name} {kind} REFERENCES {target} (pk)")
        op.create_index(f"ix_imaging_order_{name}", "imaging_order", [name])
    op.create_index("ix_scheduled_step_appointment", "scheduled_step", ["appointment_number", "appointment_issuer"])
    for name in ("state", "type", "sender", "protocol"):
        op.create_index(f"ix_message_{name}", "message", [name, "pk"])
    _tables()
    _fill_identifiers()
    _fill_said()
    _fill_names()
    _fill_message_keys()


def _tables() -> None:
    _table(
        "message_key",
        _link("message_pk", "message"),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
    )
    op.create_index("ix_message_key", "message_key", ["value", "kind", "message_pk"])
    _table(
        "patient_merge",
        sa.Column("event", sa.String(), nullable=False),
        _link("patient_pk", "patient"),
        _link("prior_pk", "patient", nullable=True),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("moved", sa.JSON(), nullable=False),
        sa.Column("happened_at", TIME, nullable=True),
        sa.Column("undone_at", TIME, nullable=True),
        sa.Column("undone_by", sa.String(), nullable=False),
    )
    _table(
        "report",
        _link("order_pk", "imaging_order"),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("status", "number", "issuer", "title", "text")),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("issued_at", TIME, nullable=True),
        sa.Column("superseded", sa.Boolean(), nullable=False),
        sa.Column("message_pk", sa.Integer(), nullable=True),
    )
    op.create_index("ix_report_number", "report", ["number", "issuer"])
    texts = ("name", "kind", "path", "url", "secret_file", "format", "mapping", "character_set", "cursor", "last_error")
    _table(
        "intake",
        *(sa.Column(name, sa.String(), nullable=False) for name in texts),
        sa.Column("every_seconds", sa.Float(), nullable=False),
        sa.Column("next_at", TIME, nullable=True),
        sa.UniqueConstraint("name"),
    )
    _table(
        "mapping_profile",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("made_by", sa.String(), nullable=False),
        sa.UniqueConstraint("name", "version"),
    )


def _link(name: str, table: str, *, nullable: bool = False) -> sa.Column:
    return sa.Column(name, BIG, sa.ForeignKey(f"{table}.pk"), nullable=nullable, index=True)


def _table(name: str, *columns: Any) -> None:
    op.create_table(
        name,
        sa.Column("pk", BIG, primary_key=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        *columns,
    )


# Filling


def _rows(name: str, *columns: sa.ColumnClause[Any]) -> sa.TableClause:
    return sa.table(name, sa.column("pk", BIG), *(sa.column(one.name, one.type) for one in columns))


SAID = (sa.column("attributes", sa.JSON), sa.column("said", sa.JSON))
NUMBERS: tuple[sa.ColumnClause[Any], ...] = (
    sa.column("order_pk"),
    sa.column("placer_number"),
    sa.column("filler_number"),
)


ORDER = _rows(
    "imaging_order", sa.column("patient_pk"), sa.column("message_pk"), sa.column("identifier_pk"),
    sa.column("accession_number"), sa.column("placed_at", TIME), sa.column("last_event_at", TIME),
    sa.column("created_at", TIME), *SAID,
)  # fmt: skip
PROCEDURE = _rows("requested_procedure", *NUMBERS, sa.column("study_instance_uid"), *SAID)
STEP = _rows("scheduled_step", *NUMBERS, sa.column("status"), *SAID)
PARTS = (PROCEDURE, STEP)
PATIENT = _rows("patient", *SAID)
IDENTIFIER = _rows("patient_identifier", sa.column("patient_pk"), sa.column("value"))
VERSION = _rows("patient_version", sa.column("patient_pk"), sa.column("cause"), sa.column("created_at", TIME))
MESSAGE = _rows(
    "message", sa.column("raw", sa.LargeBinary), sa.column("order_pk"), sa.column("received_at", TIME)
)  # fmt: skip
KEY = sa.table("message_key", *map(sa.column, ("created_at", "updated_at", "message_pk", "kind", "value")))


def _batches(query: sa.Select[Any], pk: sa.ColumnElement[Any]) -> Iterator[Sequence[Any]]:
    last = 0
    while rows := op.get_bind().execute(query.where(pk > last).order_by(pk).limit(ROWS_AT_ONCE)).all():
        yield rows
        last = rows[-1].pk


def _set(table: sa.TableClause, column: str, values: list[dict[str, Any]]) -> None:
    """values: `key` and `value`, for each row."""
    if values:
        wanted = sa.bindparam("value", type_=table.c[column].type)
        op.get_bind().execute(table.update().where(table.c.pk == sa.bindparam("key")).values({column: wanted}), values)


def _fill_identifiers() -> None:
    """Under which number an order was placed: the patient's only one, else the first in PID-3 of its message. Left
    open where neither says it; a move then asks a person (mwl/merges.py). What its steps show says nothing: that is the
    number that leads, whichever it was placed under."""
    own = IDENTIFIER.c.patient_pk == ORDER.c.patient_pk
    only = sa.select(sa.func.min(IDENTIFIER.c.pk)).where(own).scalar_subquery()
    count = sa.select(sa.func.count()).select_from(IDENTIFIER).where(own).scalar_subquery()
    op.execute(ORDER.update().values(identifier_pk=only).where(count == 1))
    query = sa.select(ORDER.c.pk, ORDER.c.patient_pk, MESSAGE.c.raw).join(MESSAGE, MESSAGE.c.pk == ORDER.c.message_pk)
    for rows in _batches(query.where(ORDER.c.identifier_pk.is_(None)), ORDER.c.pk):
        known: dict[tuple[int, str], list[int]] = {}
        whose = IDENTIFIER.c.patient_pk.in_({row.patient_pk for row in rows})
        for pk, patient_pk, value in op.get_bind().execute(sa.select(IDENTIFIER).where(whose)):
            known.setdefault((patient_pk, value), []).append(pk)
        found = [(row.pk, known.get((row.patient_pk, _patient_id(row.raw)), [])) for row in rows]
        _set(ORDER, "identifier_pk", [{"key": pk, "value": one[0]} for pk, one in found if len(one) == 1])


def _patient_id(raw: bytes) -> str:
    """PID-3.1. It stands before any name: no byte of a Japanese character can be taken for a separator there."""
    pid = next((line for line in raw.replace(b"\n", b"\r").split(b"\r") if line.startswith(b"PID")), b"")
    fields = pid.split(pid[3:4] or b"|", 4)
    return fields[3].split(b"~")[0].split(b"^")[0].decode("ascii", "replace").strip() if len(fields) > 3 else ""


def _fill_said() -> None:
    """Until now an order knew one time, of the newest message; what is older than that changes nothing of what was
    known then."""
    for orders in _batches(sa.select(ORDER), ORDER.c.pk):
        newest = {row.pk: clock.iso(row.last_event_at or row.placed_at or row.created_at) for row in orders}
        born = {row.pk: clock.iso(row.placed_at or row.created_at) for row in orders}
        procedures, steps = (
            op.get_bind().execute(sa.select(table).where(table.c.order_pk.in_(born))).all() for table in PARTS
        )
        of_all = {pk: set(OF_ALL) for pk in {step.order_pk for step in steps}}
        for step in steps:
            of_all[step.order_pk] &= set(_words(step))
        for table, names, rows in (
            (ORDER, ORDER_FIELDS, [(row, row.pk, of_all.get(row.pk, ())) for row in orders]),
            (PROCEDURE, PROCEDURE_FIELDS, [(row, row.order_pk, ()) for row in procedures]),
            (STEP, STEP_FIELDS, [(row, row.order_pk, _words(row)) for row in steps]),
        ):
            values = [
                {"key": row.pk, "value": {**dict.fromkeys((*names, *row.attributes, *words), newest[of]),
                                          "born": born[of]}}
                for row, of, words in rows
            ]  # fmt: skip
            _set(table, "said", values)


def _words(step: Any) -> tuple[str, ...]:
    return WORDS.get(step.status, ("release",))


def _fill_names() -> None:
    last = sa.func.max(VERSION.c.created_at, type_=TIME).label("last")
    by_adt = sa.select(VERSION.c.patient_pk.label("pk"), last).where(VERSION.c.cause.like("ADT%"))
    for rows in _batches(by_adt.group_by(VERSION.c.patient_pk), VERSION.c.patient_pk):
        values = [{"key": row.pk, "value": dict.fromkeys(PERSON, clock.iso(row.last - CLOCKS_APART))} for row in rows]
        _set(PATIENT, "said", values)


def _fill_message_keys() -> None:
    """By the numbers of the order that a message came to. What came to no order (ADT, what was refused) would have to
    be read again, each message with the rules of its sender: it is found by sender, type and time."""
    numbers = {
        "accession": sa.select(ORDER.c.pk.label("order_pk"), ORDER.c.accession_number.label("value")),
        "patient": sa.select(ORDER.c.pk.label("order_pk"), IDENTIFIER.c.value).join(
            IDENTIFIER, IDENTIFIER.c.pk == ORDER.c.identifier_pk
        ),
        **{
            kind: sa.union(*(sa.select(table.c.order_pk, table.c[f"{kind}_number"].label("value")) for table in PARTS))
            for kind in ("placer", "filler")
        },
        "study": sa.select(PROCEDURE.c.order_pk, PROCEDURE.c.study_instance_uid.label("value")),
    }
    for kind, query in numbers.items():
        number = query.subquery()
        value = sa.func.substr(number.c.value, 1, KEY_CHARACTERS_MAX)
        found = sa.select(
            MESSAGE.c.received_at, MESSAGE.c.received_at.label("too"), MESSAGE.c.pk, sa.literal(kind), value
        ).join(number, number.c.order_pk == MESSAGE.c.order_pk)
        columns = ["created_at", "updated_at", "message_pk", "kind", "value"]
        op.execute(KEY.insert().from_select(columns, found.where(number.c.value != "")))
