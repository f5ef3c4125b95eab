"""Arrivals and transfers reach the orders of their visit, and never all that a patient has (finding 8)."""

import dataclasses
import datetime as dt

import pytest

from broker import clock, db
from broker.archive import status
from broker.config import Site
from broker.errors import DuplicateKey, MissingField, UnknownKey
from broker.model.orders import ImagingOrder, StepVersion
from broker.model.patients import Patient
from broker.model.status import OrderStatus
from broker.model.work import AuditEvent
from broker.mwl import patients, visits
from broker.mwl.commands import (
    Identifier,
    OrderCommand,
    PatientCommand,
    ProcedureCommand,
    StepCommand,
    VisitCommand,
)
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
DAY = dt.timedelta(days=1)
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


def test_an_arrival_looks_for_the_orders_of_a_patient_whom_it_holds(orders, monkeypatch):
    """Else a merge or a move could give them to another meanwhile."""
    locked, lock = [], db.lock
    monkeypatch.setattr(db, "lock", lambda session, table, pk: (locked.append(table), lock(session, table, pk))[1])
    apply(visit("arrive"))
    assert locked == [Patient, ImagingOrder]


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


def two_groups(accession: str = "ACC5", **changes) -> OrderCommand:
    """Two order groups of one accession number, each a procedure with numbers of its own."""
    one, other = (command(accession=f"ACC{n}").procedures[0] for n in (5, 6))
    other = dataclasses.replace(other, steps=(dataclasses.replace(other.steps[0], sps_id="S6"),))
    return command(accession=accession, procedures=(one, other), **changes)


@pytest.mark.parametrize("event", ["arrive", "unarrive"])
def test_an_arrival_by_a_number_that_the_order_does_not_have_reaches_nothing_of_it(orders, event):
    carry_out(two_groups(begun=event == "unarrive"))
    before = statuses()
    for named in ({"placer_number": "P7", "placer_issuer": "HIS"}, {"placer_number": "P5", "placer_issuer": "OTHER"}):
        with pytest.raises(UnknownKey) as refused:
            apply(visit(event, order=numbers("ACC5", **named)))
        assert refused.value.err == "204"
    assert statuses() == before
    apply(visit(event, order=numbers("ACC5", placer_number="P6", placer_issuer="HIS")))
    assert [n for n, (old, new) in enumerate(zip(before, statuses(), strict=True)) if old != new] == [6]


def test_an_arrival_by_the_number_of_one_group_of_a_procedure_reaches_the_step_of_that_group(orders):
    groups = [{"placer_number": f"P{n}", "placer_issuer": "HIS"} for n in (7, 8)]
    procedure = dataclasses.replace(
        command(accession="ACC7").procedures[0], filler_number="", filler_issuer="",
        steps=tuple(StepCommand(f"S{n}", "CT", ("CT1",), "20350705", "093000", **own)
                    for n, own in enumerate(groups)),
    )  # fmt: skip
    carry_out(command(accession="ACC7", procedures=(procedure,)))
    apply(visit("arrive", order=numbers("ACC7", **groups[1])))
    assert statuses()[5:] == ["SCHEDULED", "ARRIVED"]


def later_step(at: int, **changes) -> OrderCommand:
    """A further step of the third order."""
    procedure = command(accession="ACC3").procedures[0]
    step = dataclasses.replace(procedure.steps[0], sps_id="S9", start_date="20350920")
    return command(accession="ACC3", at=at, procedures=(dataclasses.replace(procedure, steps=(step,)),), **changes)


@pytest.mark.parametrize("late", [False, True])
def test_who_came_yesterday_is_not_here_for_what_is_ordered_today(orders, late):
    arrived = visit("arrive", 10, order=numbers())
    carry_out(later_step(20)) if late else apply(arrived)
    apply(arrived) if late else carry_out(later_step(20))
    assert statuses()[3::2] == ["ARRIVED", "SCHEDULED"]
    carry_out(whole("HD", 30, accession="ACC3"), whole("RL", 40, accession="ACC3"))
    assert statuses()[3::2] == ["ARRIVED", "SCHEDULED"]
    carry_out(later_step(5))
    assert statuses()[3::2] == ["ARRIVED", "ARRIVED"], "it was ordered before they came, as it turns out"


def test_an_arrival_that_is_older_than_the_order_leaves_a_trace(orders):
    carry_out(command(accession="ACC9", at=20))
    apply(visit("arrive", 10, order=numbers("ACC9")))
    assert statuses()[-1] == "SCHEDULED"
    assert [event.outcome for event in rows(AuditEvent)][-1] == "stale"


def test_an_arrival_far_in_the_future_is_one_of_now(orders):
    apply(dataclasses.replace(visit("arrive", order=numbers()), at=clock.now() + 400 * DAY))
    apply(dataclasses.replace(visit("unarrive", order=numbers()), at=clock.now()))
    assert set(statuses()) == {"SCHEDULED"}


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


@pytest.mark.parametrize("order", [None, OrderCommand("note", "ACC1", "RIS")])
def test_another_person_under_a_retired_number_does_not_arrive_for_the_survivor(orders, order):
    """The number was merged away, and given to somebody else since."""
    merge = PatientCommand("merge", YAMADA, Identifier("9", "HOSP"), at=minute(0))
    db.run(patients.apply, PatientCommand("update", dataclasses.replace(YAMADA, identifiers=(merge.prior,))),
           now=clock.now(), actor="test")  # fmt: skip
    db.run(patients.apply, merge, now=clock.now(), actor="test")
    stranger = dataclasses.replace(SATO, identifiers=(merge.prior,))
    with pytest.raises(DuplicateKey) as refused:
        apply(visit("arrive", patient=stranger, order=order))
    assert (refused.value.place, set(statuses())) == ("patient.id", {"SCHEDULED"})
    apply(visit("arrive", patient=dataclasses.replace(YAMADA, identifiers=(merge.prior,)), order=order))
    assert "ARRIVED" in statuses()
