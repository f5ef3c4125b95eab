"""The worklist item: made from the rows once per change (PS3.4 Table K.6-1, conformance.md 1.2)."""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

from pydicom.datadict import tag_for_keyword

from broker.dicom import tree
from broker.dicom.tree import Tree
from broker.errors import MissingField
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier

STEP_SEQUENCE = 0x00400100
TYPE_1 = ("PatientName", "PatientID", "StudyInstanceUID", "RequestedProcedureID")
STEP_TYPE_1 = (
    "ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality",
    "ScheduledProcedureStepID",
)  # fmt: skip

# Who knows of one more does not take back those that others know of.
SHOWN_TOGETHER = ("Allergies", "MedicalAlerts")


def build(
    patient: Patient,
    identifiers: Sequence[PatientIdentifier],
    order: ImagingOrder,
    procedure: RequestedProcedure,
    step: ScheduledStep,
    stations: Sequence[str],
) -> Tree:
    """Every attribute that the rows can fill. Raises MissingField where one of type 1 has no value: such a step is no
    valid worklist item (conformance.md 1.3, 7)."""
    leading, others = (identifiers[0], identifiers[1:]) if identifiers else (None, ())
    said = (patient.attributes, order.attributes, procedure.attributes)
    own = {name: value for name, value in order.attributes.items() if not _is_newer(patient, order, name)}
    together = {name: listed(name, *said) for name in SHOWN_TOGETHER}
    item: dict[str, Any] = {
        # The namespace; where a message named a universal ID as well, the attributes have both.
        "IssuerOfAccessionNumberSequence": _entity(order.accession_issuer),
        "OrderPlacerIdentifierSequence": _entity(procedure.placer_issuer),
        "OrderFillerIdentifierSequence": _entity(procedure.filler_issuer),
        **patient.attributes, **own, **procedure.attributes, **together,
        "PatientName": patient.name,
        "PatientID": leading.value if leading else "",
        "IssuerOfPatientID": leading.issuer if leading else "",
        "OtherPatientIDsSequence": [
            {"PatientID": other.value, "IssuerOfPatientID": other.issuer, "TypeOfPatientID": "TEXT"} for other in others
        ] + patient.attributes.get("OtherPatientIDsSequence", []),
        "PatientBirthDate": patient.birth_date,
        "PatientSex": patient.sex,
        "AccessionNumber": order.accession_number,
        "RequestedProcedurePriority": order.priority,
        "RequestedProcedureID": procedure.requested_procedure_id,
        "RequestedProcedureDescription": procedure.description,
        "RequestedProcedureCodeSequence": _code(procedure),
        "StudyInstanceUID": procedure.study_instance_uid,
        "PlacerOrderNumberImagingServiceRequest": procedure.placer_number,
        "FillerOrderNumberImagingServiceRequest": procedure.filler_number,
        "WorklistLabel": step.label,
    }  # fmt: skip
    scheduled: dict[str, Any] = {
        **step.attributes,
        "ScheduledStationAETitle": list(stations),
        "ScheduledProcedureStepStartDate": step.start_date,
        "ScheduledProcedureStepStartTime": step.start_time,
        "Modality": step.modality,
        "ScheduledProcedureStepID": step.sps_id,
        "ScheduledProcedureStepDescription": step.description,
    }
    for names, values in ((TYPE_1, item), (STEP_TYPE_1, scheduled)):
        for name in names:
            if is_blank(values[name]):
                raise MissingField(name)
    return {**to_tree(item), STEP_SEQUENCE: ("SQ", [to_tree(scheduled)])}


def is_blank(value: str | Sequence[str]) -> bool:
    """Whether a device would see no value: blanks at the ends say nothing (PS3.5 6.2), nor do a name's delimiters."""
    return not value.strip(" ^=") if isinstance(value, str) else all(map(is_blank, value))


def _is_newer(patient: Patient, order: ImagingOrder, name: str) -> bool:
    """Said of the patient (a weight) after the order said it."""
    return name in patient.attributes and patient.said.get(name, "") > order.said.get(name, "")


def listed(name: str, *said: Mapping[str, Any]) -> list[str]:
    """The values of all of them, each once."""
    return list(dict.fromkeys(value for attributes in said for value in _values(attributes.get(name) or [])))


def _values(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def encode_item(item: Tree) -> bytes:
    """Explicit VR Little Endian and UTF-8: what ScheduledStep.dataset holds."""
    return tree.write({**item, tree.CHARSET: ("CS", "ISO_IR 192")}, tree.EXPLICIT_LE, ("ISO_IR 192",))


def to_tree(values: Mapping[str, Any]) -> Tree:
    """From DICOM keywords. A list of mappings is a sequence, another list a multiple value; empty ones are left out."""
    made: Tree = {}
    for keyword, value in values.items():
        tag = tag_for_keyword(keyword)
        assert tag is not None, f"{keyword} is no DICOM keyword"
        if value in ("", None, []):
            continue
        made[tag] = _element(tree.vr_of(tag), value)
    return made


def _element(vr: str, value: Any) -> tuple[str, str | bytes | list[Tree]]:
    if vr == "SQ":
        return "SQ", [to_tree(each) for each in value]
    if vr == "US":
        return "US", struct.pack("<H", int(value))
    return vr, "\\".join(value) if isinstance(value, list) else str(value)


def _code(procedure: RequestedProcedure) -> list[dict[str, str]]:
    if not procedure.code_value:
        return []
    code = {
        "CodeValue": procedure.code_value,
        "CodingSchemeDesignator": procedure.code_scheme,
        "CodeMeaning": procedure.code_meaning,
    }
    return [code]


def _entity(issuer: str) -> list[dict[str, str]]:
    return [{"LocalNamespaceEntityID": issuer}] if issuer else []
