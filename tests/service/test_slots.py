"""An appointment reaches the steps that it means, and no other."""

import dataclasses

import pytest

from broker import clock, db
from broker.archive import status
from broker.config import Site
from broker.errors import DuplicateKey
from broker.model.orders import RequestedProcedure, ScheduledStep
from broker.mwl import order_finding, orders, slots
from broker.mwl.commands import OrderCommand, Policies, ProcedureCommand
from broker.mwl.slots import CODES, ServiceCommand
from tests.service.test_order_control import YAMADA, carry_out, cases, command, minute, move, rows, statuses, times

pytestmark = pytest.mark.usefixtures("database")
DERIVE = Policies("derive", "derive", "derive", "derive")


@pytest.fixture(autouse=True)
def _published():
    db.on_finish(status.publish)


def coded(*codes: str) -> dict:
    return {CODES: [{"CodeValue": one, "CodingSchemeDesignator": "99L", "CodeMeaning": one} for one in codes]}


def ordered(*codes: str, **changes) -> OrderCommand:
    """An order with a step for each code."""
    made = command(steps=len(codes), **changes)
    steps = tuple(
        dataclasses.replace(step, attributes=coded(code))
        for step, code in zip(made.procedures[0].steps, codes, strict=True)
    )
    return dataclasses.replace(made, procedures=(dataclasses.replace(made.procedures[0], steps=steps),))


def service(time: str, *codes: str, number: str = "A1", placer: str = "P1", places: bool = False) -> ServiceCommand:
    return ServiceCommand(
        start_date="20350705", start_time=time, placer_number=placer, placer_issuer="HIS" if placer else "",
        appointment_number=number, appointment_issuer="SCH", codes=codes, attributes=coded(*codes) if places else {},
        modality="CT" if places else None,
    )  # fmt: skip


def booked(*services: ServiceCommand, at: int = 1, places: bool = False, control: str = "XO") -> OrderCommand:
    return OrderCommand(
        control, accession_issuer="RIS", patient=YAMADA, at=minute(at), place="SCH^1^26", policies=DERIVE,
        unknown="place" if places else "refuse", procedures=(ProcedureCommand(steps=services),),
    )  # fmt: skip


def say(*commands: OrderCommand) -> None:
    """As an appointment is carried out."""

    def said(session, one: OrderCommand) -> None:
        if one.control == "XO" and order_finding.find(session, one) is not None:
            one = slots.resolved(session, order_finding.known(session, one), one)
        orders.carry_out(session, one, now=clock.now(), actor="test", site=Site())

    for one in commands:
        db.run(said, one)


def appointments() -> list[str]:
    return [step.appointment_number for step in rows(ScheduledStep)]


def test_one_service_is_said_of_all_steps_that_wait_for_an_appointment():
    carry_out(ordered("X", "Y"))
    say(booked(service("110000")))
    assert (times(), appointments()) == (["110000"] * 2, ["A1"] * 2)
    say(booked(service("120000", placer=""), at=2))
    assert times() == ["120000"] * 2


@pytest.mark.parametrize("places", [False, True])
def test_each_service_goes_to_the_step_of_its_code(places):
    carry_out(ordered("X", "Y"))
    say(booked(service("120000", "Y", places=places), service("110000", "X", places=places), places=places))
    assert times() == ["110000", "120000"]
    say(booked(service("130000", "Y"), at=2))
    assert times() == ["110000", "130000"], "what is not mentioned stays"


def test_the_code_of_the_procedure_counts_where_no_step_has_it():
    made = command(steps=2)
    carry_out(dataclasses.replace(made, procedures=(dataclasses.replace(made.procedures[0], code_value="HEAD"),)))
    say(booked(service("110000", "HEAD")))
    assert times() == ["110000"] * 2


def test_services_without_a_code_go_one_by_one_or_nowhere():
    carry_out(ordered("X", "Y"))
    say(booked(service("110000"), service("120000")))
    assert times() == ["110000", "120000"]
    with pytest.raises(DuplicateKey):
        say(booked(service("130000"), service("140000"), service("150000"), at=2))
    assert times() == ["110000", "120000"]


@pytest.mark.parametrize("codes", [("P", "Q"), ("Y", "P"), ("X",) * 2, ("P",), ("", "X")])
def test_which_step_a_service_means_is_never_guessed_from_its_place(codes):
    carry_out(ordered("X", "Y"))
    said = (service("110000", *filter(None, [code])) for code in codes)
    with pytest.raises(DuplicateKey) as refused:
        say(booked(*said))
    assert (refused.value.err, refused.value.place) == ("205", "SCH^1^26")
    assert times() == ["093000"] * 2


def test_one_service_of_one_step_can_mean_no_other():
    carry_out(ordered("X"))
    say(booked(service("110000", "P")))
    assert times() == ["110000"]


def test_the_code_of_the_procedure_does_not_count_where_a_step_has_it():
    made = ordered("X", "")
    carry_out(dataclasses.replace(made, procedures=(dataclasses.replace(made.procedures[0], code_value="X"),)))
    say(booked(service("110000", "X")))
    assert times() == ["110000", "093000"]


def test_some_services_are_known_by_their_steps_and_others_by_their_procedures():
    one, other = ordered("X").procedures[0], ordered("", accession="ACC2").procedures[0]
    other = dataclasses.replace(
        other, code_value="HEAD", steps=tuple(dataclasses.replace(step, sps_id="S9") for step in other.steps)
    )
    carry_out(dataclasses.replace(ordered("X"), procedures=(dataclasses.replace(one, code_value="HEAD"), other)))
    say(booked(service("120000", "HEAD", placer=""), service("110000", "X"), at=1))
    assert times() == ["110000", "120000"]


def test_several_services_of_one_code_go_to_as_many_steps_of_it():
    carry_out(ordered("X", "X"))
    say(booked(service("110000", "X"), service("120000", "X")))
    assert times() == ["110000", "120000"]
    with pytest.raises(DuplicateKey):
        say(booked(service("130000", "X"), service("140000", "X"), service("150000", "X"), at=2))


def test_a_service_that_is_no_step_of_the_order_is_refused_where_orders_come_by_themselves():
    carry_out(ordered("X"))
    with pytest.raises(DuplicateKey) as refused:
        say(booked(service("110000", "X"), service("113000", "TALK")))
    assert refused.value.err == "205"
    assert times() == ["093000"]


def test_an_appointment_moves_its_own_steps_alone():
    carry_out(ordered("X", "Y"))
    say(booked(service("110000", "X")), booked(service("120000", "Y", number="A2"), at=2))
    assert appointments() == ["A1", "A2"]
    say(booked(service("130000"), at=3))
    assert times() == ["130000", "120000"]
    say(booked(service(""), at=4, control="CA"))
    assert statuses() == ["CANCELED", "SCHEDULED"]


def test_another_appointment_of_steps_that_have_one_is_refused():
    carry_out(ordered("X"))
    say(booked(service("110000")))
    with pytest.raises(DuplicateKey) as refused:
        say(booked(service("120000", number="A2"), at=2))
    assert (refused.value.err, refused.value.place) == ("205", "SCH^1^26")
    assert times() == ["110000"]


@pytest.mark.parametrize("number", ["A1", "A2"])
def test_a_slot_that_was_cancelled_does_not_come_back_and_a_person_is_asked(number):
    carry_out(ordered("X"))
    say(booked(service("110000")), booked(service(""), at=2, control="CA"))
    say(booked(service("120000", number=number), at=3))
    assert (statuses(), times(), cases()) == (["CANCELED"], ["110000"], ["late_change"])


def test_a_slot_that_is_finished_does_not_move():
    carry_out(ordered("X"))
    say(booked(service("110000")))
    move("start", "complete")
    say(booked(service("120000"), at=2))
    assert (statuses(), times(), cases()) == (["COMPLETED"], ["110000"], ["late_change"])


def test_a_schedule_that_places_orders_places_one_once_with_a_step_for_each_service():
    said = booked(
        service("110000", "X", placer="", places=True), service("113000", "Y", placer="", places=True), places=True
    )
    say(said, said, dataclasses.replace(said, at=minute(2)))
    assert (times(), appointments()) == (["110000", "113000"], ["A1", "A1"])
    assert len({step.sps_id for step in rows(ScheduledStep)}) == 2


def test_a_schedule_that_places_orders_adds_a_service_and_changes_one():
    say(booked(service("110000", "X", placer="", places=True), places=True))
    more = service("110000", "X", placer="", places=True), service("113000", "Y", placer="", places=True)
    say(booked(*more, at=2, places=True))
    assert times() == ["110000", "113000"]
    with pytest.raises(DuplicateKey):
        say(booked(service("120000", "Z", placer="", places=True), at=3, places=True))
    assert times() == ["110000", "113000"]


def test_a_schedule_that_places_orders_changes_the_service_of_a_slot():
    say(booked(service("110000", "X", placer="", places=True), places=True))
    say(booked(service("110000", "Z", placer="", places=True), at=2, places=True))
    (step,) = rows(ScheduledStep)
    assert step.attributes[CODES][0]["CodeValue"] == "Z"


def test_a_second_appointment_of_an_order_that_a_schedule_placed_is_one_more_step():
    say(booked(service("110000", "X", places=True), places=True))
    say(booked(service("150000", "X", number="A2", places=True), at=2, places=True))
    assert (times(), appointments()) == (["110000", "150000"], ["A1", "A2"])


def test_a_schedule_that_places_orders_books_anew_what_it_cancelled():
    say(booked(service("110000", "X", places=True), places=True), booked(service(""), at=2, control="CA"))
    say(booked(service("150000", "X", number="A2", places=True), at=3, places=True))
    assert (times(), statuses()) == (["110000", "150000"], ["CANCELED", "SCHEDULED"])


def test_without_an_appointment_number_all_steps_of_the_orders_numbers_are_meant():
    carry_out(ordered("X", "Y"))
    say(booked(service("110000", number="A1", placer="P1")), booked(service("120000", number=""), at=2))
    assert (times(), appointments()) == (["120000"] * 2, ["A1"] * 2)


def test_the_numbers_of_one_order_group_reach_its_own_steps_alone():
    made = ordered("X", "Y")
    first, second = made.procedures[0].steps
    own = dataclasses.replace(first, placer_number="P1", placer_issuer="HIS")
    other = dataclasses.replace(second, placer_number="P2", placer_issuer="HIS")
    carry_out(dataclasses.replace(made, procedures=(dataclasses.replace(made.procedures[0], steps=(own, other)),)))
    say(booked(service("110000", placer="P2")))
    assert times() == ["093000", "110000"]


def test_an_appointment_of_several_procedures_says_nothing_of_any():
    one = ordered("X")
    second = dataclasses.replace(
        one.procedures[0], requested_procedure_id="RP2", study_instance_uid="1.2.2", code_value="OLD",
        steps=(dataclasses.replace(one.procedures[0].steps[0], sps_id="S2"),),
    )  # fmt: skip
    carry_out(dataclasses.replace(one, procedures=(*one.procedures, second)))
    said = booked(service("110000"))
    named = dataclasses.replace(said, procedures=(dataclasses.replace(said.procedures[0], code_value="NEW"),))
    say(named)
    assert times() == ["110000"] * 2
    assert [row.code_value for row in rows(RequestedProcedure)] == ["", "OLD"]


def test_what_is_no_appointment_is_left_as_it_is():
    carry_out(ordered("X"))
    one = command("XO", 1)
    order = db.run(lambda session: slots.resolved(session, order_finding.known(session, one), one))
    assert order is one
