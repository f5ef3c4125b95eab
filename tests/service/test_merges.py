"""Merges, moves and changes of identifier: what goes over, and that taking it back restores the very rows."""

import contextlib
import datetime as dt
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlmodel import Session, select
from typer.testing import CliRunner

from broker import casebook, cli, clock, db, ids, site
from broker.archive import cases, status
from broker.errors import DuplicateKey, InvalidValue, UnknownKey, WrongState
from broker.model.images import Instance, ReconciliationCase, Series, Study, StudyOrder
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier, PatientMerge
from broker.model.status import OrderStatus
from broker.model.work import AuditEvent
from broker.mwl import identity, items, merge_log, merges, patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from broker.web.app import create_app

T0 = dt.datetime(2025, 12, 1, tzinfo=dt.UTC)
# table -> what of its rows a merge may change, and its undo restores
DUMPED = {
    Patient: ("name", "romanised", "birth_date", "sex", "attributes", "merged_into", "said"),
    PatientIdentifier: ("patient_pk", "value", "issuer", "type", "retired"),
    ImagingOrder: ("patient_pk", "accession_number", "identifier_pk", "withheld"),
    Study: ("patient_pk", "order_pk", "state"),
    ScheduledStep: ("patient_id", "status", "offerable", "dataset"),
}


class Family:
    """Patients by number (issuer HOSP); everything through db.run, keys out. Orders and studies are made as rows: who
    places and receives them is another story."""

    def say(self, event: str, number: str, prior: str = "", *, hour: int | None = None, also: tuple[str, ...] = (),
            **said: object) -> None:  # fmt: skip
        said = {"name": f"NAME^{number}", **said}
        command = PatientCommand(
            event, PersonCommand(tuple(hosp(one) for one in (number, *also)), **said), hosp(prior) if prior else None,
            T0 + dt.timedelta(hours=hour) if hour is not None else None, "ADT^A99",
        )  # fmt: skip
        db.run(patients.apply, command, now=clock.now(), actor="test")

    def meet(self, *numbers: str) -> None:
        for number in numbers:
            self.say("update", number, hour=0, birth_date="19700101", sex="M")

    def order(self, number: str, accession: str) -> int:
        return db.run(_order, hosp(number), accession)

    def study(self, order_pk: int | None = None, number: str = "", issuer: str = "") -> int:
        return db.run(_study, order_pk, hosp(number), issuer)

    def undo(self, pk: int | None = None) -> None:
        db.run(merges.undo, pk or self.merges()[-1], now=clock.now(), actor="qc", reason="a mistake")

    def merges(self) -> list[int]:
        return [row.key for row in rows(PatientMerge)]

    def of(self, number: str) -> int | None:
        patient = db.read(identity.find, number, "HOSP")
        return patient.pk if patient else None

    def leading(self, number: str) -> str:
        return db.read(identity.leading, self.of(number)).value

    def owner(self, table, pk: int) -> int | None:
        return db.read(lambda session: session.get_one(table, pk).patient_pk)

    def dump(self) -> dict[str, list]:
        return {
            table.__tablename__: [(row.key, *(getattr(row, name) for name in names)) for row in rows(table)]
            for table, names in DUMPED.items()
        }

    def audit(self, action: str) -> list[AuditEvent]:
        return [row for row in rows(AuditEvent) if row.action == action]


@pytest.fixture
def family(database, settings, monkeypatch) -> Family:
    status.configure(settings)
    monkeypatch.setattr(db, "_finishers", [status.publish])
    return Family()


def hosp(number: str) -> Identifier:
    return Identifier(number, "HOSP")


def rows(table) -> list:
    return db.read(lambda session: list(session.exec(select(table).order_by(table.pk)).all()))


def _order(session: Session, number: Identifier, accession: str) -> int:
    patient, _ = patients.for_order(session, PersonCommand((number,), "", "", ""), now=clock.now(), actor="test")
    row = identity.row(session, number.value, number.issuer)
    order = ImagingOrder(patient_pk=patient.key, accession_number=accession, identifier_pk=row.key)
    session.add(order)
    session.flush()
    procedure = RequestedProcedure(
        order_pk=order.key, requested_procedure_id="RP", study_instance_uid=ids.derived_uid("2.25", accession)
    )
    session.add(procedure)
    session.flush()
    step = ScheduledStep(
        requested_procedure_pk=procedure.key, order_pk=order.key, sps_id=accession, modality="CT",
        start_date="20251201", start_time="093000",
    )  # fmt: skip
    session.add(step)
    session.flush()
    session.add(ScheduledStation(step_pk=step.key, ae_title="CT1"))
    session.flush()
    items.rebuild(session, order.key, now=clock.now())
    return order.key


def _study(session: Session, order_pk: int | None, number: Identifier, issuer: str) -> int:
    owner = session.get_one(ImagingOrder, order_pk).patient_pk if order_pk else None
    if owner is None:
        owner = identity.find(session, number.value, number.issuer).key
    study = Study(
        study_instance_uid=ids.uid("2.25"), state="ARCHIVED", patient_pk=owner, order_pk=order_pk,
        last_received_at=clock.now(),
    )  # fmt: skip
    session.add(study)
    session.flush()
    series = Series(study_pk=study.key, series_instance_uid=ids.uid("2.25"))
    session.add(series)
    session.flush()
    session.add(
        Instance(
            study_pk=study.key, series_pk=series.key, sop_instance_uid=ids.uid("2.25"), sop_class_uid="1.2", state="STORED",
            transfer_syntax_uid="1.2", sha256="0", size=1, received_at=clock.now(),
            facts={"patient_id": number.value, "issuer_of_patient_id": issuer},
        )
    )  # fmt: skip
    if order_pk:
        _link(session, study.key, order_pk)
    return study.key


def _link(session: Session, study_pk: int, order_pk: int) -> None:
    procedure = session.exec(select(RequestedProcedure).where(RequestedProcedure.order_pk == order_pk)).one()
    session.add(StudyOrder(study_pk=study_pk, order_pk=order_pk, requested_procedure_pk=procedure.key))
    session.flush()


# Merges


def test_a_merge_takes_orders_and_studies_along_and_its_undo_restores_the_very_rows(family):
    family.meet("A", "B")
    orders = [family.order(number, f"ACC{number}") for number in "AB"]
    studies = [family.study(orders[0], "A"), family.study(number="A"), family.study(orders[1], "B")]
    before = family.dump()
    family.say("merge", "B", "A", hour=1, sex="F")
    assert {family.owner(ImagingOrder, pk) for pk in orders} == {family.of("B")}
    assert {family.owner(Study, pk) for pk in studies} == {family.of("B")}
    assert [family.leading(number) for number in "AB"] == ["B", "B"]
    family.undo()
    assert family.dump() == before


def test_a_study_changes_its_patient_only_with_an_audit_row_on_each_side(family):
    family.meet("A", "B")
    study = family.study(family.order("A", "ACC1"), "A")
    family.say("merge", "B", "A")
    family.undo()
    moved = [(row.subject, row.detail["before"], row.detail["after"]) for row in family.audit("study.move")]
    a, b = family.of("A"), family.of("B")
    assert moved == [(f"study:{study}", a, b), (f"study:{study}", b, a)]
    for action in ("patient.merge", "patient.undo"):
        assert {row.subject for row in family.audit(action)} == {f"patient:{a}", f"patient:{b}"}
    assert family.audit("patient.undo")[0].detail["reason"] == "a mistake"


def test_status_documents_and_worklist_items_show_the_patient_as_merged_and_parted(family):
    family.meet("A", "B")
    order = family.order("A", "ACC1")
    for number, act in (("B", lambda: family.say("merge", "B", "A")), ("A", family.undo)):
        act()
        (document,) = rows(OrderStatus)
        assert f'"patient": {{"id": "{number}", "issuer": "HOSP"}}' in document.document
        (step,) = rows(ScheduledStep)
        assert (step.patient_id, f"NAME^{number}".encode() in step.dataset) == (number, True)
    assert family.owner(ImagingOrder, order) == family.of("A")


def test_what_came_since_under_a_number_of_the_prior_goes_back_with_it(family):
    family.meet("A", "B")
    first = family.order("A", "ACC1")
    family.say("merge", "B", "A")
    own, other = family.order("B", "ACCB"), family.order("A", "ACCA")
    studies = [family.study(other, "A"), family.study(number="A"), family.study(own, "B"), family.study(number="B")]
    family.undo()
    a, b = family.of("A"), family.of("B")
    assert [family.owner(ImagingOrder, pk) for pk in (own, other, first)] == [b, a, a]
    assert [family.owner(Study, pk) for pk in studies] == [a, a, b, b]


def test_a_study_that_answers_orders_of_both_stays_and_a_person_is_asked(family):
    family.meet("A", "B")
    family.say("merge", "B", "A")
    orders = [family.order(number, f"ACC{number}") for number in "AB"]
    study = family.study(orders[1], "B")
    db.run(_link, study, orders[0])
    family.undo()
    assert family.owner(Study, study) == family.of("B")
    assert [(case.kind, case.subject) for case in rows(ReconciliationCase)] == [("merge_undone", f"study:{study}")]


def test_what_was_decided_for_another_patient_since_is_not_taken_back(family):
    """Matched anew by a person: the study answers an order of the survivor."""
    family.meet("A", "B")
    study = family.study(number="A")
    own = family.order("B", "ACCB")
    family.say("merge", "B", "A")
    db.run(_link, study, own)
    family.undo()
    assert family.owner(Study, study) == family.of("B")


def test_an_unscheduled_study_that_was_the_survivor_s_before_stays_whatever_its_objects_name(family):
    family.meet("A", "B")
    study, survivor = family.study(number="A"), family.of("B")
    db.run(lambda session: setattr(session.get_one(Study, study), "patient_pk", survivor))
    family.say("merge", "B", "A")
    family.undo()
    assert family.owner(Study, study) == survivor != family.of("A")


def test_a_record_that_changed_under_the_prior_s_number_is_a_question_for_a_person(family):
    family.meet("A", "B")
    family.say("merge", "B", "A", hour=1)
    family.say("update", "B", hour=2, sex="F")
    family.undo()
    assert rows(ReconciliationCase) == []
    family.say("merge", "B", "A", hour=3)
    family.say("update", "A", hour=4, name="NAME^B=山田^太郎", sex="F")
    family.undo()
    assert [(case.kind, case.subject) for case in rows(ReconciliationCase)] == [
        ("merge_undone", f"patient:{family.of('B')}")
    ]


def test_what_the_merge_said_of_the_survivor_is_taken_back_unless_something_newer_was_said(family):
    family.meet("A", "B")
    family.say("merge", "B", "A", hour=1, name="WRONG^ONE", sex="F")
    family.say("update", "B", hour=2, name="RIGHT^ONE")
    family.undo()
    survivor = rows(Patient)[1]
    assert (survivor.name, survivor.sex) == ("RIGHT^ONE", "M")


def test_a_chain_that_comes_in_reverse_ends_alike(family):
    family.meet("A", "B", "C")
    family.say("merge", "C", "B", hour=2)
    family.say("merge", "B", "A", hour=1)
    assert {family.of(number) for number in "ABC"} == {family.of("C")}
    assert [(row.value, row.retired) for row in rows(PatientIdentifier)] == [("A", True), ("B", True), ("C", False)]
    assert rows(Patient)[2].name == "NAME^C"


def test_an_inverse_merge_makes_the_other_number_lead_and_its_undo_the_first_again(family):
    family.meet("A", "B")
    order = family.order("A", "ACC1")
    family.say("merge", "B", "A", hour=1)
    db.run(lambda session: setattr(session.exec(select(ScheduledStep)).one(), "status", "COMPLETED"))
    before = family.dump()
    family.say("merge", "A", "B", hour=2)
    assert (family.leading("A"), family.of("A")) == ("A", family.of("B"))
    (document,) = rows(OrderStatus)
    assert '"patient": {"id": "A"' in document.document
    family.say("merge", "B", "A", hour=1)
    assert family.leading("A") == "A", "the older one came once more"
    family.undo()
    assert family.dump() == before
    assert family.owner(ImagingOrder, order) == family.of("B")


def test_the_same_merge_again_leaves_nothing_to_take_back(family):
    family.meet("A", "B")
    for _ in range(2):
        family.say("merge", "B", "A", hour=1)
    assert len(family.merges()) == 1


def test_a_merge_that_a_person_took_back_does_not_come_again_by_an_old_message(family):
    family.meet("A", "B")
    family.say("merge", "B", "A", hour=1)
    family.undo()
    before = family.dump()
    family.say("merge", "B", "A", hour=1)
    assert (family.dump(), len(family.merges())) == (before, 1)
    family.say("merge", "B", "A", hour=2)
    assert family.of("A") == family.of("B")


@pytest.mark.parametrize("event", ["merge", "move", "change_id"])
def test_nobody_goes_over_to_himself(family, event):
    family.meet("A")
    with pytest.raises(InvalidValue):
        family.say(event, "A", "A")


def test_a_number_nobody_knew_leads_to_the_survivor_until_the_merge_is_taken_back(family):
    """HL7-24"""
    family.meet("A")
    before = family.dump()
    family.say("merge", "A", "B", hour=1)
    assert family.of("B") == family.of("A")
    family.undo()
    assert family.of("B") is None
    assert family.dump() == before


def test_what_came_under_a_number_nobody_knew_gets_a_patient_of_its_own_when_the_merge_is_taken_back(family):
    family.meet("A")
    family.say("merge", "A", "B", hour=1)
    order = family.order("B", "ACC1")
    study = family.study(order, "B")
    family.undo()
    alone = family.of("B")
    assert alone not in (None, family.of("A"))
    assert {family.owner(ImagingOrder, order), family.owner(Study, study)} == {alone}
    assert (rows(Patient)[-1].name, rows(ScheduledStep)[0].offerable) == ("", False)
    assert [case.kind for case in rows(ReconciliationCase)] == ["incomplete_order"]


# Taking back


def test_a_merge_is_taken_back_once(family):
    family.meet("A", "B")
    family.say("merge", "B", "A")
    family.undo()
    with pytest.raises(WrongState, match="already"):
        family.undo()
    with pytest.raises(UnknownKey):
        family.undo(4711)


@pytest.mark.parametrize(
    "later",
    [("merge", "C", "B"), ("move", "C", "A"), ("change_id", "A2", "A"), ("merge", "A", "B"), ("merge", "A", "C")],
)
def test_what_stands_on_a_merge_is_taken_back_first(family, later):
    family.meet("A", "B", "C")
    first = family.dump()
    family.say("merge", "B", "A")
    second = family.dump()
    family.say(*later)
    lower, upper = family.merges()
    with pytest.raises(WrongState, match=f"merge {upper} stands on it"):
        family.undo(lower)
    family.undo(upper)
    assert identified(family.dump()) == identified(second)
    family.undo(lower)
    assert identified(family.dump()) == identified(first)


def test_a_move_from_a_patient_who_is_merged_since_is_taken_back_after_that_merge(family):
    family.say("update", "A", also=("X",))
    family.meet("B")
    family.say("move", "B", "X")
    family.say("merge", "B", "A")
    lower, upper = family.merges()
    with pytest.raises(WrongState, match=f"merge {upper} stands on it"):
        family.undo(lower)
    family.undo(upper)
    family.undo(lower)
    assert family.of("X") == family.of("A") != family.of("B")


def identified(dump: dict[str, list]) -> tuple:
    return dump["patient_identifier"], [(row[0], row[6]) for row in dump["patient"]]


def test_two_merges_that_have_nothing_to_do_with_each_other_are_taken_back_in_any_order(family):
    family.meet("A", "B", "C")
    orders = [family.order(number, f"ACC{number}") for number in "AC"]
    before = family.dump()
    family.say("merge", "B", "A", hour=1)
    family.say("merge", "B", "C", hour=1)
    family.undo(family.merges()[0])
    assert [family.owner(ImagingOrder, pk) for pk in orders] == [family.of("A"), family.of("B")]
    family.undo(family.merges()[1])
    assert [family.dump()[name] for name in ("imaging_order", "patient_identifier")] == [
        before[name] for name in ("imaging_order", "patient_identifier")
    ]


def test_the_question_whose_a_number_is_is_answered_by_a_merge_and_open_again_after_its_undo(family):
    family.say("update", "A", also=("SHARED",))
    family.say("update", "B", also=("SHARED",))
    assert [(case.subject, case.state) for case in rows(ReconciliationCase)] == [(f"patient:{family.of('B')}", "OPEN")]
    family.say("merge", "A", "B")
    (case,) = rows(ReconciliationCase)
    assert (case.state, case.resolution) == ("RESOLVED", {"action": "merged"})
    family.undo()
    (case,) = rows(ReconciliationCase)
    assert (case.state, case.resolution, case.resolved_by) == ("OPEN", {}, "")


def test_the_question_about_a_third_patient_stays_open(family):
    family.say("update", "A", also=("SHARED",))
    family.say("update", "B", also=("SHARED",))
    family.meet("C")
    family.say("merge", "C", "B")
    assert [case.state for case in rows(ReconciliationCase)] == ["OPEN"]


# Moves


def test_a_move_takes_along_what_was_placed_under_that_number_alone(family):
    family.say("update", "A", also=("X",))
    family.meet("B")
    orders = [family.order(number, f"ACC{number}") for number in "AXB"]
    studies = [family.study(pk, number) for pk, number in zip(orders, "AXB", strict=True)]
    alone = [family.study(number=number) for number in "AX"]
    before = family.dump()
    family.say("move", "B", "X", hour=1)
    a, b = family.of("A"), family.of("B")
    assert a != b
    assert [family.owner(ImagingOrder, pk) for pk in orders] == [a, b, b]
    assert [family.owner(Study, pk) for pk in studies + alone] == [a, b, b, a, b]
    assert (family.of("X"), family.leading("X")) == (b, "B")
    assert len(family.audit("study.move")) == 2
    late = family.order("X", "ACCLATE")
    family.undo()
    assert family.owner(ImagingOrder, late) == a
    assert [row for row in family.dump()["imaging_order"] if row[0] != late] == before["imaging_order"]
    assert [family.dump()[name] for name in ("patient", "patient_identifier", "study")] == [
        before[name] for name in ("patient", "patient_identifier", "study")
    ]


def test_the_move_of_a_patient_s_only_number_is_a_merge(family):
    family.meet("A", "B")
    order = family.order("A", "ACC1")
    before = family.dump()
    family.say("move", "B", "A", hour=1)
    assert family.of("A") == family.of("B") == family.owner(ImagingOrder, order)
    assert rows(Patient)[0].merged_into == family.of("B")
    family.undo()
    assert family.dump() == before


def test_a_number_that_the_patient_has_still_stays_in_use_after_its_move(family):
    """PID-2 names the new patient, PID-3 and MRG-1 the number that goes over."""
    family.say("update", "A", also=("X",))
    family.say("move", "E", "X", also=("X",))
    assert [(row.value, row.patient_pk == family.of("E"), row.retired) for row in rows(PatientIdentifier)] == [
        ("A", False, False), ("X", True, False), ("E", True, False),
    ]  # fmt: skip
    assert rows(ReconciliationCase) == []


def test_a_study_that_goes_with_both_numbers_stays_where_it_is_and_a_person_is_asked(family):
    family.say("update", "A", also=("X",))
    family.meet("B")
    orders = [family.order(number, f"ACC{number}") for number in "AX"]
    study = family.study(orders[0], "A")
    db.run(_link, study, orders[1])
    family.say("move", "B", "X")
    assert family.owner(Study, study) == family.of("A")
    assert [(case.kind, case.subject) for case in rows(ReconciliationCase)] == [("merge_undone", f"study:{study}")]


# Changes of identifier


def test_studies_and_orders_follow_a_new_number_and_the_old_one_leads_there(family):
    """HL7-26"""
    family.say("update", "A", also=("Z",))
    order = family.order("A", "ACC1")
    study = family.study(order, "A")
    before = family.dump()
    family.say("change_id", "N", "A", hour=1)
    assert family.of("N") == family.of("A") == family.owner(Study, study)
    assert family.leading("A") == "N", "another number of the patient does not come first"
    (document,) = rows(OrderStatus)
    assert '"patient": {"id": "N"' in document.document
    family.order("A", "ACC2")
    with pytest.raises(DuplicateKey) as refused:
        family.meet("B")
        family.say("change_id", "B", "N")
    assert refused.value.err == "205"
    family.undo()
    assert (family.of("N"), family.leading("A")) == (None, "A")
    after = family.dump()
    assert [row for row in after["patient_identifier"] if row[2] != "B"] == before["patient_identifier"]
    assert {row[3] for row in after["imaging_order"]} == {before["imaging_order"][0][3]}
    assert family.owner(Study, study) == family.of("A")


def test_a_change_of_a_number_nobody_knew_makes_the_patient_and_leads_there(family):
    family.say("change_id", "N", "A", hour=1)
    assert family.of("N") == family.of("A") is not None
    assert [(row.value, row.retired) for row in rows(PatientIdentifier)] == [("N", False), ("A", True)]
    family.say("change_id", "N", "A", hour=1)
    assert len(family.merges()) == 1


def test_a_retired_number_is_written_differently_and_back(family):
    family.meet("A", "B")
    family.say("merge", "B", "A", hour=1)
    before = family.dump()
    family.say("change_id", "A2", "A", hour=2)
    order = family.order("A2", "ACC1")
    assert (family.of("A2"), family.leading("A2")) == (family.of("B"), "B")
    family.undo()
    assert family.dump()["patient_identifier"] == before["patient_identifier"]
    assert family.owner(ImagingOrder, order) == family.of("B")


# Two at once


@pytest.mark.parametrize("times", range(3))
def test_two_inverse_merges_at_once_join_the_two_and_lose_nothing(family, times):
    family.meet("A", "B")
    orders = [family.order(number, f"ACC{number}") for number in "AB"]
    at_once(lambda: family.say("merge", "B", "A"), lambda: family.say("merge", "A", "B"))
    assert family.of("A") == family.of("B")
    assert {family.owner(ImagingOrder, pk) for pk in orders} == {family.of("A")}
    assert sorted(row.merged_into is None for row in rows(Patient)) == [False, True]
    assert [row.retired for row in rows(PatientIdentifier)].count(False) == 1
    for _ in range(2):
        family.undo(max(row.key for row in rows(PatientMerge) if row.undone_at is None))
    assert [family.owner(ImagingOrder, pk) for pk in orders] == [family.of("A"), family.of("B")]


@pytest.mark.parametrize("event", ["merge", "move"])
def test_an_order_that_is_placed_while_its_number_goes_over_is_the_survivor_s(family, event):
    family.say("update", "A", also=("X",))
    family.meet("B")
    for n in range(3):
        at_once(lambda: family.say(event, "B", "X"), lambda n=n: family.order("X", f"ACC{n}"))
        assert {row.patient_pk for row in rows(ImagingOrder)} == {family.of("B")}
        family.undo()
        assert {row.patient_pk for row in rows(ImagingOrder)} == {family.of("A")}


def at_once(*what) -> None:
    gate = threading.Barrier(len(what))

    def begin(one) -> None:
        gate.wait()
        one()

    with ThreadPoolExecutor(len(what)) as pool:
        for done in [pool.submit(begin, one) for one in what]:
            done.result()


# Locks: patient, order, study; of one kind by their keys (PostgreSQL ends one of two who wait for each other)


@pytest.fixture
def locked(monkeypatch) -> list[tuple[type, int]]:
    """What is locked, in that order."""
    taken: list[tuple[type, int]] = []
    lock = db.lock

    def note(session: Session, table: type, pk: int) -> object:
        taken.append((table, pk))
        return lock(session, table, pk)

    monkeypatch.setattr(db, "lock", note)
    return taken


def test_a_message_from_before_a_merge_locks_the_prior_as_taking_the_merge_back_does(family, locked):
    family.meet("A", "B")
    family.say("merge", "B", "A", hour=2)
    locked.clear()
    family.say("update", "A", hour=1, name="SUZUKI^HANAKO")
    assert locked == [(Patient, family.of("B") - 1), (Patient, family.of("B"))]
    locked.clear()
    family.undo()
    assert locked[:2] == [(Patient, family.of("A")), (Patient, family.of("B"))]


def test_a_person_who_decides_about_an_order_waits_for_its_patient_first(family, locked, settings):
    family.meet("A")
    order = family.order("A", "ACC1")
    study = family.study(number="A")
    how = {"principal": "token:qc", "is_person": False, "now": clock.now()}
    ask = {"level": "amber", "reasons": ["a reason"], "now": clock.now(), "actor": "test"}
    conflict = db.run(casebook.open_case, "patient_conflict", f"order:{order}", order_pk=order, **ask).key
    held = db.run(casebook.open_case, "study", f"study:{study}", study_pk=study, **ask).key
    for decide in (
        lambda: db.run(cases.resolve, conflict, "acknowledge", settings=settings, **how),
        lambda: db.run(cases.undo, conflict, **how),
        lambda: db.run(cases.resolve, held, "match", order_id=order, sps_id="none", settings=settings, **how),
    ):
        locked.clear()
        with contextlib.suppress(UnknownKey):
            decide()
        assert locked[:2] == [(Patient, family.of("A")), (ImagingOrder, order)]


# By hand


def test_the_desk_lists_merges_and_takes_them_back(family, settings):
    family.meet("A", "B")
    family.order("A", "ACC1")
    family.say("merge", "B", "A", hour=1)
    (merge,) = family.merges()
    headers = {
        role: {"Authorization": f"Bearer {db.run(site.create_token, role, role, now=clock.now(), actor='test')}"}
        for role in ("qc", "admin", "ris")
    }
    with TestClient(create_app(settings, {})) as http:
        assert http.get("/api/v1/patients/merges", headers=headers["ris"]).status_code == 403
        listed = http.get("/api/v1/patients/merges", headers=headers["qc"]).json()
        assert listed["next"] is None
        (item,) = listed["items"]
        assert (item["id"], item["event"], item["undone_at"]) == (merge, "merge", None)
        assert (item["prior"], item["current"]) == ({"id": "A", "issuer": "HOSP"}, {"id": "B", "issuer": "HOSP"})
        assert "NAME" not in str(item)
        path = f"/api/v1/patients/merges/{merge}/undo"
        assert http.post(path, headers=headers["ris"], json={"reason": "x"}).status_code == 403
        undone = http.post(path, headers=headers["admin"], json={"reason": "a mistake"})
        assert (undone.status_code, undone.json()["undone_by"]) == (200, "admin")
        assert http.post(path, headers=headers["qc"], json={"reason": "a mistake"}).status_code == 409
        assert http.post("/api/v1/patients/merges/4711/undo", headers=headers["qc"], json={}).status_code == 404
    assert family.of("A") != family.of("B")


def test_merges_are_listed_and_taken_back_at_the_command_line(family, settings, monkeypatch):
    monkeypatch.setattr("broker.commands.orders.opened", lambda *_: settings)
    family.meet("A", "B")
    family.say("merge", "B", "A")
    (merge,) = family.merges()
    listed = CliRunner().invoke(cli.app, ["patient", "merges"])
    assert (listed.exit_code, "A^HOSP" in listed.output) == (0, True)
    undone = CliRunner().invoke(cli.app, ["patient", "undo", str(merge), "--reason", "a mistake"])
    assert undone.exit_code == 0, undone.output
    assert family.of("A") != family.of("B")
    assert family.audit("patient.undo")[0].detail["reason"] == "a mistake"


def test_the_list_of_merges_goes_on_where_it_ended(family):
    family.meet("A", "B", "C")
    family.say("merge", "C", "A")
    family.say("merge", "C", "B")
    first, following = db.read(merge_log.listing, 1)
    second, end = db.read(merge_log.listing, 1, following)
    assert ([one["id"] for one in first + second], end) == (family.merges()[::-1], None)
