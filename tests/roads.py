"""The golden order as each road brings it: the same patient, order, procedure and step, so the same worklist item."""

import datetime as dt
from typing import Any

from tests.world import TOKYO

START = dt.datetime(2025, 12, 1, 9, 30, tzinfo=TOKYO)
UID = "1.2.392.99999.1.1"
CODE_SYSTEM = "urn:oid:1.2.392.99999.7"
# fhir.systems of the site, by which a FHIR road says what the others say.
SYSTEMS = [
    "HOSP=urn:oid:1.2.392.100495.20.3.51.11310000001", "HIS=urn:oid:1.2.392.99999.2", "RIS=urn:oid:1.2.392.99999.3",
    f"99LOCAL={CODE_SYSTEM}",
]  # fmt: skip
HOSP, HIS, RIS = (line.partition("=")[2] for line in SYSTEMS[:3])
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
REPRESENTATION = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
PID = "PID|1||0000012345^^^HOSP^PI||山田^太郎^^^^^L^I~ヤマダ^タロウ^^^^^L^P||19700101|M"
PV1 = "PV1|1|O|01||||||||||||||||V0001^^^HOSP"
PHYSICIAN = "110^医師^一郎^^^^^^^L^^^^^I"


def _message(kind: str, version: str, *segments: str) -> bytes:
    head = f"MSH|^~\\&|HIS|HOSP|BROKER|HOSP|20251201085500+0900||{kind}|MSG-{kind[:3]}|P|{version}||||||UNICODE UTF-8"
    return "\r".join((head, PID, PV1, *segments, "")).encode()


def omi(control: str = "NW", start: dt.datetime = START) -> bytes:
    return _message(
        "OMI^O23^OMI_O23", "2.5.1",
        f"ORC|{control}|P1^HIS|F1^RIS||SC||||20251201085500|||{PHYSICIAN}",
        f"TQ1|1||||||{start:%Y%m%d%H%M%S}||S^Stat^HL70485",
        "OBR|1|P1^HIS|F1^RIS|CTCHEST^胸部CT^99LOCAL" + "|" * 27 + "^咳嗽" + "|" * 13 + "CTCHEST^胸部CT^99LOCAL",
        "NTE|1||造影剤アレルギー",
        f"IPC|ACC001^RIS|RP001^RIS|{UID}^RIS|SPS001^RIS|CT|6000000200000000^胸部単純CT^JJ1017-16M|||CT1",
    )  # fmt: skip


def orm(control: str = "NW", start: dt.datetime = START) -> bytes:
    """Without an issuer of the accession number: the site's own is RIS."""
    return _message(
        "ORM^O01", "2.3.1",
        f"ORC|{control}|P1^HIS|F1^RIS||SC||^^^{start:%Y%m%d%H%M%S}^^S||20251201085500|||{PHYSICIAN}||||||CT1",
        "OBR|1|P1^HIS|F1^RIS|CTCHEST^胸部CT^99LOCAL^6000000200000000^胸部単純CT^JJ1017-16M" + "|" * 14
        + "ACC001|RP001|SPS001||||CT" + "|" * 7 + "^咳嗽",
        "NTE|1||造影剤アレルギー",
        f"ZDS|{UID}^RIS^Application^DICOM",
    )  # fmt: skip


def rest(start: dt.datetime = START) -> dict[str, Any]:
    return {
        "accession_number": "ACC001", "accession_issuer": "RIS", "priority": "STAT",
        "requesting_physician": "医師^一郎", "admission_id": "V0001", "admission_issuer": "HOSP",
        "current_patient_location": "01",
        "patient": {"id": "0000012345", "issuer": "HOSP", "birth_date": "1970-01-01", "sex": "M",
                    "name": {"ideographic": "山田^太郎", "phonetic": "ヤマダ^タロウ"}},
        "requested_procedures": [{
            "id": "RP001", "placer_order_number": "P1", "placer_order_issuer": "HIS", "filler_order_number": "F1",
            "filler_order_issuer": "RIS", "study_instance_uid": UID, "description": "胸部CT",
            "code": {"value": "CTCHEST", "scheme": "99LOCAL", "meaning": "胸部CT"}, "reason": "咳嗽",
            "comments": "造影剤アレルギー",
            "steps": [{
                "sps_id": "SPS001", "modality": "CT", "station_ae_titles": ["CT1"], "scheduled_start": start.isoformat(),
                "description": "胸部単純CT",
                "protocol_codes": [{"value": "6000000200000000", "scheme": "JJ1017-16M", "meaning": "胸部単純CT"}],
            }],
        }],
    }  # fmt: skip


def _identifier(value: str, system: str, code: str) -> dict[str, Any]:
    return {"type": {"coding": [{"system": V2_0203, "code": code}]}, "system": system, "value": value}


def _name(family: str, given: str, representation: str) -> dict[str, Any]:
    extension = [{"url": REPRESENTATION, "valueCode": representation}]
    return {"extension": extension, "use": "official", "text": f"{family} {given}", "family": family, "given": [given]}


def patient() -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "meta": {"profile": ["http://jpfhir.jp/fhir/core/StructureDefinition/JP_Patient"]},
        "identifier": [{"system": HOSP, "value": "0000012345"}],
        "active": True,
        "name": [_name("山田", "太郎", "IDE"), _name("ヤマダ", "タロウ", "SYL")],
        "gender": "male",
        "birthDate": "1970-01-01",
    }


def service_request() -> dict[str, Any]:
    return {
        "resourceType": "ServiceRequest",
        "meta": {"profile": ["http://jpfhir.jp/fhir/core/StructureDefinition/JP_ServiceRequest_Common"]},
        "contained": [
            {"resourceType": "Practitioner", "id": "asks", "name": [_name("医師", "一郎", "IDE")]},
            {"resourceType": "Encounter", "id": "visit", "identifier": [{"system": HOSP, "value": "V0001"}],
             "location": [{"location": {"display": "01"}}]},
        ],
        "identifier": [
            _identifier("P1", HIS, "PLAC"), _identifier("F1", RIS, "FILL"), _identifier("ACC001", RIS, "ACSN"),
            {"system": "urn:dicom:uid", "value": f"urn:oid:{UID}"},
            {"type": {"text": "Requested Procedure ID"}, "value": "RP001"},
        ],
        "requisition": {"system": HIS, "value": "P1"},
        "status": "active",
        "intent": "order",
        "priority": "stat",
        "category": [{"coding": [{"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "CT"}]}],
        "code": {"coding": [{"system": CODE_SYSTEM, "code": "CTCHEST", "display": "胸部CT"}], "text": "胸部CT"},
        "orderDetail": [{"coding": [{"system": "urn:dicom:scheme:JJ1017-16M", "code": "6000000200000000",
                                     "display": "胸部単純CT"}]}],
        "subject": {"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000001"},
        "encounter": {"reference": "#visit"},
        "requester": {"reference": "#asks"},
        "reasonCode": [{"text": "咳嗽"}],
        "note": [{"text": "造影剤アレルギー"}],
    }  # fmt: skip


def appointment(start: dt.datetime = START) -> dict[str, Any]:
    return {
        "resourceType": "Appointment",
        "status": "booked",
        "basedOn": [{"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000002"}],
        "start": start.astimezone(dt.UTC).isoformat(),
        "end": (start + dt.timedelta(minutes=15)).isoformat(),
        "participant": [
            {"actor": {"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000001"}, "status": "accepted"},
            {"actor": {"type": "Device", "identifier": {"system": "urn:dicom:ae-title", "value": "CT1"}},
             "status": "accepted"},
        ],
    }  # fmt: skip


def task() -> dict[str, Any]:
    return {
        "resourceType": "Task",
        "status": "requested",
        "intent": "order",
        "basedOn": [{"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000002"}],
        "identifier": [{"type": {"text": "Scheduled Procedure Step ID"}, "value": "SPS001"}],
    }


def bundle(*resources: dict[str, Any]) -> dict[str, Any]:
    """A transaction; the n-th entry's fullUrl ends in n."""
    return {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            {
                "fullUrl": f"urn:uuid:0b6c6f5e-0000-4000-8000-{n:012}",
                "resource": one,
                "request": {"method": "POST", "url": one["resourceType"]},
            }
            for n, one in enumerate(resources, start=1)
        ],
    }


def fhir(start: dt.datetime = START) -> dict[str, Any]:
    made = bundle(patient(), service_request(), appointment(start), task())
    made["entry"][0]["request"]["ifNoneExist"] = f"identifier={HOSP}|0000012345"
    return made
