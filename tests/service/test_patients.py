"""Patients: what ADT changes, and that a merge leads every number to one record."""

import datetime as dt
import itertools

import pytest
from sqlmodel import select

from broker import clock, db
from broker.errors import InvalidValue
from broker.model.images import ReconciliationCase
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.mwl import patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand

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
    update(person("A", name="SATO^TARO"), 3)
    assert [patient.name for patient in rows(Patient)] == ["SUZUKI^HANAKO", "SATO^TARO"]


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
