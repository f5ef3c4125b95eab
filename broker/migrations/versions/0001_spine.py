"""The spine: orders, worklist, performed steps, images, decisions, journal, outbox, audit."""

import sqlalchemy as sa
from alembic import op

import broker.db

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The audit is append only: the database itself refuses to change or delete a row.
APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER audit_event_no_{verb} BEFORE {verb} ON audit_event "
        "BEGIN SELECT RAISE(ABORT, 'audit_event is append only'); END"
        for verb in ("UPDATE", "DELETE")
    ],
    "postgresql": [
        "CREATE FUNCTION audit_event_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'audit_event is append only'; END $$",
        "CREATE TRIGGER audit_event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_event "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_event_refuse()",
    ],
}


def upgrade() -> None:
    op.create_table(
        "api_token",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("last_used_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("digest"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "audit_event",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
    )
    with op.batch_alter_table("audit_event", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_event_at"), ["at"], unique=False)
        batch_op.create_index("ix_audit_subject", ["subject"], unique=False)

    op.create_table(
        "counter",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "destination",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("target", sa.JSON(), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("order_free", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "job",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("next_due", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("lease_owner", sa.String(), nullable=False),
        sa.Column("lease_until", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("cursor", sa.String(), nullable=False),
        sa.Column("last_error", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "node",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("any_address", sa.Boolean(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("station_names", sa.JSON(), nullable=False),
        sa.Column("rights", sa.JSON(), nullable=False),
        sa.Column("character_set", sa.String(), nullable=False),
        sa.Column("mpps_strict", sa.Boolean(), nullable=True),
        sa.Column("accession_issuer", sa.String(), nullable=False),
        sa.Column("patient_id_issuer", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("ae_title"),
    )
    op.create_table(
        "patient",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("birth_date", sa.String(), nullable=False),
        sa.Column("sex", sa.String(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("merged_into", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.ForeignKeyConstraint(
            ["merged_into"],
            ["patient.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    with op.batch_alter_table("patient", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_patient_merged_into"), ["merged_into"], unique=False)

    op.create_table(
        "performed_step",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("source_ae", sa.String(), nullable=False),
        sa.Column("station_ae", sa.String(), nullable=False),
        sa.Column("station_name", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("patient_id_issuer", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("started_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("ended_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("discontinuation_code", sa.String(), nullable=False),
        sa.Column("discontinuation_scheme", sa.String(), nullable=False),
        sa.Column("discontinuation_meaning", sa.String(), nullable=False),
        sa.Column("final_digest", sa.String(), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("dataset", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("sop_instance_uid"),
    )
    with op.batch_alter_table("performed_step", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_performed_step_study_instance_uid"), ["study_instance_uid"], unique=False)

    op.create_table(
        "sender",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("application", sa.String(), nullable=False),
        sa.Column("facility", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("messages", sa.JSON(), nullable=False),
        sa.Column("character_set", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "unknown_peer",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("called", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("last_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("ae_title", "address", "reason"),
    )
    op.create_table(
        "imaging_order",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("patient_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("accession_number", sa.String(), nullable=False),
        sa.Column("accession_issuer", sa.String(), nullable=False),
        sa.Column("priority", sa.String(), nullable=False),
        sa.Column("withheld", sa.String(), nullable=False),
        sa.Column("placed_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("last_event_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("reported_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("message_pk", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["patient_pk"],
            ["patient.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("accession_number", "accession_issuer"),
    )
    with op.batch_alter_table("imaging_order", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_imaging_order_patient_pk"), ["patient_pk"], unique=False)

    op.create_table(
        "outbox",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("destination_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("control_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("lease_until", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["destination_pk"],
            ["destination.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    with op.batch_alter_table("outbox", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_outbox_destination_pk"), ["destination_pk"], unique=False)
        batch_op.create_index("ix_outbox_due", ["state", "due_at"], unique=False)
        batch_op.create_index("ix_outbox_lane", ["lane", "pk"], unique=False)

    op.create_table(
        "patient_identifier",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("patient_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["patient_pk"],
            ["patient.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("value", "issuer"),
    )
    with op.batch_alter_table("patient_identifier", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_patient_identifier_patient_pk"), ["patient_pk"], unique=False)

    op.create_table(
        "patient_version",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("patient_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("birth_date", sa.String(), nullable=False),
        sa.Column("sex", sa.String(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["patient_pk"],
            ["patient.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    with op.batch_alter_table("patient_version", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_patient_version_patient_pk"), ["patient_pk"], unique=False)

    op.create_table(
        "performed_series",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("performed_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("instance_uids", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["performed_pk"],
            ["performed_step.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("performed_pk", "series_instance_uid"),
    )
    with op.batch_alter_table("performed_series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_performed_series_performed_pk"), ["performed_pk"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_performed_series_series_instance_uid"), ["series_instance_uid"], unique=False
        )

    op.create_table(
        "message",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("direction", sa.String(), nullable=False),
        sa.Column("protocol", sa.String(), nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("control_id", sa.String(), nullable=False),
        sa.Column("message_time", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("answer", sa.LargeBinary(), nullable=False),
        sa.Column("answer_sent", sa.Boolean(), nullable=False),
        sa.Column("error_code", sa.String(), nullable=False),
        sa.Column("error_place", sa.String(), nullable=False),
        sa.Column("error_text", sa.String(), nullable=False),
        sa.Column("became", sa.String(), nullable=False),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("received_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("sender", "control_id", "sha256"),
    )
    with op.batch_alter_table("message", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_message_order_pk"), ["order_pk"], unique=False)
        batch_op.create_index("ix_message_received", ["received_at"], unique=False)

    op.create_table(
        "order_status",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("changed_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("order_pk"),
    )
    with op.batch_alter_table("order_status", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_order_status_changed_at"), ["changed_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_order_status_state"), ["state"], unique=False)

    op.create_table(
        "requested_procedure",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("requested_procedure_id", sa.String(), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("placer_number", sa.String(), nullable=False),
        sa.Column("placer_issuer", sa.String(), nullable=False),
        sa.Column("filler_number", sa.String(), nullable=False),
        sa.Column("filler_issuer", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("code_value", sa.String(), nullable=False),
        sa.Column("code_scheme", sa.String(), nullable=False),
        sa.Column("code_meaning", sa.String(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("order_pk", "requested_procedure_id"),
        sa.UniqueConstraint("study_instance_uid"),
    )
    with op.batch_alter_table("requested_procedure", schema=None) as batch_op:
        batch_op.create_index("ix_requested_procedure_filler", ["filler_number", "filler_issuer"], unique=False)
        batch_op.create_index(batch_op.f("ix_requested_procedure_order_pk"), ["order_pk"], unique=False)
        batch_op.create_index(
            "ix_requested_procedure_placer",
            ["placer_number", "placer_issuer", "filler_number", "filler_issuer"],
            unique=False,
        )

    op.create_table(
        "status_change",
        sa.Column(
            "sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("order_pk", "version"),
    )
    op.create_table(
        "study",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("study_instance_uid", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("patient_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("last_received_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("decided_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("archived_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.String(), nullable=False),
        sa.Column("lease_until", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("not_before", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["patient_pk"],
            ["patient.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("study_instance_uid"),
    )
    with op.batch_alter_table("study", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_study_order_pk"), ["order_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_study_patient_pk"), ["patient_pk"], unique=False)
        batch_op.create_index("ix_study_work", ["state", "lease_until"], unique=False)

    op.create_table(
        "decision",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("study_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("rules_version", sa.String(), nullable=False),
        sa.Column("row", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["study_pk"],
            ["study.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    with op.batch_alter_table("decision", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_decision_order_pk"), ["order_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_decision_study_pk"), ["study_pk"], unique=False)

    op.create_table(
        "reconciliation_case",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("study_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("performed_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("level", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("row", sa.String(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("candidates", sa.JSON(), nullable=False),
        sa.Column("approvals", sa.JSON(), nullable=False),
        sa.Column("resolution", sa.JSON(), nullable=False),
        sa.Column("resolved_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("resolved_by", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["performed_pk"],
            ["performed_step.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["study_pk"],
            ["study.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    with op.batch_alter_table("reconciliation_case", schema=None) as batch_op:
        batch_op.create_index("ix_case_state", ["state", "level"], unique=False)
        batch_op.create_index(batch_op.f("ix_reconciliation_case_order_pk"), ["order_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_reconciliation_case_performed_pk"), ["performed_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_reconciliation_case_study_pk"), ["study_pk"], unique=False)
        batch_op.create_index(
            "uq_case_open",
            ["kind", "subject"],
            unique=True,
            sqlite_where=sa.text("state != 'RESOLVED'"),
            postgresql_where=sa.text("state != 'RESOLVED'"),
        )

    op.create_table(
        "scheduled_step",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("requested_procedure_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sps_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.Column("start_date", sa.String(), nullable=False),
        sa.Column("start_time", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("accession_number", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("offerable", sa.Boolean(), nullable=False),
        sa.Column("status_at", broker.db.UTCDateTime(timezone=True), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("dataset", sa.LargeBinary(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["requested_procedure_pk"],
            ["requested_procedure.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("requested_procedure_pk", "sps_id"),
    )
    with op.batch_alter_table("scheduled_step", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_scheduled_step_accession_number"), ["accession_number"], unique=False)
        batch_op.create_index(batch_op.f("ix_scheduled_step_order_pk"), ["order_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_scheduled_step_patient_id"), ["patient_id"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_scheduled_step_requested_procedure_pk"), ["requested_procedure_pk"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_scheduled_step_sps_id"), ["sps_id"], unique=False)
        batch_op.create_index("ix_scheduled_step_worklist", ["status", "start_date", "modality"], unique=False)

    op.create_table(
        "series",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("study_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("series_instance_uid", sa.String(), nullable=False),
        sa.Column("modality", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_pk"],
            ["study.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("study_pk", "series_instance_uid"),
    )
    with op.batch_alter_table("series", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_series_series_instance_uid"), ["series_instance_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_series_study_pk"), ["study_pk"], unique=False)

    op.create_table(
        "instance",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("study_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("series_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("sop_instance_uid", sa.String(), nullable=False),
        sa.Column("sop_class_uid", sa.String(), nullable=False),
        sa.Column("transfer_syntax_uid", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("canonical_digest", sa.String(), nullable=False),
        sa.Column("staged_node", sa.String(), nullable=False),
        sa.Column("staged_key", sa.String(), nullable=False),
        sa.Column("store_key", sa.String(), nullable=False),
        sa.Column("store_sha256", sa.String(), nullable=False),
        sa.Column("rendition_key", sa.String(), nullable=False),
        sa.Column("rendition_sha256", sa.String(), nullable=False),
        sa.Column("source_ae", sa.String(), nullable=False),
        sa.Column("source_address", sa.String(), nullable=False),
        sa.Column("received_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("missing", sa.Boolean(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("conflict_of", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.ForeignKeyConstraint(
            ["conflict_of"],
            ["instance.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["series_pk"],
            ["series.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["study_pk"],
            ["study.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
    )
    with op.batch_alter_table("instance", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_instance_conflict_of"), ["conflict_of"], unique=False)
        batch_op.create_index(batch_op.f("ix_instance_series_pk"), ["series_pk"], unique=False)
        batch_op.create_index("ix_instance_sop", ["sop_instance_uid"], unique=False)
        batch_op.create_index(batch_op.f("ix_instance_staged_key"), ["staged_key"], unique=False)
        batch_op.create_index("ix_instance_study_state", ["study_pk", "state"], unique=False)
        batch_op.create_index(
            "uq_instance_sop",
            ["sop_instance_uid"],
            unique=True,
            sqlite_where=sa.text("conflict_of IS NULL"),
            postgresql_where=sa.text("conflict_of IS NULL"),
        )

    op.create_table(
        "offered_item",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.Column("step_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("first_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("last_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("times", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.ForeignKeyConstraint(
            ["step_pk"],
            ["scheduled_step.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("ae_title", "step_pk", "version"),
    )
    with op.batch_alter_table("offered_item", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_offered_item_step_pk"), ["step_pk"], unique=False)

    op.create_table(
        "performed_step_link",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("performed_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("step_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("rule", sa.Integer(), nullable=False),
        sa.Column("propagated", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["performed_pk"],
            ["performed_step.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["step_pk"],
            ["scheduled_step.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("performed_pk", "step_pk"),
    )
    with op.batch_alter_table("performed_step_link", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_performed_step_link_performed_pk"), ["performed_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_performed_step_link_step_pk"), ["step_pk"], unique=False)

    op.create_table(
        "scheduled_station",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("step_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("ae_title", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["step_pk"],
            ["scheduled_step.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("step_pk", "ae_title"),
    )
    with op.batch_alter_table("scheduled_station", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_scheduled_station_ae_title"), ["ae_title"], unique=False)
        batch_op.create_index(batch_op.f("ix_scheduled_station_step_pk"), ["step_pk"], unique=False)

    op.create_table(
        "step_version",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("step_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("dataset", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["step_pk"],
            ["scheduled_step.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("step_pk", "version"),
    )
    op.create_table(
        "study_order",
        sa.Column("pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("updated_at", broker.db.UTCDateTime(timezone=True), nullable=False),
        sa.Column("study_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("order_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("requested_procedure_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("step_pk", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.ForeignKeyConstraint(
            ["order_pk"],
            ["imaging_order.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["requested_procedure_pk"],
            ["requested_procedure.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["step_pk"],
            ["scheduled_step.pk"],
        ),
        sa.ForeignKeyConstraint(
            ["study_pk"],
            ["study.pk"],
        ),
        sa.PrimaryKeyConstraint("pk"),
        sa.UniqueConstraint("study_pk", "requested_procedure_pk"),
    )
    with op.batch_alter_table("study_order", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_study_order_order_pk"), ["order_pk"], unique=False)
        batch_op.create_index(
            batch_op.f("ix_study_order_requested_procedure_pk"), ["requested_procedure_pk"], unique=False
        )
        batch_op.create_index(batch_op.f("ix_study_order_step_pk"), ["step_pk"], unique=False)
        batch_op.create_index(batch_op.f("ix_study_order_study_pk"), ["study_pk"], unique=False)
    op.execute("INSERT INTO counter (name, value) VALUES ('status_change', 0)")
    for statement in APPEND_ONLY[op.get_context().dialect.name]:
        op.execute(statement)
