"""What a message says becomes what a command says: field by field, group by group, and never more than is there."""

from zoneinfo import ZoneInfo

import pytest

from broker.config import Limits, Site
from broker.errors import BrokerError, InvalidValue
from broker.ris_bridge.hl7 import message, orders_in, patients_in
from broker.ris_bridge.mapping import profile as profiles

SITE = Site(patient_id_issuer="HOSP")
PID = "PID|1||0000012345^^^HOSP^PI||YAMADA^TARO||19700101|M"
ORC = "ORC|NW|P1^HIS|F1^RIS||SC||^^^20251201093000||20251201085500"
OBR = "OBR|1|P1^HIS|F1^RIS|CTCHEST^胸部CT^99LOCAL^CT1^胸部単純CT^99LOCAL||||||||||||||ACC1|RP1|SPS1||||CT"
IPC = "IPC|ACC1^RIS|RP1^RIS|1.2.3^RIS|SPS1^RIS|CT|6000000200000000^胸部単純CT^JJ1017-16M|CT1|CT室1|CT1"


def parsed(kind: str, *segments: str) -> message.Message:
    head = f"MSH|^~\\&|A|B|C|D|20251201085500||{kind}|1|P|2.5.1||||||UNICODE UTF-8"
    return message.parse("\r".join((head, *segments)).encode(), Limits(), "ASCII")


def orders(*segments: str, kind: str = "ORM^O01", pid: str = PID):
    return orders_in.to_commands(parsed(kind, pid, *segments), SITE)


def patients(kind: str, *segments: str):
    return patients_in.to_commands(parsed(kind, *segments), SITE)


def field(segment: str, number: int, value: str) -> str:
    """The segment with that field."""
    fields = segment.split("|")
    fields += [""] * (number + 1 - len(fields))
    fields[number] = value
    return "|".join(fields)


# Changes say what they say


def test_a_change_that_only_moves_the_time_says_nothing_else():
    bare = "OBR|1|P1^HIS|F1^RIS|||||||||||||||ACC1|RP1|SPS1"
    (command,) = orders(ORC.replace("NW", "XO"), bare)
    (procedure,) = command.procedures
    (step,) = procedure.steps
    assert (step.start_date, step.start_time) == ("20251201", "093000")
    assert command.priority is None
    assert {step.modality, step.description, step.station_ae_titles} == {None}
    assert {procedure.description, procedure.code_value, procedure.code_scheme, procedure.code_meaning} == {None}
    for attributes in (command.attributes, procedure.attributes, step.attributes):
        assert set(attributes.values()) == {None}, attributes


def test_an_explicit_null_deletes():
    obr = field(field(field(OBR, 24, '""'), 31, '""'), 30, '""')
    (command,) = orders(field(ORC.replace("NW", "XO"), 17, '""'), obr)
    (procedure,) = command.procedures
    assert command.attributes["RequestingService"] == ""
    assert procedure.attributes["ReasonForTheRequestedProcedure"] == ""
    assert procedure.attributes["PatientTransportArrangements"] == ""
    assert procedure.steps[0].modality == ""


def test_a_change_never_speaks_of_the_visit():
    """RAD-13: PID and PV1 of XO, CA and DC are not the order's."""
    visit = "PV1|1|I|7W^1|||||^紹介^医師|||||||||||V1^^^HOSP"
    for control, there in (("NW", "V1"), ("XO", None)):
        (command,) = orders_in.to_commands(parsed("ORM^O01", PID, visit, ORC.replace("NW", control), OBR), SITE)
        assert command.attributes.get("AdmissionID") == there
        assert ("CurrentPatientLocation" in command.attributes) == (control == "NW")


@pytest.mark.parametrize("segments", [(ORC.replace("NW", "CA"),), ("ORC|DC|P1^HIS|F1^RIS", "OBR|1|P1^HIS|F1^RIS")])
def test_a_cancel_needs_no_more_than_a_number(segments):
    (command,) = orders(*segments)
    assert command.accession_number == ""
    assert [(one.placer_number, one.filler_issuer) for one in command.procedures] == [("P1", "RIS")]


def test_groups_without_an_accession_number_are_not_taken_for_one_order():
    assert len(orders("ORC|CA|P1^HIS", "ORC|CA|P2^HIS")) == 2


# Whose it is


def test_a_message_about_two_patients_is_refused():
    with pytest.raises(BrokerError) as refused:
        orders(ORC, OBR, PID.replace("12345", "67890"), ORC, OBR)
    assert (refused.value.err, refused.value.place) == ("100", "PID^2")


def test_only_numbers_of_persons_identify_a_patient():
    """An empty repetition is none; accounts and insurances may be shared by a family."""
    said = '~"" ~INS1^^^HOKEN^SN~0000012345^^^HOSP^PI~~ACCT9^^^^AN~B7^^^&1.2.392.7&ISO^MR~'.replace('"" ', '""')
    person = orders(ORC, OBR, pid=PID.replace("0000012345^^^HOSP^PI", said))[0].patient
    assert [(one.value, one.issuer) for one in person.identifiers] == [("0000012345", "HOSP"), ("B7", "1.2.392.7")]
    shown = [(one["PatientID"], one["IssuerOfPatientID"]) for one in person.attributes["OtherPatientIDsSequence"]]
    assert shown == [("INS1", "HOKEN"), ("ACCT9", "")]


@pytest.mark.parametrize("identifiers", ["", "~", '""', "ACCT9^^^^AN"])
def test_a_patient_without_a_number_is_refused(identifiers):
    with pytest.raises(BrokerError) as refused:
        orders(ORC, OBR, pid=PID.replace("0000012345^^^HOSP^PI", identifiers))
    assert (refused.value.err, refused.value.place) == ("101", "PID^1^3")


def test_each_prior_number_of_a_merge_belongs_to_the_patient_before_it():
    pairs = [line for n in (1, 3) for line in (f"PID|1||{n}^^^HOSP||A^B", f"MRG|{n + 1}^^^HOSP")]
    made = patients("ADT^A40", "EVN|A40|20251201", *pairs)
    assert [(one.patient.identifiers[0].value, one.prior.value) for one in made] == [("1", "2"), ("3", "4")]


@pytest.mark.parametrize(
    ("fields", "sex", "birth_date"),
    [("||A^B||19700101|m", "M", "19700101"), ("||A^B||1970|X", None, None), ("||A^B||197001|U", None, None),
     ("||A^B||00010101|M", "M", None), ("||A^B||00010101000000|M", "M", None), ('||A^B||""|""', "", ""), ("||A^B||197001010930|O", "O", "19700101")],
)  # fmt: skip
def test_what_is_no_date_and_no_sex_says_nothing(fields, sex, birth_date):
    person = patients("ADT^A08", f"PID|1||1^^^HOSP{fields}")[0].patient
    assert (person.sex, person.birth_date) == (sex, birth_date)


@pytest.mark.parametrize(
    "date",
    ["19701399", "１９７００１０１", "S35.3.14", "1960-01-01", "0", "1970111", "1970 1 1", "197001111", "99991231"],
)
def test_a_birth_date_that_is_none_is_refused(date):
    with pytest.raises(InvalidValue) as refused:
        patients("ADT^A08", f"PID|1||1^^^HOSP||A^B||{date}|F")
    assert (refused.value.err, refused.value.place) == ("102", "PID^1^7")


def test_the_legal_name_goes_before_a_maiden_name():
    person = patients("ADT^A08", "PID|1||1||旧姓^花子^^^^^M^I~佐藤^花子^^^^^L^I~サトウ^ハナコ^^^^^L^P")[0].patient
    assert person.name == "SATO^HANAKO=佐藤^花子=サトウ^ハナコ"


# Every group, every field


def test_pairs_of_one_procedure_keep_all_that_each_of_them_says():
    second_orc = ORC.replace("P1", "P2").replace("F1", "F2")
    second_orc = field(second_orc, 7, "^^^20251201100000^^S")
    second = OBR.replace("SPS1", "SPS2").replace("P1^", "P2^").replace("F1^", "F2^")
    (command,) = orders(ORC, OBR, "NTE|1||最初", second_orc, field(second, 31, "^造影"), "NTE|1||造影剤アレルギー")
    (procedure,) = command.procedures
    assert command.priority == "STAT"
    assert procedure.attributes["RequestedProcedureComments"] == "最初\n造影剤アレルギー"
    assert procedure.attributes["ReasonForTheRequestedProcedure"] == "造影"
    assert [(step.sps_id, step.placer_number, step.filler_number, step.start_time) for step in procedure.steps] == [
        ("SPS1", "P1", "F1", "093000"), ("SPS2", "P2", "F2", "100000"),
    ]  # fmt: skip


def test_the_authorities_and_the_fields_of_the_table_are_all_taken():
    """conformance.md 5.4"""
    pid = PID.replace("^^^HOSP^PI", "^^^HOSP&1.2.392.1&ISO^PI")
    visit = "PV1|1|O|01^^^^^C||||||||||||||||V0001^^^HOSP"
    orc = ORC.replace("P1^HIS", "P1^HIS^1.2.392.2^ISO")
    obr = field(field(field(OBR, 31, "R1^疼痛^99LOCAL"), 27, "^^^^^S"), 12, "INF^Infectious^L")
    msg = parsed("ORM^O01", pid, "NTE|1||難聴", visit, orc, obr)
    (command,) = orders_in.to_commands(msg, SITE)
    procedure = command.procedures[0].attributes
    assert command.attributes["IssuerOfAdmissionIDSequence"] == [{"LocalNamespaceEntityID": "HOSP"}]
    assert command.attributes["ImagingServiceRequestComments"] == "難聴"
    assert command.patient.attributes["IssuerOfPatientIDQualifiersSequence"] == [
        {"UniversalEntityID": "1.2.392.1", "UniversalEntityIDType": "ISO"}
    ]
    assert procedure["OrderPlacerIdentifierSequence"] == [
        {"LocalNamespaceEntityID": "HIS", "UniversalEntityID": "1.2.392.2", "UniversalEntityIDType": "ISO"}
    ]
    assert procedure["ReasonForTheRequestedProcedure"] == "疼痛"
    assert procedure["ReasonForRequestedProcedureCodeSequence"][0]["CodeValue"] == "R1"
    assert procedure["PatientState"] == "Infectious"
    assert command.priority == "STAT"


@pytest.mark.parametrize(
    ("service", "procedure_code"),
    [("60000002000000000000000000000000^胸部単純CT^JJ1017-32", "6000000200000000"),
     ("CTCHEST^胸部CT^99LOCAL^60000002000000000000000000000000^胸部単純CT^JJ1017-32", "CTCHEST")],
)  # fmt: skip
def test_a_japanese_order_code_is_split_and_tells_the_modality(service, procedure_code):
    (command,) = orders(ORC, field(field(OBR, 4, service), 24, ""), kind="OMG^O19")
    (procedure,) = command.procedures
    (protocol,) = procedure.steps[0].attributes["ScheduledProtocolCodeSequence"]
    assert (procedure.code_value, procedure.steps[0].modality) == (procedure_code, "CT")
    assert (protocol["CodeValue"], protocol["CodingSchemeDesignator"]) == ("6000000200000000", "JJ1017-16M")
    assert protocol["ProtocolContextSequence"][0]["ConceptCodeSequence"][0]["CodeValue"] == "0" * 16
    assert procedure.steps[0].description == "胸部単純CT"


def test_a_technician_in_kanji_is_named_in_the_ideographic_group():
    (command,) = orders(ORC, field(OBR, 34, "T1&技師&次郎"))
    assert command.procedures[0].steps[0].attributes["ScheduledPerformingPhysicianName"] == "=技師^次郎"


def test_the_code_and_its_text_come_from_one_field():
    """A text of OBR-44 with the code of OBR-4 would be an examination that nobody ordered."""
    procedure = orders(ORC, field(OBR, 44, "^造影CT"))[0].procedures[0]
    assert (procedure.description, procedure.code_value, procedure.code_meaning) == ("造影CT", None, None)


def test_an_explicit_null_is_no_number():
    (command,) = orders(field(ORC, 2, '""'), field(OBR, 3, '""'))
    assert [(one.placer_number, one.filler_number) for one in command.procedures] == [("P1", "F1")]


# Values that no attribute can hold


def test_text_for_people_is_made_to_fit():
    r"""\E\ would make two values of one, a line end none at all; 1.10: cut at 64 characters."""
    obr = field(OBR, 4, rf"CTCHEST^胸\E\部\.br\CT^99LOCAL^CT1^{'長' * 80}^99LOCAL")
    procedure = orders(ORC, field(obr, 30, "車" * 80))[0].procedures[0]
    assert procedure.description == "胸/部 CT"
    assert procedure.steps[0].description == "長" * 64
    assert procedure.attributes["PatientTransportArrangements"] == "車" * 64


@pytest.mark.parametrize(
    ("number", "value", "place"),
    [(24, "ＣＴ", "OBR^1^24"), (24, "COMPUTEDTOMOGRAPHY", "OBR^1^24"), (18, "A" * 17, "OBR^1^18^1"),
     (19, r"R\E\1", "OBR^1^19^1"), (4, "X" * 17, "OBR^1^4^1"), (4, r"A\E\B^x^L", "OBR^1^4^1")],
)  # fmt: skip
def test_what_identifies_is_refused_where_it_does_not_fit(number, value, place):
    with pytest.raises(InvalidValue) as refused:
        orders(ORC, field(OBR, number, value))
    assert (refused.value.err, refused.value.place) == ("102", place)


@pytest.mark.parametrize("time", ["202512012", "2025120125", "2025-12-01", "２０２５１２０１"])
def test_what_is_no_time_is_refused(time):
    with pytest.raises(InvalidValue) as refused:
        orders(field(ORC, 7, f"^^^{time}"), OBR)
    assert (refused.value.err, refused.value.place) == ("102", "ORC^1^7")


def test_an_error_names_the_group_in_which_it_stands():
    with pytest.raises(InvalidValue) as refused:
        orders(ORC, OBR, IPC, ORC, OBR, IPC.replace("ACC1", "ACC2").replace("1.2.3", "1.2.03"), kind="OMI^O23")
    assert refused.value.place == "IPC^2^3"


# Order control (conformance.md 5.3)


@pytest.mark.parametrize(
    ("said", "control", "status"),
    [("HD|P1^HIS", "HD", ""), ("RL|P1^HIS", "RL", ""), ("SC|P1^HIS|||CM", "SC", "CM"), ("SS|P1^HIS", "SS", ""),
     ("NA|P1^HIS|F1^RIS", "NA", ""), ("OC|P1^HIS|||CA", "CA", "CA"), ("OD|P1^HIS", "DC", ""), ("CR|P1^HIS", "CA", ""),
     *((f"{code}|P1^HIS", "note", "") for code in ("OK", "UA", "UC", "UX", "RQ"))],
)  # fmt: skip
def test_each_order_control_needs_a_number_and_no_more(said, control, status):
    (command,) = orders(f"ORC|{said}")
    assert (command.control, command.status) == (control, status)
    assert command.procedures[0].placer_number == "P1"


@pytest.mark.parametrize("status", ["", "ZZ", "SC", "??"])
def test_a_blank_or_unlisted_status_refuses_no_order(status):
    """Finding 1 of the strongest peer: ORC-5 blank is common."""
    (command,) = orders(field(ORC, 5, status), OBR)
    assert (command.control, command.status, command.begun) == ("NW", "SC" if status == "SC" else "", False)


@pytest.mark.parametrize("control", ["", "ZZ", "XX", "RR"])
def test_an_order_control_that_is_none_is_told_with_its_place(control):
    with pytest.raises(InvalidValue) as refused:
        orders(ORC, OBR, ORC.replace("NW", control), OBR)
    assert (refused.value.err, refused.value.place) == ("103", "ORC^2^1")


def test_a_number_is_asked_for_by_an_order_that_has_none_yet():
    (command,) = orders("ORC|SN||F1^RIS", "OBR|1||F1^RIS|CTCHEST^胸部CT^99LOCAL")
    assert (command.control, command.accession_number, command.procedures[0].filler_number) == ("SN", "", "F1")


def test_a_replacement_names_what_it_stands_in_for():
    """The same accession number in old and new is one new order."""
    new = ORC.replace("NW", "RO").replace("P1", "P2").replace("F1", "F2")
    (command,) = orders("ORC|RP|P1^HIS|F1^RIS", new, OBR.replace("P1^", "P2^").replace("F1^", "F2^"))
    assert (command.control, command.accession_number) == ("NW", "ACC1")
    assert [(one.control, one.procedures[0].placer_number) for one in command.replaces] == [("CA", "P1")]


def test_two_old_orders_become_one_and_one_becomes_two():
    new = ORC.replace("NW", "RO")
    (command,) = orders("ORC|RU|P7^HIS", "ORC|RU|P8^HIS", new, OBR)
    assert [one.procedures[0].placer_number for one in command.replaces] == ["P7", "P8"]
    one, two = orders("ORC|RP|P7^HIS", new, OBR, new, OBR.replace("ACC1", "ACC2"))
    assert (one.accession_number, len(one.replaces), two.accession_number, two.replaces) == ("ACC1", 1, "ACC2", ())


@pytest.mark.parametrize(
    ("segments", "place"),
    [(("ORC|RP|P1^HIS",), "ORC^1"), (("ORC|RP|P1^HIS", ORC, OBR), "ORC^1"), ((ORC.replace("NW", "RO"), OBR), "ORC^1^1"),
     ((ORC, OBR, ORC.replace("NW", "RO"), OBR), "ORC^2^1")],
)  # fmt: skip
def test_a_replacement_is_whole_or_refused(segments, place):
    with pytest.raises(BrokerError) as refused:
        orders(*segments)
    assert (refused.value.err, refused.value.place) == ("100", place)


def test_every_pair_of_a_message_is_an_order():
    """A4: of several ORC/OBR groups none is lost, whatever stands between them."""
    pairs = [
        line
        for n in range(1, 6)
        for line in (
            ORC.replace("P1", f"P{n}"),
            field(OBR.replace("P1^HIS", f"P{n}^HIS"), 18, f"ACC{n}"),
            "NTE|1||注意",
        )
    ]
    made = orders(*pairs)
    assert [one.accession_number for one in made] == [f"ACC{n}" for n in range(1, 6)]
    assert [one.procedures[0].attributes["RequestedProcedureComments"] for one in made] == ["注意"] * 5


@pytest.mark.parametrize(
    ("tq1", "orc", "obr", "time"),
    [("TQ1|1||||||20251201080000", "^^^20251201090000", "^^^20251201100000", "080000"),
     ("TQ1|1", "^^^20251201090000", "^^^20251201100000", "090000"), ("", "", "^^^20251201100000", "100000"),
     ("", "", "", None)],
)  # fmt: skip
def test_the_start_stands_in_the_first_of_three_places_or_is_not_invented(tq1, orc, obr, time):
    segments = filter(None, (field(ORC, 7, orc), tq1, field(OBR, 27, obr)))
    assert orders(*segments, kind="OMG^O19")[0].procedures[0].steps[0].start_time == time


# Parent and child (JAHIS)

WHOLE = field(field(ORC.replace("NW", "PA"), 8, ""), 7, "")
CHILD = "ORC|CH|P1-1^HIS|||||^^^20251201093000|P1^F1"
DETAIL = "OBR|1|P1-1^HIS||6000000200000000^胸部正面^JJ1017-16M"


def test_a_child_tells_the_codes_of_its_parents_step():
    second = DETAIL.replace("60000002", "60001002").replace("正面", "側面")
    (command,) = orders(WHOLE, OBR, CHILD, DETAIL, CHILD, second, kind="OMG^O19")
    (step,) = command.procedures[0].steps
    codes = [one["CodeValue"] for one in step.attributes["ScheduledProtocolCodeSequence"]]
    assert (command.control, step.sps_id) == ("NW", "SPS1")
    assert codes == ["CT1", "6000000200000000", "6000100200000000"]


def test_a_child_with_its_own_step_id_is_a_step_and_its_parent_none():
    bare = field(OBR, 20, "")
    (command,) = orders(WHOLE, bare, CHILD, field(DETAIL, 20, "S1"), CHILD, field(DETAIL, 20, "S2"), kind="OMG^O19")
    steps = command.procedures[0].steps
    assert [(step.sps_id, step.placer_number, step.modality) for step in steps] == [
        ("S1", "P1-1", "CT"), ("S2", "P1-1", "CT"),
    ]  # fmt: skip


def test_a_child_belongs_to_the_parent_that_it_names():
    other, detail = WHOLE.replace("P1^", "P9^").replace("F1^", "F9^"), field(OBR.replace("P1^", "P9^"), 18, "ACC9")
    first, second = orders(WHOLE, OBR, other, detail, CHILD, field(DETAIL, 20, "S7"), kind="OMG^O19")
    assert [step.sps_id for step in first.procedures[0].steps] == ["SPS1", "S7"]
    assert [step.sps_id for step in second.procedures[0].steps] == ["SPS1"]


@pytest.mark.parametrize("parent", ["", "P8^F8"])
def test_a_child_without_its_parent_is_refused(parent):
    before = (WHOLE, OBR) if parent else ()
    with pytest.raises(BrokerError) as refused:
        orders(*before, field(CHILD, 8, parent), DETAIL, kind="OMG^O19")
    assert (refused.value.err, refused.value.place.split("^")[-1]) == ("100", "8")


def test_a_whole_examination_is_cancelled_with_its_parts():
    (command,) = orders(field(WHOLE, 5, "CA"), "ORC|CH|P1-1^HIS|||CA|||P1", DETAIL, kind="OMG^O19")
    assert (command.control, command.procedures[0].placer_number, command.procedures[0].steps[0].sps_id) == (
        "CA", "P1", "",
    )  # fmt: skip


def test_a_whole_examination_without_parts_and_step_id_is_refused():
    with pytest.raises(BrokerError) as refused:
        orders(WHOLE, field(OBR, 20, ""), CHILD, DETAIL, kind="OMG^O19")
    assert (refused.value.err, refused.value.place) == ("101", "OBR^1^20")


# Several groups of one order (conformance.md 5.3)


def group(n: int, control: str = "XO", status: str = "", at: str = "20251201085500") -> tuple[str, str]:
    """The n-th step of the order."""
    orc = f"ORC|{control}|P{n}^HIS|F{n}^RIS||{status}||^^^20251201093000||{at}"
    return orc, f"OBR|1|P{n}^HIS|F{n}^RIS|CTCHEST^胸部CT^99LOCAL||||||||||||||ACC1|RP1|SPS{n}||||CT"


def told(*groups: tuple[str, str]):
    """Of each command: its status, whether it has begun, its minute, and its steps."""
    made = orders(*(segment for one in groups for segment in one))
    return [
        (one.status, one.begun, one.at.minute, [step.sps_id for part in one.procedures for step in part.steps])
        for one in made
    ]


def test_groups_that_say_the_same_are_one_command():
    assert told(group(1), group(2)) == [("", False, 55, ["SPS1", "SPS2"])]


@pytest.mark.parametrize(("control", "first", "second"), [("SC", "CM", "SC"), ("XO", "CA", ""), ("XO", "", "CA")])
def test_each_group_has_a_status_of_its_own(control, first, second):
    """What is said of one step is not said of another, and not lost."""
    assert told(group(1, control, first), group(2, control, second)) == [
        (first, False, 55, ["SPS1"]), (second, False, 55, ["SPS2"]),
    ]  # fmt: skip


def test_each_group_has_a_time_of_its_own():
    assert told(group(1, at="20251201080000"), group(2, at="20251201083000")) == [
        ("", False, 0, ["SPS1"]), ("", False, 30, ["SPS2"]),
    ]  # fmt: skip


def test_of_a_new_order_only_the_steps_that_have_begun_have():
    assert [(begun, steps) for _, begun, _, steps in told(group(1, "NW", "IP"), group(2, "NW", "SC"))] == [
        (True, ["SPS1"]), (False, ["SPS2"]),
    ]  # fmt: skip
    assert [(begun, steps) for _, begun, _, steps in told(group(1, "NW", "SC"), group(2, "NW", ""))] == [
        (False, ["SPS1", "SPS2"])
    ]


def test_a_further_group_of_a_new_order_says_what_those_before_it_have_not_said():
    """Two groups of one procedure with two times never contradict each other: they came in one message."""
    (orc_1, obr_1), (orc_2, obr_2) = group(1, "NW", at="20251201085500"), group(2, "NW", at="20251201085700")
    obr_2 = field(field(obr_2, 31, "^再検査"), 4, "CTABD^腹部CT^99LOCAL")
    first, second = orders(
        field(orc_1, 17, "D1^内科"), obr_1, "NTE|1||一", field(orc_2, 17, "D2^外科"), obr_2, "NTE|1||二"
    )
    assert (first.at.minute, second.at.minute) == (55, 57)
    assert (first.attributes["RequestingService"], second.attributes["RequestingService"]) == ("内科", None)
    (one,), (more,) = first.procedures, second.procedures
    assert (one.code_value, more.code_value, more.description, more.code_meaning) == ("CTCHEST", None, None, None)
    assert (one.requested_procedure_id, more.requested_procedure_id) == ("RP1", "RP1")
    assert more.attributes["ReasonForTheRequestedProcedure"] == "再検査"
    assert one.attributes["RequestedProcedureComments"] == "一\n二"
    assert more.attributes["RequestedProcedureComments"] is None
    assert more.steps[0].description == "腹部CT"
    other = orders(orc_1, obr_1, orc_2, field(obr_2, 19, "RP2"))[1].procedures[0]
    assert (other.code_value, other.description) == ("CTABD", "腹部CT")


def test_the_most_urgent_group_counts_for_the_order_whatever_their_times():
    groups = [
        (field(orc, 7, f"^^^20251201093000^^{priority}"), obr)
        for n, priority in ((1, "R"), (2, "S"))
        for orc, obr in [group(n, "NW", at=f"2025120108550{n}")]
    ]
    assert [one.priority for one in orders(*(segment for one in groups for segment in one))] == ["STAT", None]


def test_a_study_uid_that_the_later_group_says_is_the_procedures():
    groups = [*group(1, "NW"), *group(2, "NW", "IP"), "ZDS|1.2.3^A^Application^DICOM"]
    own = profiles.parse('name = "own"\nextends = "ihe-rad4-2.3.1"\n[identity]\nstudy_instance_uid = "derive"\n')
    made = orders_in.to_commands(parsed("ORM^O01", PID, *groups), SITE, own)
    assert [one.procedures[0].study_instance_uid for one in made] == ["1.2.3", "1.2.3"]


def test_numbers_are_asked_for_by_each_group_at_its_time_and_without_a_contradiction():
    (orc_1, obr_1), (orc_2, obr_2) = group(1, "SN", at="20251201085500"), group(2, "SN", at="20251201085700")
    first, second = orders(orc_1, obr_1, orc_2, field(obr_2, 4, "CTABD^腹部CT^99LOCAL"))
    assert (first.at.minute, second.at.minute) == (55, 57)
    assert (first.procedures[0].code_value, second.procedures[0].code_value) == ("CTCHEST", None)


def test_groups_of_a_procedure_with_two_study_uids_are_refused_whenever_they_were_made():
    groups = [(*group(n, "NW", at=f"2025120108550{n}"), f"ZDS|1.2.{n}^A^Application^DICOM") for n in (1, 2)]
    with pytest.raises(InvalidValue) as refused:
        orders(*(segment for one in groups for segment in one))
    assert (refused.value.err, refused.value.place) == ("102", "ORC^2^2")


def test_the_groups_of_a_replacement_are_one_order_whatever_their_times():
    """Else the first of them would cancel what the second orders."""
    groups = [group(n, "RO", at=f"2025120108550{n}") for n in (1, 2)]
    (command,) = orders("ORC|RP|P1^HIS|F1^RIS", *(segment for one in groups for segment in one))
    assert [step.sps_id for step in command.procedures[0].steps] == ["SPS1", "SPS2"]
    begun = [segment for n, status in ((1, "IP"), (2, "SC")) for segment in group(n, "RO", status)]
    assert not orders("ORC|RP|P1^HIS|F1^RIS", *begun)[0].begun  # no patient has come for a step of which nobody says so


@pytest.mark.parametrize("turned", [False, True])
def test_a_cancel_of_the_whole_order_is_not_narrowed_by_one_of_a_step(turned):
    whole, part = ("ORC|CA", "OBR|1" + "|" * 17 + "ACC1"), group(1, "CA")
    made = orders(*(segment for one in ((part, whole) if turned else (whole, part)) for segment in one))
    assert sorted(len(one.procedures) for one in made) == [0, 1]


# Names and codes that say nothing


@pytest.mark.parametrize("name", ["^^^^^^L", "^", "~", "^^^^^^L~^^^^^^L^I", '""^""^^^^^L', " ^ "])
def test_a_name_of_signs_alone_is_none(name):
    with pytest.raises(BrokerError) as refused:
        orders(ORC, OBR, pid=PID.replace("YAMADA^TARO", name))
    assert (refused.value.err, refused.value.place) == ("101", "PID^1^5")
    with pytest.raises(BrokerError):
        patients("ADT^A08", PID.replace("YAMADA^TARO", name))


@pytest.mark.parametrize(("said", "shown"), [("^^^", None), ('""', ""), ("^紹介^医師", "=紹介^医師"), ("", None)])
def test_signs_alone_delete_no_name(said, shown):
    visit = "PV1|1|I|7W^1|||||" + said
    (command,) = orders_in.to_commands(parsed("ORM^O01", PID, visit, ORC, OBR), SITE)
    assert command.attributes["ReferringPhysicianName"] == shown


@pytest.mark.parametrize(("said", "shown"), [("&&", None), ('""', ""), ("T1&技師&次郎", "=技師^次郎")])
def test_signs_alone_delete_no_technician(said, shown):
    step = orders(ORC, field(OBR, 34, said))[0].procedures[0].steps[0]
    assert step.attributes["ScheduledPerformingPhysicianName"] == shown


def test_an_alternate_code_that_cannot_be_kept_gives_way_to_the_code():
    """5.9: a JJ1017 code of 31 digits is none."""
    dropped = "6" * 31 + "^胸部^JJ1017-32"
    (step,) = orders(ORC, field(OBR, 4, f"CTCHEST^胸部CT^99LOCAL^{dropped}"))[0].procedures[0].steps
    assert [one["CodeValue"] for one in step.attributes["ScheduledProtocolCodeSequence"]] == ["CTCHEST"]
    (step,) = orders(ORC, field(field(OBR, 4, '""'), 44, "CT1^x^L"))[0].procedures[0].steps
    assert step.attributes["ScheduledProtocolCodeSequence"] == []
    (step,) = orders(ORC, field(OBR, 4, f"{dropped}^{dropped}"))[0].procedures[0].steps
    assert step.attributes["ScheduledProtocolCodeSequence"] == []  # an old code would be another examination


# Times


@pytest.mark.parametrize(
    "time", ["00010101000000", "00010101", "99991231235959-1200", "99990101", "00011231235959+0900"]
)
def test_a_time_at_the_end_of_all_times_is_none(time):
    """.NET writes year 1 for no time at all; in UTC it lies before it."""
    (command,) = orders(field(ORC, 9, time), OBR)
    assert (command.at.hour, command.at.minute) == (8, 55)
    with pytest.raises(InvalidValue) as refused:
        orders(field(ORC, 7, f"^^^{time}"), OBR)
    assert (refused.value.err, refused.value.place) == ("102", "ORC^1^7")


@pytest.mark.parametrize(
    ("said", "microsecond"),
    [("20251201085500.1234+0900", 123_400), ("20251201085500.0001", 100), ("20251201085500.123456789", 123_456),
     ("20251201085500", 0), ("202512010855.5", 0)],
)  # fmt: skip
def test_a_fraction_of_a_second_is_kept(said, microsecond):
    """Two messages of one second have an order."""
    (command,) = orders(field(ORC, 9, said), OBR)
    assert (command.at.hour, command.at.minute, command.at.second, command.at.microsecond) == (8, 55, 0, microsecond)


@pytest.mark.parametrize(("said", "priority"), [("stat", "STAT"), ("s", "STAT"), ("S", "STAT"), ("a", "HIGH"),
                                                ("tm10", "MEDIUM"), ("prn", "ROUTINE"), ("zz", "ROUTINE")])  # fmt: skip
def test_a_priority_is_read_in_either_case(said, priority):
    (command,) = orders(field(ORC, 7, f"^^^20251201093000^^{said}"), OBR)
    assert command.priority == priority


@pytest.mark.parametrize(
    ("said", "sent", "time"),
    [("20251201", "20251201085500", "08:55:00"), ("2025120108", "20251201085500", "08:55:00"),
     ("202512010855", "20251201085530", "08:55:30"), ("20251201085500", "20251201085500.250", "08:55:00.250000"),
     ("20251201", "2025120108", "08:00:00"), ("20251201", "20251130235500+0000", "08:55:00"),
     ("20251201+0900", "20251201085500", "08:55:00"),
     # MSH-7 lies elsewhere, or says no more
     ("20251130", "20251201085500", "00:00:00"), ("2025120107", "20251201085500", "07:00:00"),
     ("202512010854", "20251201085500", "08:54:00"), ("20251201083000", "20251201085500", "08:30:00"),
     ("20251201", "20251202000000", "00:00:00"), ("20251201083000", "20251201", "08:30:00"),
     ("20251201", "20251201", "00:00:00")],
)  # fmt: skip
def test_a_time_that_is_only_a_date_is_the_second_of_that_day_at_which_the_message_was_made(said, sent, time):
    """Else an order of today is older than all that was said of it this morning."""
    msg = parsed("ORM^O01", PID, field(ORC, 9, said), OBR)
    msg.first("MSH").fields[7] = sent
    (command,) = orders_in.to_commands(msg, SITE)
    assert command.at.astimezone(ZoneInfo("Asia/Tokyo")).time().isoformat() == time


def test_a_profile_that_reads_the_time_elsewhere_has_the_same_rule_and_one_that_reads_none_has_none():
    own = 'name = "own"\nextends = "ihe-rad4-2.3.1"\n[[field]]\nto = "order.at"\n'
    msg = parsed("ORM^O01", PID, field(field(ORC, 15, "20251201"), 9, ""), OBR)
    made = [orders_in.to_commands(msg, SITE, profiles.parse(own + more))[0].at for more in ('from = ["ORC-15"]\n', "")]
    assert (made[0].hour, made[0].minute, made[1]) == (8, 55, None)


# What one message says twice of one step


def twice(*segments: str, kind: str = "ORM^O01", profile=None) -> tuple[str, str]:
    with pytest.raises(InvalidValue) as refused:
        orders_in.to_commands(parsed(kind, PID, *segments), SITE, profile)
    assert refused.value.err == "102"
    return refused.value.place, refused.value.text


def test_a_step_that_is_named_twice_alike_is_one_step():
    (command,) = orders(ORC, OBR, IPC, IPC, kind="OMI^O23")
    assert [step.sps_id for step in command.procedures[0].steps] == ["SPS1"]
    assert len(orders(*group(1, "XO", "CA"), *group(1, "XO"))) == 2  # a blank ORC-5 says nothing
    for segments in ((ORC, OBR, ORC, OBR), group(1, "XO") * 2):
        (command,) = orders(*segments)
        assert [step.sps_id for step in command.procedures[0].steps] == ["SPS1"]
    (command,) = orders(ORC, OBR, "NTE|1||一", ORC, OBR, "NTE|1||二")
    assert command.procedures[0].attributes["RequestedProcedureComments"] == "一\n二"
    (command,) = orders(ORC, OBR, field(ORC, 7, ""), field(OBR, 24, ""))  # what is left out contradicts nothing
    assert [(step.modality, step.start_time) for step in command.procedures[0].steps] == [("CT", "093000")]


def test_an_ipc_that_is_repeated_with_another_station_adds_that_station():
    """HL7 has one station in IPC-9 (conformance.md 5.2), DICOM several in a step (PS3.3 C.4.10)."""
    second = field(field(IPC, 7, "CT2"), 9, "CT2")
    (command,) = orders(ORC, OBR, IPC, second, IPC, kind="OMI^O23")
    (step,) = command.procedures[0].steps
    assert step.station_ae_titles == ("CT1", "CT2")
    assert step.attributes["ScheduledStationName"] == ["CT1", "CT2"]


@pytest.mark.parametrize(("number", "value"), [(5, "MR"), (6, "6000100200000000^胸部造影CT^JJ1017-16M"), (8, "CT室2")])
def test_two_ipc_that_contradict_each_other_about_one_step_are_refused(number, value):
    """The last one would win, and nobody would know."""
    place, text = twice(ORC, OBR, IPC, field(field(IPC, 9, "CT2"), number, value), kind="OMI^O23")
    assert (place, "IPC^1^4" in text, "own ID" in text) == ("IPC^2^4", True, True)
    steps = orders(ORC, OBR, IPC, field(field(IPC, 4, "SPS2"), number, value), kind="OMI^O23")[0].procedures[0].steps
    assert len(steps) == 2


@pytest.mark.parametrize("control", ["NW", "XO"])
@pytest.mark.parametrize("left_out", [(), (19,), (18,), (18, 19)])
@pytest.mark.parametrize(
    ("segment", "number", "value"),
    [("ORC", 7, "^^^20251201100000"), ("OBR", 24, "MR"), ("OBR", 31, "^再検査"), ("ORC", 18, "CT2"),
     ("OBR", 4, "CTCHEST^胸部CT^99LOCAL^CT2^造影^99LOCAL")],
)  # fmt: skip
def test_two_groups_that_contradict_each_other_about_one_step_are_refused(control, left_out, segment, number, value):
    own = profiles.parse(
        'name = "own"\nextends = "ihe-rad4-2.3.1"\n[identity]\naccession_number = "derive"\n'
        'requested_procedure_id = "derive"\n'
    )
    first = field(field(ORC.replace("NW", control), 18, "CT1"), 16, "")
    obr = field(OBR, 31, "^初回")
    for one in left_out:
        obr = field(obr, one, "")
    changed = (field(first, number, value), obr) if segment == "ORC" else (first, field(obr, number, value))
    place, text = twice(first, obr, *changed, profile=own)
    assert (place, "OBR^1^20" in text) == ("OBR^2^20", True)
    assert "再検査" not in text


@pytest.mark.parametrize(("control", "first", "second"), [("XO", "CA", "IP"), ("SC", "CM", "SC"), ("NW", "IP", "SC")])
def test_two_groups_that_contradict_each_other_about_the_state_of_one_step_are_refused(control, first, second):
    assert twice(*group(1, control, first), *group(1, control, second))[0] == "OBR^2^20"
    assert twice(*group(1, control), *group(1, control, first), *group(1, control, second))[0] == "OBR^3^20"


def test_a_step_has_the_numbers_of_one_group():
    assert twice(ORC, OBR, ORC.replace("P1", "P2"), OBR.replace("P1^", "P2^"))[0] == "OBR^2^20"


def test_groups_without_a_step_id_are_told_apart_by_their_numbers():
    bare = "OBR|1|P1^HIS|F1^RIS"
    place, text = twice(
        field(ORC.replace("NW", "XO"), 7, "^^^20251201100000"), bare, field(ORC.replace("NW", "XO"), 7, "^^^20251201110000"), bare
    )  # fmt: skip
    assert (place, "ORC^1" in text) == ("OBR^2^20", False)
    assert len(orders(ORC.replace("NW", "XO"), bare, ORC.replace("NW", "XO").replace("P1", "P2"), bare[:4] + "1")) == 2


def test_one_step_id_in_two_orders_or_procedures_or_at_two_times_is_no_contradiction():
    other = field(OBR, 24, "MR")
    assert len(orders(ORC, OBR, ORC.replace("P1", "P2"), field(other.replace("P1^", "P2^"), 18, "ACC2"))) == 2
    (command,) = orders(ORC, OBR, ORC, field(other, 19, "RP2"))
    assert [[step.modality for step in one.steps] for one in command.procedures] == [["CT"], ["MR"]]
    later = group(1, "XO", at="20251201090000")
    assert len(orders(*group(1, "XO"), later[0], field(later[1], 24, "MR"))) == 2
    again = group(1, "NW")
    assert len(orders(*group(1, "CA"), field(again[0], 7, "^^^20251205110000"), again[1])) == 2


def test_pairs_of_one_study_are_one_procedure_also_where_its_id_is_left_to_us():
    own = profiles.parse('name = "own"\nextends = "ihe-rad4-2.3.1"\n[identity]\nrequested_procedure_id = "derive"\n')
    zds, (orc, obr) = "ZDS|1.2.3^A^Application^DICOM", group(2, "NW")
    segments = (ORC, field(OBR, 19, ""), zds, orc, field(obr, 19, ""), zds)
    (command,) = orders_in.to_commands(parsed("ORM^O01", PID, *segments), SITE, own)
    assert [[step.sps_id for step in one.steps] for one in command.procedures] == [["SPS1", "SPS2"]]


def test_children_with_one_step_id_are_that_step_with_the_codes_of_all():
    second = field(DETAIL.replace("60000002", "60001002").replace("正面", "側面"), 20, "S1")
    first = field(DETAIL, 20, "S1")
    (command,) = orders(WHOLE, field(OBR, 20, ""), CHILD, first, CHILD, second, CHILD, second, kind="OMG^O19")
    (step,) = command.procedures[0].steps
    codes = [one["CodeValue"] for one in step.attributes["ScheduledProtocolCodeSequence"]]
    assert (step.sps_id, step.description, codes) == ("S1", "胸部正面", ["6000000200000000", "6000100200000000"])
    (command,) = orders(WHOLE, field(OBR, 20, "S1"), field(CHILD, 7, ""), first, kind="OMG^O19")
    (step,) = command.procedures[0].steps
    assert [one["CodeValue"] for one in step.attributes["ScheduledProtocolCodeSequence"]] == ["CT1", "6000000200000000"]
    later = field(CHILD, 7, "^^^20251201110000")
    place, _ = twice(WHOLE, field(OBR, 20, ""), CHILD, first, later, second, kind="OMG^O19")
    assert place == "OBR^3^20"


# Odd, and legal


def test_the_authority_that_is_shown_is_that_of_the_number_that_is_shown():
    """Not the one of an account that stands before it, nor none because the first repetition is empty."""
    own = [{"UniversalEntityID": "1.2.3", "UniversalEntityIDType": "ISO"}]
    for before in ("", "A9^^^ACC&9.9.9&ISO^AN"):
        person = orders(ORC, OBR, pid=PID.replace("0000012345^^^HOSP^PI", f"{before}~1^^^HOSP&1.2.3&ISO^PI"))[0].patient
        assert person.attributes["IssuerOfPatientIDQualifiersSequence"] == own
    person = orders(ORC, OBR, pid=PID.replace("0000012345", "A9^^^ACC&9.9.9&ISO^AN~1"))[0].patient
    assert "IssuerOfPatientIDQualifiersSequence" not in person.attributes


@pytest.mark.parametrize("kind", ["pi", " PI ", "Mr", '""', ""])
def test_the_kind_of_a_patient_number_is_read_in_either_case(kind):
    person = orders(ORC, OBR, pid=PID.replace("HOSP^PI", f"HOSP^{kind}"))[0].patient
    assert [(one.value, one.type) for one in person.identifiers] == [("0000012345", kind.strip('" ').upper() or "PI")]


def test_blanks_around_a_value_are_none_of_it():
    (command,) = orders(
        ORC, field(field(OBR, 18, " ACC1 "), 24, " CT "), "ZDS| 1.2.3 ^A^Application^DICOM",
        pid=PID.replace("19700101|M", " 19700101 | M "),
    )  # fmt: skip
    assert (command.patient.sex, command.patient.birth_date, command.accession_number) == ("M", "19700101", "ACC1")
    assert command.procedures[0].study_instance_uid == "1.2.3"
    (command,) = orders(ORC, OBR, IPC.replace("1.2.3^", " 1.2.3 ^"), kind="OMI^O23")
    assert command.procedures[0].study_instance_uid == "1.2.3"


def test_an_empty_repetition_says_nothing():
    (command,) = orders(field(ORC, 7, "~^^^20251202093000^^S"), field(OBR, 16, "~110^B^C"))
    assert (command.priority, command.procedures[0].steps[0].start_date) == ("STAT", "20251202")
    assert command.attributes["RequestingPhysician"] == "B^C"
    (command,) = orders(ORC, OBR, field(IPC, 6, "~6000000200000000^胸部単純CT^JJ1017-16M"), kind="OMI^O23")
    assert command.procedures[0].steps[0].description == "胸部単純CT"


def test_each_repetition_of_a_note_is_a_line():
    (command,) = orders(ORC, OBR, "NTE|1||造影剤なし~アレルギー^あり~", "NTE|2||三", 'NTE|3||""')
    assert command.procedures[0].attributes["RequestedProcedureComments"] == "造影剤なし\nアレルギー^あり\n三"


@pytest.mark.parametrize("last", ["ADD| and more", "DSC|4711|F"])
def test_a_message_in_pieces_is_refused(last):
    """HL7 2.5.1 2.10.2: half a report, or a comment without its end, would look whole."""
    with pytest.raises(InvalidValue) as refused:
        orders(ORC, OBR, "NTE|1||first", last)
    assert (refused.value.err, refused.value.place) == ("100", f"{last[:3]}^1")
    assert len(orders(ORC, OBR, "DSC|")) == 1


def test_a_day_without_a_time_says_nothing_of_the_time():
    (command,) = orders(ORC, "TQ1|1||||||20251202", OBR, IPC, kind="OMI^O23")
    assert [(step.start_date, step.start_time) for step in command.procedures[0].steps] == [("20251202", None)]


@pytest.mark.parametrize("control", ["NW", "XO", "CA", "HD"])
@pytest.mark.parametrize(("number", "value"), [(2, "P2^HIS"), (2, "P1^OTHER")])
def test_a_group_that_names_two_orders_is_refused(control, number, value):
    """ORC-2 and OBR-2 are one number: it would be done to the order that the sender did not mean."""
    with pytest.raises(InvalidValue) as refused:
        orders(ORC.replace("NW", control), field(OBR, number, value))
    assert (refused.value.err, refused.value.place) == ("102", f"OBR^1^{number}")


def test_two_filler_numbers_name_two_orders_where_no_placer_number_tells_which():
    without = field(ORC, 2, "")
    with pytest.raises(InvalidValue):
        orders(without, field(field(OBR, 2, ""), 3, "F2^RIS"))
    assert orders(ORC, field(OBR, 3, "F2^RIS"))[0].procedures[0].filler_number == "F1"


def test_a_number_without_an_authority_is_the_one_that_has_it():
    assert orders(ORC, field(OBR, 2, "P1"))[0].procedures[0].placer_issuer == "HIS"
