"""What of an object disagrees with the order that it was accepted for, and what it will say instead. Pure."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset

from broker.archive.coerce import Value, new_element

# Of the wrong patient, and in no order: they go when a person gives the object to another patient.
PERSONAL = (
    "OtherPatientIDs", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress",
    "PatientTelephoneNumbers", "PatientAge", "PatientBirthTime", "PatientComments", "AdmissionID",
)  # fmt: skip
PERSONAL_SEQUENCES = (
    "IssuerOfPatientIDQualifiersSequence", "ReferencedPatientSequence", "IssuerOfAdmissionIDSequence",
)  # fmt: skip
REQUEST_KEYS = ("RequestedProcedureID", "ScheduledProcedureStepID", "AccessionNumber")


@dataclass(frozen=True)
class Identity:
    """A patient as the order has it. name: PN of up to three groups. retired: identifiers that a merge ended."""

    patient_id: str
    issuer: str = ""
    name: str = ""
    birth_date: str = ""
    sex: str = ""
    retired: frozenset[str] = frozenset()


Request = Mapping[str, Any]  # a Request Attributes item by keyword; a sequence is a list of such mappings


@dataclass(frozen=True)
class Target:
    """requests: one for each linked step; none for an unscheduled study, several in the group case."""

    identity: Identity
    requests: Sequence[Request] = field(default_factory=tuple)


def changes_for(ds: Dataset, target: Target, *, only_name: bool, by_person: bool) -> dict[str, Value]:
    """By keyword, only what differs.

    only_name: the outcome was A, so that identifiers and links agree and at most the name is spelt in another way.
    by_person: the object may show another patient, and nothing of that identity stays. Otherwise what the order does
    not know stays as the device wrote it."""
    ds = copy.deepcopy(ds)  # pydicom decodes a value in place when it is looked at
    if only_name:
        name = _joined(target.identity.name, _text(ds, "PatientName"))
        return {"PatientName": name} if _is_variant(_text(ds, "PatientName"), name) else {}
    wanted = _replaced(ds, target.identity) if by_person else _completed(ds, target.identity)
    wanted |= _accession(ds, target.requests)
    changes: dict[str, Value] = {name: value for name, value in wanted.items() if _text(ds, name) != value}
    if "PatientID" in changes:  # conformance.md 3.4: an identifier and its issuer are recorded together
        changes["IssuerOfPatientID"] = wanted["IssuerOfPatientID"]
    return changes | _sequences(ds, target, changes, by_person=by_person)


def _completed(ds: Dataset, identity: Identity) -> dict[str, str]:
    """The order's word where it has one."""
    return {
        "PatientName": _joined(identity.name, _text(ds, "PatientName")),
        "PatientID": identity.patient_id,
        "IssuerOfPatientID": identity.issuer or _text(ds, "IssuerOfPatientID"),
        "PatientBirthDate": identity.birth_date or _text(ds, "PatientBirthDate"),
        "PatientSex": identity.sex or _text(ds, "PatientSex"),
    }


def _replaced(ds: Dataset, identity: Identity) -> dict[str, str]:
    values = {
        "PatientName": identity.name,
        "PatientID": identity.patient_id,
        "IssuerOfPatientID": identity.issuer,
        "PatientBirthDate": identity.birth_date,
        "PatientSex": identity.sex,
    }
    if _text(ds, "PatientID") != identity.patient_id:
        values |= dict.fromkeys((name for name in PERSONAL if name in ds), "")
    return values


def _accession(ds: Dataset, requests: Sequence[Request]) -> dict[str, str]:
    """One of the numbers that are linked, the one that the object has where it is one of them (PS3.17 J.4)."""
    numbers = [request["AccessionNumber"] for request in requests]
    return {} if not numbers or _text(ds, "AccessionNumber") in numbers else {"AccessionNumber": numbers[0]}


def _sequences(ds: Dataset, target: Target, changes: Mapping[str, Value], *, by_person: bool) -> dict[str, Value]:
    wanted: dict[str, list[Dataset]] = {}
    other_patient = by_person and "PatientID" in changes
    if "PatientID" in changes:
        wanted["OtherPatientIDsSequence"] = _other_ids(ds, target.identity, keep=not other_patient)
    if other_patient:
        wanted |= {name: [] for name in PERSONAL_SEQUENCES}
    if target.requests:
        wanted["RequestAttributesSequence"] = _request_items(ds, target.requests)
        issuer = target.requests[0].get("IssuerOfAccessionNumberSequence")
        if issuer and ("AccessionNumber" in changes or not ds.get("IssuerOfAccessionNumberSequence")):
            wanted["IssuerOfAccessionNumberSequence"] = [_dataset(item) for item in issuer]
    return {name: items for name, items in wanted.items() if items != list(ds.get(name) or ())}


def _other_ids(ds: Dataset, identity: Identity, *, keep: bool) -> list[Dataset]:
    """The identifier that goes stays findable where it was this patient's before a merge."""
    items = list(ds.get("OtherPatientIDsSequence") or ()) if keep else []
    old = _text(ds, "PatientID")
    if old in identity.retired and all(_text(item, "PatientID") != old for item in items):
        values = {"PatientID": old, "IssuerOfPatientID": _text(ds, "IssuerOfPatientID"), "TypeOfPatientID": "TEXT"}
        items.append(_dataset(values))
    return items


def _request_items(ds: Dataset, requests: Sequence[Request]) -> list[Dataset]:
    """The device's items with their gaps filled, then one for each request that has none. An item that names something
    else goes: the object was accepted for these requests."""
    items, met = [], set()
    for item in copy.deepcopy(list(ds.get("RequestAttributesSequence") or ())):
        for number, request in enumerate(requests):
            if all(_text(item, key) in ("", request.get(key, "") or _text(item, key)) for key in REQUEST_KEYS):
                items.append(_filled(item, request))
                met.add(number)
                break
    return items + [_dataset(request) for number, request in enumerate(requests) if number not in met]


def _filled(item: Dataset, values: Mapping[str, Any]) -> Dataset:
    for made in _dataset(values):
        if made.tag not in item or item[made.tag].is_empty:
            item[made.tag] = made
    return item


def _dataset(values: Mapping[str, Any]) -> Dataset:
    ds = Dataset()
    for keyword, value in values.items():
        if value:
            vr = dictionary_VR(keyword)
            ds.add(new_element(keyword, vr, [_dataset(item) for item in value] if vr == "SQ" else value))
    return ds


def _text(ds: Dataset, keyword: str) -> str:
    value = ds.get(keyword)
    return "" if value is None else str(value).strip()


# Names


def _is_variant(image: str, order: str) -> bool:
    """A group that both have is written in another way; a device that knows romaji only has no variant."""
    pairs = zip_longest(image.split("="), order.split("="), fillvalue="")
    return any(mine and theirs and _plain(mine) != _plain(theirs) for mine, theirs in pairs)


def _joined(order: str, image: str) -> str:
    """The order's groups; the device's where the order has none."""
    pairs = zip_longest(order.split("="), image.split("="), fillvalue="")
    return "=".join(_plain(theirs) or _plain(mine) for theirs, mine in pairs).rstrip("=")


def _plain(group: str) -> str:
    return group.strip().rstrip("^")
