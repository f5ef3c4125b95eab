"""Order intake: by which a message is found, who lost what to whom, reports, mapping profiles, folders and polls."""

from typing import Any

import sqlalchemy as sa
from alembic import op

import broker.db

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
