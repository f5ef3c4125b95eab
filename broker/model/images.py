"""What was produced: studies, series, instances, the decisions about them and the cases that wait for a person."""

import datetime as dt
from typing import Any

from sqlalchemy import Index, UniqueConstraint, text
from sqlmodel import Field

from broker.db import UTCDateTime
from broker.model.base import BigInt, Row, json_field, link, moment


class Study(Row, table=True):
    """state: states.STUDY. order_pk: the first order it was decided for (all of them: StudyOrder). patient_pk: whose it
    is, once decided. rule: number of the decision table's row. flags: PARTIAL, INCOMPLETE, CHECK, UNSCHEDULED.
    quiet_at: when it was seen that nothing had come for long; void where something came since. lease_*: which process
    is deciding or committing it. not_before: back-off after a failed try."""

    __tablename__ = "study"
    __table_args__ = (Index("ix_study_work", "state", "lease_until"),)
    study_instance_uid: str = Field(unique=True)
    state: str = "RECEIVING"
    patient_pk: int | None = link("patient.pk", nullable=True)
    order_pk: int | None = link("imaging_order.pk", nullable=True)
    rule: str = ""
    flags: list[str] = json_field(list)
    last_received_at: dt.datetime = Field(sa_type=UTCDateTime)
    decided_at: dt.datetime | None = moment()
    archived_at: dt.datetime | None = moment()
    quiet_at: dt.datetime | None = moment()
    lease_owner: str = ""
    lease_until: dt.datetime | None = moment()
    not_before: dt.datetime | None = moment()
    attempts: int = 0


class StudyOrder(Row, table=True):
    """The requested procedures that a study answers: one as a rule, several in the group case. A study whose UID the
    modality made itself keeps it: this row is the alias."""

    __tablename__ = "study_order"
    __table_args__ = (UniqueConstraint("study_pk", "requested_procedure_pk"),)
    study_pk: int = link("study.pk")
    order_pk: int = link("imaging_order.pk")
    requested_procedure_pk: int = link("requested_procedure.pk")
    step_pk: int | None = link("scheduled_step.pk", nullable=True)


class StudyPerformed(Row, table=True):
    """An MPPS that objects of the study name (0008,1111): where the device makes the Study UID, the only tie."""

    __tablename__ = "study_performed"
    __table_args__ = (UniqueConstraint("study_pk", "performed_uid"),)
    study_pk: int = link("study.pk", index=False)
    performed_uid: str = Field(index=True)


class Series(Row, table=True):
    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("study_pk", "series_instance_uid"),)
    study_pk: int = link("study.pk")
    series_instance_uid: str = Field(index=True)
    modality: str = ""


class Instance(Row, table=True):
    """state: states.INSTANCE. sha256, size: of the data set as received, without our File Meta. staged_key: file in
    staging, empty once purged. store_key: the received bytes in the archive. rendition_key: the coerced copy, empty
    where nothing was coerced. decision_pk: what let it into the archive; none while it is undecided, held, hidden or
    rejected. facts: what the header said (archive/header.py). conflict_of: another object came with the same SOP
    Instance UID; this one is kept beside it. source_*: who sent it."""

    __tablename__ = "instance"
    __table_args__ = (
        Index("uq_instance_sop", "sop_instance_uid", unique=True,
              sqlite_where=text("conflict_of IS NULL"), postgresql_where=text("conflict_of IS NULL")),
        Index("ix_instance_sop", "sop_instance_uid"),
        Index("ix_instance_study_state", "study_pk", "state"),
    )  # fmt: skip
    study_pk: int = link("study.pk", index=False)
    series_pk: int = link("series.pk")
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    state: str = "STAGED"
    sha256: str
    size: int = Field(sa_type=BigInt)
    canonical_digest: str = ""
    staged_node: str = ""
    staged_key: str = Field(default="", index=True)
    store_key: str = ""
    store_sha256: str = ""
    rendition_key: str = ""
    rendition_sha256: str = ""
    source_ae: str = ""
    source_address: str = ""
    received_at: dt.datetime = Field(sa_type=UTCDateTime)
    missing: bool = False
    facts: dict[str, Any] = json_field()
    conflict_of: int | None = link("instance.pk", nullable=True)
    decision_pk: int | None = link("decision.pk", nullable=True)


class Decision(Row, table=True):
    """One decision with all it was made from, so it can be replayed. outcome: A, C, H, HH. by: `rules` or a person."""

    __tablename__ = "decision"
    study_pk: int = link("study.pk")
    at: dt.datetime = Field(sa_type=UTCDateTime)
    rules_version: str
    row: str
    outcome: str
    reasons: list[str] = json_field(list)
    facts: dict[str, Any] = json_field()
    order_pk: int | None = link("imaging_order.pk", nullable=True)
    by: str = "rules"


class ReconciliationCase(Row, table=True):
    """Something that waits for a person. kind: `study` (held images), or an exception without images, such as
    `mpps_unscheduled`, `mpps_patient_mismatch`, `late_cancel`, `late_change`, `patient_conflict`,
    `identifier_conflict`, `incomplete_order`, `worklist_characters`, `upstream_conflict`, `commit_failed`. subject:
    `study:17`, `performed:3`, `order:5`; one open case per kind and subject. level: amber (one person), red (two).
    instances: keys of the held objects that it is about; a decision reaches no others. candidates: [{order_id,
    accession_number, sps_id, grade, reasons}]. approvals: [{by, action, at}]."""

    __tablename__ = "reconciliation_case"
    __table_args__ = (
        Index("uq_case_open", "kind", "subject", unique=True,
              sqlite_where=text("state != 'RESOLVED'"), postgresql_where=text("state != 'RESOLVED'")),
        Index("ix_case_state", "state", "level"),
    )  # fmt: skip
    kind: str = "study"
    subject: str
    study_pk: int | None = link("study.pk", nullable=True)
    order_pk: int | None = link("imaging_order.pk", nullable=True)
    performed_pk: int | None = link("performed_step.pk", nullable=True)
    level: str = "amber"
    state: str = "OPEN"
    row: str = ""
    reasons: list[str] = json_field(list)
    instances: list[int] = json_field(list)
    candidates: list[dict[str, Any]] = json_field(list)
    approvals: list[dict[str, Any]] = json_field(list)
    resolution: dict[str, Any] = json_field()
    resolved_at: dt.datetime | None = moment()
    resolved_by: str = ""
