"""What is to be done: orders (Imaging Service Requests), requested procedures, steps, and who was shown them."""

import datetime as dt
from typing import Any

from sqlalchemy import Index, UniqueConstraint, text, true
from sqlmodel import Field

from broker.db import UTCDateTime
from broker.model.base import Row, blob, json_field, link, moment


class ImagingOrder(Row, table=True):
    """placed_at: the order's own time (ORC-9, else MSH-7). last_event_at: of the newest message applied (stale guard).
    withheld: why its items are offered to no device (a question for a person is open); empty = offered.
    reported_at: when a final report was known. attributes: further worklist attributes by DICOM keyword.
    identifier_pk: the patient identifier that it was placed under. replaces_pk: the order that it stands in for.
    said: when the messages were made that each thing is known from (mwl/said.py); so in procedures and steps."""

    __tablename__ = "imaging_order"
    __table_args__ = (UniqueConstraint("accession_number", "accession_issuer"),)
    patient_pk: int = link("patient.pk")
    accession_number: str
    accession_issuer: str = ""
    priority: str = "ROUTINE"
    withheld: str = ""
    placed_at: dt.datetime | None = moment()
    last_event_at: dt.datetime | None = moment()
    reported_at: dt.datetime | None = moment()
    attributes: dict[str, Any] = json_field()
    message_pk: int | None = Field(default=None, index=False)
    identifier_pk: int | None = link("patient_identifier.pk", nullable=True)
    replaces_pk: int | None = link("imaging_order.pk", nullable=True)
    said: dict[str, str] = json_field()


class RequestedProcedure(Row, table=True):
    """One study to be made (Requested Procedure : Study = 1 : 1). code_*: Requested Procedure Code triple."""

    __tablename__ = "requested_procedure"
    __table_args__ = (
        UniqueConstraint("order_pk", "requested_procedure_id"),
        Index("ix_requested_procedure_id", "requested_procedure_id"),
        Index(
            "ix_requested_procedure_placer",
            "placer_number",
            "placer_issuer",
            "filler_number",
            "filler_issuer",
        ),
        Index("ix_requested_procedure_filler", "filler_number", "filler_issuer"),
    )
    order_pk: int = link("imaging_order.pk")
    requested_procedure_id: str
    study_instance_uid: str = Field(unique=True)
    placer_number: str = ""
    placer_issuer: str = ""
    filler_number: str = ""
    filler_issuer: str = ""
    description: str = ""
    code_value: str = ""
    code_scheme: str = ""
    code_meaning: str = ""
    attributes: dict[str, Any] = json_field()
    said: dict[str, str] = json_field()


class ScheduledStep(Row, table=True):
    """One worklist item. start_date, start_time: DICOM DA and TM in the site's zone, as devices show them.
    status: states.STEP. dataset: every return key, Explicit VR LE and UTF-8, encoded once per change; empty while the
    step lacks a type 1 key (it is then on no worklist and a case is open). version: counts those encodings.
    patient_id, accession_number, modality, start_*: promoted from the dataset because queries filter on them.
    label: of the worklist that it stands on (0074,1202); a device may be shown those of some labels alone. name_key:
    the patient's name as names are compared (mwl/texts.py), to find few candidates; empty = not known yet.
    placer_*, filler_*: of the order group that asked for it. appointment_*: of its slot in a schedule."""

    __tablename__ = "scheduled_step"
    __table_args__ = (
        UniqueConstraint("requested_procedure_pk", "sps_id"),
        Index("ix_scheduled_step_worklist", "status", "offerable", "start_date", "modality"),
        Index("ix_scheduled_step_status", "status", "status_at"),
        Index("ix_scheduled_step_placer", "placer_number", "placer_issuer"),
        Index("ix_scheduled_step_filler", "filler_number", "filler_issuer"),
        Index("ix_scheduled_step_appointment", "appointment_number", "appointment_issuer"),
    )
    requested_procedure_pk: int = link("requested_procedure.pk")
    order_pk: int = link("imaging_order.pk")
    sps_id: str = Field(index=True)
    status: str = Field(default="SCHEDULED")
    modality: str = ""
    start_date: str = ""
    start_time: str = ""
    patient_id: str = Field(default="", index=True)
    accession_number: str = Field(default="", index=True)
    description: str = ""
    offerable: bool = True
    status_at: dt.datetime | None = moment()
    label: str = Field(default="", sa_column_kwargs={"server_default": ""})
    name_key: str = Field(default="", sa_column_kwargs={"server_default": ""})
    version: int = 0
    placer_number: str = ""
    placer_issuer: str = ""
    filler_number: str = ""
    filler_issuer: str = ""
    appointment_number: str = ""
    appointment_issuer: str = ""
    dataset: bytes = blob()
    attributes: dict[str, Any] = json_field()
    said: dict[str, str] = json_field()


class ScheduledStation(Row, table=True):
    """Scheduled Station AE Title has VM 1-n (PS3.3 C.4.10): a child row each. start_date, is_open: of the step, which
    has neither ended nor is it on hold; here, so that a station's list of a day is found by one index."""

    __tablename__ = "scheduled_station"
    __table_args__ = (
        UniqueConstraint("step_pk", "ae_title"),
        Index("ix_scheduled_station_list", "ae_title", "is_open", "start_date"),
    )
    step_pk: int = link("scheduled_step.pk", index=False)
    ae_title: str
    start_date: str = Field(default="", sa_column_kwargs={"server_default": ""})
    is_open: bool = Field(default=True, sa_column_kwargs={"server_default": true()})


class StepVersion(Row, table=True):
    """Every version of an item's dataset: what a device was shown can be read again."""

    __tablename__ = "step_version"
    __table_args__ = (UniqueConstraint("step_pk", "version"),)
    step_pk: int = link("scheduled_step.pk", index=False)
    version: int
    dataset: bytes = blob()


class OfferedItem(Row, table=True):
    """Which version of an item a device was shown, first and last."""

    __tablename__ = "offered_item"
    __table_args__ = (UniqueConstraint("ae_title", "step_pk", "version"),)
    ae_title: str
    step_pk: int = link("scheduled_step.pk")
    version: int
    first_at: dt.datetime = Field(sa_type=UTCDateTime)
    last_at: dt.datetime = Field(sa_type=UTCDateTime)
    times: int = Field(default=1, sa_column_kwargs={"server_default": text("1")})


class Report(Row, table=True):
    """One version of a report. status: FHIR DiagnosticReport.status. document: a PDF, empty where there is none.
    superseded: a later version of the same number is here."""

    __tablename__ = "report"
    __table_args__ = (Index("ix_report_number", "number", "issuer"),)
    order_pk: int = link("imaging_order.pk")
    status: str
    number: str = ""
    issuer: str = ""
    title: str = ""
    text: str = ""
    document: bytes = blob()
    issued_at: dt.datetime | None = moment()
    superseded: bool = False
    message_pk: int | None = Field(default=None, index=False)
