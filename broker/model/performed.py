"""What was done: performed procedure steps (MPPS), what they belong to, what they promise to send."""

import datetime as dt

from sqlalchemy import UniqueConstraint
from sqlmodel import Field

from broker.model.base import Row, blob, json_field, link, moment


class PerformedStep(Row, table=True):
    """dataset: all attributes, Explicit VR LE and UTF-8. source_ae: who sent it. final_digest: SHA-256 of the N-SET
    data set that made it final. flags: what was accepted leniently (`incomplete_final`, `no_instances`)."""

    __tablename__ = "performed_step"
    sop_instance_uid: str = Field(unique=True)
    status: str
    source_ae: str = ""
    station_ae: str = ""
    station_name: str = ""
    modality: str = ""
    patient_id: str = ""
    patient_id_issuer: str = ""
    study_instance_uid: str = Field(default="", index=True)
    started_at: dt.datetime | None = moment()
    ended_at: dt.datetime | None = moment()
    discontinuation_code: str = ""
    discontinuation_scheme: str = ""
    discontinuation_meaning: str = ""
    final_digest: str = ""
    flags: list[str] = json_field(list)
    dataset: bytes = blob()


class PerformedStepLink(Row, table=True):
    """n : m (group and split cases); no row = unscheduled. rule: which keys agreed (conformance.md 2.6). propagated:
    False where the patients disagree: the step does not follow."""

    __tablename__ = "performed_step_link"
    __table_args__ = (UniqueConstraint("performed_pk", "step_pk"),)
    performed_pk: int = link("performed_step.pk")
    step_pk: int = link("scheduled_step.pk")
    rule: int
    propagated: bool = True


class PerformedSeries(Row, table=True):
    """instance_uids: images and non-images together; what should arrive. Replaced as a whole by each N-SET."""

    __tablename__ = "performed_series"
    __table_args__ = (UniqueConstraint("performed_pk", "series_instance_uid"),)
    performed_pk: int = link("performed_step.pk")
    series_instance_uid: str = Field(index=True)
    instance_uids: list[str] = json_field(list)
