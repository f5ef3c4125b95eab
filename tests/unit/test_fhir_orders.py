"""What a FHIR transaction asks for: the same as HL7's messages, and nothing that it does not say."""

import copy
import dataclasses
from typing import Any

import pytest

from broker.config import Settings
from broker.errors import BrokerError, DuplicateKey, InvalidValue, MissingField, UnknownKey, Unreadable
from broker.mwl.commands import Identifier, OrderCommand, PatientCommand, VisitCommand
from broker.ris_bridge.budget import budget
from broker.ris_bridge.fhir import elements, resources, road, values
from broker.ris_bridge.fhir.orders_in import Procedure, Reader
from broker.ris_bridge.fhir.plan import KNOWN, NEW, Plan, plan
from broker.ris_bridge.hl7 import message, orders_in
from broker.ris_bridge.http_road import Known, Request
from tests import roads

SETTINGS = Settings(site={"accession_issuer": "RIS", "patient_id_issuer": "HOSP"}, fhir={"systems": roads.SYSTEMS})
YAMADA, SATO = Identifier("0000012345", "HOSP"), Identifier("2", "HOSP")
ORDER = Known("ACC001", "RIS", YAMADA)


class Server:
    """Nothing is here but what it was given, and where there is an order, Patient/1 and Patient/2."""

    def __init__(self, *procedures: Procedure) -> None:
        self.known = {one.key: one for one in procedures}

    def patient(self, key: str) -> Identifier | None:
        return {"1": YAMADA, "2": SATO}.get(key) if self.known else None

    def owner(self, identifier: Identifier) -> str | None:
        return {YAMADA: "1", SATO: "2"}.get(identifier) if self.known else None

    def procedure(self, key: str) -> Procedure | None:
        return self.known.get(key)

    def procedures(self, value: str, system: str | None) -> list[Procedure]:
        return list(self.known.values())


ONE = Server(Procedure("17", ORDER, "RP001", roads.UID, ("SPS001",)))
TWO = Server(Procedure("17", ORDER, "RP001", roads.UID, ("SPS001", "SPS002")))


def planned(bundle: dict, server: Server | None = None, settings: Settings = SETTINGS) -> Plan:
    systems = values.table(settings.fhir.systems)
    return plan(Reader(road._all(bundle, settings, lambda: None), settings.site, systems, server or Server()))


def order(*resources: dict, server: Server | None = None) -> OrderCommand:
    (command,) = planned(roads.bundle(*resources), server).commands
    assert isinstance(command, OrderCommand)
    return command


def request(**changes: Any) -> dict:
    """The golden ServiceRequest; a value of ... takes the element away."""
    made = {**roads.service_request(), **changes}
    return {name: value for name, value in made.items() if value is not ...}


def put(resource: dict, server: Server = ONE) -> Plan:
    found = Request("PUT", "/fhir/ServiceRequest/17")
    items = road._one({**resource, "id": "17"}, found, "17")
    return plan(Reader(items, SETTINGS.site, values.table(SETTINGS.fhir.systems), server))


def said(attributes: dict) -> dict:
    return {name: value for name, value in attributes.items() if value is not None}


def test_the_golden_bundle_is_the_command_that_the_message_makes():
    msg = message.parse(roads.omi(), SETTINGS.limits, "ASCII")
    (by_hl7,) = orders_in.to_commands(msg, SETTINGS.site)
    (by_fhir,) = planned(roads.fhir()).commands
    assert by_fhir.patient == by_hl7.patient
    assert said(by_fhir.attributes) == said(by_hl7.attributes)
    mine, theirs = by_fhir.procedures[0], by_hl7.procedures[0]
    assert said(mine.attributes) == said(theirs.attributes)
    assert said(mine.steps[0].attributes) == said(theirs.steps[0].attributes)
    for one, other in ((by_fhir, by_hl7), (mine, theirs), (mine.steps[0], theirs.steps[0])):
        for field in dataclasses.fields(one):
            if field.name not in ("attributes", "procedures", "steps", "place", "at", "status", "policies"):
                assert getattr(one, field.name) == getattr(other, field.name), field.name


# Patients


@pytest.mark.parametrize(
    ("names", "pn"),
    [
        ([{"text": "山田 太郎"}], "=山田^太郎"),
        ([{"text": "山田太郎"}], "=山田太郎"),
        ([{"text": "Anna Smith"}], "Anna Smith"),
        ([{"family": "SMITH", "given": ["ANNA", "B", "C"], "prefix": ["DR"], "suffix": ["JR"]}], "SMITH^ANNA^B C^DR^JR"),
        ([{"use": "old", "family": "OLD"}, {"family": "NEW", "given": ["A"]}], "NEW^A"),
        ([roads._name("ﾔﾏﾀﾞ", "ﾀﾛｳ", "SYL")], "YAMADA^TARO==ヤマダ^タロウ"),
        ([roads._name("YAMADA", "TARO", "ABC"), roads._name("山田", "太郎", "IDE")], "YAMADA^TARO=山田^太郎"),
    ],
)  # fmt: skip
def test_names_have_three_groups_by_their_representation_or_script(names, pn):
    assert order({**roads.patient(), "name": names}, request()).patient.name == pn


@pytest.mark.parametrize(
    ("identifier", "known"),
    [
        ({"system": roads.HOSP, "value": "1"}, Identifier("1", "HOSP")),
        ({"system": "urn:oid:1.2.3", "value": "1"}, Identifier("1", "1.2.3")),
        ({"system": "http://his.example/id", "value": "1"}, Identifier("1", "http://his.example/id")),
        ({"value": "0001"}, Identifier("0001", "HOSP")),
        ({"value": "1", "assigner": {"display": "OTHER"}}, Identifier("1", "OTHER")),
        (roads._identifier("1", roads.HOSP, "MR"), Identifier("1", "HOSP", "MR")),
    ],
)
def test_a_system_is_an_issuer_by_the_sites_table_else_itself(identifier, known):
    assert order({**roads.patient(), "identifier": [identifier]}, request()).patient.identifiers == (known,)


def test_a_number_that_names_no_person_is_only_shown():
    person = {**roads.patient(), "identifier": [roads._identifier("9", roads.HOSP, "AN"), {"value": "1"}]}
    made = order(person, request()).patient
    assert made.identifiers == (Identifier("1", "HOSP"),)
    assert [one["PatientID"] for one in made.attributes["OtherPatientIDsSequence"]] == ["9"]


@pytest.mark.parametrize(("text", "date"), [("1970-01-01", "19700101"), ("1970-01", None), ("1970", None)])
def test_a_year_alone_is_no_birth_date(text, date):
    assert order({**roads.patient(), "birthDate": text}, request()).patient.birth_date == date


def test_a_request_for_somebody_who_is_known_needs_no_patient_with_it():
    for subject in ({"reference": "Patient/1"}, {"identifier": {"system": roads.HOSP, "value": "0000012345"}}):
        assert order(request(subject=subject), server=ONE).patient.identifiers == (YAMADA,)


@pytest.mark.parametrize(
    "subject",
    [
        {"reference": "Patient/2"},
        {"reference": "urn:uuid:nobody"},
        {"identifier": {"value": "7"}},
        {"reference": "Group/1"},
    ],
)
def test_a_request_for_nobody_known_is_refused(subject):
    with pytest.raises(UnknownKey) as refused:
        order(request(subject=subject))
    assert refused.value.place == "Bundle.entry[0].resource.subject"


def test_a_patient_alone_or_put_is_a_change_of_the_patient():
    (update,) = planned(roads.bundle(roads.patient())).commands
    assert isinstance(update, PatientCommand)
    bundle = roads.fhir()
    bundle["entry"][0]["request"] = {"method": "PUT", "url": f"Patient?identifier={roads.HOSP}|0000012345"}
    assert [type(one) for one in planned(bundle).commands] == [PatientCommand, OrderCommand]


HIS_YAMADA = {"system": roads.HOSP, "value": "0000012345"}
HIS_SATO = {"system": roads.HOSP, "value": "2"}
A_NEW_ONE = {"system": roads.HOSP, "value": "3"}


def put_patient(key: str, *identifiers: dict, url: str = "Patient/1", server: Server = ONE) -> Plan:
    bundle = roads.bundle({**roads.patient(), "id": key, "identifier": list(identifiers)})
    bundle["entry"][0]["request"] = {"method": "PUT", "url": url}
    return planned(bundle, server)


def test_a_patient_is_put_under_the_key_of_the_record_that_has_the_identifiers():
    (update,) = put_patient("1", A_NEW_ONE, HIS_YAMADA).commands
    assert [one.value for one in update.patient.identifiers] == ["0000012345", "3"]


@pytest.mark.parametrize(
    ("key", "identifiers", "place"),
    [("2", [HIS_SATO], "id"), ("2", [HIS_YAMADA], "id"), ("1", [HIS_SATO], "identifier"),
     ("1", [HIS_YAMADA, HIS_SATO], "identifier"), ("1", [A_NEW_ONE], "identifier")],
)  # fmt: skip
def test_a_patient_put_under_the_key_of_another_changes_nobody(key, identifiers, place):
    with pytest.raises(BrokerError) as refused:
        put_patient(key, *identifiers)
    assert refused.value.place == f"Bundle.entry[0].resource.{place}"


@pytest.mark.parametrize("token", [f"{roads.HOSP}|2", "2"])
def test_a_condition_on_a_patient_names_whose_record_it_is(token):
    (update,) = put_patient("x", A_NEW_ONE, HIS_SATO, url=f"Patient?identifier={token}").commands
    assert update.patient.identifiers[0] == SATO


@pytest.mark.parametrize("token", [f"{roads.HOSP}|9", "9", f"{roads.HIS}|2", "|2"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_a_condition_on_a_patient_is_about_the_resource_itself(method, token):
    bundle = roads.bundle({**roads.patient(), "identifier": [HIS_SATO, {**HIS_YAMADA, "value": "9", "use": "old"}]})
    asked = {"url": "Patient", "ifNoneExist": f"identifier={token}"}
    bundle["entry"][0]["request"] = {"method": method, **(
        {"url": f"Patient?identifier={token}"} if method == "PUT" else asked)}  # fmt: skip
    with pytest.raises(InvalidValue) as refused:
        planned(bundle, ONE)
    assert refused.value.place == "Bundle.entry[0].resource"


@pytest.mark.parametrize(
    "subject",
    [{"reference": "Patient/1", "identifier": HIS_SATO}, {"reference": "Patient/1", "identifier": A_NEW_ONE},
     {"reference": "Patient/2", "identifier": HIS_YAMADA},
     {**roads.service_request()["subject"], "identifier": HIS_SATO}],
)  # fmt: skip
def test_a_subject_that_names_two_patients_is_refused(subject):
    with pytest.raises(DuplicateKey) as refused:
        order(roads.patient(), request(subject=subject), server=ONE)
    assert refused.value.place == "Bundle.entry[1].resource.subject"


@pytest.mark.parametrize(
    "reference", ["Patient/1", "urn:uuid:0b6c6f5e-0000-4000-8000-000000000001", "https://ehr.example/fhir/Patient/2"]
)
def test_a_subject_may_be_named_twice(reference):
    """Of another server's key nobody here knows whose it is: the identifier says it."""
    subject = {"reference": reference, "identifier": HIS_YAMADA}
    *_, command = planned(roads.bundle(roads.patient(), request(subject=subject)), ONE).commands
    assert command.patient.identifiers == (YAMADA,)


def test_a_group_is_no_patient_whatever_identifier_it_has():
    for subject in ({"reference": "Group/1", "identifier": HIS_YAMADA}, {"type": "Group", "identifier": HIS_YAMADA}):
        with pytest.raises(UnknownKey):
            order(request(subject=subject), server=ONE)


# Orders


def test_a_request_without_appointment_and_task_says_itself_when_and_where():
    alone = request(
        occurrenceDateTime="2025-12-01T00:30:00Z", locationReference=[{"display": "CT室1"}],
        performer=[{"type": "Device", "identifier": {"system": "urn:dicom:ae-title", "value": "CT1"}, "display": "CT-A"}],
    )  # fmt: skip
    (step,) = order(roads.patient(), alone).procedures[0].steps
    assert (step.start_date, step.start_time, step.station_ae_titles) == ("20251201", "093000", ("CT1",))
    assert step.attributes["ScheduledStationName"] == ["CT-A"]
    assert step.attributes["ScheduledProcedureStepLocation"] == "CT室1"


def test_an_order_without_a_time_is_an_order():
    (step,) = order(roads.patient(), request()).procedures[0].steps
    assert (step.start_date, step.station_ae_titles) == (None, None)


def test_each_task_is_a_step_and_its_appointment_its_time():
    second = copy.deepcopy(roads.task())
    second["identifier"][0]["value"] = "SPS002"
    second["description"] = "造影"
    slots = [roads.appointment(), roads.appointment(roads.START.replace(hour=11))]
    for slot, number in zip(slots, ("SPS002", "SPS001"), strict=True):
        slot["identifier"] = [{"type": {"text": "Scheduled Procedure Step ID"}, "value": number}]
    steps = order(roads.patient(), request(), roads.task(), second, *slots).procedures[0].steps
    assert [(one.sps_id, one.start_time, one.description) for one in steps] == [
        ("SPS001", "113000", "胸部単純CT"), ("SPS002", "093000", "造影"),
    ]  # fmt: skip


def test_requests_of_one_accession_number_or_requisition_are_one_order():
    second = request(identifier=[roads._identifier("P2", roads.HIS, "PLAC")], priority="routine")
    (command,) = planned(roads.bundle(roads.patient(), request(), second)).commands
    assert [one.placer_number for one in command.procedures] == ["P1", "P2"]
    assert (command.accession_number, command.priority) == ("ACC001", "STAT")
    apart = request(identifier=second["identifier"], requisition=...)
    assert len(planned(roads.bundle(roads.patient(), request(), apart)).commands) == 2


def test_requests_that_say_two_things_of_one_procedure_are_refused():
    same = request()
    assert len(planned(roads.bundle(roads.patient(), request(), same)).commands) == 1
    with pytest.raises(InvalidValue) as refused:
        planned(roads.bundle(roads.patient(), request(), request(code={"text": "頭部MRI"})))
    assert refused.value.place == "Bundle.entry[2].resource.identifier"
    of_second = task(10, basedOn=[{"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000003"}])
    with pytest.raises(InvalidValue) as refused:
        planned(roads.bundle(roads.patient(), request(), same, task(), of_second))
    assert refused.value.place == "Bundle.entry[4].resource.identifier"


SG2 = {"identifier": [{"value": "SG2"}], "status": "accepted"}


def task(hour: int = 9, **changes: Any) -> dict:
    start = roads.START.replace(hour=hour).isoformat()
    return {**roads.task(), **SG2, "restriction": {"period": {"start": start}}, **changes}


def slot(hour: int = 9, **changes: Any) -> dict:
    own = [{"type": {"text": "Scheduled Procedure Step ID"}, "value": "SG2"}]
    return {**roads.appointment(roads.START.replace(hour=hour)), "identifier": own, **changes}


@pytest.mark.parametrize("kind", [task, slot])
def test_two_tasks_or_appointments_that_say_two_things_of_one_step_are_refused_at_the_second(kind):
    (step,) = order(roads.patient(), request(), kind(), kind()).procedures[0].steps
    assert (step.sps_id, step.start_time) == ("SG2", "093000")
    with pytest.raises(InvalidValue) as refused:
        order(roads.patient(), request(), kind(), kind(10))
    assert refused.value.place == "Bundle.entry[3].resource.identifier"


@pytest.mark.parametrize("kind", [task, slot])
@pytest.mark.parametrize("other", [{"status": "cancelled"}, {"start": "2025-12-01T10:30:00+09:00", "restriction": {
    "period": {"start": "2025-12-01T10:30:00+09:00"}}}])  # fmt: skip
@pytest.mark.parametrize("server", [Server(Procedure("17", ORDER, "RP001", roads.UID, ("SG2",))), TWO])
def test_also_of_a_step_that_is_known(kind, other, server):
    """Whether it is named by its ID, or is its request's only one."""
    above = {"basedOn": [{"reference": "ServiceRequest/17"}], "participant": []}
    first, second = kind(**above), {**kind(**above), **other}
    if server is not TWO:
        second["identifier"] = []
    assert len(planned(roads.bundle(first, first), server).commands) == 2
    with pytest.raises(InvalidValue) as refused:
        planned(roads.bundle(first, second), server)
    name = "identifier" if server is TWO else "basedOn"
    assert refused.value.place == f"Bundle.entry[1].resource.{name}"


@pytest.mark.parametrize("kind", [task, slot])
def test_also_beside_the_change_of_their_request(kind):
    resource = request(subject={"reference": "Patient/1"}, id="17")
    above = {"basedOn": [{"reference": "ServiceRequest/17"}], "participant": []}
    by_number = {"basedOn": [{"identifier": {"value": "P-OF-THE-SERVER"}}], "participant": []}
    for further in (above, by_number):
        bundle = roads.bundle(resource, kind(**above), kind(10, **further))
        bundle["entry"][0]["request"] = {"method": "PUT", "url": "ServiceRequest/17"}
        with pytest.raises(InvalidValue) as refused:
            planned(bundle, TWO)
        assert refused.value.place == "Bundle.entry[2].resource.identifier"


def test_what_one_leaves_out_the_other_says_and_the_stations_are_those_of_both():
    owners = [
        {"type": "Device", "identifier": {"system": "urn:dicom:ae-title", "value": one}} for one in ("CT1", "CT2")
    ]
    first, second = task(owner=owners[0], description="造影"), task(owner=owners[1], restriction={})
    (step,) = order(roads.patient(), request(), first, second).procedures[0].steps
    assert (step.station_ae_titles, step.start_time, step.description) == (("CT1", "CT2"), "093000", "造影")


def test_an_appointment_still_moves_its_task():
    (step,) = order(roads.patient(), request(), task(9), task(9), slot(11)).procedures[0].steps
    assert step.start_time == "113000"


def test_two_appointments_of_a_task_without_an_id_are_of_one_step():
    bare = task(identifier=[])
    above = {
        "identifier": [],
        "supportingInformation": [{"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000003"}],
    }
    (step,) = order(roads.patient(), request(), bare, slot(10, **above), slot(10, **above)).procedures[0].steps
    assert step.start_time == "103000"
    with pytest.raises(InvalidValue):
        order(roads.patient(), request(), bare, slot(10, **above), slot(11, **above))
    two = [slot(10, supportingInformation=above["supportingInformation"]) for _ in range(2)]
    two[1]["identifier"] = [{**two[1]["identifier"][0], "value": "SG3"}]
    with pytest.raises(InvalidValue):
        order(roads.patient(), request(), bare, *two)


def test_the_same_step_id_in_two_orders_is_two_steps():
    second = request(identifier=[roads._identifier("P2", roads.HIS, "PLAC")], requisition=...)
    apart = task(10, basedOn=[{"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000003"}])
    assert len(planned(roads.bundle(roads.patient(), request(), second, task(), apart)).commands) == 2


@pytest.mark.parametrize("name", ["鈴木花子 0000012345", "0000012345", "x" * 41])
def test_a_name_that_is_none_of_ours_is_not_repeated(name):
    found = {"resourceType": "Patient", "contact": [{name: {"text": "\0"}}]}
    with pytest.raises(InvalidValue) as refused:
        road._check_text(found, b"\\u0000", lambda: None)
    assert refused.value.place == "Patient.contact[0]"
    with pytest.raises(InvalidValue) as refused:
        road._check_text({"resourceType": name, "a": "\0"}, b"\\u0000", lambda: None)
    assert refused.value.place == "resourceType.a"
    with pytest.raises(InvalidValue) as refused:
        road._one({"resourceType": name}, Request("POST", "/fhir/ServiceRequest"), "")
    assert name not in str(refused.value)


def test_all_that_is_wrong_with_a_resource_is_told_at_once_in_our_words():
    with pytest.raises(InvalidValue) as refused:
        order(roads.patient(), request(priority="soon", occurrenceDateTime="noon"))
    (place, words), *rest = [(refused.value.place, refused.value.text), *refused.value.also]
    assert (place, words) == ("Bundle.entry[1].resource.priority", "must be 'routine', 'urgent', 'asap' or 'stat'")
    assert rest == [("Bundle.entry[1].resource.occurrenceDateTime",
                     "must be written as YYYY-MM-DDThh:mm:ss+zz:zz, or as a date; its year must lie between 1800 and 2199")]  # fmt: skip


@pytest.mark.parametrize(
    ("place", "kinds", "element"),
    [
        ("accession number", ["ServiceRequest"], "Bundle.entry[0].resource.identifier"),
        ("accession number", ["ServiceRequest"] * 2, "ServiceRequest.identifier"),
        ("patient.id", ["Patient", "ServiceRequest"], "Bundle.entry[1].resource.subject"),
        ("patient.id", ["Patient"], "Bundle.entry[0].resource.identifier"),
        ("patient.id", ["Task"], "ServiceRequest.subject"), ("body", [], ""), ("message", ["Patient"], ""),
        ("Bundle.entry[7].resource", ["Patient"], "Bundle.entry[7].resource"), ("If-Match", [], "If-Match"),
    ],
)  # fmt: skip
def test_what_a_service_refuses_is_told_at_an_element(place, kinds, element):
    made = {"Patient": roads.patient(), "ServiceRequest": roads.service_request(), "Task": roads.task()}
    items = road._all(roads.bundle(*(made[kind] for kind in kinds)), SETTINGS, lambda: None)
    assert road.element(place, items) == element


def test_a_code_without_a_name_for_its_system_comes_back_as_it_was_sent():
    names = resources.Names(Settings())
    for system in ("urn:dicom:scheme:99LOCAL", "urn:dicom:scheme:99%20X", "http://loinc.org"):
        said = {"system": system, "code": "X1", "display": "x"}
        code = values.code(elements.Coding(**said), "", {}, "code")
        assert names.coding(code) == said


def test_requests_of_two_patients_are_never_one_order():
    other = {**roads.patient(), "identifier": [{"system": roads.HOSP, "value": "2"}]}
    second = request(subject={"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000002"})
    with pytest.raises(InvalidValue) as refused:
        planned(roads.bundle(roads.patient(), other, request(), second))
    assert refused.value.place == "Bundle.entry[3].resource.subject"


def test_an_identifier_that_is_no_longer_in_use_names_nobody():
    old = {"use": "old", "system": roads.HOSP, "value": "9"}
    person = {**roads.patient(), "identifier": [old, *roads.patient()["identifier"]]}
    assert order(person, request()).patient.identifiers == (YAMADA,)


def test_an_identifier_that_says_nothing_of_its_kind_is_the_placers():
    procedure = order(roads.patient(), request(identifier=[{"system": roads.HIS, "value": "P9"}])).procedures[0]
    assert (procedure.placer_number, procedure.placer_issuer, procedure.filler_number) == ("P9", "HIS", "")


@pytest.mark.parametrize(
    ("word", "priority"),
    [("routine", "ROUTINE"), ("urgent", "HIGH"), ("asap", "HIGH"), ("stat", "STAT"), (..., None)],
)
def test_priorities(word, priority):
    assert order(roads.patient(), request(priority=word)).priority == priority


def test_a_jj1017_code_of_32_characters_is_split_and_tells_the_modality():
    code = "6000000200000000" + "0" * 16
    detail = [{"coding": [{"system": "urn:dicom:scheme:JJ1017-32", "code": code}], "text": "胸部"}]
    (step,) = order(roads.patient(), request(orderDetail=detail, category=...)).procedures[0].steps
    (made,) = step.attributes["ScheduledProtocolCodeSequence"]
    assert (made["CodeValue"], made["CodingSchemeDesignator"]) == (code[:16], "JJ1017-16M")
    assert (step.modality, step.description) == ("CT", "胸部")


def test_of_several_codings_the_one_is_taken_whose_system_has_a_name_here():
    code = {
        "coding": [{"system": "http://unknown.example", "code": "1"}, {"system": "http://loinc.org", "code": "24627-2"}]
    }
    procedure = order(roads.patient(), request(code=code)).procedures[0]
    assert (procedure.code_value, procedure.code_scheme) == ("24627-2", "LN")


REFUSED: list[tuple[dict, type[BrokerError], str]] = [
    ({"status": "draft"}, InvalidValue, "status"), ({"status": "unknown"}, InvalidValue, "status"),
    ({"status": "completed"}, InvalidValue, "status"), ({"status": "done"}, InvalidValue, "status"),
    ({"intent": "plan"}, InvalidValue, "intent"), ({"intent": ...}, InvalidValue, "intent"),
    ({"doNotPerform": True}, InvalidValue, "doNotPerform"), ({"priority": "soon"}, InvalidValue, "priority"),
    ({"subject": ...}, InvalidValue, "subject"), ({"occurrenceDateTime": "2025-13-01"}, InvalidValue, "occurrence"),
    ({"occurrenceDateTime": "tomorrow"}, InvalidValue, "occurrenceDateTime"),
    ({"occurrenceDateTime": "2025"}, InvalidValue, "occurrence"),
    ({"code": {"coding": [{"system": "http://unknown.example", "code": "1"}]}}, InvalidValue, "code[0].coding[0].system"),
    ({"code": {"coding": [{"code": "1" * 17}]}}, InvalidValue, "code[0].coding[0].code"),
    ({"identifier": [roads._identifier("A" * 17, roads.RIS, "ACSN")]}, InvalidValue, "identifier[0].value"),
    ({"identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.02"}]}, InvalidValue, "identifier[0].value"),
    ({"performer": [{"reference": "Device/9"}]}, InvalidValue, "performer[0]"),
    ({"performer": [{"type": "Device", "identifier": {"value": "X" * 17}}]}, InvalidValue, "performer[0]"),
    ({"requester": {"reference": "#nobody"}}, InvalidValue, ""), ({"note": [{"text": "a\x00"}]}, InvalidValue, "note[0].text"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "place"), REFUSED)
def test_what_cannot_be_an_order_is_refused_at_its_element(changes, error, place):
    with pytest.raises(error) as refused:
        order(roads.patient(), request(**changes))
    assert refused.value.place.startswith(f"Bundle.entry[1].resource.{place}".rstrip("."))
    assert "unknown.example" not in refused.value.text


@pytest.mark.parametrize("sign", ["\x85", "\u200b", "\u2028", "\u202e", "\ufeff"])
@pytest.mark.parametrize(
    ("change", "place"),
    [(lambda p, r, s: r["identifier"][2].update(value=s("ACC001")), "[1].resource.identifier[2].value"),
     (lambda p, r, s: p["identifier"][0].update(value=s("1")), "[0].resource.identifier[0].value"),
     (lambda p, r, s: p["name"][0].update(family=s("山田")), "[0].resource.name[0].family"),
     (lambda p, r, s: r["identifier"][0].update(system=s("urn:x")), "[1].resource.identifier[0].system"),
     (lambda p, r, s: r.update(note=[{"text": s("a")}]), "[1].resource.note[0].text")],
)  # fmt: skip
def test_a_sign_that_nobody_sees_is_refused_where_it_is_read(change, place, sign):
    for make in (lambda text: text + sign, lambda _: sign):
        patient, wanted = roads.patient(), copy.deepcopy(request(text={"div": f"{sign}not read"}))
        change(patient, wanted, make)
        with pytest.raises(InvalidValue) as refused:
            order(patient, wanted)
        assert refused.value.place == f"Bundle.entry{place}"
        assert sign not in refused.value.text
    assert order(roads.patient(), request(text={"div": f"{sign}not read"}))


def test_blanks_at_the_ends_of_a_text_say_nothing():
    def blanked(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: one if name in ("id", "resourceType") else blanked(one) for name, one in value.items()}
        if isinstance(value, list):
            return [blanked(one) for one in value]
        return f" {value}\u3000" if isinstance(value, str) else value

    resources = [roads.patient(), request()]
    plain = roads.bundle(*resources)
    wanted = copy.deepcopy(plain)
    for entry in wanted["entry"]:
        entry["resource"] = blanked(entry["resource"])
    assert planned(wanted).commands == planned(plain).commands


@pytest.mark.parametrize("blank", [" ", "\u3000", "\xa0 "])
def test_a_blank_is_no_value(blank):
    with pytest.raises(MissingField) as refused:
        order({**roads.patient(), "identifier": [{"system": roads.HOSP, "value": blank}]}, request())
    assert refused.value.place == "Bundle.entry[0].resource.identifier"
    with pytest.raises(MissingField) as refused:
        order({**roads.patient(), "name": [{"family": blank, "given": [blank]}]}, request())
    assert refused.value.place == "Bundle.entry[0].resource.name"
    with pytest.raises(InvalidValue) as refused:
        order(roads.patient(), request(intent=blank))
    assert refused.value.place == "Bundle.entry[1].resource.intent"
    made = order(
        roads.patient(),
        request(identifier=[roads._identifier(blank, roads.RIS, "ACSN")], code={"coding": [{"code": blank}]}),
    )
    assert (made.accession_number, made.procedures[0].code_value) == ("", None)


def test_the_years_of_a_day_have_limits_that_are_told():
    for change in ({"occurrenceDateTime": "9999-12-31T23:59:59Z"}, {"authoredOn": "0001-01-01"}):
        with pytest.raises(InvalidValue, match="between 1800 and 2199"):
            order(roads.patient(), request(**change))
    with pytest.raises(InvalidValue, match="between 1800 and 2199"):
        order({**roads.patient(), "birthDate": "2999-01-01"}, request())


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda b: b.update(type="batch"), "Bundle.type"),
        (lambda b: b["entry"][0]["resource"].update(resourceType="Observation"), "Bundle.entry[0].resource"),
        (lambda b: b["entry"][0]["resource"].update(resourceType={}), "Bundle.entry[0].resource"),
        (lambda b: b["entry"][0]["resource"].update(resourceType=["Patient"]), "Bundle.entry[0].resource"),
        (lambda b: b["entry"][0]["request"].update(url="Task"), "Bundle.entry[0].request.url"),
        (lambda b: b["entry"][1]["request"].update(method="DELETE"), "Bundle.entry[1].request.method"),
        (lambda b: b["entry"][1]["request"].update(method="PUT"), "Bundle.entry[1].request.url"),
        (lambda b: b["entry"][0]["request"].update(ifNoneExist="name=x"), "Bundle.entry[0].resource"),
        (lambda b: b["entry"][2].pop("request"), "Bundle.entry[2].request"),
        (lambda b: b["entry"][2]["resource"].update(status="fulfilled"), "Bundle.entry[2].resource.status"),
        (lambda b: b["entry"].pop(1), "Bundle.entry[2].resource.basedOn"),
    ],
)
def test_a_transaction_is_taken_whole_or_refused_naming_the_entry(change, place):
    bundle = roads.fhir()
    change(bundle)
    with pytest.raises(BrokerError) as refused:
        planned(bundle)
    assert refused.value.place == place


def test_a_transaction_has_a_limit():
    with pytest.raises(BrokerError) as refused:
        planned(roads.bundle(*[roads.patient()] * 501))
    assert refused.value.place == "Bundle.entry"


def test_every_list_has_a_limit():
    """A million identifiers must not keep a processor from everybody else."""
    lists = {
        (kind, name)
        for kind in elements.Element.__subclasses__() + elements.Resource.__subclasses__()
        for name, field in kind.model_fields.items()
        if "List" in str(field.annotation) or "list[" in str(field.annotation)
    }
    assert len(lists) > 20
    for kind, name in lists - {(elements.Bundle, "entry")}:
        with pytest.raises(InvalidValue) as refused:
            elements.read(kind, {name: [{}] * (elements.ITEMS_MAX + 1)}, "x")
        assert f"at most {elements.ITEMS_MAX}" in str(all_errors(kind, {name: [{}] * (elements.ITEMS_MAX + 1)})), name
        assert refused.value.place.startswith("x."), name


def all_errors(kind: type[elements.Element], found: dict) -> list[str]:
    try:
        kind.model_validate(found)
    except ValueError as error:
        return [str(error)]
    return []


def test_a_request_that_takes_too_long_to_read_is_refused():
    bundle, systems = roads.fhir(), values.table(SETTINGS.fhir.systems)
    with pytest.raises(InvalidValue, match="takes more than -1 seconds"):
        road._all(bundle, SETTINGS, budget(-1))
    items = road._all(bundle, SETTINGS, budget(10))
    with pytest.raises(InvalidValue, match="takes more than -1 seconds"):
        plan(Reader(items, SETTINGS.site, systems, Server(), budget(-1)))


def test_what_the_journal_finds_a_body_by_is_looked_for_in_so_much_of_it():
    body = {"resourceType": "Patient", "identifier": [{"value": "1"}] * 2 * elements.LOOKED_AT_MAX}
    assert len(list(elements.keys(body))) < elements.LOOKED_AT_MAX
    odd = {"resourceType": {"a": 1}, "identifier": [{"value": "1"}, {"resourceType": "Patient"}, {"value": {}}]}
    assert list(elements.keys(odd)) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"resourceType": 1}', '{"resourceType": "Patient", "id": "\\ud800"}'])
def test_what_is_no_resource_in_json_is_refused(text):
    with pytest.raises(Unreadable):
        elements.json_of(text)


def test_half_a_character_is_refused_where_it_stands():
    with pytest.raises(Unreadable, match="line 2 column"):
        elements.json_of('{"resourceType": "Patient",\n "id": "\\ud800"}')


@pytest.mark.parametrize("policy", ["missing_accession_number", "missing_sps_id"])
def test_missing_identifiers_are_made_or_refused_as_the_site_says(policy):
    bundle = roads.bundle(roads.patient(), request(identifier=[roads._identifier("P1", roads.HIS, "PLAC")]))
    assert planned(bundle).commands[0].accession_number == ""
    site = SETTINGS.site.model_copy(update={policy: "reject"})
    with pytest.raises(MissingField):
        planned(bundle, settings=SETTINGS.model_copy(update={"site": site}))


# What became of it


@pytest.mark.parametrize(("status", "controls"), NEW.items())
def test_what_the_status_of_a_new_request_asks_for(status, controls):
    commands = planned(roads.bundle(roads.patient(), request(status=status))).commands
    assert tuple(one.control for one in commands) == controls


@pytest.mark.parametrize(("status", "controls"), KNOWN.items())
def test_what_the_status_of_a_known_request_asks_for(status, controls):
    commands = put(request(status=status, subject={"reference": "Patient/1"})).commands
    assert tuple(one.control for one in commands) == controls
    assert {one.accession_number for one in commands} == {"ACC001"}
    assert {one.procedures[0].requested_procedure_id for one in commands} == {"RP001"}


def test_an_active_request_is_taken_off_hold():
    held = Server(Procedure("17", ORDER, "RP001", roads.UID, ("SPS001",), held=True))
    commands = put(request(subject={"reference": "Patient/1"}), held).commands
    assert [one.control for one in commands] == ["XO", "RL"]


def test_what_an_update_does_not_say_stays():
    bare = request(subject={"reference": "Patient/1"}, **dict.fromkeys(
        ("contained", "encounter", "requester", "priority", "code", "orderDetail", "reasonCode", "note", "category"), ...))  # fmt: skip
    (command,) = put(bare).commands
    procedure = command.procedures[0]
    assert (command.priority, procedure.description, procedure.code_value) == (None, None, None)
    assert not said({**command.attributes, **procedure.attributes, **procedure.steps[0].attributes})


@pytest.mark.parametrize(
    "changes",
    [{"identifier": [roads._identifier("ACC9", roads.RIS, "ACSN")]},
     {"identifier": [{"type": {"text": "Requested Procedure ID"}, "value": "RP9"}]},
     {"identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}]}],
)  # fmt: skip
def test_an_update_does_not_change_what_an_order_is_found_by(changes):
    with pytest.raises(InvalidValue):
        put(request(subject={"reference": "Patient/1"}, **changes))


def test_of_several_steps_the_request_itself_cannot_say_when():
    plain = request(subject={"reference": "Patient/1"}, orderDetail=...)
    assert put(plain, TWO).commands[0].procedures[0].steps == ()
    with pytest.raises(InvalidValue):
        put({**plain, "occurrenceDateTime": "2025-12-02T09:00:00+09:00"}, TWO)


@pytest.mark.parametrize(
    ("status", "controls"),
    [("booked", ["XO"]), ("cancelled", ["CA"]), ("noshow", ["no_show"]), ("arrived", ["XO", "arrive"])],
)
def test_an_appointment_of_a_known_request_moves_ends_or_arrives(status, controls):
    slot = {**roads.appointment(), "status": status, "basedOn": [{"reference": "ServiceRequest/17"}]}
    commands = planned(roads.bundle(slot), ONE).commands
    assert [one.event if isinstance(one, VisitCommand) else one.control for one in commands] == controls
    assert commands[0].procedures[0].steps[0].sps_id == "SPS001"
    with pytest.raises(MissingField):
        planned(roads.bundle(slot), TWO)


@pytest.mark.parametrize(
    "reference",
    ["https://other-ehr.example/r4/ServiceRequest/17", "/ServiceRequest/17", "x/ServiceRequest/17", "MyServiceRequest/17",
     "ServiceRequest/17/_history/1"],
)  # fmt: skip
def test_a_request_of_another_server_is_not_ours_though_its_key_is(reference):
    for resource in (roads.appointment(), roads.task()):
        with pytest.raises(UnknownKey):
            planned(roads.bundle({**resource, "status": "cancelled", "basedOn": [{"reference": reference}]}), ONE)


def test_a_reference_and_its_identifier_name_one_request():
    said = {"reference": "ServiceRequest/17", "identifier": {"system": roads.HIS, "value": "P1"}}
    slot = {**roads.appointment(), "basedOn": [said]}
    assert planned(roads.bundle(slot), ONE).commands
    two = Server(ONE.known["17"], dataclasses.replace(ONE.known["17"], key="18"))
    two.procedures = lambda value, system: [two.known["18"]]
    with pytest.raises(DuplicateKey):
        planned(roads.bundle(slot), two)


NOT_THE_ORDERS: list[tuple[dict, type[BrokerError]]] = [
    ({"reference": "Patient/2"}, DuplicateKey), ({"type": "Patient", "identifier": HIS_SATO}, DuplicateKey),
    ({"type": "Patient", "identifier": A_NEW_ONE}, DuplicateKey), ({"reference": "Patient/3"}, UnknownKey),
    ({"reference": "https://ehr.example/Patient/1", "identifier": HIS_SATO}, DuplicateKey),
    ({"reference": "Patient/1", "identifier": HIS_SATO}, DuplicateKey),
]  # fmt: skip
THE_ORDERS: list[dict] = [
    {"reference": "Patient/1"}, {"type": "Patient", "identifier": HIS_YAMADA}, {"reference": "https://ehr.example/Patient/2"},
    {"reference": "Patient/1", "identifier": HIS_YAMADA}, {"reference": "Group/2"},
]  # fmt: skip


def of_patient(said: dict) -> list[dict]:
    """An Appointment and a Task of request 17 that name a patient."""
    based = {"status": "cancelled", "basedOn": [{"reference": "ServiceRequest/17"}]}
    participants = [{"actor": said}, roads.appointment()["participant"][1]]
    return [{**roads.appointment(), **based, "participant": participants}, {**roads.task(), **based, "for": said}]


@pytest.mark.parametrize(("said", "error"), NOT_THE_ORDERS)
def test_a_task_or_appointment_of_another_patient_is_refused(said, error):
    for resource, place in zip(of_patient(said), ("participant[0].actor", "for"), strict=True):
        with pytest.raises(error) as refused:
            planned(roads.bundle(resource), ONE)
        assert refused.value.place == f"Bundle.entry[0].resource.{place}"


@pytest.mark.parametrize("said", THE_ORDERS)
def test_a_task_or_appointment_of_the_orders_patient_is_taken(said):
    for resource in of_patient(said):
        assert [one.control for one in planned(roads.bundle(resource), ONE).commands] == ["CA"]


def test_also_one_that_comes_with_its_order():
    other = {**roads.patient(), "identifier": [HIS_SATO]}
    for said in (
        {"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000004"},
        {"type": "Patient", "identifier": HIS_SATO},
    ):
        for resource in (*(one for one in of_patient(said)),):
            resource |= {"status": "booked" if "participant" in resource else "requested",
                         "basedOn": [{"reference": "urn:uuid:0b6c6f5e-0000-4000-8000-000000000002"}]}  # fmt: skip
            with pytest.raises(DuplicateKey) as refused:
                planned(roads.bundle(roads.patient(), request(), resource, other))
            assert refused.value.place.startswith("Bundle.entry[2].resource.")


def test_also_one_that_comes_with_a_change_of_its_order():
    change = {**request(subject={"reference": "Patient/1"}), "id": "17"}
    for task, taken in (({"reference": "Patient/1"}, True), ({"reference": "Patient/2"}, False)):
        bundle = roads.bundle(change, {**roads.task(), "basedOn": [{"reference": "ServiceRequest/17"}], "for": task})
        bundle["entry"][0]["request"] = {"method": "PUT", "url": "ServiceRequest/17"}
        if taken:
            assert planned(bundle, ONE).commands
            continue
        with pytest.raises(DuplicateKey) as refused:
            planned(bundle, ONE)
        assert refused.value.place == "Bundle.entry[1].resource.for"


def test_a_patient_who_takes_part_is_no_physician():
    slot = roads.appointment()
    slot["participant"][0]["actor"]["display"] = "山田 太郎"
    (step,) = order(roads.patient(), request(), slot).procedures[0].steps
    assert "ScheduledPerformingPhysicianName" not in said(step.attributes)


@pytest.mark.parametrize("status", ["fulfilled", "in-progress", "completed"])
def test_that_an_exam_was_made_is_the_brokers_to_say(status):
    slot = {**roads.appointment(), "status": status, "basedOn": [{"reference": "ServiceRequest/17"}]}
    with pytest.raises(InvalidValue):
        planned(roads.bundle(slot), ONE)


def test_a_request_that_is_here_already_is_not_made_again():
    bundle = roads.fhir()
    bundle["entry"][1]["request"]["ifNoneExist"] = f"identifier={roads.HIS}|P1"
    made = planned(bundle, ONE)
    assert made.commands == []
    assert [one.key for one in made.answers] == ["", "17", "17", "17"]
    with pytest.raises(BrokerError) as refused:
        planned(bundle, Server(ONE.known["17"], dataclasses.replace(ONE.known["17"], key="18")))
    assert refused.value.wire.http == 412


def test_a_condition_that_names_another_patients_order_is_refused():
    other = {**roads.patient(), "identifier": [HIS_SATO]}
    bundle = roads.bundle(other, request())
    bundle["entry"][1]["request"]["ifNoneExist"] = "identifier=P1"
    with pytest.raises(BrokerError) as refused:
        planned(bundle, ONE)
    assert (refused.value.wire.http, refused.value.place) == (412, "Bundle.entry[1].resource.subject")


def test_a_resource_is_put_under_its_own_id():
    bundle = roads.bundle({**request(subject={"reference": "Patient/1"}), "id": "18"})
    bundle["entry"][0]["request"] = {"method": "PUT", "url": "ServiceRequest/17"}
    with pytest.raises(InvalidValue) as refused:
        planned(bundle, ONE)
    assert refused.value.place == "Bundle.entry[0].resource.id"
    bundle["entry"][0]["resource"]["id"] = "17"
    assert planned(bundle, ONE).commands
