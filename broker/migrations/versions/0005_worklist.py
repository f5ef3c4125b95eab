"""The worklist in full: what each device sees, its lists found by one index, what it asked and was shown."""

from typing import Any

import sqlalchemy as sa
from alembic import op

import broker.db
from broker.mwl import texts

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = broker.db.UTCDateTime(timezone=True)
HABITS: dict[str, Any] = {
    "sees": sa.JSON(), "labels": sa.JSON(), "hide": sa.JSON(), "started_hours": sa.Float(),
    "finished_hours": sa.Float(), "matches_max": sa.Integer(), "days_before": sa.Integer(), "days_after": sa.Integer(),
    "character_sets_also": sa.JSON(), "lengths": sa.JSON(), "requires": sa.JSON(), "quirks": sa.JSON(),
    "expire_days": sa.Float(), "idle_days": sa.Float(),
}  # fmt: skip
LIVE = ("SCHEDULED", "ARRIVED", "READY", "STARTED", "ON_HOLD")
ROWS_AT_ONCE = 500


def upgrade() -> None:
    for table, name in (("node", "profile"), ("sender", "label"), ("scheduled_step", "label"), ("scheduled_step", "name_key"),
                        ("scheduled_station", "start_date")):  # fmt: skip
        op.add_column(table, sa.Column(name, sa.String(), nullable=False, server_default=""))
    for name in ("aliases", "groups"):
        op.add_column("node", sa.Column(name, sa.JSON(), nullable=False, server_default="[]"))
    for name, kind in HABITS.items():
        op.add_column("node", sa.Column(name, kind, nullable=True))
    _stations()
    op.create_index("ix_requested_procedure_id", "requested_procedure", ["requested_procedure_id"])
    op.create_index("ix_scheduled_step_status", "scheduled_step", ["status", "status_at"])
    op.drop_index("ix_scheduled_step_worklist", "scheduled_step")
    op.create_index("ix_scheduled_step_worklist", "scheduled_step", ["status", "offerable", "start_date", "modality"])
    _fill_names()
    _queries()


def _stations() -> None:
    op.add_column("scheduled_station", sa.Column("is_open", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.execute(
        "UPDATE scheduled_station SET"
        " start_date = (SELECT start_date FROM scheduled_step WHERE scheduled_step.pk = step_pk),"
        " is_open = (SELECT status IN ('SCHEDULED', 'ARRIVED', 'READY', 'STARTED')"
        " FROM scheduled_step WHERE scheduled_step.pk = step_pk)"
    )
    op.drop_index("ix_scheduled_station_ae_title", "scheduled_station")
    op.drop_index("ix_scheduled_station_step_pk", "scheduled_station")
    op.create_index("ix_scheduled_station_list", "scheduled_station", ["ae_title", "is_open", "start_date"])


def _fill_names() -> None:
    """As names are compared now (mwl/texts.py). What has ended goes without: its name is looked at item by item, and a
    person who brings it back has its item made again."""
    step, order, patient = (
        sa.table(name, sa.column("pk"), *map(sa.column, columns))
        for name, columns in (
            ("scheduled_step", ("order_pk", "status", "name_key")), ("imaging_order", ("patient_pk",)),
            ("patient", ("name",)),
        )
    )  # fmt: skip
    names = (
        sa.select(step.c.pk, patient.c.name)
        .join(order, order.c.pk == step.c.order_pk)
        .join(patient, patient.c.pk == order.c.patient_pk)
        .where(step.c.status.in_(LIVE))
        .order_by(step.c.pk)
        .limit(ROWS_AT_ONCE)
    )
    filled = step.update().where(step.c.pk == sa.bindparam("key")).values(name_key=sa.bindparam("name"))
    last = 0
    while rows := op.get_bind().execute(names.where(step.c.pk > last)).all():
        op.get_bind().execute(filled, [{"key": row.pk, "name": texts.compared(row.name)} for row in rows])
        last = rows[-1].pk


def _queries() -> None:
    _by_content(
        "worklist_keys",
        sa.Column("dataset", sa.LargeBinary(), nullable=False),
        sa.Column("character_set", sa.String(), nullable=False),
    )
    _by_content("worklist_answer", sa.Column("items", sa.JSON(), nullable=False))
    op.create_table(
        "worklist_query",
        *_row(),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.Column("called", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("keys_pk", BIG, sa.ForeignKey("worklist_keys.pk"), nullable=False),
        sa.Column("answer_pk", BIG, sa.ForeignKey("worklist_answer.pk"), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("character_set", sa.String(), nullable=False),
        sa.Column("considered", sa.Integer(), nullable=False),
        sa.Column("removed", sa.JSON(), nullable=False),
        sa.Column("first_at", TIME, nullable=False),
        sa.Column("last_at", TIME, nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
    )
    op.create_index("ix_worklist_query_ae_title", "worklist_query", ["ae_title", "last_at"])
    for name in ("keys_pk", "answer_pk", "last_at"):
        op.create_index(f"ix_worklist_query_{name}", "worklist_query", [name])


def _by_content(name: str, *columns: sa.Column) -> None:
    op.create_table(
        name, *_row(), sa.Column("digest", sa.String(), nullable=False), *columns, sa.UniqueConstraint("digest")
    )


def _row() -> list[sa.Column]:
    return [
        sa.Column("pk", BIG, primary_key=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
    ]
