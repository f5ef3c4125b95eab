"""What an order or a patient message asks for, whatever road it came by (HL7, REST, FHIR, file, hand).

Values are text as it will stand in DICOM: names are PN of three groups, dates YYYYMMDD, times HHMMSS in the site's
zone. `None` = the message did not say (no change); empty string = it said: delete. Attributes hold further
worklist attributes by DICOM keyword; a sequence is a list of such dicts. Lengths and syntax were checked by whoever
made the command."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Identifier:
    value: str
    issuer: str = ""
    type: str = "PI"


@dataclass(frozen=True)
class PersonCommand:
    """identifiers: first is the leading one (Patient ID)."""

    identifiers: tuple[Identifier, ...]
    name: str | None = None
    birth_date: str | None = None
    sex: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepCommand:
    """sps_id: empty = make one. station_ae_titles: None = no change. placer_*, filler_*: of its own order group, where
    a procedure comes in several."""

    sps_id: str = ""
    modality: str | None = None
    station_ae_titles: tuple[str, ...] | None = None
    start_date: str | None = None
    start_time: str | None = None
    description: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    placer_number: str = ""
    placer_issuer: str = ""
    filler_number: str = ""
    filler_issuer: str = ""


@dataclass(frozen=True)
class ProcedureCommand:
    """requested_procedure_id, study_instance_uid: empty = make one."""

    requested_procedure_id: str = ""
    study_instance_uid: str = ""
    placer_number: str = ""
    placer_issuer: str = ""
    filler_number: str = ""
    filler_issuer: str = ""
    description: str | None = None
    code_value: str | None = None
    code_scheme: str | None = None
    code_meaning: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    steps: tuple[StepCommand, ...] = ()


Control = Literal["NW", "XO", "CA", "DC"]
PRIORITIES = ("LOW", "ROUTINE", "MEDIUM", "HIGH", "STAT")  # of (0040,1003), the most urgent last


@dataclass(frozen=True)
class OrderCommand:
    """control: table 0119. patient: of a new order, whom it is for; of the others, whose the sender says it is.
    begun: the message says that the exam is already in progress (ORC-5 IP). at: the order's own time (ORC-9, else
    MSH-7), for the stale guard. accession_number: empty = make one. place: where in the message the order stands
    (`ORC^1`), for errors."""

    control: Control
    accession_number: str = ""
    accession_issuer: str = ""
    priority: str | None = None
    patient: PersonCommand | None = None
    procedures: tuple[ProcedureCommand, ...] = ()
    begun: bool = False
    at: dt.datetime | None = None
    reason: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class PatientCommand:
    """event: what to do with it. prior: for merge, the identifier that goes away. at: when the event happened."""

    event: Literal["update", "merge"]
    patient: PersonCommand
    prior: Identifier | None = None
    at: dt.datetime | None = None
    cause: str = ""
