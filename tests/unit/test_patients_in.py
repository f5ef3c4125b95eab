"""What an ADT message says becomes commands about patients and visits: event by event."""

import datetime as dt

import pytest

from broker.config import Limits, Site
from broker.errors import BrokerError, InvalidValue, MissingField, Unsupported
from broker.mwl.commands import Identifier, PatientCommand, VisitCommand
from broker.ris_bridge.hl7 import message, patients_in

SITE = Site(patient_id_issuer="HOSP", accession_issuer="RIS")
EVN = "EVN||20251201090000"
PID = "PID|1||A^^^HOSP^PI||山田^太郎^^^^^L^I~ヤマダ^タロウ^^^^^L^P||19700101|M||||||||||V9^^^ADM"
PV1 = "PV1|1|I|5E^501" + "|" * 16 + "V1^^^ADM^VN"
ISSUE = ("A01 A02 A03 A04 A05 A08 A10 A11 A12 A13 A18 A28 A31 A34 A38 A40 A43 A47 A24 A37").split()


def commands(event: str, *segments: str, **settings: bool):
    head = f"MSH|^~\\&|A|B|C|D|20251201085500||ADT^{event}|1|P|2.5.1||||||UNICODE UTF-8"
    msg = message.parse("\r".join((head, *segments)).encode(), Limits(), "ASCII")
    return patients_in.to_commands(msg, SITE, **settings)


def refused(event: str, *segments: str) -> tuple[str, str]:
    with pytest.raises(BrokerError) as error:
        commands(event, *segments)
    return error.value.err, error.value.place


def hosp(number: str) -> Identifier:
    return Identifier(number, "HOSP", "PI")


def test_every_adt_event_of_the_contract_is_known():
    assert sorted(patients_in.EVENTS) == sorted(ISSUE)


# Demographics


@pytest.mark.parametrize("event", patients_in.UPDATES)
def test_an_event_of_a_person_or_a_visit_says_who_the_patient_is(event):
    (command,) = commands(event, EVN, PID, PV1)
    assert (command.event, command.prior, command.cause) == ("update", None, f"ADT^{event}")
    assert command.patient.identifiers == (hosp("A"),)


def test_a_name_made_from_the_kana_is_marked_and_a_written_one_is_not():
    (derived,), (written,) = commands("A08", PID), commands("A08", "PID|1||A||YAMADA^TARO~ヤマダ^タロウ")
    assert (derived.patient.name, derived.patient.romanised) == ("YAMADA^TARO=山田^太郎=ヤマダ^タロウ", True)
    assert (written.patient.name, written.patient.romanised) == ("YAMADA^TARO==ヤマダ^タロウ", False)


@pytest.mark.parametrize(
    ("evn", "hour"),
    [("EVN||20251201090000||||20251201070000", 7), ("EVN||20251201090000||||", 9), ('EVN||""||||20251301', 8), ("", 8)],
)
def test_the_time_is_that_of_the_event_else_of_its_record_else_of_the_message(evn, hour):
    (command,) = commands("A08", *filter(None, (evn, PID)))
    assert command.at.astimezone(dt.timezone(dt.timedelta(hours=9))).hour == hour


@pytest.mark.parametrize(
    ("recorded", "occurred", "time"),
    [("20251201", "", "08:55"), ("2025120108", "", "08:55"), ("", "20251201", "08:55"), ("20251201", "20251201", "08:55"),
     ("20251201090000", "20251201", "09:00"), ("20251201090000", "2025120108", "08:55"), ("20251130", "", "00:00"),
     ("20251201090000", "20251130", "00:00")],
)  # fmt: skip
def test_an_event_of_which_only_the_day_is_said_has_the_time_of_its_record_or_message_of_that_day(
    recorded, occurred, time
):
    (command,) = commands("A08", f"EVN||{recorded}||||{occurred}", PID)
    assert f"{command.at:%H:%M}" == time


# Measures (conformance.md 5.4)


@pytest.mark.parametrize(
    ("obx", "said"),
    [("X^Body weight||60.5|kg", {"PatientWeight": "60.5"}), ("29463-7^^LN||3200|g", {"PatientWeight": "3.2"}),
     ("3141-9^x^LN||70|KG", {"PatientWeight": "70"}), ("^体重||54|kg^^UCUM", {"PatientWeight": "54"}),
     ("L1^x^99L^29463-7^y^LN||54|kg", {"PatientWeight": "54"}), ("body WEIGHT||54.0|kg", {"PatientWeight": "54.0"}),
     ("X^Body height||172|cm", {"PatientSize": "1.72"}), ("8302-2^^LN||1.72|m", {"PatientSize": "1.72"}),
     ("身長||172.5|CM", {"PatientSize": "1.725"}), ("X^Height||50|cm", {"PatientSize": "0.5"})],
)  # fmt: skip
def test_weight_and_height_are_taken_in_the_units_that_are_known(obx, said):
    (command,) = commands("A08", PID, f"OBX|1|NM|{obx}")
    assert command.patient.attributes == said


@pytest.mark.parametrize(
    "obx",
    ["X^Body weight||154|lb", "X^Body weight||60|", "X^Recent weight loss||5|kg", "X^Birth weight||3200|g",
     "X^Fundal height||30|cm", "X^Body height||70|in", "X^Body height||1.72|", "X^Body height||172|m",
     "X^Body weight||60000|kg", "X^Body weight||-60|kg", "X^Body weight||６０|kg", "X^Body weight||0|kg",
     "X^Body weight||60|cm", "29463-70^x||60|kg", "X^Body height||172|kg", "||60|kg"],
)  # fmt: skip
def test_another_measure_or_unit_says_nothing(obx):
    """A wrong weight is a wrong dose."""
    (command,) = commands("A08", PID, f"OBX|1|NM|{obx}")
    assert command.patient.attributes == {}


# Visits


@pytest.mark.parametrize(("event", "what"), [("A10", "arrive"), ("A12", "unarrive"), ("A02", "transfer")])
def test_a_visit_event_is_about_the_person_and_then_the_visit_it_names(event, what):
    update, visit = commands(event, EVN, PID, PV1)
    assert isinstance(update, PatientCommand)
    assert isinstance(visit, VisitCommand)
    assert (visit.event, visit.visit, visit.order, visit.location) == (what, Identifier("V1", "ADM", "VN"), None, "5E")
    assert (visit.patient, visit.at, visit.cause, visit.place) == (
        update.patient, update.at, f"ADT^{event}", "PV1^1^19",
    )  # fmt: skip


def test_without_a_visit_number_the_account_number_counts():
    _, visit = commands("A10", EVN, PID, "PV1|1|O")
    assert (visit.visit, visit.location) == (Identifier("V9", "ADM", "VN"), None)


def test_an_arrival_for_an_order_names_its_numbers_and_one_for_several_each():
    orders = ("ORC|SC|P1^HIS|F1^RIS", "OBR|1" + "|" * 17 + "ACC1", "ORC|SC|P2^HIS", "OBR|1|P2^HIS")
    _, first, second = commands("A10", EVN, PID, "PV1|1|O", *orders)
    (procedure,) = first.order.procedures
    assert (first.order.accession_number, first.order.accession_issuer) == ("ACC1", "RIS")
    assert (procedure.placer_number, procedure.placer_issuer) == ("P1", "HIS")
    assert (procedure.filler_number, procedure.filler_issuer) == ("F1", "RIS")
    assert (second.order.accession_number, second.order.procedures[0].placer_number) == ("", "P2")
    assert first.order.patient == first.patient


def test_an_accession_number_gets_no_issuer_that_nobody_has_named():
    msg = message.parse(
        f"MSH|^~\\&|A|B|C|D|||ADT^A10|1|P|2.5.1\r{PID}\rOBR|1{'|' * 17}ACC1".encode(), Limits(), "UTF-8"
    )
    _, visit = patients_in.to_commands(msg, Site())
    assert (visit.order.accession_number, visit.order.accession_issuer) == ("ACC1", "")


def test_an_order_without_orc_is_named_by_its_obr():
    _, visit = commands("A10", EVN, PID, "PV1|1|O", "OBR|1|P1^HIS|F1^RIS")
    assert [one.placer_number for one in visit.order.procedures] == ["P1"]


def test_an_arrival_that_names_neither_is_left_to_be_refused_and_a_transfer_says_who_the_patient_is():
    bare = PID.rsplit("|", 1)[0]
    _, visit = commands("A10", EVN, bare, "PV1|1|O")
    assert (visit.visit, visit.order) == (None, None)
    assert [one.event for one in commands("A02", EVN, bare, "PV1|1|I|5E")] == ["update"]
    assert [one.event for one in commands("A02", EVN, PID, "PV1|1|I" + "|" * 17 + "V1")] == ["update"]


# Merges, moves, changes


@pytest.mark.parametrize("event", ["A18", "A34", "A40"])
def test_a_merge_in_any_form_names_who_goes_and_who_stays(event):
    (command,) = commands(event, EVN, PID, "MRG|B^^^HOSP")
    assert (command.event, command.prior, command.patient.identifiers[0]) == ("merge", hosp("B"), hosp("A"))


def test_a_number_that_the_patient_has_still_does_not_go_away_unless_nothing_else_is_named():
    pid = PID.replace("A^^^HOSP^PI", "A^^^HOSP^PI~E^^^MPI^PI")
    assert [one.prior.value for one in commands("A40", EVN, pid, "MRG|B^^^HOSP~E^^^MPI^MR")] == ["B"]
    assert [one.prior.value for one in commands("A40", EVN, pid, "MRG|E^^^MPI")] == ["E"]


@pytest.mark.parametrize(
    ("segments", "err", "place"),
    [((PID,), "100", "MRG"), (("MRG|B",), "100", "PID"), ((PID, PID, "MRG|B"), "100", "MRG"),
     ((PID, "MRG|B", PID), "100", "MRG"), ((PID, "MRG|"), "101", "MRG^1^1"), ((PID, "MRG|B^^^X^AN"), "101", "MRG^1^1")],
)  # fmt: skip
@pytest.mark.parametrize("event", ["A40", "A43", "A47"])
def test_a_pair_that_is_none_is_refused_with_its_place(event, segments, err, place):
    assert refused(event, EVN, *segments) == (err, place)


def test_a_move_names_the_new_patient_beside_the_number_that_goes_over():
    (command,) = commands("A43", EVN, PID.replace("A^^^HOSP^PI", "X^^^HOSP^MR~A^^^HOSP^PI"), "MRG|X^^^HOSP")
    assert (command.event, command.prior, command.patient.identifiers) == ("move", hosp("X"), (hosp("A"),))


def test_a_move_of_the_number_that_stays_in_use_names_the_new_patient_in_pid_2():
    (command,) = commands("A43", EVN, PID.replace("||A^^^HOSP", "|E^^^MPI|X^^^HOSP"), "MRG|X^^^HOSP")
    assert command.patient.identifiers == (Identifier("E", "MPI", "PI"), hosp("X"))


def test_a_change_of_several_numbers_pairs_those_of_one_authority():
    pid = PID.replace("A^^^HOSP^PI", "N1^^^HOSP^PI~N2^^^MPI^PI")
    made = commands("A47", EVN, pid, "MRG|O2^^^MPI~O1^^^HOSP")
    assert [(one.event, one.prior.value, one.patient.identifiers[0].value) for one in made] == [
        ("change_id", "O2", "N2"), ("change_id", "O1", "N1"),
    ]  # fmt: skip


# Links


@pytest.mark.parametrize("event", patients_in.LINKS)
def test_a_link_is_refused_unless_it_is_enabled_and_then_joins_nobody(event):
    other = PID.replace("|A^", "|B^")
    with pytest.raises(Unsupported) as error:
        commands(event, EVN, PID, other)
    assert (error.value.err, error.value.place, error.value.wire.msa) == ("201", "MSH^1^9", "AR")
    made = commands(event, EVN, PID, other, link_patients=True)
    assert [(one.event, one.patient.identifiers[0].value, one.prior) for one in made] == [
        ("update", "A", None), ("update", "B", None),
    ]  # fmt: skip
    with pytest.raises(MissingField):
        commands(event, EVN, PID, link_patients=True)


def test_a_message_about_two_patients_is_an_error_of_its_content():
    """AE, not AR: the type is supported, and the same bytes would be refused again."""
    text = "MSH|^~\\&|HIS|HOSP|||20261126||ADT^A08|1|P|2.5\rPID|1||1^^^HOSP^PI||YAMADA^TARO\rPID|2||2^^^HOSP^PI||SATO^HANAKO"
    two = message.parse(text.encode(), Limits(), "ASCII")
    with pytest.raises(InvalidValue) as refused:
        patients_in.to_commands(two, Site())
    assert (refused.value.wire.msa, refused.value.err) == ("AE", "100")


def test_an_arrival_that_names_two_orders_is_refused():
    with pytest.raises(BrokerError) as refused:
        commands("A10", EVN, PID, "ORC|SC|P1^HIS|F1^RIS", "OBR|1|P2^HIS|F1^RIS")
    assert (refused.value.err, refused.value.place) == ("102", "OBR^1^2")
