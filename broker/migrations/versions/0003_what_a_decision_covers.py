"""Decisions by object: what let each into the archive, what each case is about, which MPPS the objects name."""

import sqlalchemy as sa
from alembic import op

import broker.db

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("study", sa.Column("quiet_at", broker.db.UTCDateTime(timezone=True), nullable=True))
    op.add_column("reconciliation_case", sa.Column("instances", sa.JSON(), nullable=False, server_default="[]"))
    # In place: Alembic would copy the table on SQLite, and its rows point at each other.
    kind = "INTEGER" if op.get_bind().dialect.name == "sqlite" else "BIGINT"
    op.execute(f"ALTER TABLE instance ADD COLUMN decision_pk {kind} REFERENCES decision (pk)")
    op.create_index("ix_instance_decision_pk", "instance", ["decision_pk"])
    op.create_table(
        "study_performed",
        sa.Column("pk", BIG, nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("study_pk", BIG, nullable=False),
        sa.Column("performed_uid", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["study_pk"], ["study.pk"]),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("study_pk", "performed_uid"),
    )
    op.create_index("ix_study_performed_performed_uid", "study_performed", ["performed_uid"])
