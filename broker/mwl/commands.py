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
    """identifiers: first is the leading one (Patient ID). romanised: the first group of the name was made from the
    third by a table, nobody wrote it."""

    identifiers: tuple[Identifier, ...]
    name: str | None = None
    birth_date: str | None = None
    sex: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    romanised: bool = False


@dataclass(frozen=True)
class StepCommand:
    """sps_id: empty = make one. station_ae_titles: None = no change. placer_*, filler_*: of its own order group, where
    a procedure comes in several. appointment_*: of the slot in a schedule (SCH-2, else SCH-1). label: of the worklist
    on which it is to stand."""

    sps_id: str = ""
    modality: str | None = None
    station_ae_titles: tuple[str, ...] | None = None
    start_date: str | None = None
    start_time: str | None = None
    description: str | None = None
    label: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    placer_number: str = ""
    placer_issuer: str = ""
    filler_number: str = ""
    filler_issuer: str = ""
    appointment_number: str = ""
    appointment_issuer: str = ""


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


Missing = Literal["generate", "derive"]


@dataclass(frozen=True)
class Policies:
    """How an identifier comes to be that the message does not have (what must be there was refused before): a new one,
    or one derived from the order's numbers with their issuers, so that the same order gets the same again."""

    accession_number: Missing = "generate"
    requested_procedure_id: Missing = "generate"
    sps_id: Missing = "generate"
    study_instance_uid: Missing = "derive"


# Table 0119 as the broker acts on it, and what ADT and SIU ask of steps.
# RP, RU and RO: one NW that `replaces`. OC, OD, CR: CA, DC. note: OK, UA, UC, UX, RQ, which change nothing here.
# reinstate: a person brings back what has not begun; no message does.
Control = Literal["NW", "XO", "CA", "DC", "HD", "RL", "SC", "SN", "NA", "SS", "note", "no_show", "reinstate"]
PRIORITIES = ("LOW", "ROUTINE", "MEDIUM", "HIGH", "STAT")  # of (0040,1003), the most urgent last


@dataclass(frozen=True)
class OrderCommand:
    """control: table 0119. status: ORC-5 (table 0038), empty or unlisted: control decides. patient: of a new order,
    whom it is for; of the others, whose the sender says it is. begun: the exam is already in progress (ORC-5 IP of a
    new order). at: the order's own time (ORC-9, else MSH-7), for the stale guard. accession_number: empty = make one
    by `policies`. is_issuer_assumed: the message does not say whose number that is (OBR-18 has no room for it). known:
    what to do with a new order that is known with other content. unknown: what to do with a change of an order that is
    not known. replaces: the orders that this one stands in for, by their numbers. place: where in the message the order
    stands (`ORC^1`), for errors. label: of the steps that it makes and of which it says no other.
    is_listed: another provider's worklist says it, and nobody orders."""

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
    status: str = ""
    replaces: "tuple[OrderCommand, ...]" = ()
    known: Literal["refuse", "change"] = "refuse"
    unknown: Literal["refuse", "place"] = "refuse"
    policies: Policies = Policies()
    is_issuer_assumed: bool = False
    label: str = ""
    is_listed: bool = False


@dataclass(frozen=True)
class Outcome:
    """What an order command came to. reply: ORC-1 of an order response (table 0119): OK, UC (too late to cancel), UX,
    UH, UR (too old to change, hold, release), NA (numbers assigned), SC (status), RQ (replaced as requested). status:
    ORC-5 of it. placer_*, filler_*: what was assigned here because the sender stated none."""

    order_pk: int
    reply: str = "OK"
    status: str = ""
    placer_number: str = ""
    placer_issuer: str = ""
    filler_number: str = ""
    filler_issuer: str = ""


@dataclass(frozen=True)
class PatientCommand:
    """event: what to do with it. prior: the identifier that goes away (merge), goes over to this patient (move), or is
    replaced by this patient's first (change_id). at: when the event happened."""

    event: Literal["update", "merge", "move", "change_id"]
    patient: PersonCommand
    prior: Identifier | None = None
    at: dt.datetime | None = None
    cause: str = ""


@dataclass(frozen=True)
class VisitCommand:
    """What happened to one visit or order of a patient, and to no other. visit: PV1-19, else PID-18. order: where the
    message names an order, its numbers. location: where the patient is now (PV1-3); None: not said."""

    event: Literal["arrive", "unarrive", "transfer"]
    patient: PersonCommand
    visit: Identifier | None = None
    order: OrderCommand | None = None
    location: str | None = None
    at: dt.datetime | None = None
    cause: str = ""
    place: str = ""


@dataclass(frozen=True)
class ReportCommand:
    """A report on an order. order: its numbers and its patient (control `note`). status: table 0123 as FHIR says it.
    number: of the report itself, by which a later version replaces it. document: a PDF; empty: none."""

    order: OrderCommand
    status: Literal["preliminary", "final", "amended", "cancelled"]
    number: str = ""
    issuer: str = ""
    title: str = ""
    text: str = ""
    document: bytes = b""
    issued_at: dt.datetime | None = None
    at: dt.datetime | None = None
    place: str = ""


Command = OrderCommand | PatientCommand | VisitCommand | ReportCommand
