"""What an appointment says becomes what a command says: of a slot alone, or of a whole order where there is no other."""

import dataclasses

import pytest

from broker.config import Limits, Site
from broker.errors import BrokerError
from broker.mwl.commands import Policies
from broker.ris_bridge.hl7 import message, schedule_in
from broker.ris_bridge.mapping import profile as profiles

SITE = Site(patient_id_issuer="HOSP")
PID = "PID|1||0000012345^^^HOSP^PI||YAMADA^TARO||19700101|M"
SCH = "SCH|A1^HIS|A1^SCH||||RSN^機器点検||CT||||^Tanaka^Jiro|||||||||||||Booked|P1^HIS|F1^RIS"
RGS = "RGS|1|U"
AIS = "AIS|1|U|6000000200000000^胸部単純CT^JJ1017-16M|20251201093000"
AIG = "AIG|1|U|CT2^CT2号機"
AIL = "AIL|1|U|RAD^CT室2^^HOSP"
AIP = "AIP|1|U|900^TECH^ICHIRO"
WHOLE = (RGS, AIS, AIG, AIL, AIP)
PLACES = profiles.parse('name = "own"\nextends = "siu-scheduling"\n[identity]\nunknown = "place"\n')
ALONE = profiles.parse('name = "own"\nextends = "siu-scheduling"\n[identity]\nunknown = "refuse"\n')


def parsed(event: str, *segments: str, version: str = "2.5.1") -> message.Message:
    head = f"MSH|^~\\&|A|B|C|D|20251201085500||SIU^{event}|1|P|{version}||||||UNICODE UTF-8"
    return message.parse("\r".join((head, *segments)).encode(), Limits(), "ASCII")


def commands(event: str, *segments: str, profile=ALONE, site: Site = SITE, version: str = "2.5.1"):
    return schedule_in.to_commands(parsed(event, *segments, version=version), site, profile)


def one(event: str, *segments: str, **more):
    (command,) = commands(event, *segments, **more)
    return command


def steps_of(command):
    return [step for procedure in command.procedures for step in procedure.steps]


def with_field(segment: str, number: int, value: str) -> str:
    fields = segment.split("|")
    fields += [""] * (number + 1 - len(fields))
    fields[number] = value
    return "|".join(fields)


# A slot of an order that comes by itself


@pytest.mark.parametrize(
    ("event", "control"),
    [("S12", "XO"), ("S13", "XO"), ("S14", "XO"), ("S15", "CA"), ("S17", "CA"), ("S26", "no_show")],
)
def test_each_event_is_an_order_control(event, control):
    """HL7-31"""
    command = one(event, SCH, PID, *WHOLE)
    assert (command.control, command.unknown, command.patient.identifiers[0].value) == (control, "refuse", "0000012345")
    (step,) = steps_of(command)
    assert (step.appointment_number, step.appointment_issuer) == ("A1", "SCH")
    assert (step.placer_number, step.placer_issuer, step.filler_number, step.filler_issuer) == (
        "P1",
        "HIS",
        "F1",
        "RIS",
    )
    assert (command.at.hour, command.at.minute) == (8, 55)


def test_an_appointment_moves_time_device_place_and_technician_and_says_nothing_else():
    command = one("S13", SCH, PID, "PV1|1|I|7W^1||||||||||||||||V1", *WHOLE, "NTE|1||絶食")
    (procedure,), (step,) = command.procedures, steps_of(command)
    assert (step.start_date, step.start_time) == ("20251201", "093000")
    assert step.attributes == {
        "ScheduledStationName": "CT2号機", "ScheduledProcedureStepLocation": "CT室2",
        "ScheduledPerformingPhysicianName": "TECH^ICHIRO",
    }  # fmt: skip
    assert (step.modality, step.description, step.station_ae_titles, step.sps_id) == (None, None, None, "")
    assert dataclasses.replace(procedure, steps=()) == type(procedure)()
    assert (command.attributes, command.priority, command.accession_number) == ({}, None, "")
    assert step.codes == ("6000000200000000",)


def test_times_with_an_offset_are_the_sites_own():
    (step,) = steps_of(one("S13", SCH, PID, RGS, with_field(AIS, 4, "20251201003000+0000")))
    assert (step.start_date, step.start_time) == ("20251201", "093000")


@pytest.mark.parametrize(
    ("version", "sch", "more"),
    [("2.3.1", with_field(SCH, 11, "^^30^20251201093000"), ()), ("2.5.1", SCH, ("TQ1|1||||||20251201093000",))],
)
def test_a_service_without_a_time_has_its_appointments_and_its_own_offset(version, sch, more):
    for said, start in (("", "093000"), ("|15|min", "094500"), ("|90|s", "093130"), ("|2|hr", "113000")):
        ais = f"AIS|1|U|X^y^99L|{said}"
        (step,) = steps_of(one("S12", sch, *more, PID, RGS, ais, version=version))
        assert (step.start_date, step.start_time) == ("20251201", start)


@pytest.mark.parametrize("said", ["15", "15|week", "1.5|min", "-15|min"])
def test_an_offset_that_is_none_is_refused(said):
    with pytest.raises(BrokerError) as refused:
        one("S12", SCH, "TQ1|1||||||20251201093000", PID, RGS, f"AIS|1|U|X^y^99L||{said}")
    assert (refused.value.err, refused.value.place) == ("102", "AIS^1^5")


def test_each_service_has_the_resources_of_its_group_and_else_those_of_a_group_without_one():
    command = one(
        "S13", SCH, PID, RGS, AIS, AIG, RGS, with_field(AIS, 4, "20251201100000"), "AIG|2|U|CT3^CT3号機", RGS, AIL, AIP,
    )  # fmt: skip
    first, second = steps_of(command)
    assert (first.start_time, second.start_time) == ("093000", "100000")
    assert [step.attributes["ScheduledStationName"] for step in (first, second)] == ["CT2号機", "CT3号機"]
    assert {step.attributes["ScheduledProcedureStepLocation"] for step in (first, second)} == {"CT室2"}


def test_an_appointment_without_services_is_one_slot():
    (step,) = steps_of(one("S13", with_field(SCH, 11, "^^^20251201093000"), PID, RGS, AIG))
    assert (step.start_time, step.attributes["ScheduledStationName"]) == ("093000", "CT2号機")
    (bare,) = steps_of(one("S13", with_field(SCH, 11, "^^^20251201093000"), PID))
    assert (bare.start_time, bare.codes) == ("093000", ())


def test_a_resource_that_is_taken_away_is_not_where_it_goes():
    (step,) = steps_of(
        one("S14", SCH, PID, RGS, AIS, with_field(AIG, 2, "D"), "AIG|2|A|CT3^CT3号機", with_field(AIL, 2, "D"))
    )
    assert step.attributes["ScheduledStationName"] == "CT3号機"
    assert step.attributes["ScheduledProcedureStepLocation"] is None


def test_an_appointment_whose_services_are_all_taken_out_is_cancelled():
    for segments in ((RGS, with_field(AIS, 2, "D")), ("RGS|1|D", AIS)):
        command = one("S14", SCH, PID, *segments)
        assert (command.control, len(steps_of(command))) == ("CA", 1)


def test_a_service_taken_out_of_an_appointment_that_stays_is_refused():
    with pytest.raises(BrokerError) as refused:
        one("S14", SCH, PID, RGS, AIS, with_field(AIS, 2, "D"))
    assert (refused.value.err, refused.value.place) == ("102", "AIS^2^2")


@pytest.mark.parametrize(
    ("said", "event", "control", "status"),
    [("Cancelled", "S14", "CA", ""), ("Deleted", "S14", "CA", ""), ("Dc", "S14", "CA", ""), ("Noshow", "S14", "no_show", ""),
     ("Started", "S14", "XO", "IP"), ("Complete", "S14", "XO", "CM"), ("Booked", "S14", "XO", ""), ("Odd", "S14", "XO", ""),
     ("Complete", "S12", "XO", ""), ("Cancelled", "S13", "XO", ""), ("Booked", "S15", "CA", "")],
)  # fmt: skip
def test_the_status_counts_where_the_event_leaves_it_open(said, event, control, status):
    command = one(event, with_field(SCH, 25, said), PID, *WHOLE)
    assert (command.control, command.status) == (control, status)


# Whose, and which


def test_the_placers_appointment_number_counts_where_the_filler_has_none():
    for said, number in ((SCH, ("A1", "SCH")), ("SCH|A7^HIS", ("A7", "HIS"))):
        (step,) = steps_of(one("S15", said, PID))
        assert (step.appointment_number, step.appointment_issuer) == number


@pytest.mark.parametrize("event", ["S12", "S15", "S26"])
def test_an_appointment_that_names_nothing_is_refused(event):
    with pytest.raises(BrokerError) as refused:
        one(event, "SCH||", PID, *WHOLE)
    assert (refused.value.err, refused.value.place) == ("101", "SCH^1^2")


@pytest.mark.parametrize(
    ("segments", "err", "place"),
    [((PID, RGS, AIS), "100", "SCH"), ((SCH, RGS, AIS), "100", "PID"), ((SCH, PID, PID, RGS, AIS), "100", "PID^2"),
     ((SCH, PID, RGS, with_field(AIS, 4, "tomorrow")), "102", "AIS^1^4"),
     ((with_field(SCH, 2, "A" * 65), PID, RGS, AIS), "102", "SCH^1^2^1")],
)  # fmt: skip
def test_a_message_that_cannot_be_read_says_where(segments, err, place):
    with pytest.raises(BrokerError) as refused:
        one("S12", *segments)
    assert (refused.value.err, refused.value.place) == (err, place)


def test_an_appointment_of_several_orders_is_said_of_each():
    sch = with_field(with_field(SCH, 26, "P1^HIS~P2^HIS"), 27, "F1^RIS~F2^RIS")
    made = commands("S13", sch, PID, *WHOLE, profile=PLACES)
    assert [(step.placer_number, step.filler_number, step.start_time) for one in made for step in steps_of(one)] == [
        ("P1", "F1", "093000"), ("P2", "F2", "093000"),
    ]  # fmt: skip
    assert {command.unknown for command in made} == {"refuse"}
    with pytest.raises(BrokerError) as refused:
        commands("S13", sch, PID, RGS, AIS, AIS)
    assert (refused.value.err, refused.value.place) == ("102", "SCH^1^26")


# An order


def test_where_the_schedule_places_orders_it_says_all_that_an_order_says():
    command = one("S12", SCH, PID, "PV1|1|I|7W^1||||||||||||||||V1", *WHOLE, "NTE|1||絶食", profile=PLACES)
    (procedure,), (step,) = command.procedures, steps_of(command)
    assert (command.control, command.unknown) == ("XO", "place")
    assert command.policies == Policies("derive", "derive", "derive", "derive")
    assert (step.modality, step.description) == ("CT", "胸部単純CT")
    assert step.attributes["ScheduledProtocolCodeSequence"][0]["CodeValue"] == "6000000200000000"
    assert (procedure.code_value, procedure.description) == ("6000000200000000", "胸部単純CT")
    assert (procedure.placer_number, procedure.filler_issuer) == ("P1", "RIS")
    assert procedure.attributes["RequestedProcedureComments"] == "絶食"
    assert command.attributes["AdmissionID"] == "V1"
    assert command.attributes["CurrentPatientLocation"] == "7W"


def test_without_a_profile_of_its_own_a_schedule_places_nothing():
    command = one("S12", SCH, PID, *WHOLE, profile=None)
    assert (command.unknown, command.procedures[0].code_value) == ("refuse", None)


def test_a_cancel_never_places_an_order():
    assert one("S15", SCH, PID, *WHOLE, profile=PLACES).unknown == "refuse"


def test_a_number_that_the_site_demands_must_be_there_to_place_an_order():
    own = profiles.parse('name = "own"\nextends = "siu-scheduling"\n[identity]\naccession_number = "reject"\n'
                         '[[field]]\nto = "order.accession_number"\nfrom = ["SCH-5"]\n')  # fmt: skip
    with pytest.raises(BrokerError) as refused:
        one("S12", SCH, PID, *WHOLE, profile=own)
    assert (refused.value.err, refused.value.place) == ("101", "SCH^1")
    command = one("S12", with_field(SCH, 5, "ACC7"), PID, *WHOLE, profile=own)
    assert command.accession_number == "ACC7"


def test_a_station_rule_says_where_the_room_of_an_appointment_is():
    text = 'name = "own"\nextends = "siu-scheduling"\n[identity]\nunknown = "{}"\n[[station]]\nwhen = ["AIG-3 = CT2"]\n' \
           'ae_titles = ["CT2"]\nmodality = "CT"\n'  # fmt: skip
    for unknown in ("place", "refuse"):
        own = profiles.parse(text.format(unknown))
        (step,) = steps_of(one("S13", SCH, PID, *WHOLE, profile=own))
        assert step.station_ae_titles == ("CT2",)
        (unmoved,) = steps_of(one("S13", SCH, PID, RGS, AIS, profile=own))
        assert unmoved.station_ae_titles is None


def test_the_reason_is_told():
    assert one("S15", SCH, PID).reason == "機器点検"


@pytest.mark.parametrize(
    ("said", "time"), [("20251201", "08:55"), ("2025120107", "07:00"), ("20251201083000", "08:30")]
)
def test_the_time_of_an_appointment_that_is_only_a_date_is_that_of_the_message_of_that_day(said, time):
    own = profiles.parse(
        'name = "own"\nextends = "siu-scheduling"\n[[field]]\nto = "order.at"\nfrom = ["ZAP-1", "MSH-7"]\n'
    )
    assert f"{one('S13', SCH, PID, *WHOLE, f'ZAP|{said}', profile=own).at:%H:%M}" == time


def test_two_services_that_contradict_each_other_about_one_step_are_refused():
    own = profiles.parse('name = "own"\nextends = "siu-scheduling"\n[[field]]\nto = "step.sps_id"\nfrom = ["AIS-10"]\n')
    named = with_field(AIS, 10, "S1")
    second = with_field(with_field(AIS, 10, "S1"), 4, "20251201100000")
    with pytest.raises(BrokerError) as refused:
        commands("S13", SCH, PID, RGS, named, second, profile=own)
    assert (refused.value.err, refused.value.place) == ("102", "AIS^2^10")
    assert len(steps_of(one("S13", SCH, PID, RGS, named, with_field(second, 10, "S2"), profile=own))) == 2
    assert [step.sps_id for step in steps_of(one("S13", SCH, PID, RGS, named, named, profile=own))] == ["S1", "S1"]


@pytest.mark.parametrize("offset", ["0", "00", "0|min"])
def test_an_offset_of_nothing_needs_no_unit(offset):
    ais = with_field(AIS, 4, "") + f"|{offset}"
    (step,) = steps_of(one("S13", with_field(SCH, 11, "^^^20251201093000"), PID, RGS, ais))
    assert (step.start_date, step.start_time) == ("20251201", "093000")


def test_a_schedule_may_say_on_which_worklist_its_exam_stands():
    own = profiles.parse(
        'name = "own"\nextends = "siu-scheduling"\n[identity]\nunknown = "refuse"\n'
        '[[field]]\nto = "step.label"\nfrom = ["AIS-3.2"]\n'
    )
    assert [step.label for step in steps_of(one("S13", SCH, PID, *WHOLE, profile=own))] == ["胸部単純CT"]
