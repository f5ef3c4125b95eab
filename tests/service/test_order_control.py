"""What each order control does to the steps, what comes back, and what comes twice or late."""

import dataclasses
import datetime as dt

import pytest
from sqlmodel import select

from broker import clock, db, ids
from broker.archive import status
from broker.config import Limits, Site
from broker.errors import DuplicateKey, MissingField, UnknownKey
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import PatientIdentifier
from broker.model.performed import PerformedStep, PerformedStepLink
from broker.model.status import OrderStatus
from broker.model.work import AuditEvent
from broker.mwl import order_identity, orders, patients
from broker.mwl.commands import (
    Identifier,
    OrderCommand,
    Outcome,
    PatientCommand,
    PersonCommand,
    Policies,
    ProcedureCommand,
    StepCommand,
)
from broker.ris_bridge import effects

pytestmark = pytest.mark.usefixtures("database")
NOON = dt.datetime(2025, 7, 5, 3, tzinfo=dt.UTC)
YAMADA = PersonCommand((Identifier("1", "HOSP"),), "YAMADA^TARO=山田^太郎", "19700101", "M")
SATO = PersonCommand((Identifier("2", "HOSP"),), "SATO^HANAKO=佐藤^花子", "19850315", "F")
CAUSE = effects.Cause(clock.now(), "test", Site(), Limits(), 1)
DERIVE = Policies("derive", "derive", "derive", "derive")


@pytest.fixture(autouse=True)
def _published():
    db.on_finish(status.publish)


def minute(n: int) -> dt.datetime:
    return NOON + dt.timedelta(minutes=n)


def command(control: str = "NW", at: int = 0, *, steps: int = 1, accession: str = "ACC1", **changes) -> OrderCommand:
    n = accession.removeprefix("ACC")
    procedure = ProcedureCommand(
        f"RP{n}", f"1.2.{n}", f"P{n}", "HIS", f"F{n}", "RIS",
        steps=tuple(StepCommand(f"S{k + 1}", "CT", ("CT1",), "20350705", "093000") for k in range(steps)),
    )  # fmt: skip
    made = OrderCommand(
        control, accession, "RIS", None, YAMADA if control in ("NW", "SN") else None, (procedure,), at=minute(at)
    )
    return dataclasses.replace(made, **changes)


def whole(control: str, at: int, **changes) -> OrderCommand:
    """About all of the order."""
    return command(control, at, procedures=(), **changes)


def change(one: OrderCommand, **changes) -> OrderCommand:
    """What it says of its first step."""
    procedure = one.procedures[0]
    first = dataclasses.replace(procedure.steps[0], **changes)
    return dataclasses.replace(
        one, procedures=(dataclasses.replace(procedure, steps=(first, *procedure.steps[1:])), *one.procedures[1:])
    )


def carry_out(*commands: OrderCommand, site: Site | None = None) -> Outcome:
    for one in commands:
        outcome = db.run(orders.carry_out, one, now=clock.now(), actor="test", site=site or Site())
    return outcome


def rows(table):
    return db.read(lambda session: session.exec(select(table).order_by(*table.__table__.primary_key.columns)).all())


def statuses() -> list[str]:
    return [step.status for step in rows(ScheduledStep)]


def times() -> list[str]:
    return [step.start_time for step in rows(ScheduledStep)]


def cases() -> list[str]:
    return [case.kind for case in rows(ReconciliationCase)]


def move(*events: str, step_pk: int = 1) -> None:
    def moved(session) -> None:
        for event in events:
            step = db.lock(session, ScheduledStep, step_pk)
            orders.move_step(session, step, event, now=clock.now(), actor="CT1", cause="MPPS")

    db.run(moved)


# Hold, release, states that the RIS tells


def test_a_hold_takes_the_steps_off_the_worklist_and_a_release_brings_them_back():
    carry_out(command(steps=2), whole("HD", 1))
    assert statuses() == ["ON_HOLD", "ON_HOLD"]
    assert rows(OrderStatus)[0].state == "ON_HOLD"
    carry_out(whole("RL", 2))
    assert statuses() == ["SCHEDULED", "SCHEDULED"]


def test_who_had_arrived_before_a_hold_is_still_here_after_it():
    carry_out(command(begun=True), whole("HD", 1), whole("RL", 2))
    assert statuses() == ["ARRIVED"]


def test_a_step_that_is_first_heard_of_while_its_order_is_on_hold_is_on_hold():
    carry_out(command(), whole("HD", 1), command("XO", 2, steps=2))
    assert statuses() == ["ON_HOLD", "ON_HOLD"]


def test_a_hold_stops_nothing_that_has_begun_or_ended():
    carry_out(command(steps=2))
    move("start")
    move("cancel", step_pk=2)
    carry_out(whole("HD", 1), whole("RL", 2))
    assert statuses() == ["STARTED", "CANCELED"]


@pytest.mark.parametrize("control", ["SC", "XO"])
@pytest.mark.parametrize(
    ("code", "state"),
    [("SC", "SCHEDULED"), ("IP", "ARRIVED"), ("CM", "COMPLETED"), ("CA", "CANCELED"), ("DC", "CANCELED"),
     ("HD", "ON_HOLD"), ("A", "SCHEDULED"), ("ER", "SCHEDULED"), ("", "SCHEDULED"), ("??", "SCHEDULED")],
)  # fmt: skip
def test_the_state_that_the_ris_tells_is_what_becomes_of_the_step(control, code, state):
    carry_out(command(), command(control, 1, status=code))
    assert statuses() == [state]
    assert cases() == []


def test_a_state_that_says_nothing_is_noted():
    outcome = carry_out(command(), command("SC", 1))
    assert outcome.reply == "OK"
    assert [event.action for event in rows(AuditEvent)][-1] == "order.note"


def test_an_exam_of_a_device_without_mpps_is_completed_by_the_ris_and_leaves_the_worklist():
    carry_out(command(steps=2), change(command("XO", 1, status="CM"), start_time="100000"))
    assert statuses() == ["COMPLETED", "SCHEDULED"]
    assert times() == ["100000", "093000"]
    assert [e.detail["after"] for e in rows(AuditEvent) if e.action == "step.change"] == ["STARTED", "COMPLETED"]


def test_what_was_cancelled_is_never_completed_and_a_person_is_asked():
    carry_out(command(), whole("CA", 1), whole("SC", 2, status="CM"))
    assert statuses() == ["CANCELED"]
    assert cases() == ["late_change"]


def test_what_a_device_reports_itself_ends_when_the_device_says_so():
    carry_out(command())
    move("start")

    def report(session) -> None:
        performed = PerformedStep(sop_instance_uid="1.2.9", status="IN PROGRESS")
        session.add(performed)
        session.flush()
        session.add(PerformedStepLink(performed_pk=performed.key, step_pk=1, rule=1))

    db.run(report)
    carry_out(whole("SC", 1, status="CM"))
    assert statuses() == ["STARTED"]
    assert cases() == []


def test_a_patient_who_does_not_come_is_no_show_until_somebody_cancels():
    """HL7-31"""
    carry_out(command(), whole("no_show", 1))
    assert statuses() == ["NO_SHOW"]
    assert rows(OrderStatus)[0].state == "NO_SHOW"
    carry_out(whole("no_show", 1), command("XO", 2), whole("CA", 3))
    assert statuses() == ["CANCELED"]


@pytest.mark.parametrize("times", [(1, 2), (2, 1)])
def test_who_does_not_come_while_the_order_is_on_hold_is_no_show_in_whatever_order_it_is_told(times):
    hold, no_show = whole("HD", times[0]), whole("no_show", times[1])
    carry_out(command(), command(accession="ACC2"), hold, no_show)
    carry_out(*(dataclasses.replace(one, accession_number="ACC2") for one in (no_show, hold)))
    assert statuses() == ["NO_SHOW", "NO_SHOW"]


def test_nobody_who_lies_on_the_table_is_a_no_show():
    carry_out(command())
    move("start")
    carry_out(whole("no_show", 1))
    assert statuses() == ["STARTED"]


# What comes back


def test_a_cancel_in_time_is_ok_and_one_too_late_is_told_with_the_state():
    carry_out(command(steps=2))
    assert carry_out(change(command("CA", 1), sps_id="S2")) == Outcome(1, "OK", "SC")
    move("start")
    assert carry_out(whole("CA", 2)) == Outcome(1, "UC", "IP")
    move("complete")
    assert carry_out(whole("CA", 3)) == Outcome(1, "UC", "CM")
    assert carry_out(whole("DC", 4)) == Outcome(1, "OK", "CM")
    assert cases() == ["late_cancel"]


@pytest.mark.parametrize(
    ("before", "code"),
    [((), "SC"), (("cancel",), "CA"), (("hold",), "HD"), (("start",), "IP"), (("start", "complete"), "CM"),
     (("start", "discontinue"), "DC"), (("no_show",), "CA")],
)  # fmt: skip
def test_a_question_for_the_status_is_answered_and_changes_nothing(before, code):
    carry_out(command())
    move(*before)
    document = rows(OrderStatus)[0].document
    assert carry_out(whole("SS", 1)) == Outcome(1, "SC", code)
    assert rows(OrderStatus)[0].document == document


@pytest.mark.parametrize("control", ["HD", "RL", "SC", "NA", "SS", "note", "no_show"])
def test_an_order_never_heard_of_is_unknown(control):
    with pytest.raises(UnknownKey) as refused:
        carry_out(whole(control, 0, status="CM"))
    assert refused.value.err == "204"


@pytest.mark.parametrize("control", ["HD", "RL", "SC", "NA", "SS", "note", "no_show"])
def test_what_is_said_of_another_patient_changes_nothing(control):
    carry_out(command())
    with pytest.raises(DuplicateKey):
        carry_out(whole(control, 1, status="CM", patient=SATO))
    assert statuses() == ["SCHEDULED"]


# Numbers


def test_an_order_without_a_placer_number_gets_one_of_ours_and_the_same_again():
    bare = command("SN", procedures=(dataclasses.replace(command().procedures[0], placer_number="", placer_issuer=""),))
    outcome = carry_out(bare)
    (procedure,) = rows(RequestedProcedure)
    assert outcome == Outcome(1, "NA", "", procedure.placer_number, "ris-broker")
    assert (procedure.placer_issuer, procedure.filler_number) == ("ris-broker", "F1")
    assert procedure.placer_number.startswith("P") and len(procedure.placer_number) == 16
    assert rows(ScheduledStep)[0].placer_number == procedure.placer_number
    assert carry_out(bare) == outcome
    assert [row.placer_number for row in rows(RequestedProcedure)] == [procedure.placer_number]
    by_it = ProcedureCommand(placer_number=procedure.placer_number, placer_issuer="ris-broker")
    carry_out(OrderCommand("CA", procedures=(by_it,), at=minute(1)))
    assert statuses() == ["CANCELED"]


def test_assigned_numbers_join_an_order_that_is_known_by_the_other_one():
    bare = dataclasses.replace(command().procedures[0], filler_number="", filler_issuer="")
    carry_out(command(procedures=(bare,)))
    both = ProcedureCommand("", "", "P1", "HIS", "F7", "RIS")
    carry_out(OrderCommand("NA", procedures=(both,), at=minute(1)))
    assert [(row.placer_number, row.filler_number) for row in rows(RequestedProcedure)] == [("P1", "F7")]
    assert rows(ScheduledStep)[0].filler_number == "F7"
    carry_out(OrderCommand("HD", procedures=(ProcedureCommand("", "", "", "", "F7", "RIS"),), at=minute(2)))
    assert statuses() == ["ON_HOLD"]


@pytest.mark.parametrize("number", ["F9", "F2"], ids=["another one", "another order's"])
def test_an_assigned_number_never_takes_the_place_of_another(number):
    carry_out(command(), command(accession="ACC2", patient=SATO))
    both = ProcedureCommand("", "", "P1", "HIS", number, "RIS")
    with pytest.raises(DuplicateKey):
        carry_out(OrderCommand("NA", procedures=(both,), at=minute(1)))
    assert [row.filler_number for row in rows(RequestedProcedure)] == ["F1", "F2"]


# Replace


def replacing(at: int = 5, *, accession: str = "ACC2", old: str = "ACC1", **changes) -> OrderCommand:
    olds = (OrderCommand("CA", procedures=(ProcedureCommand(placer_number=f"P{old[3:]}", placer_issuer="HIS"),)),)
    return command(at=at, accession=accession, replaces=olds, **changes)


def test_a_replaced_order_is_cancelled_and_the_new_one_says_what_it_stands_in_for():
    carry_out(command(steps=2))
    for _ in range(2):
        assert carry_out(replacing()) == Outcome(2, "RQ", "SC")
        assert statuses() == ["CANCELED", "CANCELED", "SCHEDULED"]
        assert [order.replaces_pk for order in rows(ImagingOrder)] == [None, 1]
    assert cases() == []


def test_what_has_begun_of_a_replaced_order_goes_on_and_a_person_is_asked():
    carry_out(command(steps=2))
    move("start")
    carry_out(replacing())
    assert statuses() == ["STARTED", "CANCELED", "SCHEDULED"]
    assert cases() == ["late_cancel"]


def test_a_replacement_of_the_same_accession_number_joins_its_order():
    carry_out(command(steps=2))
    new = dataclasses.replace(command().procedures[0], requested_procedure_id="RP9", study_instance_uid="1.2.9",
                              placer_number="P9", filler_number="F9")  # fmt: skip
    for _ in range(2):
        carry_out(replacing(accession="ACC1", procedures=(new,)))
        assert statuses() == ["CANCELED", "CANCELED", "SCHEDULED"]
    assert [(order.key, order.replaces_pk) for order in rows(ImagingOrder)] == [(1, None)]


def test_a_replacement_that_mentions_a_step_of_the_old_order_keeps_it():
    carry_out(command(steps=2))
    carry_out(change(replacing(accession="ACC1"), start_time="110000"))
    assert statuses() == ["SCHEDULED", "CANCELED"]
    assert times() == ["110000", "093000"]


def test_a_replacement_that_comes_again_does_so_although_both_share_a_placer_number():
    carry_out(command())
    shared = dataclasses.replace(command(accession="ACC2").procedures[0], placer_number="P1")
    for _ in range(2):
        carry_out(replacing(procedures=(shared,)))
        assert statuses() == ["CANCELED", "SCHEDULED"]


def test_an_order_never_heard_of_is_not_replaced_unless_its_sender_may_place_so():
    with pytest.raises(UnknownKey):
        carry_out(replacing())
    assert rows(ImagingOrder) == []
    carry_out(replacing(unknown="place"))
    assert statuses() == ["SCHEDULED"]


def test_an_order_of_another_patient_is_not_replaced():
    carry_out(command(patient=SATO))
    with pytest.raises(DuplicateKey):
        carry_out(replacing())
    assert statuses() == ["SCHEDULED"]


# Twice, late, in another order


def test_a_new_order_that_comes_again_after_a_change_changes_nothing():
    carry_out(command(), change(command("XO", 1), start_time="100000"), command())
    assert times() == ["100000"]


def test_each_field_is_what_the_newest_message_that_speaks_of_it_says():
    carry_out(command(), change(command("XO", 2), start_time="100000", start_date=None))
    carry_out(change(command("XO", 1), start_time="080000", start_date="20350706"))
    assert [(step.start_date, step.start_time) for step in rows(ScheduledStep)] == [("20350706", "100000")]


def test_what_a_newer_message_says_again_is_not_changed_by_an_older_one():
    carry_out(command(), command("XO", 3), change(command("XO", 1), start_time="110000", station_ae_titles=("CT2",)))
    assert times() == ["093000"]
    assert [row.ae_title for row in rows(ScheduledStation)] == ["CT1"]


def test_an_older_message_adds_the_step_that_no_newer_one_speaks_of():
    carry_out(command(at=2), command(at=1, steps=2))
    assert statuses() == ["SCHEDULED", "SCHEDULED"]


def test_a_step_of_a_message_from_before_the_cancel_is_cancelled_with_its_order():
    carry_out(command(), whole("CA", 3), change(command("XO", 2, steps=2), start_time="100000"))
    assert statuses() == ["CANCELED", "CANCELED"]
    assert times() == ["100000", "093000"]
    assert cases() == []


def test_an_unchanged_first_step_does_not_hide_the_others():
    carry_out(command(steps=2))
    procedure = command(steps=3).procedures[0]
    changed = [dataclasses.replace(step, start_time="110000") for step in procedure.steps[1:]]
    procedure = dataclasses.replace(procedure, steps=(procedure.steps[0], *changed))
    carry_out(command("XO", 1, procedures=(procedure,)))
    assert times() == ["093000", "110000", "110000"]


def test_a_completed_step_is_not_scheduled_again_by_a_later_order():
    carry_out(command())
    move("start", "complete")
    carry_out(command(at=5), command("XO", 6, status="SC"), whole("RL", 7), whole("SC", 8, status="SC"))
    assert statuses() == ["COMPLETED"]


def test_an_older_release_does_not_end_a_newer_hold():
    carry_out(command(), whole("HD", 3), whole("RL", 2))
    assert statuses() == ["ON_HOLD"]


def ahead(one: OrderCommand, **by: float) -> OrderCommand:
    """As a clock that is ahead of ours stamps it."""
    return dataclasses.replace(one, at=clock.now() + dt.timedelta(**by))


def test_what_has_no_time_of_its_own_is_said_now_even_where_a_senders_clock_is_ahead():
    carry_out(ahead(command(), hours=5), dataclasses.replace(whole("CA", 0), at=None))
    assert statuses() == ["CANCELED"]


def test_a_time_far_in_the_future_counts_as_now():
    """A wrong year does not win for ever."""
    carry_out(ahead(command(), days=400))
    carry_out(change(ahead(command("XO")), start_time="100000"))
    assert times() == ["100000"]
    carry_out(ahead(whole("HD", 0), days=400))
    carry_out(ahead(whole("RL", 0)))
    assert statuses() == ["SCHEDULED"]
    (order,) = rows(ImagingOrder)
    assert max(order.placed_at, order.last_event_at) <= clock.now()
    assert max(*order.said.values(), *rows(ScheduledStep)[0].said.values()) <= clock.iso(clock.now())
    carry_out(ahead(whole("CA", 0)))
    assert statuses() == ["CANCELED"]


def test_what_follows_in_the_same_second_is_no_older_than_what_counts_as_now():
    """Most senders' times are of whole seconds."""
    carry_out(ahead(command(), days=400))
    carry_out(dataclasses.replace(whole("CA", 0), at=clock.now().replace(microsecond=0)))
    assert (statuses(), cases()) == (["CANCELED"], [])


def test_the_messages_of_a_clock_that_is_a_little_ahead_keep_their_order():
    later = change(ahead(command("XO"), minutes=5.2), start_time="110000")
    carry_out(ahead(command(), minutes=5), later, change(ahead(command("XO"), minutes=5.1), start_time="100000"))
    assert times() == ["110000"]


def test_what_is_from_far_ahead_comes_after_all_that_came_before():
    carry_out(ahead(command(), minutes=5), change(ahead(command("XO"), days=400), start_time="110000"))
    assert times() == ["110000"]


@pytest.mark.parametrize("control", ["CA", "DC", "no_show"])
@pytest.mark.parametrize("named", [(), command().procedures])
def test_a_cancel_by_a_clock_that_is_behind_that_of_the_order_is_not_lost(control, named):
    carry_out(command(at=5), command(at=6, accession="ACC2"))
    outcome = carry_out(command(control, 1, procedures=named))
    assert (outcome.reply, statuses(), cases()) == ("UC", ["SCHEDULED", "SCHEDULED"], ["late_cancel"])
    (case,) = rows(ReconciliationCase)
    assert "is older than the order of what it names" in case.reasons[0]
    assert [event.detail["control"] for event in rows(AuditEvent) if event.outcome == "stale"] == [control]


def test_a_completion_by_a_clock_that_is_behind_that_of_the_order_is_not_lost():
    carry_out(command(at=5), whole("SC", 1, status="CM"))
    assert (statuses(), cases()) == (["SCHEDULED"], ["late_change"])


def test_a_hold_by_a_clock_that_is_behind_that_of_the_order_holds_it():
    carry_out(command(at=5), whole("HD", 1))
    assert (statuses(), cases()) == (["ON_HOLD"], [])


def test_a_cancel_that_comes_again_after_a_part_was_ordered_anew_asks_nobody():
    again = dataclasses.replace(
        command(accession="ACC2").procedures[0], steps=(StepCommand("S9", "CT", ("CT1",), "20350705", "093000"),)
    )
    carry_out(command(), whole("CA", 1), command(at=2, procedures=(again,)), whole("CA", 1))
    assert (statuses(), cases()) == (["CANCELED", "SCHEDULED"], [])
    carry_out(command("CA", 1, procedures=(ProcedureCommand("RP1"), ProcedureCommand("RP2"))))
    assert (statuses(), cases()) == (["CANCELED", "SCHEDULED"], ["late_cancel"]), "it names that part"


def test_a_replacement_that_comes_late_asks_nobody_about_what_was_added_since():
    new = dataclasses.replace(command().procedures[0], requested_procedure_id="RP9", study_instance_uid="1.2.9",
                              placer_number="P9", filler_number="F9")  # fmt: skip
    added = dataclasses.replace(
        command(accession="ACC3").procedures[0], steps=(StepCommand("S3", "CT", ("CT1",), "20350705", "093000"),)
    )
    carry_out(command(), command("XO", 7, procedures=(added,)), replacing(accession="ACC1", procedures=(new,)))
    assert (statuses(), cases()) == (["CANCELED", "SCHEDULED", "SCHEDULED"], [])


def test_a_cancel_reaches_the_step_that_turns_out_to_be_older_and_asks_nobody_any_more():
    carry_out(command("XO", 5, unknown="place", patient=YAMADA), command("CA", 3))
    assert cases() == ["late_cancel"]
    carry_out(command(at=1))
    assert statuses() == ["CANCELED"]
    assert [(case.state, case.resolution) for case in rows(ReconciliationCase)] == [
        ("RESOLVED", {"action": "took effect"})
    ]


def test_a_cancel_that_came_too_late_is_still_asked_about_when_another_takes_effect():
    carry_out(command(at=1))
    move("start")
    second = dataclasses.replace(
        command(accession="ACC2").procedures[0], steps=(StepCommand("S9", "CT", ("CT1",), "20350705", "093000"),)
    )
    carry_out(whole("CA", 3), command(at=2, procedures=(second,)))
    assert statuses() == ["STARTED", "CANCELED"]
    assert [case.state for case in rows(ReconciliationCase)] == ["OPEN"]


@pytest.mark.parametrize(("control", "newer", "reply"), [("XO", "XO", "UX"), ("HD", "RL", "UH"), ("RL", "HD", "UR")])
def test_what_is_older_than_what_is_known_is_told_that_it_changed_nothing(control, newer, reply):
    carry_out(command())
    first, second = (
        change(command(one, at), start_time=f"{at}10000") if one == "XO" else whole(one, at)
        for one, at in ((newer, 5), (control, 3))
    )
    carry_out(first)
    before = statuses(), times()
    assert carry_out(second).reply == reply
    assert (statuses(), times()) == before
    done = db.run(effects.carry_out, second, CAUSE)
    assert "(older than what is known)" in done.words


def test_a_step_that_a_person_brought_back_is_not_cancelled_again_by_an_older_message():
    carry_out(command(at=2), whole("CA", 3))
    move("reinstate")
    carry_out(command(at=1))
    assert statuses() == ["SCHEDULED"]


def test_what_is_ordered_in_the_second_of_a_cancel_is_not_cancelled_by_it():
    """Of two of one time the later to arrive counts."""
    again = dataclasses.replace(
        command(accession="ACC2").procedures[0], steps=(StepCommand("S9", "CT", ("CT1",), "20350705", "093000"),)
    )
    carry_out(command(), whole("CA", 1), command(at=1, procedures=(again,)))
    assert statuses() == ["CANCELED", "SCHEDULED"]
    carry_out(whole("CA", 1))
    assert statuses() == ["CANCELED", "CANCELED"]


def test_an_order_from_before_the_times_were_kept_takes_no_older_message():
    carry_out(command(at=5))

    def forget(session) -> None:
        for table in (ImagingOrder, RequestedProcedure, ScheduledStep):
            for row in session.exec(select(table)):
                row.said = {}
                session.add(row)

    db.run(forget)
    carry_out(change(command("XO", 1), start_time="100000"), command(at=1, steps=2))
    assert times() == ["093000"]
    carry_out(change(command("XO", 6), start_time="100000"))
    assert times() == ["100000"]


def test_a_new_order_with_other_content_is_a_change_where_its_sender_means_that():
    carry_out(command())
    carry_out(change(command(at=1, known="change", priority="STAT"), start_time="100000", station_ae_titles=("CT2",)))
    assert times() == ["100000"]
    assert [row.ae_title for row in rows(ScheduledStation)] == ["CT2"]
    assert [order.priority for order in rows(ImagingOrder)] == ["STAT"]
    carry_out(whole("CA", 2))
    with pytest.raises(DuplicateKey):
        carry_out(command(at=3, known="change"))
    assert statuses() == ["CANCELED"]


def test_a_change_of_an_unknown_order_places_it_where_its_sender_means_that():
    carry_out(command("XO", 1, unknown="place", patient=YAMADA, status="IP"))
    assert statuses() == ["ARRIVED"]
    carry_out(change(command(), start_time="080000"))
    assert times() == ["093000"]


@pytest.mark.parametrize("late", [False, True])
def test_a_further_group_completes_the_order_also_where_a_change_of_it_came_first(late):
    other = dataclasses.replace(
        command(accession="ACC2").procedures[0], steps=(StepCommand("S2", "CT", ("CT1",), "20350705", "093000"),)
    )
    group = command(at=1, procedures=(other,), attributes={"RequestingService": "b"})
    changed = command("XO", 2, procedures=(dataclasses.replace(other, code_value="HEAD"),))
    carry_out(command(attributes={"RequestingService": "a"}), *((changed, group) if late else (group, changed)), group)
    assert rows(ImagingOrder)[0].attributes == {"RequestingService": "b"}


# Which one is meant


def slot(control: str, at: int, number: str, **changes) -> OrderCommand:
    """What a schedule says of one of its appointments."""
    return OrderCommand(
        control, procedures=(ProcedureCommand(steps=(StepCommand(appointment_number=number, appointment_issuer="SCH",
                                                                  **changes),)),), at=minute(at),
    )  # fmt: skip


def test_an_appointment_is_a_number_of_its_step():
    """HL7-31"""
    procedure = command(steps=2).procedures[0]
    steps = [dataclasses.replace(one, appointment_number=f"A{n}", appointment_issuer="SCH")
             for n, one in enumerate(procedure.steps)]  # fmt: skip
    carry_out(command(procedures=(dataclasses.replace(procedure, steps=tuple(steps)),)))
    carry_out(slot("XO", 1, "A1", start_time="120000"))
    assert times() == ["093000", "120000"]
    carry_out(slot("no_show", 2, "A0"), slot("CA", 3, "A1"))
    assert statuses() == ["NO_SHOW", "CANCELED"]
    with pytest.raises(UnknownKey):
        carry_out(slot("XO", 4, "A2", start_time="120000"))


def test_an_appointment_of_another_order_is_refused():
    def with_slot(one: OrderCommand) -> OrderCommand:
        return change(one, appointment_number="A1", appointment_issuer="SCH")

    carry_out(with_slot(command()))
    with pytest.raises(DuplicateKey):
        carry_out(with_slot(command(accession="ACC2")))
    assert len(rows(ImagingOrder)) == 1


def test_a_new_order_whose_numbers_are_those_of_another_order_is_refused():
    """Accession number of one, placer and filler number of another."""
    carry_out(command(), command(accession="ACC2"))
    mixed = dataclasses.replace(command(accession="ACC2").procedures[0], placer_number="P1", filler_number="F1")
    with pytest.raises(DuplicateKey):
        carry_out(command(accession="ACC2", at=1, procedures=(mixed,)))


def test_placer_and_filler_number_of_another_patients_order_are_refused():
    carry_out(command())
    own = dataclasses.replace(command().procedures[0], requested_procedure_id="RP8", study_instance_uid="1.2.8")
    for accession in ("", "ACC8"):
        with pytest.raises(DuplicateKey) as refused:
            carry_out(command(accession=accession, patient=SATO, procedures=(own,)))
        assert refused.value.err == "205"
    assert len(rows(ImagingOrder)) == 1


def test_the_same_numbers_of_another_issuer_are_another_order():
    """Neither is the other's, and no two of them share a Study UID."""
    for site, issuer in enumerate(("RIS", "OTHER", "")):
        procedure = ProcedureCommand("RP1", "", "P1", issuer, "F1", issuer, steps=command().procedures[0].steps)
        carry_out(command(accession="ACC1", accession_issuer=issuer, procedures=(procedure,)))
        assert len(rows(ImagingOrder)) == site + 1
    assert len({row.study_instance_uid for row in rows(RequestedProcedure)}) == 3


def test_the_issuer_of_the_accession_number_is_part_of_what_is_derived_from_it():
    for issuer in ("RIS", "OTHER", ""):
        procedure = ProcedureCommand("RP1", steps=command().procedures[0].steps)
        carry_out(command(accession_issuer=issuer, procedures=(procedure,), policies=DERIVE))
    assert len({row.study_instance_uid for row in rows(RequestedProcedure)}) == 3


@pytest.mark.parametrize("issuer", ["OTHER", ""])
def test_a_number_of_another_issuer_names_no_order(issuer):
    carry_out(command())
    for numbers in ({"placer_number": "P1", "placer_issuer": issuer}, {"filler_number": "F1", "filler_issuer": issuer}):
        with pytest.raises(UnknownKey):
            carry_out(OrderCommand("CA", procedures=(ProcedureCommand(**numbers),), at=minute(1)))
    assert statuses() == ["SCHEDULED"]


def without_issuer(control: str, at: int = 1, accession: str = "ACC1", **numbers: str) -> OrderCommand:
    """As OBR-18 says it."""
    procedures = (ProcedureCommand(**numbers),) if numbers else ()
    return OrderCommand(control, accession, "", procedures=procedures, at=minute(at))


def test_an_accession_number_that_says_no_issuer_is_that_of_the_only_order_with_it():
    carry_out(command())
    for at, numbers in enumerate(({}, {"placer_number": "P1", "placer_issuer": "HIS"})):
        carry_out(without_issuer("HD", 2 * at, **numbers))
        assert statuses() == ["ON_HOLD"]
        carry_out(without_issuer("RL", 2 * at + 1, **numbers))
    with pytest.raises(UnknownKey):
        carry_out(without_issuer("HD", accession="ACC2"))
    with pytest.raises(UnknownKey):
        carry_out(dataclasses.replace(without_issuer("HD"), accession_issuer="OTHER"))
    assert statuses() == ["SCHEDULED"]


def test_of_two_issuers_of_an_accession_number_another_number_says_which():
    other = dataclasses.replace(command(accession="ACC2").procedures[0], placer_number="P2")
    carry_out(command(), command(accession_issuer="OTHER", procedures=(other,)))
    with pytest.raises(DuplicateKey):
        carry_out(without_issuer("HD"))
    with pytest.raises(UnknownKey):
        carry_out(without_issuer("HD", placer_number="P9", placer_issuer="HIS"))
    assert statuses() == ["SCHEDULED", "SCHEDULED"]
    carry_out(without_issuer("HD", placer_number="P2", placer_issuer="HIS"))
    assert statuses() == ["SCHEDULED", "ON_HOLD"]


def test_an_accession_number_without_an_issuer_is_first_that_of_the_order_without_one():
    own = dataclasses.replace(command(accession="ACC2").procedures[0], placer_number="P2")
    carry_out(command(), command(accession_issuer="", procedures=(own,)))
    carry_out(without_issuer("HD"))
    assert statuses() == ["SCHEDULED", "ON_HOLD"]
    with pytest.raises(DuplicateKey):
        carry_out(without_issuer("CA", 2, placer_number="P1", placer_issuer="HIS"))


def test_a_new_order_without_an_issuer_is_the_known_one_where_its_other_numbers_say_so():
    carry_out(command(), command(at=1, accession_issuer=""))
    assert len(rows(ImagingOrder)) == 1
    other = dataclasses.replace(command(accession="ACC2").procedures[0], placer_number="P2")
    with pytest.raises(DuplicateKey):
        carry_out(command(at=1, accession_issuer="", procedures=(other,), patient=SATO))
    carry_out(command(at=1, accession_issuer="", procedures=(other,)))
    assert [order.accession_issuer for order in rows(ImagingOrder)] == ["RIS", ""]


def test_a_replacement_without_an_issuer_joins_the_order_that_it_replaces():
    carry_out(command())
    new = dataclasses.replace(command().procedures[0], requested_procedure_id="RP9", study_instance_uid="1.2.9",
                              placer_number="P9", filler_number="F9")  # fmt: skip
    carry_out(replacing(accession="ACC1", accession_issuer="", procedures=(new,)))
    assert len(rows(ImagingOrder)) == 1
    assert statuses() == ["CANCELED", "SCHEDULED"]


def test_a_cancel_by_the_number_of_one_procedure_leaves_the_others():
    other = dataclasses.replace(command(accession="ACC2").procedures[0], steps=(StepCommand("S2", "CT", ("CT1",)),))
    carry_out(command(procedures=(*command().procedures, other)))
    carry_out(OrderCommand("CA", procedures=(ProcedureCommand(placer_number="P2", placer_issuer="HIS"),), at=minute(1)))
    assert statuses() == ["SCHEDULED", "CANCELED"]


# Identifiers that are missing


def bare(at: int = 0, **changes) -> OrderCommand:
    """Its numbers, and no identifier of ours."""
    procedure = ProcedureCommand(
        "", "", "P1", "HIS", "F1", "RIS", steps=(StepCommand("", "CT", ("CT1",), "20350705", "093000"),)
    )
    return command(accession="", at=at, **{"procedures": (procedure,), **changes})


def keys() -> tuple[str, ...]:
    (order,), (procedure,), (step,) = rows(ImagingOrder), rows(RequestedProcedure), rows(ScheduledStep)
    return order.accession_number, procedure.requested_procedure_id, procedure.study_instance_uid, step.sps_id


def test_derived_identifiers_are_the_same_for_the_same_numbers_and_fit_where_they_go():
    carry_out(bare(policies=DERIVE), bare(at=1, policies=DERIVE))
    accession, procedure_id, uid, sps_id = keys()
    assert [len(one) for one in (accession, procedure_id, sps_id)] == [16, 16, 16]
    assert ids.valid_uid(uid)
    assert len({accession, procedure_id, sps_id}) == 3
    assert accession == ids.derived_id("A", "RIS", "HIS", "P1", "RIS", "F1", "", "", "", "", "", "", "", "")


def test_what_is_made_new_is_found_again_by_the_orders_numbers():
    carry_out(bare(policies=Policies(study_instance_uid="generate")))
    made = keys()
    carry_out(bare(at=1, policies=Policies(study_instance_uid="generate")))
    assert keys() == made


def test_another_issuer_derives_other_identifiers():
    carry_out(bare(policies=DERIVE))
    first = keys()
    other = dataclasses.replace(bare().procedures[0], placer_issuer="HIS2", filler_issuer="RIS2")
    carry_out(bare(policies=DERIVE, procedures=(other,), patient=SATO))
    assert len({row.accession_number for row in rows(ImagingOrder)} | {first[0]}) == 2
    assert len({row.study_instance_uid for row in rows(RequestedProcedure)}) == 2


def test_a_derived_number_that_another_order_has_is_refused():
    carry_out(bare(policies=DERIVE))
    accession = keys()[0]

    def occupy(session) -> None:
        for row in (*session.exec(select(RequestedProcedure)), *session.exec(select(ScheduledStep))):
            row.placer_number = row.filler_number = ""
            session.add(row)

    db.run(occupy)
    with pytest.raises(DuplicateKey):
        carry_out(bare(policies=DERIVE))
    assert [row.accession_number for row in rows(ImagingOrder)] == [accession]


def test_without_any_number_nothing_is_derived():
    nothing = dataclasses.replace(bare().procedures[0], placer_number="", filler_number="")
    with pytest.raises(MissingField):
        carry_out(bare(policies=DERIVE, procedures=(nothing,)))


def test_several_procedures_and_steps_without_identifiers_come_again_as_the_same():
    steps = tuple(StepCommand("", "CT", ("CT1",), "20350705", time) for time in ("090000", "100000"))
    twice = (ProcedureCommand(description="a", steps=steps), ProcedureCommand(description="b", steps=steps))
    for policies in (Policies(), DERIVE):
        accession = f"ACC{policies.sps_id}"
        for at in (0, 1):
            carry_out(command(accession=accession, at=at, procedures=twice, policies=policies))
    assert [row.description for row in rows(RequestedProcedure)] == ["a", "b", "a", "b"]
    assert times() == ["090000", "100000"] * 4


def test_the_site_says_how_missing_identifiers_are_made():
    assert order_identity.policies(Site()) == Policies()
    assert order_identity.policies(Site(missing_sps_id="reject")) == Policies()
    site = Site(missing_accession_number="derive", missing_study_instance_uid="generate")
    assert order_identity.policies(site) == Policies("derive", "generate", "generate", "generate")


def test_an_order_remembers_under_which_identifier_of_its_patient_it_was_placed():
    second = dataclasses.replace(YAMADA, identifiers=(Identifier("1", "HOSP"), Identifier("77", "WARD", "MR")))
    carry_out(command(patient=second), command(accession="ACC2", patient=dataclasses.replace(
        YAMADA, identifiers=(Identifier("77", "WARD", "MR"),))))  # fmt: skip
    known = {row.key: row.value for row in rows(PatientIdentifier)}
    assert [known[order.identifier_pk] for order in rows(ImagingOrder)] == ["1", "77"]


# A day without a time


def test_a_day_alone_is_shown_as_its_midnight_until_somebody_says_the_time():
    carry_out(change(command(at=2), start_time=None))
    assert [(step.start_date, step.start_time, step.offerable) for step in rows(ScheduledStep)] == [
        ("20350705", "000000", True)
    ]
    carry_out(change(command("XO", 1), start_time="093000"))
    assert times() == ["093000"], "an older message knew"


def test_a_day_alone_moves_the_exam_and_leaves_its_time():
    carry_out(command(), change(command("XO", 1), start_date="20350706", start_time=None))
    assert [(step.start_date, step.start_time) for step in rows(ScheduledStep)] == [("20350706", "093000")]


# Under a number that was retired


def retire(number: str) -> PersonCommand:
    """It leads to YAMADA since a merge, and was given to SATO after that."""
    gone = dataclasses.replace(YAMADA, identifiers=(Identifier(number, "HOSP"),))
    for one in (PatientCommand("update", gone), PatientCommand("merge", YAMADA, gone.identifiers[0], at=minute(0))):
        db.run(patients.apply, one, now=clock.now(), actor="test")
    return dataclasses.replace(SATO, identifiers=gone.identifiers)


@pytest.mark.parametrize("control", ["CA", "XO", "HD", "SC", "note"])
def test_what_is_said_under_a_retired_number_of_another_person_does_not_reach_the_survivor(control):
    carry_out(command())
    stranger = retire("9")
    before = statuses(), times()
    with pytest.raises(DuplicateKey) as refused:
        carry_out(change(command(control, 1, patient=stranger, status="CM"), start_time="110000"))
    assert (refused.value.place, (statuses(), times())) == ("patient.id", before)
    carry_out(command("CA", 2, patient=dataclasses.replace(YAMADA, identifiers=stranger.identifiers)))
    assert statuses() == ["CANCELED"]
