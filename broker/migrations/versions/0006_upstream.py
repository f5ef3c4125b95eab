"""Worklist providers that are asked, and what each of them listed."""

import sqlalchemy as sa
from alembic import op

import broker.db

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TIME = broker.db.UTCDateTime(timezone=True)
TEXTS = ("calling_ae_title", "modality", "station_ae_title", "patient_id_issuer", "accession_issuer", "label",
         "character_set", "gone", "last_error")  # fmt: skip
NUMBERS = ("port", "days_before", "days_after", "priority", "gone_after", "failures")


def upgrade() -> None:
    op.create_table(
        "upstream",
        *_row(),
        *(_text(name) for name in ("name", "host", "ae_title", *TEXTS)),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in NUMBERS),
        *(sa.Column(name, sa.JSON(), nullable=False) for name in ("keys", "counts")),
        *(sa.Column(name, TIME, nullable=True) for name in ("next_at", "tried_at", "answered_at", "stale_since")),
        sa.Column("every_seconds", sa.Float(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "upstream_entry",
        *_row(),
        sa.Column("upstream_pk", BIG, sa.ForeignKey("upstream.pk", ondelete="CASCADE"), nullable=False),
        *(_text(name) for name in ("identity", "digest", "refusal")),
        sa.Column("message_pk", BIG, nullable=True),
        sa.Column("order_pk", BIG, sa.ForeignKey("imaging_order.pk"), nullable=True),
        sa.Column("step_pk", BIG, sa.ForeignKey("scheduled_step.pk"), nullable=True),
        sa.Column("last_at", TIME, nullable=False),
        sa.Column("missed", sa.Integer(), nullable=False),
        sa.Column("gone_at", TIME, nullable=True),
        sa.UniqueConstraint("upstream_pk", "identity"),
    )
    for name in ("order_pk", "step_pk"):
        op.create_index(f"ix_upstream_entry_{name}", "upstream_entry", [name])


def _text(name: str) -> sa.Column:
    return sa.Column(name, sa.String(), nullable=False)


def _row() -> list[sa.Column]:
    return [
        sa.Column("pk", BIG, primary_key=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
    ]
