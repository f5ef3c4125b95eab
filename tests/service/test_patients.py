"""Patients: what ADT changes, and that a merge leads every number to one record."""

import datetime as dt
import io
import itertools
from dataclasses import replace
from typing import Any

import pytest
from pydicom import dcmread
from sqlmodel import select

from broker import clock, db
from broker.config import Site
from broker.errors import InvalidValue
from broker.model.images import ReconciliationCase
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.model.work import AuditEvent
from broker.mwl import orders, patients
from broker.mwl.commands import Identifier, OrderCommand, PatientCommand, PersonCommand, ProcedureCommand, StepCommand

T0 = dt.datetime(2025, 12, 1, tzinfo=dt.UTC)
pytestmark = pytest.mark.usefixtures("database")


def person(number: str = "A", **changes) -> PersonCommand:
    known = {"name": "YAMADA^TARO", "birth_date": "19700101", "sex": "M", **changes}
    return PersonCommand((Identifier(number, "HOSP"),), **known)


def update(one: PersonCommand, hour: int | None = None) -> None:
    at = T0 + dt.timedelta(hours=hour) if hour is not None else None
    db.run(patients.apply, PatientCommand("update", one, at=at, cause="ADT^A08"), now=clock.now(), actor="test")


def merge(survivor: str, prior: str, hour: int | None = None) -> None:
    at = T0 + dt.timedelta(hours=hour) if hour is not None else None
    command = PatientCommand("merge", person(survivor), Identifier(prior, "HOSP"), at, cause="ADT^A40")
    db.run(patients.apply, command, now=clock.now(), actor="test")


def rows(table):
    return db.read(lambda session: session.exec(select(table).order_by(table.pk)).all())


def found(number: str) -> int | None:
    patient = db.read(patients.find, number, "HOSP")
    return patient.pk if patient else None


def test_nothing_said_changes_nothing_and_an_explicit_null_clears():
    """HL7-27"""
    update(person())
    update(person(sex=None))
    assert rows(Patient)[0].sex == "M"
    update(person(sex=""))
    assert rows(Patient)[0].sex == ""


def test_what_was_known_before_a_change_is_kept_with_its_cause():
    update(person())
    update(person(name="SUZUKI^TARO"))
    assert [(row.name, row.cause) for row in rows(PatientVersion)] == [("YAMADA^TARO", "ADT^A08")]


# Late, twice, out of order

STREAM = (
    (person(name="YAMADA^TARO", sex="M", attributes={"PatientWeight": "60"}), 1),
    (person(name="SATO^TARO", birth_date="", sex=None, attributes={"PatientWeight": "", "PatientSize": "1.7"}), 2),
    (person(name=None, birth_date=None, sex="F", attributes={}), 3),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_what_comes_late_or_twice_changes_nothing_newer(order):
    update(person(name=None, birth_date=None, sex=None), 0)
    for n in (*order, order[0]):
        update(*STREAM[n])
    (patient,) = rows(Patient)
    assert (patient.name, patient.birth_date, patient.sex) == ("SATO^TARO", "", "F")
    assert patient.attributes == {"PatientSize": "1.7"}


def test_a_message_from_the_future_does_not_shut_out_those_that_follow():
    update(person(), 24 * 365 * 30)
    command = PatientCommand("update", person(name="SATO^TARO"), at=clock.now(), cause="ADT^A08")
    db.run(patients.apply, command, now=clock.now(), actor="test")
    assert rows(Patient)[0].name == "SATO^TARO"


def test_what_was_said_before_a_merge_is_about_the_prior_and_not_about_the_survivor():
    for number in ("A", "B"):
        update(person(number), 0)
    merge("B", "A", 2)
    update(person("A", name="SUZUKI^HANAKO", sex="F"), 1)
    assert [(patient.name, patient.sex) for patient in rows(Patient)] == [("SUZUKI^HANAKO", "F"), ("YAMADA^TARO", "M")]
    update(person("A", name="YAMADA^TARO=山田^太郎"), 3)
    assert [patient.name for patient in rows(Patient)] == ["SUZUKI^HANAKO", "YAMADA^TARO=山田^太郎"]


def test_what_was_said_before_a_merge_of_somebody_nobody_knew_is_about_nobody_here():
    update(person("A"), 0)
    merge("A", "B", 2)
    update(person("B", name="SUZUKI^HANAKO", sex="F"), 1)
    assert [(patient.name, patient.sex) for patient in rows(Patient)] == [("YAMADA^TARO", "M")]


def test_a_written_name_in_latin_letters_is_no_longer_marked_as_made_here():
    update(person(name="YAMADA^TARO==ヤマダ^タロウ", romanised=True))
    assert rows(Patient)[0].romanised
    order(person(name="YAMADA^TAROU=山田^太郎=ヤマダ^タロウ"))
    patient = rows(Patient)[0]
    assert (patient.name, patient.romanised) == ("YAMADA^TARO=山田^太郎=ヤマダ^タロウ", True)
    update(person(name="YAMADA^TAROU=山田^太郎=ヤマダ^タロウ"))
    patient = rows(Patient)[0]
    assert (patient.name, patient.romanised) == ("YAMADA^TAROU=山田^太郎=ヤマダ^タロウ", False)


def test_an_order_fills_a_group_of_the_name_with_what_was_made_here_and_says_so():
    update(person(name="=山田^太郎=ヤマダ^タロウ"))
    assert not rows(Patient)[0].romanised
    order(person(name="YAMADA^TARO==ヤマダ^タロウ", romanised=True))
    assert (rows(Patient)[0].name, rows(Patient)[0].romanised) == ("YAMADA^TARO=山田^太郎=ヤマダ^タロウ", True)


def order(one: PersonCommand) -> None:
    db.run(patients.for_order, one, now=clock.now(), actor="test")


def test_a_clock_that_is_some_minutes_fast_keeps_the_order_of_what_it_says():
    now = clock.now()
    for minutes, name in ((10, "SATO^TARO"), (5, "YAMADA^TARO")):
        told = PatientCommand("update", person(name=name), at=now + dt.timedelta(minutes=minutes), cause="ADT^A08")
        db.run(patients.apply, told, now=now, actor="test")
    assert rows(Patient)[0].name == "SATO^TARO"


# What an order says that changes from visit to visit


def placed(accession: str, hour: int, **attributes: Any) -> dict[str, str]:
    """What devices are shown of the patient of that new order, besides who it is."""
    step = StepCommand("S1", "CT", ("CT1",), "20251201", "093000")
    command = OrderCommand(
        "NW", accession, patient=person(attributes=attributes), at=T0 + dt.timedelta(hours=hour),
        procedures=(ProcedureCommand("R1", f"2.25.{accession}", steps=(step,)),),
    )  # fmt: skip
    db.run(orders.apply, command, now=clock.now(), actor="test", site=Site())
    return shown(accession)


def shown(accession: str) -> dict[str, str]:
    (step,) = (one for one in rows(ScheduledStep) if one.accession_number == accession)
    names = ("Allergies", "MedicalAlerts", "PatientWeight", "PatientSize", "PregnancyStatus")
    item = dcmread(io.BytesIO(step.dataset), force=True)
    return {name: str(item.get(name)) for name in names if name in item}


def test_each_order_shows_the_measures_that_it_says_and_none_of_another_visit():
    said = {"PatientWeight": "44", "PregnancyStatus": 4, "EthnicGroup": "A"}
    assert placed("1", 1, **said) == {"PatientWeight": "44", "PregnancyStatus": "4"}
    assert placed("2", 2, PatientWeight="99") == {"PatientWeight": "99"}
    assert placed("3", 3) == {}
    assert (shown("1")["PatientWeight"], rows(Patient)[0].attributes) == ("44", {"EthnicGroup": "A"})


def test_what_adt_has_measured_since_counts_for_an_order_that_is_older():
    placed("1", 1, PatientWeight="44", PatientSize="1.5")
    update(person(attributes={"PatientWeight": "47"}), 2)
    assert shown("1") == {"PatientWeight": "47", "PatientSize": "1.5"}
    assert placed("2", 3, PatientWeight="48") == {"PatientWeight": "48"}
    assert placed("3", 3) == {"PatientWeight": "47"}


def test_allergies_and_alerts_are_shown_whoever_said_them():
    placed("1", 1, Allergies=["Penicillin"], MedicalAlerts="Pacemaker")
    both = {"Allergies": "['Penicillin', 'Iodinated contrast']", "MedicalAlerts": "Pacemaker"}
    assert placed("2", 2, Allergies=["Iodinated contrast", "Penicillin"]) == both
    assert (shown("1"), placed("3", 3)) == (both, both)
    update(person(attributes={"Allergies": ["Latex"]}), 4)
    assert shown("2")["Allergies"] == "['Latex', 'Iodinated contrast', 'Penicillin']"


def test_what_an_order_says_of_the_visit_is_its_own_where_it_contradicts_the_record():
    update(person(), 0)
    stranger = replace(person(attributes={"PatientWeight": "44", "Allergies": ["Latex"]}), name="ONO^YUKI")
    command = OrderCommand("NW", "1", patient=stranger, at=T0)
    db.run(orders.apply, command, now=clock.now(), actor="test", site=Site())
    assert rows(Patient)[0].attributes == {}
    assert rows(ImagingOrder)[0].attributes == {"PatientWeight": "44", "Allergies": ["Latex"]}


# Merges (more of them: test_merges.py)


def test_after_a_merge_both_numbers_lead_to_the_survivor_also_through_a_chain():
    for number in ("A", "B", "C"):
        update(person(number))
    merge("B", "A")
    merge("C", "B")
    assert found("A") == found("B") == found("C") == 3
    assert [row.retired for row in rows(PatientIdentifier)] == [True, True, False]


def test_a_merge_with_an_unknown_number_lets_later_data_land_on_the_survivor():
    """HL7-24"""
    update(person("A"))
    merge("A", "B")
    update(person("B", attributes={"PatientWeight": "60"}))
    assert len(rows(Patient)) == 1
    assert rows(Patient)[0].attributes == {"PatientWeight": "60"}


@pytest.mark.parametrize(
    ("what", "other"),
    [("name", {"name": "ONO^YUKI"}), ("birth date", {"birth_date": "20010101"}), ("sex", {"sex": "F"})],
)
def test_under_a_retired_number_another_person_changes_nothing_and_a_person_is_asked(what, other):
    """A number that was merged away and given to somebody else must not make the survivor that somebody."""
    for number in ("A", "B"):
        update(person(number), 0)
    merge("B", "A", 1)
    before = rows(Patient)[1].model_dump(), [row.model_dump() for row in rows(PatientIdentifier)]
    stranger = person("A", attributes={"PatientWeight": "40"}, **other)
    update(replace(stranger, identifiers=(*stranger.identifiers, Identifier("X", "HOSP"))), 2)
    assert (rows(Patient)[1].model_dump(), [row.model_dump() for row in rows(PatientIdentifier)]) == before
    (case,) = rows(ReconciliationCase)
    assert (case.kind, case.subject, case.level) == ("identifier_conflict", "patient:2", "amber")
    assert case.reasons == [f"a message under a number that was retired gives another {what} than the patient record"]
    refused = [row for row in rows(AuditEvent) if row.action == "patient.update" and row.outcome == "refused"]
    assert [(row.subject, row.detail["under"]) for row in refused] == [("patient:2", 1)]


def test_a_second_question_about_a_patient_s_numbers_leaves_the_first_to_be_answered():
    for number in ("A", "B"):
        update(person(number), 0)
    merge("B", "A", 1)
    update(person("C"), 1)
    update(replace(person("B"), identifiers=(Identifier("B", "HOSP"), Identifier("C", "HOSP"))), 2)
    update(person("A", sex="F"), 3)
    (case,) = rows(ReconciliationCase)
    assert len(case.reasons) == 2


def test_under_a_retired_number_what_is_older_than_what_is_known_asks_nobody():
    for number in ("A", "B"):
        update(person(number), 0)
    merge("B", "A", 1)
    update(person("B", name="ONO^YUKI"), 3)
    update(person("A"), 2)
    assert (rows(Patient)[1].name, rows(ReconciliationCase)) == ("ONO^YUKI", [])


def test_what_was_said_before_a_merge_is_no_question_about_the_survivor():
    for number in ("A", "B"):
        update(person(number), 0)
    silent = person("B", name=None, birth_date=None, sex=None)
    at = T0 + dt.timedelta(hours=2)
    db.run(patients.apply, PatientCommand("merge", silent, Identifier("A", "HOSP"), at), now=clock.now(), actor="test")
    update(person("A", name="ONO^YUKI"), 1)
    assert [patient.name for patient in rows(Patient)] == ["ONO^YUKI", "YAMADA^TARO"]
    assert rows(ReconciliationCase) == []


def test_under_a_living_number_a_person_is_renamed_as_ever():
    update(person("A"), 0)
    update(person("A", name="ONO^YUKI", birth_date="20010101", sex="F"), 1)
    assert (rows(Patient)[0].name, rows(ReconciliationCase)) == ("ONO^YUKI", [])


def test_the_same_merge_again_changes_nothing():
    for number in ("A", "B"):
        update(person(number))
    merge("B", "A")
    before = [(row.pk, row.merged_into) for row in rows(Patient)]
    merge("B", "A")
    assert [(row.pk, row.merged_into) for row in rows(Patient)] == before


def test_a_patient_cannot_be_merged_with_itself():
    update(person("A"))
    with pytest.raises(InvalidValue):
        merge("A", "A")


def family(number: str, name: str, *shared: Identifier) -> PersonCommand:
    return PersonCommand((Identifier(number, "HOSP"), *shared), name, "20100505", "M")


def test_a_number_that_a_family_shares_brings_nobody_together():
    insurance = Identifier("INS1", "HOKEN", "PI")
    update(family("A", "YAMADA^TARO", insurance))
    update(family("B", "YAMADA^JIRO", insurance))
    assert [patient.name for patient in rows(Patient)] == ["YAMADA^TARO", "YAMADA^JIRO"]
    assert (found("A"), found("B")) == (1, 2)
    assert [(row.value, row.patient_pk) for row in rows(PatientIdentifier)] == [("A", 1), ("INS1", 1), ("B", 2)]
    assert [(case.kind, case.subject) for case in rows(ReconciliationCase)] == [("identifier_conflict", "patient:2")]


def test_an_order_whose_patient_has_a_number_of_somebody_else_is_not_offered():
    shared = Identifier("INS1", "HOKEN", "PI")
    update(family("A", "YAMADA^TARO", shared))

    def take(session):
        return patients.for_order(session, family("B", "YAMADA^JIRO", shared), now=clock.now(), actor="test")

    patient, conflicts = db.run(take)
    assert (patient.pk, patient.name) == (2, "YAMADA^JIRO")
    assert conflicts == ["one of the order's patient identifiers belongs to another patient"]


def test_either_of_the_numbers_of_one_patient_may_lead():
    update(family("A", "YAMADA^TARO", Identifier("B", "HOSP")))
    update(family("B", "YAMADA^TARO", Identifier("A", "HOSP")))
    assert len(rows(Patient)) == 1
