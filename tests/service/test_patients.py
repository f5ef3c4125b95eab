"""Patients: what ADT changes, and that a merge leads every number to one record."""

import pytest
from sqlmodel import select

from broker import clock, db
from broker.errors import InvalidValue
from broker.model.images import ReconciliationCase
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.mwl import patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand

pytestmark = pytest.mark.usefixtures("database")


def person(number: str = "A", **changes) -> PersonCommand:
    known = {"name": "YAMADA^TARO", "birth_date": "19700101", "sex": "M", **changes}
    return PersonCommand((Identifier(number, "HOSP"),), **known)


def update(one: PersonCommand) -> None:
    db.run(patients.apply, PatientCommand("update", one, cause="ADT^A08"), now=clock.now(), actor="test")


def merge(survivor: str, prior: str) -> None:
    command = PatientCommand("merge", person(survivor), Identifier(prior, "HOSP"), cause="ADT^A40")
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
    update(person("B", sex="F"))
    assert len(rows(Patient)) == 1
    assert rows(Patient)[0].sex == "F"


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
