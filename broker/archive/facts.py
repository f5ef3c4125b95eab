"""What a decision is made from. Plain values, JSON-able: each can be made again from what was stored with it."""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter


@dataclass(frozen=True)
class Request:
    """An item of the Request Attributes Sequence (0040,0275). accession_issuer, issuer_given: as in Seen."""

    procedure_id: str = ""
    sps_id: str = ""
    accession_number: str = ""
    accession_issuer: str = ""
    issuer_given: bool = True


@dataclass(frozen=True)
class Seen:
    """Objects of the study that say the same about themselves. Values are as the device wrote them, but for
    accession_issuer, which the node or site fills where the object names none (issuer_given: False).

    patients: keys of those that the Patient ID may mean, merges followed; several where its issuer is not known.
    id_via: how the ID led there: `equal`, `rule` (zeros, width, spaces), `merge`; empty where it leads nowhere.
    device: the machine that acquired it; source_device: the one that sent it. acquired_*: clock offset taken off.
    identity_is_text: False where the character set does not explain some value of the identity. is_cut: the header says
    more than was kept of it."""

    instances: tuple[int, ...]
    patient_id: str = ""
    issuer: str = ""
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    identity_is_text: bool = True
    is_cut: bool = False
    patients: tuple[int, ...] = ()
    id_via: str = ""
    accession_number: str = ""
    accession_issuer: str = ""
    issuer_given: bool = True
    requests: tuple[Request, ...] = ()
    modality: str = ""
    sop_class_uid: str = ""
    image_type: tuple[str, ...] = ()
    device: str = ""
    source_device: str = ""
    source_kind: str = "modality"
    mobile: bool = False
    acquired_first: dt.datetime | None = None
    acquired_last: dt.datetime | None = None
    received_last: dt.datetime | None = None


@dataclass(frozen=True)
class Person:
    """A patient as the broker knows it. names_before: other names in its ADT history, of changes that left birth date
    and sex alone (a marriage)."""

    pk: int
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    names_before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """A version of an item as a device was shown it. patient: key of the patient that its Patient ID means."""

    device: str
    first_at: dt.datetime
    patient: int | None
    name: str
    birth_date: str


@dataclass(frozen=True)
class Item:
    """A scheduled step with what it hangs on. devices: on which it is scheduled; empty: on any. start: in the site's
    zone; None where it has none. any_time: only the day is meant (no time of day, in-patient, STAT). other_study:
    another study was decided for the step. offers: to the devices of the study."""

    step_pk: int
    procedure_pk: int
    order_pk: int
    patient_pk: int
    accession_number: str
    accession_issuer: str
    procedure_id: str
    sps_id: str
    study_uid: str
    modality: str
    status: str
    devices: tuple[str, ...] = ()
    start: dt.datetime | None = None
    any_time: bool = False
    placed_at: dt.datetime | None = None
    arrived_at: dt.datetime | None = None
    cancelled_at: dt.datetime | None = None
    other_study: bool = False
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True)
class Performed:
    """An MPPS that names the study, one of its series or instances, or that one of its objects names.
    patient: key of the patient that its Patient ID means; None where unknown."""

    pk: int
    status: str
    steps: tuple[int, ...] = ()
    series: tuple[str, ...] = ()
    patient_id: str = ""
    patient: int | None = None
    wrong_entry: bool = False


@dataclass(frozen=True)
class Decided:
    """What was released of this study before. at: of the first such decision. outcome: of the last. grade: the worst
    that the rules found; empty where persons alone decided. by_person: a person decided some of it. identities: (ID,
    issuer, name, birth date, sex) of the objects that persons released, else of all."""

    at: dt.datetime
    by_person: bool
    outcome: str
    grade: str
    patient_pk: int | None
    orders: tuple[int, ...] = ()
    identities: tuple[tuple[str, ...], ...] = ()
    devices: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    acquired_last: dt.datetime | None = None


@dataclass(frozen=True)
class StudyFacts:
    """seen: what is to be decided now. conflicts: how objects differ that came with a SOP Instance UID we have
    (`identity`, `pixels`, `attributes`). items: of every order that a link names or a patient has open.
    other_studies: how many others were decided for a requested procedure, by its key. listed: devices that got worklist
    items in the last days. append_hours: how long a study may be added to.
    missing: instances that a final MPPS names and nobody sent."""

    study_uid: str
    now: dt.datetime
    seen: tuple[Seen, ...]
    items: tuple[Item, ...] = ()
    people: tuple[Person, ...] = ()
    performed: tuple[Performed, ...] = ()
    conflicts: tuple[str, ...] = ()
    decided: Decided | None = None
    other_studies: dict[int, int] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    missing: int = 0
    append_hours: float = 24


_JSON = TypeAdapter(StudyFacts)


def to_json(facts: StudyFacts) -> dict[str, Any]:
    return _JSON.dump_python(facts, mode="json")


def from_json(stored: dict[str, Any]) -> StudyFacts:
    return _JSON.validate_python(stored)
