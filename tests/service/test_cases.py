"""What a person may decide about what waits, how two must agree where it is red, and how it is taken back."""

import threading

import pydicom
import pytest

from broker import casebook, clock, db
from broker.archive import cases, commit, performed_by_images
from broker.errors import InvalidValue, MissingField, UnknownKey, Unsupported, WrongState
from broker.model.images import Decision, Instance, ReconciliationCase, Study, StudyOrder
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.model.work import AuditEvent
from broker.mwl import patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from tests.service.exam import SATO, YAMADA, Exams

FOREIGN = {"PatientID": "999", "IssuerOfPatientID": "", "PatientName": "SATO^HANAKO", "PatientSex": "F",
           "PatientBirthDate": "19850315", "AccessionNumber": ""}  # fmt: skip


@pytest.fixture
def exams(database, settings) -> Exams:
    return Exams(settings)


@pytest.fixture
def order(exams) -> int:
    return exams.place()


@pytest.fixture
def held(exams) -> tuple[int, int]:
    """A study of another patient under a Study UID of its own, held amber: (study, case)."""
    study = exams.receive("1.2.392.99999.7", **FOREIGN)
    return study, exams.hold(study)


def resolve(exams: Exams, case_pk: int, action: str, principal: str = "", **how) -> ReconciliationCase:
    """By that principal alone; by token:qc where none is named, after a colleague where the match is with another
    patient's order, which takes two."""
    (case,) = exams.rows(ReconciliationCase, pk=case_pk) or [None]
    foreign = case and any(exams.get(Instance, key).facts["patient_id"] == "999" for key in case.instances)
    both = ["token:colleague"] * bool(foreign and action == "match" and case.state == "OPEN") + ["token:qc"]
    for who in [principal] if principal else both:
        case = db.run(
            cases.resolve, case_pk, action, principal=who, is_person=False, now=clock.now(), settings=exams.settings,
            **how,
        )  # fmt: skip
    return case


def undo(case_pk: int) -> ReconciliationCase:
    return db.run(cases.undo, case_pk, principal="token:qc", is_person=False, now=clock.now(), reason="mistake")


def rendition(exams: Exams, instance: Instance) -> pydicom.Dataset:
    return pydicom.dcmread(exams.archive() / instance.rendition_key)


# Match


def test_a_match_gives_the_study_to_the_order_and_corrects_the_identity(exams, order, held):
    """STO-12: reason CORRECT; nothing of the first patient stays in the rendition."""
    study, case = held
    resolve(exams, case, "match", order_id=order, reason="wrong entry picked")
    assert exams.states(study) == ("ACCEPTED", ["STAGED", "STAGED"])
    commit.work(exams.settings)
    assert exams.states(study) == ("ARCHIVED", ["STORED", "STORED"])
    ds = rendition(exams, exams.instances(study)[0])
    assert (ds.PatientID, ds.IssuerOfPatientID, ds.AccessionNumber) == ("0000012345", "HOSP", "ACC001")
    assert str(ds.PatientName) == YAMADA.name
    item = ds.OriginalAttributesSequence[0]
    assert item.ReasonForTheAttributeModification == "CORRECT"
    assert item.ModifiedAttributesSequence[0].PatientID == "999"
    (link,) = exams.rows(StudyOrder, study_pk=study)
    assert link.order_pk == order
    decision = exams.rows(Decision, study_pk=study)[-1]
    assert (decision.by, decision.outcome, decision.order_pk) == ("token:qc", "C", order)
    row = exams.get(ReconciliationCase, case)
    assert (row.state, row.resolved_by, row.resolution["action"]) == ("RESOLVED", "token:qc", "match")


def test_a_match_of_the_right_patient_is_a_coercion_and_no_correction(exams, order):
    study = exams.receive("1.2.392.99999.8", AccessionNumber="")
    resolve(exams, exams.hold(study), "match", order_id=order)
    commit.work(exams.settings)
    item = rendition(exams, exams.instances(study)[0]).OriginalAttributesSequence[0]
    assert item.ReasonForTheAttributeModification == "COERCE"


def test_of_several_steps_one_must_be_named(exams, held):
    order = exams.place("ACC002", steps=2)
    study, case = held
    with pytest.raises(MissingField, match="2 steps"):
        resolve(exams, case, "match", order_id=order)
    resolve(exams, case, "match", order_id=order, sps_id="S1ACC002")
    (link,) = exams.rows(StudyOrder, study_pk=study)
    assert exams.get(ScheduledStep, link.step_pk).sps_id == "S1ACC002"


@pytest.mark.parametrize(
    ("action", "how", "error"),
    [
        ("match", {}, MissingField),
        ("match", {"order_id": 4711}, UnknownKey),
        ("match", {"order_id": 1, "sps_id": "NONE"}, UnknownKey),
        ("reject", {}, InvalidValue),
        ("reject", {"code": "113000"}, InvalidValue),
        ("split", {}, Unsupported),
        ("acknowledge", {}, InvalidValue),
        ("delete", {}, InvalidValue),
    ],
)
def test_a_wrong_target_or_action_is_refused_and_changes_nothing(exams, order, held, action, how, error):
    study, case = held
    if how.get("order_id") == 1:
        how = how | {"order_id": order}
    with pytest.raises(error):
        resolve(exams, case, action, **how)
    assert exams.states(study) == ("IN_REVIEW", ["HELD", "HELD"])
    assert exams.get(ReconciliationCase, case).state == "OPEN"


def test_an_unknown_case_and_a_resolved_one_are_refused(exams, order, held):
    with pytest.raises(UnknownKey):
        resolve(exams, 4711, "match", order_id=order)
    resolve(exams, held[1], "match", order_id=order)
    with pytest.raises(WrongState, match="resolved"):
        resolve(exams, held[1], "reject", code="113038")


def test_a_conflicting_copy_stays_aside_when_its_study_is_matched(exams, order, held):
    study, case = held
    first, second = exams.instances(study)
    exams.set(Instance, second.key, conflict_of=first.key, facts=second.facts | {"conflict": "attributes"})
    resolve(exams, case, "match", order_id=order)
    commit.work(exams.settings)
    assert exams.states(study) == ("ARCHIVED", ["STORED", "REJECTED"])
    assert (exams.settings.staging_dir / exams.get(Instance, second.key).staged_key).exists()


def test_images_stored_for_one_order_do_not_move_along_with_later_ones(exams, order):
    """Row 28: a re-used Study UID must be split, not matched."""
    study = exams.receive(exams.uid("ACC001"))
    exams.accept(study, order, outcome="A")
    commit.work(exams.settings)
    exams.receive(exams.uid("ACC001"), 1)
    case = exams.hold(study)
    other = exams.place("ACC002", SATO)
    resolve(exams, case, "match", "token:colleague", order_id=other)
    with pytest.raises(WrongState, match="another order"):
        resolve(exams, case, "match", order_id=other)
    exams.set(ReconciliationCase, case, approvals=[])
    for who in ("token:colleague", "token:qc"):
        resolve(exams, case, "match", who, order_id=order)
    commit.work(exams.settings)
    assert exams.states(study) == ("ARCHIVED", ["STORED"] * 3)


# Unscheduled


def test_an_unscheduled_study_of_a_new_patient_keeps_its_identity_and_registers_the_patient(exams, held):
    study, case = held
    resolve(exams, case, "accept_unscheduled")
    commit.work(exams.settings)
    assert exams.states(study) == ("ARCHIVED", ["STORED", "STORED"])
    row = exams.get(Study, study)
    assert (row.order_pk, row.flags) == (None, ["UNSCHEDULED"])
    (identifier,) = exams.rows(PatientIdentifier, value="999")
    assert identifier.patient_pk == row.patient_pk
    assert exams.get(Patient, row.patient_pk).name == "SATO^HANAKO"
    assert {one.rendition_key for one in exams.instances(study)} == {""}


def test_an_unscheduled_study_of_a_known_patient_is_filed_there_and_changes_nothing_of_the_record(exams, order):
    study = exams.receive("1.2.392.99999.9", PatientName="YAMADA^TARO", PatientSex="", AccessionNumber="")
    resolve(exams, exams.hold(study), "accept_unscheduled")
    patient = exams.get(ImagingOrder, order).patient_pk
    assert exams.get(Study, study).patient_pk == patient
    assert exams.get(Patient, patient).name == YAMADA.name
    assert len(exams.rows(Patient)) == 1


def test_an_unscheduled_study_under_a_merged_identifier_says_the_survivor_s(exams, order):
    merge = PatientCommand("merge", PersonCommand((Identifier("0000099999", "HOSP"),)),
                           prior=Identifier("0000012345", "HOSP"), cause="ADT^A40")  # fmt: skip
    db.run(patients.apply, merge, now=clock.now(), actor="test")
    study = exams.receive("1.2.392.99999.9", AccessionNumber="")
    resolve(exams, exams.hold(study), "accept_unscheduled")
    commit.work(exams.settings)
    assert rendition(exams, exams.instances(study)[0]).PatientID == "0000099999"


def test_a_patient_is_known_whatever_zeros_and_issuer_the_device_leaves_out(exams, order):
    exams.settings.site.patient_id_pad_to = 10
    study = exams.receive("1.2.392.99999.9", PatientID="12345", IssuerOfPatientID="", AccessionNumber="")
    resolve(exams, exams.hold(study), "accept_unscheduled")
    commit.work(exams.settings)
    assert exams.get(Study, study).patient_pk == exams.get(ImagingOrder, order).patient_pk
    ds = rendition(exams, exams.instances(study)[0])
    assert (ds.PatientID, ds.IssuerOfPatientID) == ("0000012345", "HOSP")
    assert ds.OriginalAttributesSequence[0].ReasonForTheAttributeModification == "COERCE"


def test_an_identifier_that_two_issuers_know_names_nobody(exams, order):
    exams.place("ACC002", PersonCommand((Identifier("0000012345", "CLINIC"),), "SUZUKI^ICHIRO", "19601224", "M"))
    study = exams.receive("1.2.392.99999.9", IssuerOfPatientID="", AccessionNumber="")
    case = exams.hold(study)
    with pytest.raises(InvalidValue, match="several issuers"):
        resolve(exams, case, "accept_unscheduled")


@pytest.mark.parametrize("ids", [("", ""), ("1", "2")])
def test_a_study_that_names_no_patient_or_two_cannot_be_accepted_as_it_is(exams, ids):
    for value in ids:
        study = exams.receive("1.2.392.99999.9", 1, PatientID=value)
    case = exams.hold(study)
    with pytest.raises(InvalidValue, match=r"patient\.id"):
        resolve(exams, case, "accept_unscheduled")
    assert exams.states(study)[0] == "IN_REVIEW"


# Reject


def test_a_rejected_study_keeps_its_bytes_in_custody_and_is_never_stored(exams, held):
    study, case = held
    resolve(exams, case, "reject", code="113037")
    assert commit.work(exams.settings) == 0
    assert exams.states(study) == ("REJECTED", ["REJECTED", "REJECTED"])
    assert len([path for path in exams.staged_files() if path.suffix == ".dcm"]) == 2


def test_rejecting_what_came_later_leaves_what_was_stored_available(exams, order):
    study = exams.receive(exams.uid("ACC001"), 1)
    exams.accept(study, order, outcome="A")
    commit.work(exams.settings)
    exams.receive(exams.uid("ACC001"), 1)
    resolve(exams, exams.hold(study), "reject", code="113001")
    commit.work(exams.settings)
    assert exams.states(study) == ("ARCHIVED", ["STORED", "REJECTED"])


# Red


def test_a_red_case_needs_the_same_decision_from_two(exams, order):
    study = exams.receive("1.2.392.99999.7", **FOREIGN)
    case = exams.hold(study, level="red")
    first = resolve(exams, case, "match", "token:a", order_id=order)
    assert (first.state, len(first.approvals)) == ("TAKEN", 1)
    assert exams.states(study)[0] == "IN_REVIEW"
    again = resolve(exams, case, "match", "token:a", order_id=order)
    assert (again.state, len(again.approvals)) == ("TAKEN", 1)
    second = resolve(exams, case, "match", "token:b", order_id=order)
    assert second.state == "RESOLVED"
    assert [one["by"] for one in second.approvals] == ["token:a", "token:b"]
    assert exams.states(study)[0] == "ACCEPTED"


def test_two_who_decide_differently_resolve_nothing_until_one_thinks_again(exams, order):
    study = exams.receive("1.2.392.99999.7", **FOREIGN)
    case = exams.hold(study, level="red")
    resolve(exams, case, "match", "token:a", order_id=order)
    with pytest.raises(WrongState, match="differently"):
        resolve(exams, case, "reject", "token:b", code="113038")
    assert exams.states(study)[0] == "IN_REVIEW"
    resolve(exams, case, "reject", "token:a", code="113038")
    assert resolve(exams, case, "reject", "token:b", code="113038").state == "RESOLVED"


def test_two_approvals_at_the_same_moment_resolve_a_red_case_once(exams, order):
    study = exams.receive("1.2.392.99999.7", **FOREIGN)
    case = exams.hold(study, level="red")
    barrier = threading.Barrier(2)

    def approve(principal: str) -> None:
        barrier.wait()
        resolve(exams, case, "match", principal, order_id=order)

    threads = [threading.Thread(target=approve, args=(name,)) for name in ("token:a", "token:b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert exams.get(ReconciliationCase, case).state == "RESOLVED"
    assert len(exams.rows(AuditEvent, action="study.resolve")) == 1


# Undo


def test_an_undone_match_hides_the_images_and_another_match_shows_them_afresh(exams, order, held):
    study, case = held
    resolve(exams, case, "match", order_id=order)
    commit.work(exams.settings)
    before = [one.rendition_key for one in exams.instances(study)]
    undo(case)
    assert exams.states(study) == ("IN_REVIEW", ["HIDDEN", "HIDDEN"])
    row = exams.get(ReconciliationCase, case)
    assert (row.state, row.approvals, row.resolution, row.resolved_by) == ("OPEN", [], {}, "")
    other = exams.place("ACC002", SATO)
    resolve(exams, case, "match", order_id=other)
    exams.set(Study, study, not_before=None)
    commit.work(exams.settings)
    assert exams.states(study) == ("ARCHIVED", ["STORED", "STORED"])
    for instance, old in zip(exams.instances(study), before, strict=True):
        assert instance.rendition_key != old
        ds = rendition(exams, instance)
        assert (ds.PatientID, ds.AccessionNumber) == ("0000023456", "ACC002")
        assert ds.RequestAttributesSequence[0].RequestedProcedureID == "RPACC002"


def test_what_is_undone_before_the_commit_is_held_again(exams, order, held):
    study, case = held
    resolve(exams, case, "match", order_id=order)
    undo(case)
    assert exams.states(study) == ("IN_REVIEW", ["HELD", "HELD"])
    assert commit.work(exams.settings) == 0


def test_an_undone_rejection_is_held_again(exams, held):
    study, case = held
    resolve(exams, case, "reject", code="113038")
    undo(case)
    assert exams.states(study) == ("IN_REVIEW", ["HELD", "HELD"])


def test_an_undo_leaves_available_what_was_stored_before_that_decision(exams, order):
    study = exams.receive(exams.uid("ACC001"), 1)
    exams.accept(study, order, outcome="A")
    commit.work(exams.settings)
    exams.receive(exams.uid("ACC001"), 1)
    case = exams.hold(study)
    resolve(exams, case, "match", order_id=order)
    exams.set(Study, study, not_before=None)
    commit.work(exams.settings)
    undo(case)
    assert exams.states(study) == ("IN_REVIEW", ["STORED", "HIDDEN"])


def test_a_case_that_is_open_or_has_a_successor_cannot_be_undone(exams, order, held):
    study, case = held
    with pytest.raises(WrongState, match="not resolved"):
        undo(case)
    resolve(exams, case, "match", order_id=order)
    exams.hold(study)
    with pytest.raises(WrongState, match="another case"):
        undo(case)


def test_a_step_that_only_the_wrong_images_had_begun_goes_back_to_the_worklist(exams, order, held):
    case = held[1]
    resolve(exams, case, "match", order_id=order)
    performed_by_images.work(exams.settings)
    (step,) = exams.rows(ScheduledStep, order_pk=order)
    assert step.status == "STARTED"
    undo(case)
    resolve(exams, case, "match", order_id=exams.place("ACC002", SATO))
    assert exams.get(ScheduledStep, step.key).status == "SCHEDULED"


def test_every_decision_and_its_undoing_is_in_the_audit_with_who_did_it(exams, order, held):
    _, case = held
    resolve(exams, case, "match", order_id=order)
    undo(case)
    for action in ("study.resolve", "case.resolve", "study.undo", "case.undo"):
        (event,) = exams.rows(AuditEvent, action=action)
        assert event.actor == "token:qc"


# Cases without images


def test_an_acknowledged_patient_conflict_offers_the_order_with_the_patient_as_known(exams, order):
    conflicting = PersonCommand((Identifier("0000012345", "HOSP"),), "SUZUKI^ICHIRO", "19700101", "M")
    other = exams.place("ACC002", conflicting)
    (case,) = exams.rows(ReconciliationCase, kind="patient_conflict")
    (step,) = exams.rows(ScheduledStep, order_pk=other)
    assert not step.offerable
    with pytest.raises(InvalidValue):
        resolve(exams, case.key, "match", order_id=order)
    resolve(exams, case.key, "acknowledge")
    assert exams.get(ReconciliationCase, case.key).state == "RESOLVED"
    assert exams.get(ScheduledStep, step.key).offerable
    assert b"SUZUKI" not in exams.get(ScheduledStep, step.key).dataset
    undo(case.key)
    assert not exams.get(ScheduledStep, step.key).offerable


def test_other_exceptions_are_closed_by_being_acknowledged(exams, order):
    case = db.run(
        casebook.open_case, "late_cancel", f"order:{order}", level="amber", reasons=["too late"], order_pk=order,
        now=clock.now(), actor="test",
    )  # fmt: skip
    assert resolve(exams, case.key, "acknowledge").state == "RESOLVED"


# Reading


def test_cases_are_listed_by_age_with_their_study_and_without_the_patient(exams, held):
    study = exams.receive("1.2.392.99999.8", **FOREIGN)
    exams.hold(study, level="red")
    first, following = db.read(cases.listing, ("OPEN",), 1)
    assert [one["study_instance_uid"] for one in first] == ["1.2.392.99999.7"]
    second, none = db.read(cases.listing, ("OPEN",), 1, following)
    assert [(one["id"], one["level"], one["study_instance_uid"]) for one in second] == [
        (held[1] + 1, "red", "1.2.392.99999.8")
    ]
    assert none is None
    assert "SATO" not in repr(first + second)
    assert db.read(cases.listing, ("RESOLVED",)) == ([], None)
    assert db.read(cases.get, held[1]) == first[0]
