"""A step keeps the placer and filler number of its own order group: one procedure may be ordered in several."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None
COLUMNS = ("placer_number", "placer_issuer", "filler_number", "filler_issuer")
STEP = sa.table("scheduled_step", sa.column("requested_procedure_pk"), *map(sa.column, COLUMNS))
PROCEDURE = sa.table("requested_procedure", sa.column("pk"), *map(sa.column, COLUMNS))


def upgrade() -> None:
    for name in COLUMNS:
        op.add_column("scheduled_step", sa.Column(name, sa.String(), nullable=False, server_default=""))
        own = sa.select(PROCEDURE.c[name]).where(PROCEDURE.c.pk == STEP.c.requested_procedure_pk).scalar_subquery()
        op.execute(STEP.update().values({name: own}))
    op.create_index("ix_scheduled_step_placer", "scheduled_step", ["placer_number", "placer_issuer"])
    op.create_index("ix_scheduled_step_filler", "scheduled_step", ["filler_number", "filler_issuer"])
