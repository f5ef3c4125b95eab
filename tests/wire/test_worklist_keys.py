"""Everything that an order can carry comes back to the device that asks for it (conformance.md 1.2)."""

import datetime as dt

import httpx
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset

from broker import clock, db
from broker.model.orders import ScheduledStep
from broker.mwl import items, keys, orders
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge.mapping.targets import TARGETS
from broker.sim.ris import code_of
from tests import roads
from tests.wire.test_worklist import find
from tests.world import order, today

CODE = {"CodeValue": "C1", "CodingSchemeDesignator": "99LOCAL", "CodeMeaning": "意味"}
ISSUER = {"LocalNamespaceEntityID": "NS", "UniversalEntityID": "1.2.392.1", "UniversalEntityIDType": "ISO"}
SAMPLES = {
    "SH": "S 1", "LO": "文 1", "LT": "一\r\n二", "ST": "一\r\n二", "UC": "U 1", "PN": "A^B=甲^乙=ア^イ", "CS": "R", "US": 2, "DS": "1.5",
    "DA": "20350101",
}  # fmt: skip


def everything() -> Dataset:
    """All keys that are supported, none with a value: sequences as a whole."""
    asked, step = Dataset(), Dataset()
    for tags, made in ((keys.RETURNED, asked), (keys.STEP_RETURNED, step)):
        for tag in tags - {keys.matching.STEP_SEQUENCE, 0x00080005}:
            made.add_new(tag, dictionary_VR(tag), [] if dictionary_VR(tag) == "SQ" else None)
    asked.ScheduledProcedureStepSequence = [step]
    return asked


def plain(item: Dataset) -> dict:
    """Keyword -> value, sequences as lists of the same; only what has a value."""
    return {
        element.keyword: [plain(one) for one in element.value] if element.VR == "SQ" else element.value
        for element in item
        if element.VM and (element.VR != "SQ" or element.value)
    }


def the_item(broker) -> tuple[dict, dict]:
    """The only one, and its step."""
    statuses, (item,), _ = find(broker, everything())
    assert statuses == [0xFF00, 0x0000]
    assert {element.tag for element in item} - {0x00080005} == {element.tag for element in everything()} - {0x00080005}
    found = plain(item)
    (step,) = found.pop("ScheduledProcedureStepSequence")
    return found, step


def sample(keyword: str):
    vr = dictionary_VR(keyword)
    if vr == "SQ":
        return [CODE if keyword.endswith("CodeSequence") else ISSUER]
    return SAMPLES[vr]


def test_every_attribute_that_a_command_can_have_is_shown(broker):
    targets = [target for target in TARGETS.values() if target.attribute]
    of_item = {one.name: sample(one.name) for one in targets if one.level != "step"}
    of_step = {one.name: sample(one.name) for one in targets if one.level == "step"}
    person = PersonCommand((Identifier("0000012345", "HOSP"),), "A^B", "19700101", "M")
    step = StepCommand("SPS1", "CT", ("CT1",), f"{today():%Y%m%d}", "093000", "胸部", attributes=of_step)
    command = OrderCommand(
        "NW", "ACC1", "RIS", "STAT", person,
        (ProcedureCommand("RP1", "1.2.3", "P1", "HIS", "F1", "RIS", "CT", "C1", "99LOCAL", "胸", steps=(step,)),),
        attributes=of_item,
    )  # fmt: skip
    db.run(orders.apply, command, now=clock.now(), actor="test", site=broker.settings.site)
    found, found_step = the_item(broker)
    del of_item["AdmittingDiagnosesDescription"]  # what we do not support: MWL-22
    assert {name: of_item[name] for name in of_item if found.get(name) != of_item[name]} == {}
    assert {name: of_step[name] for name in of_step if found_step.get(name) != of_step[name]} == {}


def test_the_label_of_a_worklist_is_shown_and_matched(broker):
    def label(session) -> None:
        step = session.get(ScheduledStep, broker.rows(ScheduledStep)[0].pk)
        step.label = "救急"
        items.rebuild(session, step.order_pk, now=clock.now())

    broker.place(order())
    assert "WorklistLabel" not in the_item(broker)[0]
    db.run(label)
    assert the_item(broker)[0]["WorklistLabel"] == "救急"
    for key, count in (("救急", 1), ("救*", 1), ("外来", 0)):
        asked = Dataset()
        asked.SpecificCharacterSet, asked.WorklistLabel = "ISO_IR 192", key
        assert len(find(broker, asked)[1]) == count, key


COMMON = {
    "SpecificCharacterSet": ["", "ISO 2022 IR 87"], "TimezoneOffsetFromUTC": "+0900",
    "PatientName": "YAMADA^TARO=山田^太郎=ヤマダ^タロウ", "PatientID": "0000012345", "IssuerOfPatientID": "HOSP",
    "PatientBirthDate": "19700101", "PatientSex": "M", "AccessionNumber": "ACC001",
    "IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": "RIS"}], "RequestedProcedurePriority": "STAT",
    "RequestingPhysician": "=医師^一郎", "AdmissionID": "V0001",
    "IssuerOfAdmissionIDSequence": [{"LocalNamespaceEntityID": "HOSP"}], "CurrentPatientLocation": "01",
    "RequestedProcedureID": "RP001", "StudyInstanceUID": roads.UID, "RequestedProcedureDescription": "胸部CT",
    "RequestedProcedureCodeSequence": [{"CodeValue": "CTCHEST", "CodingSchemeDesignator": "99LOCAL", "CodeMeaning": "胸部CT"}],
    "ReasonForTheRequestedProcedure": "咳嗽", "RequestedProcedureComments": "造影剤アレルギー",
    "PlacerOrderNumberImagingServiceRequest": "P1", "FillerOrderNumberImagingServiceRequest": "F1",
    "OrderPlacerIdentifierSequence": [{"LocalNamespaceEntityID": "HIS"}],
    "OrderFillerIdentifierSequence": [{"LocalNamespaceEntityID": "RIS"}], "ReferringPhysicianName": "=紹介^花子",
    "PatientTransportArrangements": "車椅子", "RequestingService": "内科",
}  # fmt: skip
COMMON_STEP = {
    "ScheduledStationAETitle": "CT1", "ScheduledProcedureStepStartTime": "093000", "Modality": "CT",
    "ScheduledProcedureStepID": "SPS001", "ScheduledProcedureStepDescription": "胸部単純CT", "ScheduledStationName": "装置1",
    "ScheduledProcedureStepLocation": "CT室1", "ScheduledPerformingPhysicianName": "=技師^次郎",
    "ScheduledProcedureStepStatus": "SCHEDULED",
    "ScheduledProtocolCodeSequence": [
        {"CodeValue": "6000000200000000", "CodingSchemeDesignator": "JJ1017-16M", "CodeMeaning": "胸部単純CT"}
    ],
}  # fmt: skip


HEIGHT = "OBX|1|NM|8302-2^Body height^LN||172|cm|||||F"
WEIGHT = "OBX|2|NM|29463-7^Body weight^LN||65.5|kg|||||F"


def at_half_past_nine() -> dt.datetime:
    return today(9, 30)


def test_an_order_over_rest_comes_back_whole(broker):
    body = roads.rest(at_half_past_nine()) | {"requesting_service": "内科"}
    body["requested_procedures"][0] |= {"transport": "車椅子", "referring_physician": "紹介^花子"}
    body["requested_procedures"][0]["steps"][0] |= {
        "station_name": "装置1", "location": "CT室1", "performing_physician": "技師^次郎",
    }  # fmt: skip
    answer = httpx.post(
        f"http://127.0.0.1:{broker.ports['http']}/api/v1/orders", json=body,
        headers={"Authorization": f"Bearer {broker.tokens['ris']}"},
    )  # fmt: skip
    assert answer.status_code == 201, answer.text
    found, step = the_item(broker)
    assert found == COMMON
    assert step == COMMON_STEP | {"ScheduledProcedureStepStartDate": f"{today():%Y%m%d}"}


def test_an_order_over_hl7_comes_back_whole(broker):
    text = roads.omi(start=at_half_past_nine()).decode()
    for old, new in {
        "||0000012345^^^HOSP^PI||": "||0000012345^^^HOSP&1.2.392.1&ISO^PI~77^^^NHI^SS||",
        "|O|01||||||": "|O|01|||||R9^紹介^花子^^^^^^^L^^^^^I|",
        "|||||||||V0001^^^HOSP": "|||||B6|秘|||V0001^^^HOSP\rAL1|1||^ヨード",
        "^^^^^^^L^^^^^I\rTQ1": "^^^^^^^L^^^^^I|||||内科\rTQ1",
        "CTCHEST^胸部CT^99LOCAL" + "|" * 27 + "^咳嗽|||": "CTCHEST^胸部CT^99LOCAL||||||||^意識清明|^感染||||"
        + "|" * 13
        + "^車椅子|^咳嗽|||T&技師&次郎",
        "\rIPC|": f"\r{HEIGHT}\r{WEIGHT}\rIPC|",
        "|||CT1\r": "|装置1|CT室1|CT1\r",
    }.items():
        assert old in text, old
        text = text.replace(old, new, 1)
    answer = broker.ris().send(text.encode())
    assert code_of(answer) == "AA", answer
    found, step = the_item(broker)
    more = {
        "IssuerOfPatientIDQualifiersSequence": [{"UniversalEntityID": "1.2.392.1", "UniversalEntityIDType": "ISO"}],
        "OtherPatientIDsSequence": [{"PatientID": "77", "IssuerOfPatientID": "NHI", "TypeOfPatientID": "TEXT"}],
        "PregnancyStatus": 3, "ConfidentialityConstraintOnPatientDataDescription": "秘", "PatientState": "意識清明",
        "MedicalAlerts": "感染", "Allergies": "ヨード", "PatientSize": 1.72, "PatientWeight": 65.5,
    }  # fmt: skip
    assert found == COMMON | more
    assert step == COMMON_STEP | {"ScheduledProcedureStepStartDate": f"{today():%Y%m%d}"}


def test_no_key_that_we_name_is_unknown_to_the_dictionary():
    assert all(keyword_for_tag(tag) for tag in keys.RETURNED | keys.STEP_RETURNED | keys.ITEM_RETURNED)
