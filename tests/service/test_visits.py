"""Arrivals and transfers reach the orders of their visit, and never all that a patient has (finding 8)."""

import dataclasses

import pytest

from broker import clock, db
from broker.archive import status
from broker.config import Site
from broker.errors import DuplicateKey, MissingField, UnknownKey
from broker.model.orders import ImagingOrder, StepVersion
from broker.model.status import OrderStatus
from broker.mwl import visits
from broker.mwl.commands import Identifier, OrderCommand, ProcedureCommand, StepCommand, VisitCommand
from tests.service.test_order_control import (
    SATO,
    YAMADA,
    carry_out,
    command,
    minute,
    move,
    rows,
    statuses,
    whole,
)

pytestmark = pytest.mark.usefixtures("database")
MORNING, EVENING = Identifier("V1", "HIS"), Identifier("V2", "HIS")


@pytest.fixture(autouse=True)
def _published():
    db.on_finish(status.publish)


def of_visit(visit: Identifier, accession: str, **changes) -> OrderCommand:
    attributes = {"AdmissionID": visit.value, "CurrentPatientLocation": "3F"}
    if visit.issuer:
        attributes["IssuerOfAdmissionIDSequence"] = [{"LocalNamespaceEntityID": visit.issuer}]
    return command(accession=accession, attributes=attributes, **changes)


def visit(event: str, at: int = 1, **changes) -> VisitCommand:
    made = VisitCommand(event, YAMADA, MORNING, at=minute(at), cause="ADT^A10", place="PV1^1^19")
    return dataclasses.replace(made, **changes)


def apply(one: VisitCommand) -> tuple[list[int], str]:
    return db.run(visits.apply, one, now=clock.now(), actor="test", site=Site())


@pytest.fixture
def orders(database, _published):
    """Two visits of one patient; and another patient's visit of the same number, which another hospital gave."""
    carry_out(of_visit(MORNING, "ACC1", steps=2), of_visit(EVENING, "ACC2"), command(accession="ACC3"))
    carry_out(of_visit(Identifier("V1", "OTHER"), "ACC4", patient=SATO))


def test_an_arrival_reaches_the_orders_of_its_visit_alone(orders):
    assert apply(visit("arrive")) == ([1], "arrive order 1")
    assert statuses() == ["ARRIVED", "ARRIVED", "SCHEDULED", "SCHEDULED", "SCHEDULED"]
    assert [row.state for row in rows(OrderStatus)] == ["ARRIVED", "SCHEDULED", "SCHEDULED", "SCHEDULED"]


def test_an_arrival_can_be_taken_back_and_comes_twice_harmlessly(orders):
    for event, at in (("arrive", 1), ("arrive", 1), ("unarrive", 2), ("unarrive", 2), ("arrive", 1)):
        apply(visit(event, at))
    assert set(statuses()) == {"SCHEDULED"}


def test_an_arrival_changes_nothing_of_what_has_begun_or_ended(orders):
    move("start")
    move("cancel", step_pk=2)
    apply(visit("arrive"))
    apply(visit("unarrive", 2))
    assert statuses()[:2] == ["STARTED", "CANCELED"]


def test_who_arrives_while_the_order_is_on_hold_is_here_when_it_is_released(orders):
    carry_out(whole("HD", 1))
    apply(visit("arrive", 2))
    assert statuses()[:2] == ["ON_HOLD", "ON_HOLD"]
    carry_out(whole("RL", 3))
    assert statuses()[:2] == ["ARRIVED", "ARRIVED"]


@pytest.mark.parametrize(
    "changes",
    [{"visit": Identifier("V9", "HIS")}, {"visit": Identifier("V1", "")}, {"visit": Identifier("V1", "OTHER")},
     {"patient": SATO}, {"patient": dataclasses.replace(YAMADA, identifiers=(Identifier("99", "HOSP"),))}],
)  # fmt: skip
@pytest.mark.parametrize("event", ["arrive", "unarrive", "transfer"])
def test_a_visit_that_nobody_knows_changes_nothing_and_says_so(orders, event, changes):
    assert apply(visit(event, location="5F", **changes)) == ([], f"{event}: no order of this visit is known")
    assert set(statuses()) == {"SCHEDULED"}
    assert {order.attributes.get("CurrentPatientLocation") for order in rows(ImagingOrder)} == {"3F", None}


def test_a_visit_without_an_issuer_is_that_of_orders_without_one(orders):
    carry_out(of_visit(Identifier("V1"), "ACC5"))
    assert apply(visit("arrive", visit=Identifier("V1")))[0] == [5]


def test_an_issuer_is_known_by_its_universal_id_too(orders):
    carry_out(command(accession="ACC5", attributes={"AdmissionID": "V7", "IssuerOfAdmissionIDSequence": [
        {"LocalNamespaceEntityID": "HIS", "UniversalEntityID": "1.2.3", "UniversalEntityIDType": "ISO"}]}))  # fmt: skip
    for issuer in ("1.2.3", "HIS"):
        assert apply(visit("arrive", visit=Identifier("V7", issuer)))[0] == [5]


@pytest.mark.parametrize("unnamed", [None, Identifier("", "HIS")])
def test_an_arrival_that_names_neither_visit_nor_order_is_refused(orders, unnamed):
    with pytest.raises(MissingField) as refused:
        apply(visit("arrive", visit=unnamed))
    assert (refused.value.err, refused.value.place) == ("101", "PV1^1^19")
    assert set(statuses()) == {"SCHEDULED"}


def numbers(accession: str = "ACC3", **named) -> OrderCommand:
    return OrderCommand("note", accession, "RIS", procedures=(ProcedureCommand(**named),) if named else ())


def test_an_arrival_that_names_an_order_reaches_that_order(orders):
    assert apply(visit("arrive", order=numbers()))[0] == [3]
    assert statuses() == ["SCHEDULED", "SCHEDULED", "SCHEDULED", "ARRIVED", "SCHEDULED"]


def test_an_arrival_reaches_no_step_that_it_does_not_name(orders):
    apply(visit("arrive", order=numbers("ACC1", requested_procedure_id="RP1", steps=(StepCommand("S2"),))))
    assert statuses()[:2] == ["SCHEDULED", "ARRIVED"]


def test_an_arrival_for_another_patients_order_or_an_unknown_one_is_refused(orders):
    with pytest.raises(DuplicateKey):
        apply(visit("arrive", order=numbers("ACC4")))
    with pytest.raises(UnknownKey):
        apply(visit("arrive", order=numbers("ACC9")))
    assert set(statuses()) == {"SCHEDULED"}


def test_a_transfer_says_where_the_patient_is_in_the_open_orders_of_the_visit(orders):
    apply(visit("transfer", 1, location="5F"))
    assert [o.attributes.get("CurrentPatientLocation") for o in rows(ImagingOrder)] == ["5F", "3F", None, "3F"]
    assert [row.version for row in rows(StepVersion) if row.step_pk == 1] == [1, 2]
    apply(visit("transfer", 2))
    apply(visit("transfer", 0, location="4F"))
    assert rows(ImagingOrder)[0].attributes["CurrentPatientLocation"] == "5F"
    apply(visit("transfer", 3, location=""))
    assert "CurrentPatientLocation" not in rows(ImagingOrder)[0].attributes


def test_a_transfer_leaves_orders_that_have_ended(orders):
    carry_out(whole("CA", 1))
    apply(visit("transfer", 2, location="5F"))
    assert rows(ImagingOrder)[0].attributes["CurrentPatientLocation"] == "3F"
