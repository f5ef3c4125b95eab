"""Whatever road an order comes by, a scanner sees the same worklist item. A new road is a new row of ROADS."""

import json
from collections.abc import Callable

import httpx
import pytest
from pydicom.dataset import Dataset

from broker.model.messages import Message
from broker.model.orders import ScheduledStep
from broker.ris_bridge.http_road import Request
from broker.ris_bridge.rest_road import ORDERS
from broker.sim.ris import code_of
from tests import roads
from tests.house import House


def hl7(broker: House, message: bytes) -> None:
    answer = broker.ris().send(message)
    assert code_of(answer) == "AA", answer


def http(broker: House, path: str, body: dict) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{broker.ports['http']}{path}", json=body, timeout=40,
        headers={"Authorization": f"Bearer {broker.tokens['ris']}"},
    )  # fmt: skip
    assert answer.status_code in (200, 201), answer.text


ROADS: dict[str, Callable[[House], None]] = {
    "OMI": lambda broker: hl7(broker, roads.omi()),
    "ORM": lambda broker: hl7(broker, roads.orm()),
    "REST": lambda broker: http(broker, ORDERS, roads.rest()),
    "FHIR": lambda broker: http(broker, "/fhir", roads.fhir()),
}
CODE = {"CodeValue": "CTCHEST", "CodingSchemeDesignator": "99LOCAL", "CodeMeaning": "胸部CT"}
# What a scanner sees, whole.
SEEN = {
    "AccessionNumber": "ACC001",
    "IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": "RIS"}],
    "PatientName": "YAMADA^TARO=山田^太郎=ヤマダ^タロウ",
    "PatientID": "0000012345",
    "IssuerOfPatientID": "HOSP",
    "PatientBirthDate": "19700101",
    "PatientSex": "M",
    "StudyInstanceUID": roads.UID,
    "RequestingPhysician": "=医師^一郎",
    "RequestedProcedureDescription": "胸部CT",
    "RequestedProcedureCodeSequence": [CODE],
    "AdmissionID": "V0001",
    "IssuerOfAdmissionIDSequence": [{"LocalNamespaceEntityID": "HOSP"}],
    "CurrentPatientLocation": "01",
    "OrderPlacerIdentifierSequence": [{"LocalNamespaceEntityID": "HIS"}],
    "OrderFillerIdentifierSequence": [{"LocalNamespaceEntityID": "RIS"}],
    "RequestedProcedureID": "RP001",
    "ReasonForTheRequestedProcedure": "咳嗽",
    "RequestedProcedurePriority": "STAT",
    "RequestedProcedureComments": "造影剤アレルギー",
    "PlacerOrderNumberImagingServiceRequest": "P1",
    "FillerOrderNumberImagingServiceRequest": "F1",
    "ScheduledProcedureStepSequence": [
        {
            "Modality": "CT",
            "ScheduledStationAETitle": "CT1",
            "ScheduledProcedureStepStartDate": "20251201",
            "ScheduledProcedureStepStartTime": "093000",
            "ScheduledProcedureStepDescription": "胸部単純CT",
            "ScheduledProtocolCodeSequence": [
                {
                    "CodeValue": "6000000200000000",
                    "CodingSchemeDesignator": "JJ1017-16M",
                    "CodeMeaning": "胸部単純CT",
                }
            ],
            "ScheduledProcedureStepID": "SPS001",
            "ScheduledProcedureStepStatus": "SCHEDULED",
        }
    ],
}


def shown(ds: Dataset) -> dict:
    """Every attribute that has a value, as text."""
    return {
        element.keyword: [shown(one) for one in element.value] if element.VR == "SQ" else str(element.value)
        for element in ds
        if not element.is_empty and element.keyword != "SpecificCharacterSet"
    }


# What none of the roads says here: nothing may come of nothing.
UNSAID = (
    "OtherPatientIDsSequence", "IssuerOfPatientIDQualifiersSequence", "PatientTransportArrangements", "PatientState",
    "MedicalAlerts", "RequestingService", "ReferringPhysicianName", "ReasonForRequestedProcedureCodeSequence",
    "ImagingServiceRequestComments", "ConfidentialityConstraintOnPatientDataDescription",
)  # fmt: skip
UNSAID_OF_STEPS = ("ScheduledStationName", "ScheduledProcedureStepLocation", "ScheduledPerformingPhysicianName")


def everything(broker: House) -> list[dict]:
    """All items, with every attribute that they may have."""
    scanner = broker.modality("CT1")
    query = scanner.query()
    step = query.ScheduledProcedureStepSequence[0]
    of_steps = (*SEEN["ScheduledProcedureStepSequence"][0], *UNSAID_OF_STEPS)
    for ds, keywords in ((query, (*SEEN, *UNSAID)), (step, of_steps)):
        for keyword in keywords:
            if keyword not in ds:
                setattr(ds, keyword, [] if keyword.endswith("Sequence") else None)
    return [shown(one) for one in scanner.worklist(query)]


@pytest.fixture
def site(broker, monkeypatch):
    monkeypatch.setattr(broker.settings.site, "accession_issuer", "RIS")
    monkeypatch.setattr(broker.settings.fhir, "systems", roads.SYSTEMS)
    return broker


@pytest.mark.parametrize("road", ROADS)
def test_a_scanner_sees_the_same_item(site, road):
    """HL7-02: the ORM with every field of conformance.md 5.4."""
    ROADS[road](site)
    (item,) = everything(site)
    assert item == SEEN


def test_the_same_order_by_each_road_in_turn_is_one_order_that_stays_as_it_is(site):
    for place in ROADS.values():
        place(site)
    (item,) = everything(site)
    assert item == SEEN
    assert [step.version for step in site.rows(ScheduledStep)] == [1]


def test_the_journal_has_each_road_byte_for_byte(site):
    for place in ROADS.values():
        place(site)
    rows = site.rows(Message)
    assert [row.protocol for row in rows] == ["hl7", "hl7", "rest", "fhir"]
    assert [row.state for row in rows] == ["APPLIED"] * 4
    assert rows[0].raw == roads.omi()
    sent = httpx.Request("POST", "http://x", json=roads.rest()).content
    assert rows[2].raw == Request("POST", ORDERS, sent).raw()
    assert json.loads(rows[3].raw.partition(b"\r\n\r\n")[2]) == roads.fhir()
