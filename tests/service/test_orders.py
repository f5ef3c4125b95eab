"""What an order command makes of the rows: once, in order, and never more than it says."""

import dataclasses
import datetime as dt

import pytest
from sqlmodel import select

from broker import clock, db
from broker.archive import status
from broker.config import Site
from broker.errors import DuplicateKey, UnknownKey
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep, StepVersion
from broker.model.status import OrderStatus
from broker.model.work import AuditEvent
from broker.mwl import orders
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand

pytestmark = pytest.mark.usefixtures("database")
NOON = dt.datetime(2035, 7, 5, 3, tzinfo=dt.UTC)
YAMADA = PersonCommand((Identifier("1", "HOSP"),), "YAMADA^TARO=山田^太郎", "19700101", "M")
SATO = PersonCommand((Identifier("2", "HOSP"),), "SATO^HANAKO=佐藤^花子", "19850315", "F")


@pytest.fixture(autouse=True)
def _published():
    db.on_finish(status.publish)


def command(
    control: str = "NW", accession: str = "ACC1", *, steps: int = 1, at: dt.datetime = NOON, **changes
) -> OrderCommand:
    procedure = ProcedureCommand(
        requested_procedure_id="RP1", study_instance_uid="1.2.3", placer_number="P1", placer_issuer="HIS",
        filler_number="F1", filler_issuer="RIS", description="胸部CT",
        steps=tuple(StepCommand(f"S{n + 1}", "CT", ("CT1",), "20350705", "093000", "plain") for n in range(steps)),
    )  # fmt: skip
    made = OrderCommand(control, accession, "RIS", "ROUTINE", YAMADA if control == "NW" else None, (procedure,), at=at)
    return dataclasses.replace(made, **changes)


def apply(one: OrderCommand) -> ImagingOrder:
    return db.run(orders.apply, one, now=clock.now(), actor="test", site=Site())


def rows(table):
    return db.read(lambda session: session.exec(select(table).order_by(*table.__table__.primary_key.columns)).all())


def change_step(one: OrderCommand, **changes) -> OrderCommand:
    procedure = one.procedures[0]
    step = dataclasses.replace(procedure.steps[0], **changes)
    return dataclasses.replace(one, procedures=(dataclasses.replace(procedure, steps=(step,)),))


def begin(step_pk: int = 1) -> None:
    def start(session) -> None:
        step = db.lock(session, ScheduledStep, step_pk)
        orders.move_step(session, step, "start", now=clock.now(), actor="test", cause="MPPS")

    db.run(start)


def test_a_new_order_makes_an_item_with_its_first_version():
    apply(command())
    (step,) = rows(ScheduledStep)
    assert (step.status, step.version, step.offerable, step.patient_id, step.accession_number) == (
        "SCHEDULED", 1, True, "1", "ACC1",
    )  # fmt: skip
    assert step.dataset == rows(StepVersion)[0].dataset


def test_the_same_order_again_changes_nothing():
    apply(command())
    apply(command())
    assert len(rows(ImagingOrder)) == len(rows(RequestedProcedure)) == len(rows(ScheduledStep)) == 1
    assert [row.version for row in rows(OrderStatus)] == [1]


def test_a_second_group_of_the_same_accession_number_adds_its_step():
    apply(command())
    apply(command(steps=2))
    assert [step.sps_id for step in rows(ScheduledStep)] == ["S1", "S2"]


def test_a_new_order_that_contradicts_what_is_known_is_refused_and_changes_nothing():
    apply(command())
    with pytest.raises(DuplicateKey) as refused:
        apply(change_step(command(), start_time="100000"))
    assert refused.value.err == "205"
    assert rows(ScheduledStep)[0].start_time == "093000"


def test_an_accession_number_of_another_patient_is_refused():
    apply(command())
    with pytest.raises(DuplicateKey):
        apply(command(patient=SATO))
    assert len(rows(ImagingOrder)) == 1


def test_a_study_uid_of_another_procedure_is_refused():
    apply(command())
    other = dataclasses.replace(
        command().procedures[0], requested_procedure_id="RP2", placer_number="P2", filler_number="F2"
    )
    with pytest.raises(DuplicateKey):
        apply(command(accession="ACC2", procedures=(other,)))


def test_placer_and_filler_number_together_belong_to_one_order_but_a_placer_number_may_be_split():
    apply(command())
    own = dataclasses.replace(command().procedures[0], study_instance_uid="1.2.4")
    with pytest.raises(DuplicateKey):
        apply(command(accession="ACC2", procedures=(own,)))
    apply(command(accession="ACC2", procedures=(dataclasses.replace(own, filler_number="F2"),)))
    assert len(rows(ImagingOrder)) == 2


def test_missing_ids_are_made_and_are_the_same_at_a_repetition():
    bare = dataclasses.replace(command().procedures[0], study_instance_uid="")
    apply(command(procedures=(bare,)))
    uid = rows(RequestedProcedure)[0].study_instance_uid
    assert uid.startswith("2.25.")
    apply(command(procedures=(bare,)))
    assert [row.study_instance_uid for row in rows(RequestedProcedure)] == [uid]


def test_a_step_that_lacks_what_a_worklist_needs_is_offered_to_nobody_until_it_is_complete():
    apply(change_step(command(), start_date=None, start_time=None))
    assert [(step.offerable, step.dataset) for step in rows(ScheduledStep)] == [(False, b"")]
    assert [(case.kind, case.state) for case in rows(ReconciliationCase)] == [("incomplete_order", "OPEN")]
    apply(command("XO"))
    assert [step.offerable for step in rows(ScheduledStep)] == [True]
    assert [case.state for case in rows(ReconciliationCase)] == ["RESOLVED"]


def test_a_change_makes_a_new_version_and_the_old_one_can_be_read_again():
    apply(command())
    apply(change_step(command("XO"), start_time="100000", station_ae_titles=("CT2", "CT3")))
    (step,) = rows(ScheduledStep)
    assert (step.start_time, step.version) == ("100000", 2)
    assert [row.version for row in rows(StepVersion)] == [1, 2]


def test_a_change_that_changes_nothing_makes_no_version():
    apply(command())
    apply(command("XO"))
    assert rows(ScheduledStep)[0].version == 1


def test_a_step_that_a_change_does_not_mention_stays():
    apply(command(steps=2))
    apply(change_step(command("XO"), start_time="100000"))
    assert [step.start_time for step in rows(ScheduledStep)] == ["100000", "093000"]


@pytest.mark.parametrize("control", ["XO", "CA", "DC"])
def test_an_order_never_heard_of_is_unknown(control):
    with pytest.raises(UnknownKey) as refused:
        apply(command(control))
    assert refused.value.err == "204"


@pytest.mark.parametrize("control", ["CA", "DC"])
def test_a_cancel_ends_what_has_not_begun_and_repeats_harmlessly(control):
    apply(command(steps=2))
    apply(command(control, procedures=()))
    apply(command(control, procedures=()))
    assert [step.status for step in rows(ScheduledStep)] == ["CANCELED", "CANCELED"]
    assert rows(OrderStatus)[0].state == "CANCELLED"


def test_a_cancel_that_comes_too_late_stops_nothing_and_asks_a_person():
    """HL7-17"""
    apply(command(steps=2))
    begin()
    apply(command("CA", procedures=()))
    assert [step.status for step in rows(ScheduledStep)] == ["STARTED", "CANCELED"]
    assert [case.kind for case in rows(ReconciliationCase)] == ["late_cancel"]


def test_a_discontinue_leaves_what_has_begun_and_asks_nobody():
    apply(command(steps=2))
    begin()
    apply(command("DC", procedures=()))
    assert [step.status for step in rows(ScheduledStep)] == ["STARTED", "CANCELED"]
    assert rows(ReconciliationCase) == []


def test_a_cancelled_step_does_not_come_back_by_a_late_change():
    apply(command())
    apply(command("CA", at=NOON + dt.timedelta(minutes=5)))
    apply(change_step(command("XO", at=NOON + dt.timedelta(minutes=9)), start_time="100000"))
    assert [(step.status, step.start_time) for step in rows(ScheduledStep)] == [("CANCELED", "093000")]


def test_a_message_older_than_the_last_one_changes_nothing_and_leaves_a_trace():
    apply(command(at=NOON + dt.timedelta(minutes=5)))
    apply(change_step(command("XO", at=NOON), start_time="100000"))
    assert rows(ScheduledStep)[0].start_time == "093000"
    assert [event.action for event in rows(AuditEvent) if event.outcome == "stale"] == ["order.update"]


def test_an_order_in_progress_arrives_at_once():
    apply(command(begun=True))
    assert rows(ScheduledStep)[0].status == "ARRIVED"
    assert rows(OrderStatus)[0].state == "ARRIVED"


def test_an_order_that_contradicts_the_patients_record_is_taken_and_offered_to_nobody():
    apply(command())
    impostor = PersonCommand((Identifier("1", "HOSP"),), "SUZUKI^ICHIRO", "19700101", "M")
    second = dataclasses.replace(
        command().procedures[0],
        requested_procedure_id="RP2",
        study_instance_uid="1.2.4",
        placer_number="P2",
        filler_number="F2",
    )
    apply(command(accession="ACC2", patient=impostor, procedures=(second,)))
    assert [(step.accession_number, step.offerable) for step in rows(ScheduledStep)] == [
        ("ACC1", True),
        ("ACC2", False),
    ]
    assert [case.kind for case in rows(ReconciliationCase)] == ["patient_conflict"]
