"""What an order command makes of the rows: once, in order, and never more than it says."""

import dataclasses
import datetime as dt

import pytest
from sqlmodel import select, update

from broker import clock, db
from broker.archive import status
from broker.config import Site
from broker.errors import DuplicateKey, UnknownKey
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep, StepVersion
from broker.model.patients import Patient
from broker.model.status import OrderStatus
from broker.model.work import AuditEvent
from broker.mwl import answers, order_finding, orders
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.mwl.keys import plain, step_keys

pytestmark = pytest.mark.usefixtures("database")
HOUR = dt.timedelta(hours=1)
NOON = dt.datetime(2025, 7, 5, 3, tzinfo=dt.UTC)
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


def test_an_order_that_comes_again_with_another_person_is_offered_to_nobody_any_more():
    """Nothing else of it changes."""
    apply(command())
    impostor = PersonCommand((Identifier("1", "HOSP"),), "KIMURA^JIRO=木村^二郎", "19400101", "F")
    order = apply(command(patient=impostor))
    assert order.withheld == "patient_conflict"
    assert [(step.offerable, step.version) for step in rows(ScheduledStep)] == [(False, 1)]
    assert [case.kind for case in rows(ReconciliationCase)] == ["patient_conflict"]


def test_an_order_that_another_patient_gets_meanwhile_is_locked_with_that_one(monkeypatch):
    apply(command())
    apply(split("ACC2", "P2", SATO))
    locked, lock = [], db.lock

    def moves_it_first(session, table, pk):
        if not locked:
            session.execute(update(ImagingOrder).where(ImagingOrder.pk == 1).values(patient_pk=2))
        locked.append((table.__name__, pk))
        return lock(session, table, pk)

    monkeypatch.setattr(db, "lock", moves_it_first)
    order = db.run(lambda session: order_finding.locked(session, 1).patient_pk)
    assert (order, locked) == (2, [("Patient", 1), ("Patient", 2), ("ImagingOrder", 1)])


def test_a_new_order_waits_for_no_patient_but_its_own(monkeypatch):
    apply(command())
    apply(split("ACC2", "P2", SATO))
    locked, lock = [], db.lock
    monkeypatch.setattr(db, "lock", lambda session, table, pk: (locked.append(table), lock(session, table, pk))[1])
    with pytest.raises(DuplicateKey):
        apply(command(patient=SATO))
    assert locked == [Patient]


def test_no_refusal_tells_what_the_message_or_the_order_says():
    """Numbers, too, are of a patient."""
    apply(command(steps=2))
    said = [
        change_step(command(place="ORC^1^2"), start_time="100000"), command(place="ORC^1^2", priority="STAT"),
        command(place="ORC^1^2", attributes={"RequestingService": "x"}),
        change_step(command("XO", place="ORC^1^2"), sps_id=""),
        *(command(place="ORC^1^2", procedures=(dataclasses.replace(command().procedures[0], **changes),))
          for changes in ({"study_instance_uid": "1.2.9"}, {"description": "x"})),
    ]  # fmt: skip
    refusals = [_refusal(one) for one in said]
    apply(command("CA", at=NOON + dt.timedelta(minutes=5)))
    refusals.append(_refusal(command(place="ORC^1^2", at=NOON + dt.timedelta(minutes=9))))
    for refused in refusals:
        assert (refused.err, refused.place) == ("205", "ORC^1^2")
        assert not any(number in refused.text for number in ("S1", "RP1", "ACC1", "P1", "F1", "1.2"))


def _refusal(one: OrderCommand) -> DuplicateKey:
    with pytest.raises(DuplicateKey) as refused:
        apply(one)
    return refused.value


# Which order is meant


def split(accession: str, placer: str = "P1", person: PersonCommand = YAMADA, **changes) -> OrderCommand:
    """An order whose placer number another one may share."""
    procedure = dataclasses.replace(
        command().procedures[0], requested_procedure_id=f"R{accession}", study_instance_uid=f"1.2.{accession[3:]}",
        placer_number=placer, filler_number="", filler_issuer="", steps=(
            StepCommand(f"S{accession}", "CT", ("CT1",), "20350705", "093000"),
        ),
    )  # fmt: skip
    return command(accession=accession, patient=person, procedures=(procedure,), **changes)


def statuses() -> dict[str, str]:
    return {step.accession_number: step.status for step in rows(ScheduledStep)}


@pytest.mark.parametrize("control", ["CA", "DC"])
def test_of_orders_that_share_a_placer_number_only_the_one_that_is_meant_is_cancelled(control):
    apply(split("ACC1"))
    apply(split("ACC2"))
    apply(dataclasses.replace(split("ACC2"), control=control))
    assert statuses() == {"ACC1": "SCHEDULED", "ACC2": "CANCELED"}


def test_a_placer_number_that_two_orders_have_names_neither():
    apply(split("ACC1"))
    apply(split("ACC2", person=SATO))
    alone = ProcedureCommand(placer_number="P1", placer_issuer="HIS")
    for patient in (None, YAMADA, SATO):
        with pytest.raises(DuplicateKey):
            apply(command("CA", "", procedures=(alone,), patient=patient))
    assert statuses() == {"ACC1": "SCHEDULED", "ACC2": "SCHEDULED"}


@pytest.mark.parametrize(("control", "accession"), [("XO", "ACC2"), ("CA", "ACC2"), ("XO", "ACC9"), ("CA", "ACC9")])
def test_numbers_that_name_different_orders_change_nothing(control, accession):
    apply(split("ACC1", "P1"))
    apply(split("ACC2", "P2"))
    wanted = dataclasses.replace(split("ACC1", "P1"), control=control, accession_number=accession)
    with pytest.raises(DuplicateKey):
        apply(change_step(wanted, start_time="100000"))
    assert statuses() == {"ACC1": "SCHEDULED", "ACC2": "SCHEDULED"}
    assert {step.start_time for step in rows(ScheduledStep)} == {"093000"}


def test_a_placer_number_alone_is_enough_where_one_order_has_it():
    apply(split("ACC1", "P1"))
    apply(split("ACC2", "P2"))
    apply(command("CA", "", procedures=(ProcedureCommand(placer_number="P2", placer_issuer="HIS"),)))
    assert statuses() == {"ACC1": "SCHEDULED", "ACC2": "CANCELED"}


@pytest.mark.parametrize("control", ["XO", "CA", "DC"])
def test_a_message_about_another_patient_changes_nothing_of_the_order(control):
    apply(command())
    with pytest.raises(DuplicateKey) as refused:
        apply(change_step(command(control, patient=SATO), start_time="100000"))
    assert refused.value.place == "patient.id"
    assert [(step.status, step.start_time) for step in rows(ScheduledStep)] == [("SCHEDULED", "093000")]


@pytest.mark.parametrize(
    "named",
    [ProcedureCommand(requested_procedure_id="RP1", steps=(StepCommand("S9"),)),
     ProcedureCommand(requested_procedure_id="RP9"), ProcedureCommand(steps=(StepCommand("S9"),)),
     ProcedureCommand(placer_number="P1", placer_issuer="HIS", steps=(StepCommand("S1"), StepCommand("S9")))],
)  # fmt: skip
def test_a_cancel_that_names_what_the_order_does_not_have_cancels_nothing(named):
    apply(command(steps=2))
    with pytest.raises(UnknownKey):
        apply(command("CA", procedures=(named,)))
    assert {step.status for step in rows(ScheduledStep)} == {"SCHEDULED"}


def test_a_cancel_reaches_just_the_steps_that_it_names():
    apply(command(steps=3))
    apply(command("CA", procedures=(ProcedureCommand(requested_procedure_id="RP1", steps=(StepCommand("S2"),)),)))
    assert [step.status for step in rows(ScheduledStep)] == ["SCHEDULED", "CANCELED", "SCHEDULED"]


def test_a_step_is_found_by_the_numbers_of_its_own_order_group():
    own = [{"placer_number": f"P{n}", "placer_issuer": "HIS"} for n in (1, 2)]
    steps = tuple(
        StepCommand(f"S{n}", "CT", ("CT1",), "20350705", "093000", **numbers) for n, numbers in enumerate(own)
    )
    apply(command(procedures=(dataclasses.replace(command().procedures[0], steps=steps),)))
    apply(command("CA", "", procedures=(ProcedureCommand(**own[1], steps=(StepCommand(**own[1]),)),)))
    assert [step.status for step in rows(ScheduledStep)] == ["SCHEDULED", "CANCELED"]


# What is refused, and what a person is asked


@pytest.mark.parametrize(
    "changes",
    [{"station_ae_titles": ("CT2",)}, {"start_date": "20350706"}, {"attributes": {"ScheduledStationName": "CT9"}}],
)
def test_a_new_order_is_compared_with_all_that_is_known(changes):
    apply(command())
    with pytest.raises(DuplicateKey):
        apply(change_step(command(), **changes))
    with pytest.raises(DuplicateKey):
        apply(command(priority="STAT"))
    with pytest.raises(DuplicateKey):
        apply(command(attributes={"RequestingService": "内科"}))


@pytest.mark.parametrize("control", ["NW", "XO"])
def test_a_study_uid_never_changes(control):
    apply(command())
    other = dataclasses.replace(command().procedures[0], study_instance_uid="1.2.9")
    with pytest.raises(DuplicateKey):
        apply(command(control, procedures=(other,)))
    assert [row.study_instance_uid for row in rows(RequestedProcedure)] == ["1.2.3"]


def test_a_change_brings_the_filler_number_that_was_not_known():
    apply(split("ACC1"))
    known = dataclasses.replace(split("ACC1").procedures[0], filler_number="F7", filler_issuer="RIS")
    apply(command("XO", "ACC1", procedures=(known,)))
    apply(command("CA", "", procedures=(ProcedureCommand(filler_number="F7", filler_issuer="RIS"),)))
    assert statuses() == {"ACC1": "CANCELED"}


def test_a_second_group_adds_its_step_and_the_more_urgent_priority():
    apply(command())
    more = change_step(command(priority="STAT", attributes={"RequestingService": "救急"}), sps_id="S2")
    apply(more)
    (order,) = rows(ImagingOrder)
    assert (order.priority, order.attributes) == ("STAT", {"RequestingService": "救急"})


@pytest.mark.parametrize("ended", ["complete", "discontinue"])
def test_a_change_or_a_cancel_of_what_has_ended_asks_a_person(ended):
    apply(command())
    begin()

    def end(session) -> None:
        orders.move_step(
            session, db.lock(session, ScheduledStep, 1), ended, now=clock.now(), actor="test", cause="MPPS"
        )

    db.run(end)
    apply(command("XO"))
    assert rows(ReconciliationCase) == [], "it changes nothing"
    apply(change_step(command("XO"), start_time="100000"))
    apply(command("DC"))
    apply(command("CA"))
    assert [case.kind for case in rows(ReconciliationCase)] == ["late_change", "late_cancel"]
    assert rows(ScheduledStep)[0].start_time == "093000"


def test_what_was_cancelled_is_not_ordered_again_under_its_old_numbers():
    apply(command())
    apply(command("CA", at=NOON + dt.timedelta(minutes=5)))
    apply(command())
    with pytest.raises(DuplicateKey):
        apply(command(at=NOON + dt.timedelta(minutes=9)))
    assert statuses() == {"ACC1": "CANCELED"}


# A number whose owner the message does not name


def assuming(control: str, **changes) -> OrderCommand:
    """By its accession number alone, and the site's issuer is not the order's."""
    return command(control, accession_issuer="SITE", is_issuer_assumed=True, procedures=(), **changes)


def test_a_number_without_an_owner_finds_the_only_order_that_has_it():
    apply(command())
    apply(assuming("CA"))
    assert [step.status for step in rows(ScheduledStep)] == ["CANCELED"]


def test_a_number_without_an_owner_means_the_site_s_own_order_first_and_of_two_others_none():
    def other(n: int, issuer: str) -> OrderCommand:
        procedure = dataclasses.replace(
            command().procedures[0], study_instance_uid=f"1.2.{n}", placer_number=f"P{n}", filler_number=f"F{n}"
        )
        return command(accession_issuer=issuer, procedures=(procedure,))

    for n, issuer in enumerate(("RIS", "OTHER"), start=7):
        apply(other(n, issuer))
    with pytest.raises(DuplicateKey):
        apply(assuming("CA"))
    apply(other(9, "SITE"))
    apply(assuming("CA"))
    assert [step.status for step in rows(ScheduledStep)] == ["SCHEDULED", "SCHEDULED", "CANCELED"]


def test_a_number_whose_owner_is_named_is_nobody_else_s():
    apply(command())
    with pytest.raises(UnknownKey):
        apply(dataclasses.replace(assuming("CA"), is_issuer_assumed=False))
    assert [step.status for step in rows(ScheduledStep)] == ["SCHEDULED"]


def test_a_number_without_an_owner_is_no_way_to_another_patient_s_order():
    apply(command())
    with pytest.raises(DuplicateKey):
        apply(assuming("CA", patient=SATO))
    assert [step.status for step in rows(ScheduledStep)] == ["SCHEDULED"]


@pytest.mark.parametrize("control", ["CA", "XO", "note"])
def test_a_number_without_an_owner_is_not_that_of_an_order_with_other_numbers(control):
    """Of another department, which counts its exams by itself."""
    apply(command())
    other = ProcedureCommand(placer_number="P9", placer_issuer="HIS", filler_number="F9", filler_issuer="CARDIO")
    with pytest.raises(UnknownKey):
        apply(dataclasses.replace(assuming(control), procedures=(other,)))
    assert len(rows(RequestedProcedure)) == 1
    part = dataclasses.replace(other, placer_number="P1", filler_number="", filler_issuer="")
    apply(dataclasses.replace(assuming("CA"), procedures=(part,)))
    assert [step.status for step in rows(ScheduledStep)] == ["CANCELED"]


def test_of_an_order_that_other_numbers_name_the_owner_of_its_number_cannot_be_another():
    apply(command())
    with pytest.raises(DuplicateKey):
        apply(command("XO", accession_issuer="SITE"))
    apply(command("XO", accession_issuer="SITE", is_issuer_assumed=True))


@pytest.mark.parametrize(("first", "second"), [("", "RIS"), ("RIS", "")])
def test_one_number_of_two_patients_is_refused_where_one_issuer_is_not_known(first, second):
    other = dataclasses.replace(
        command().procedures[0], study_instance_uid="1.2.9", placer_number="P9", filler_number="F9"
    )
    apply(command(accession_issuer=first))
    with pytest.raises(DuplicateKey) as refused:
        apply(command(accession_issuer=second, patient=SATO, procedures=(other,)))
    assert (refused.value.err, refused.value.place) == ("205", "accession number")
    assert len(rows(ImagingOrder)) == 1


def test_two_hospitals_may_count_alike_although_one_of_them_is_not_named():
    other = dataclasses.replace(
        command().procedures[0], study_instance_uid="1.2.9", placer_number="P9", filler_number="F9"
    )
    north = dataclasses.replace(SATO, identifiers=(Identifier("1", "NORTH"),))
    apply(command(accession_issuer=""))
    apply(command(accession_issuer="NORTH", patient=north, procedures=(other,)))
    assert len(rows(ImagingOrder)) == 2


def test_a_change_for_somebody_who_is_plainly_another_is_taken_and_shown_to_no_device_until_a_person_has_looked():
    apply(command())
    stranger = dataclasses.replace(SATO, identifiers=YAMADA.identifiers)
    apply(change_step(command("XO", at=NOON + dt.timedelta(hours=1), patient=stranger), start_time="110000"))
    (case,) = rows(ReconciliationCase)
    assert (case.kind, case.subject, rows(ScheduledStep)[0].offerable) == ("patient_conflict", "order:1", False)
    assert rows(Patient)[0].name == YAMADA.name


def test_an_order_that_is_over_is_no_question():
    apply(command())
    apply(command("CA", at=NOON + dt.timedelta(hours=1), procedures=()))
    stranger = dataclasses.replace(SATO, identifiers=YAMADA.identifiers)
    apply(command("XO", at=NOON + dt.timedelta(hours=2), patient=stranger, procedures=()))
    assert [case.kind for case in rows(ReconciliationCase)] == []


OF_STEP = {"start_date": 0x00400002, "start_time": 0x00400003, "modality": 0x00080060, "description": 0x00400007}


def told(step: ScheduledStep) -> dict[str, str]:
    """What a device is shown of it."""
    keys = step_keys(answers.item_of(step.dataset, "X"))
    return {**{name: plain(keys, tag) for name, tag in OF_STEP.items()}, "stations": plain(keys, 0x00400001)}


@pytest.mark.parametrize("end", [{"control": "SC", "status": "CM"}, {"control": "CA"}, {"control": "no_show"}],
                         ids=["completed", "cancelled", "not shown"])  # fmt: skip
@pytest.mark.parametrize(
    "changed",
    [
        {"start_date": "20350706", "start_time": "100000"}, {"modality": "MR"}, {"description": "other"},
        {"station_ae_titles": ("CT2",)}, {"start_date": "20350706", "station_ae_titles": ("CT2", "CT3")},
    ],
    ids=["day", "modality", "description", "station", "day and stations"],
)  # fmt: skip
def test_what_was_said_before_its_end_and_comes_after_it_is_the_same_in_all_that_is_kept_of_a_step(end, changed):
    apply(command(steps=2))
    apply(command(**end, steps=2, at=NOON + HOUR * 2))
    apply(change_step(command("XO", at=NOON + HOUR), **changed))
    (step, other), stations = rows(ScheduledStep), rows(ScheduledStation)
    titles = changed.get("station_ae_titles", ("CT1",))
    fields = {name: value for name, value in changed.items() if name in OF_STEP}
    assert {name: getattr(step, name) for name in fields} == fields
    assert told(step) == {**{name: getattr(step, name) for name in OF_STEP}, "stations": "\\".join(titles)}
    assert [(row.ae_title, row.start_date, row.is_open) for row in stations if row.step_pk == step.pk] == [
        (title, step.start_date, False) for title in titles
    ]
    assert (step.version, other.version) == (2, 1)
    assert rows(StepVersion)[-1].dataset == step.dataset


def test_what_lacks_something_after_its_end_is_shown_to_nobody_and_asks_nobody():
    apply(command())
    apply(command("SC", status="CM", at=NOON + HOUR * 2))
    apply(change_step(command("XO", at=NOON + HOUR), modality=""))
    (step,) = rows(ScheduledStep)
    assert (step.status, step.modality, step.dataset, step.offerable) == ("COMPLETED", "", b"", False)
    assert rows(ReconciliationCase) == []
