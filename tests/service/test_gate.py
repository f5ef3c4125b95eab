"""Real intake, gate, desk and commit: what is let in, what a person's click reaches, and what comes back."""

import datetime as dt
import json

import pydicom
import pytest
from pydicom.dataset import Dataset
from sqlmodel import select

from broker import clock, db, site
from broker.archive import candidates, cases, gate, performed_by_images
from broker.errors import InvalidValue, WrongState
from broker.model.images import Decision, Instance, ReconciliationCase, Study, StudyOrder
from broker.model.orders import ScheduledStep
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.model.performed import PerformedSeries, PerformedStep, PerformedStepLink
from broker.mwl import orders
from broker.mwl.commands import Identifier, PersonCommand
from tests.service.exam import SATO, YAMADA, Exams

SATOS = {"PatientID": "0000023456", "PatientName": "SATO^HANAKO", "PatientSex": "F", "PatientBirthDate": "19850315"}
WRONG = {"status": "DISCONTINUED", "discontinuation_code": "110514", "discontinuation_scheme": "DCM"}
OWN = "1.2.392.5"  # a Study UID of the device's own


@pytest.fixture
def order(exams) -> int:
    return place(exams)


def place(exams: Exams, accession: str = "ACC001", person: PersonCommand = YAMADA) -> int:
    """An order without a time, so that nothing is early or late."""
    order = exams.place(accession, person)
    for step in exams.rows(ScheduledStep, order_pk=order):
        exams.set(ScheduledStep, step.key, start_date="", start_time="")
    return order


def perform(exams: Exams, order: int, *, study_uid: str = "", uid: str = "2.25.1") -> int:
    """An MPPS in progress for the steps of the order."""

    def write(session) -> int:
        row = PerformedStep(
            sop_instance_uid=uid, status="IN PROGRESS", study_instance_uid=study_uid, source_ae="CT1",
            patient_id="0000012345", patient_id_issuer="HOSP",
        )  # fmt: skip
        session.add(row)
        session.flush()
        for step in session.exec(select(ScheduledStep).where(ScheduledStep.order_pk == order)):
            session.add(PerformedStepLink(performed_pk=row.key, step_pk=step.key, rule=1))
        return row.key

    return db.run(write)


def named(uid: str = "2.25.1", accession: str = "ACC001") -> dict[str, object]:
    """Images that name their MPPS and their step, and nothing else."""
    performed, request = Dataset(), Dataset()
    performed.ReferencedSOPClassUID, performed.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.3", uid
    request.RequestedProcedureID, request.ScheduledProcedureStepID = f"RP{accession}", f"S0{accession}"
    return {"ReferencedPerformedProcedureStepSequence": [performed], "RequestAttributesSequence": [request]}


def study(exams: Exams, uid: str) -> Study:
    (found,) = exams.rows(Study, study_instance_uid=uid)
    return found


def states(exams: Exams, uid: str) -> tuple[str, list[str]]:
    return exams.states(study(exams, uid).key)


def verdicts(exams: Exams, uid: str) -> list[tuple[str, str]]:
    return [(one.row, one.outcome) for one in exams.rows(Decision, study_pk=study(exams, uid).key)]


def case_of(exams: Exams, uid: str) -> ReconciliationCase:
    return exams.rows(ReconciliationCase, kind="study", study_pk=study(exams, uid).key)[-1]


def resolve(exams: Exams, uid: str, action: str, *principals: str, **how: object) -> None:
    for principal in principals or ("token:one",):
        db.run(
            cases.resolve, case_of(exams, uid).key, action, principal=principal, is_person=False, now=clock.now(),
            settings=exams.settings, **how,
        )  # fmt: skip


def undo(exams: Exams, uid: str) -> None:
    db.run(cases.undo, case_of(exams, uid).key, principal="token:one", is_person=False, now=clock.now())


def shown(exams: Exams, key: int) -> Dataset:
    """What whoever opens the instance sees."""
    instance = exams.get(Instance, key)
    return pydicom.dcmread(exams.archive() / (instance.rendition_key or instance.store_key))


def document(exams: Exams, order: int) -> dict:
    return json.loads(exams.status(order).document)


BOTH = ("token:one", "token:two")


# What a person's decision reaches


def test_a_click_lets_in_only_what_the_case_showed(exams, order):
    exams.send(OWN, AccessionNumber="")
    exams.work()
    (unseen,) = exams.send(OWN, AccessionNumber="")
    resolve(exams, OWN, "match", order_id=order)
    assert exams.get(Instance, unseen).decision_pk is None
    assert study(exams, OWN).state == "RECEIVING"
    exams.work()
    assert states(exams, OWN) == ("ARCHIVED", ["STORED", "STORED"])
    assert verdicts(exams, OWN) == [("5", "H"), ("5", "C"), ("47", "C")], "the rules decided about it"


def test_a_click_before_anybody_looked_at_what_has_joined_is_refused_where_that_is_another_patient_s(exams, order):
    exams.send(OWN, AccessionNumber="")
    exams.work()
    exams.send(OWN, AccessionNumber="", **SATOS)
    with pytest.raises(WrongState, match="more doubtful"):
        resolve(exams, OWN, "match", order_id=order)
    exams.work()
    assert (case_of(exams, OWN).level, len(case_of(exams, OWN).instances)) == ("red", 2)


def test_an_approval_counts_for_nothing_once_other_objects_have_joined(exams, order):
    uid = exams.uid("ACC001")
    exams.send(uid, PatientName="SUZUKI^JIRO", PatientSex="F")
    exams.work()
    assert verdicts(exams, uid) == [("10", "HH")]
    resolve(exams, uid, "match", order_id=order)
    exams.send(uid, **SATOS)
    exams.work()
    case = case_of(exams, uid)
    assert (case.state, case.approvals, len(case.instances)) == ("OPEN", [], 2)
    resolve(exams, uid, "match", "token:two", order_id=order)
    exams.work()
    assert states(exams, uid) == ("IN_REVIEW", ["HELD", "HELD"])


def test_what_joins_after_an_undo_makes_the_case_as_red_as_it_is(exams, order):
    exams.send(OWN, AccessionNumber="")
    exams.work()
    resolve(exams, OWN, "match", order_id=order)
    exams.work()
    undo(exams, OWN)
    exams.send(OWN, AccessionNumber="", **SATOS)
    exams.work()
    assert case_of(exams, OWN).level == "red"
    resolve(exams, OWN, "match", order_id=order)
    exams.work()
    assert states(exams, OWN) == ("IN_REVIEW", ["HIDDEN", "HELD"])


def test_a_case_that_has_become_more_doubtful_is_not_decided_by_one_person(exams, order):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)
    exams.send(uid, PatientBirthDate="", PatientName="", PatientSex="")
    exams.work()
    assert case_of(exams, uid).level == "amber"
    exams.set(PerformedStep, performed, **WRONG)
    with pytest.raises(WrongState, match="more doubtful"):
        resolve(exams, uid, "match", order_id=order)
    exams.work()
    assert (case_of(exams, uid).level, case_of(exams, uid).row) == ("red", "21")


def test_copies_in_conflict_alone_can_only_be_rejected(exams, order):
    second = place(exams, "ACC002")
    (first,) = exams.send(exams.uid("ACC001"))
    exams.work()
    uid = exams.get(Instance, first).sop_instance_uid
    exams.send(OWN, SOPInstanceUID=uid, AccessionNumber="ACC002")
    exams.work()
    resolve(exams, OWN, "match", "token:one", order_id=second)
    with pytest.raises(WrongState, match="only be rejected"):
        resolve(exams, OWN, "match", "token:two", order_id=second)
    assert states(exams, OWN) == ("IN_REVIEW", ["HELD"])


def test_what_was_let_in_does_not_move_to_another_patient_with_what_came_later(exams, order):
    uid, other = exams.uid("ACC001"), place(exams, "ACC002", SATO)
    (right,) = exams.send(uid)
    exams.settings.reconcile.settle_seconds = 0
    exams.decide()
    exams.send(uid, **SATOS)
    exams.work()
    assert states(exams, uid) == ("IN_REVIEW", ["STORED", "HELD"]), "the commit does not wait for the review"
    resolve(exams, uid, "match", "token:one", order_id=other)
    with pytest.raises(WrongState, match="another order"):
        resolve(exams, uid, "match", "token:two", order_id=other)
    assert shown(exams, right).PatientID == "0000012345"


def test_an_amber_case_is_not_given_to_another_patient_by_one_person(exams, order):
    exams.send(OWN, AccessionNumber="", **{**SATOS, "PatientID": "0000955555"})
    exams.work()
    assert case_of(exams, OWN).level == "amber"
    resolve(exams, OWN, "match", order_id=order)
    assert (case_of(exams, OWN).level, case_of(exams, OWN).state) == ("red", "TAKEN")
    exams.work()
    assert states(exams, OWN) == ("IN_REVIEW", ["HELD"])
    resolve(exams, OWN, "match", "token:two", order_id=order)
    exams.work()
    assert states(exams, OWN) == ("ARCHIVED", ["STORED"])


# Unscheduled


def test_an_id_whose_record_is_somebody_else_takes_two_persons_and_never_files_itself(exams, order):
    exams.send(OWN, AccessionNumber="", PatientName="OTHER^WOMAN", PatientSex="F", PatientBirthDate="19990101")
    exams.work()
    case = case_of(exams, OWN)
    assert (verdicts(exams, OWN), case.level) == ([("10", "HH")], "red")
    assert {"name differs", "birth date differs", "sex differs"} <= set(case.reasons)
    with pytest.raises(InvalidValue, match="differs in name, birth date, sex"):
        resolve(exams, OWN, "accept_unscheduled", *BOTH)


def test_an_unscheduled_study_is_the_patient_s_of_its_own_issuer(exams, order):
    exams.settings.site.patient_id_issuer = "HOSP"
    db.run(site.add_node, "CL1", host="10.0.0.1", patient_id_issuer="CLINIC", actor="test", now=clock.now())
    exams.send(OWN, ae_title="CL1", AccessionNumber="", IssuerOfPatientID="", PatientName="OTHER^WOMAN")
    exams.work()
    resolve(exams, OWN, "accept_unscheduled")
    patient = exams.get(Patient, study(exams, OWN).patient_pk)
    assert patient.name == "OTHER^WOMAN"
    assert [(one.value, one.issuer) for one in exams.rows(PatientIdentifier, patient_pk=patient.pk)] == [
        ("0000012345", "CLINIC")
    ]


def test_objects_that_disagree_about_a_stranger_name_nobody(exams):
    exams.send(OWN, AccessionNumber="", PatientID="N1", PatientName="A^B")
    exams.send(OWN, AccessionNumber="", **{**SATOS, "PatientID": "N1"})
    exams.work()
    with pytest.raises(InvalidValue, match="disagree"):
        resolve(exams, OWN, "accept_unscheduled", *BOTH)
    assert exams.rows(Patient) == []


# The wrong worklist entry (110514)


def test_a_wrong_entry_hides_what_was_let_in_also_while_more_is_coming(exams, order):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)
    exams.send(uid, 2)
    exams.work()
    exams.send(uid)
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    assert states(exams, uid) == ("IN_REVIEW", ["HIDDEN", "HIDDEN", "HELD"])
    assert document(exams, order)["images"]["available"] == 0
    resolve(exams, uid, "reject", *BOTH, code="113038")
    exams.work()
    assert states(exams, uid) == ("REJECTED", ["REJECTED"] * 3)
    assert document(exams, order)["images"]["available"] == 0


def test_a_wrong_entry_hides_what_a_person_is_still_deciding(exams, order):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)
    exams.send(uid)
    exams.work()
    exams.send(uid, **SATOS)
    exams.work()
    resolve(exams, uid, "reject", code="113037")  # the first of two
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    assert states(exams, uid) == ("IN_REVIEW", ["HIDDEN", "HELD"])
    assert (len(case_of(exams, uid).instances), case_of(exams, uid).approvals) == (2, [])


def test_a_wrong_entry_is_found_by_what_the_objects_name(exams, order):
    performed = perform(exams, order, study_uid=exams.uid("ACC001"))
    exams.send(OWN, 2, **named())
    exams.work()
    assert verdicts(exams, OWN) == [("1b", "C")]
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    assert states(exams, OWN) == ("IN_REVIEW", ["HIDDEN", "HIDDEN"])
    assert (case_of(exams, OWN).level, len(case_of(exams, OWN).instances)) == ("red", 2)


def test_a_wrong_entry_is_found_by_the_series_that_the_mpps_names(exams, order):
    performed = perform(exams, order)
    exams.send(exams.uid("ACC001"))
    exams.work()
    db.run(lambda session: session.add(
        PerformedSeries(performed_pk=performed, series_instance_uid=f"{exams.uid('ACC001')}.1"[:64], instance_uids=[])
    ))  # fmt: skip
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    assert states(exams, exams.uid("ACC001")) == ("IN_REVIEW", ["HIDDEN"])


def test_a_wrong_entry_concerns_its_own_study_alone(exams, order):
    """However the MPPS is known: by the Study UID, by what objects name, by its series."""
    _, third = place(exams, "ACC002", SATO), place(exams, "ACC003")
    performed = perform(exams, order, study_uid=exams.uid("ACC001"))
    other = perform(exams, third, study_uid=exams.uid("ACC003"), uid="2.25.3")
    db.run(lambda session: session.add(
        PerformedSeries(performed_pk=other, series_instance_uid=f"{exams.uid('ACC003')}.1"[:64], instance_uids=[])
    ))  # fmt: skip
    exams.send(exams.uid("ACC001"), **named())
    exams.send(exams.uid("ACC002"), AccessionNumber="ACC002", **SATOS)
    exams.send(exams.uid("ACC003"), AccessionNumber="ACC003", **named("2.25.3", "ACC003"))
    exams.work()
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    assert [states(exams, exams.uid(f"ACC00{n}"))[0] for n in (1, 2, 3)] == ["IN_REVIEW", "ARCHIVED", "ARCHIVED"]


def test_what_two_persons_let_in_after_the_wrong_entry_stays(exams, order):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)
    exams.send(uid)
    exams.work()
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    resolve(exams, uid, "match", *BOTH, order_id=order)
    exams.work()
    assert states(exams, uid) == ("ARCHIVED", ["STORED"])
    exams.send(uid)
    exams.work()
    assert states(exams, uid) == ("IN_REVIEW", ["STORED", "HELD"])


def test_what_was_rejected_does_not_come_back_with_a_later_object(exams, order):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)
    exams.send(uid, 2)
    exams.work()
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    resolve(exams, uid, "reject", *BOTH, code="113038")
    exams.send(uid)
    exams.work()
    case = case_of(exams, uid)
    assert (case.level, len(case.instances)) == ("red", 1)
    resolve(exams, uid, "match", *BOTH, order_id=order)
    exams.work()
    assert states(exams, uid) == ("ARCHIVED", ["REJECTED", "REJECTED", "STORED"])
    assert document(exams, order)["images"]["available"] == 1


def test_a_rejection_taken_back_hides_again_what_was_in_the_archive(exams, order):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)
    exams.send(uid)
    exams.work()
    exams.set(PerformedStep, performed, **WRONG)
    exams.work()
    resolve(exams, uid, "reject", *BOTH, code="113038")
    undo(exams, uid)
    assert states(exams, uid) == ("IN_REVIEW", ["HIDDEN"])


def test_a_rejected_image_is_no_burden_for_the_right_ones_that_follow(exams, order):
    uid = exams.uid("ACC001")
    exams.send(uid)
    exams.work()
    exams.send(uid, AccessionNumber="TYPED", **SATOS)
    exams.work()
    resolve(exams, uid, "reject", *BOTH, code="113037")
    exams.send(uid)
    exams.work()
    assert states(exams, uid) == ("ARCHIVED", ["STORED", "REJECTED", "STORED"])


# Later objects


def test_a_remembered_identity_does_not_reach_another_patient_s_order(exams, order):
    exams.send(OWN, AccessionNumber="", **SATOS)
    exams.work()
    resolve(exams, OWN, "accept_unscheduled")
    exams.work()
    exams.send(OWN, AccessionNumber="ACC001", **SATOS)
    exams.work()
    assert states(exams, OWN) == ("IN_REVIEW", ["STORED", "HELD"])
    assert verdicts(exams, OWN)[-1][1] == "HH"
    assert exams.rows(StudyOrder) == []


def test_a_remembered_identity_stays_remembered_and_is_corrected_each_time(exams):
    order = place(exams, person=PersonCommand((Identifier("0000012345", "HOSP"),), "YAMADA^TARO", "", ""))
    mistyped = {
        **SATOS, "AccessionNumber": "", "PatientName": "SATO^HANAKO=佐藤^花子", "OtherPatientIDs": "X9",
        "PatientAddress": "SOMEWHERE",
    }  # fmt: skip
    exams.send(OWN, **mistyped)
    exams.work()
    resolve(exams, OWN, "match", *BOTH, order_id=order)
    exams.work()
    for _ in range(3):
        (later,) = exams.send(OWN, **mistyped)
        exams.work()
        seen = shown(exams, later)
        assert (seen.PatientID, str(seen.PatientName), seen.PatientBirthDate) == ("0000012345", "YAMADA^TARO", "")
        assert (seen.get("PatientAddress", ""), seen.get("OtherPatientIDs", "")) == ("", "")
        assert seen.OriginalAttributesSequence[-1].ReasonForTheAttributeModification == "CORRECT"
    assert verdicts(exams, OWN)[1:] == [("13", "C"), *[("47", "C")] * 3]
    exams.send(OWN, AccessionNumber="", PatientName="OTHER^MAN", PatientBirthDate="19010101")
    exams.work()
    assert states(exams, OWN)[1][-1] == "HELD"


def test_the_day_in_which_later_objects_follow_begins_with_the_first_decision(exams, order):
    uid = exams.uid("ACC001")
    exams.send(uid)
    exams.work()
    for _ in range(2):
        for one in exams.rows(Decision):
            exams.set(Decision, one.key, at=one.at - dt.timedelta(hours=20))
        exams.send(uid)
        exams.work()
    assert verdicts(exams, uid)[-1][1] == "H"


# Held, and looked at again


def test_a_case_shows_the_orders_that_came_after_it(exams, order):
    exams.send(OWN, AccessionNumber="")
    exams.work()
    assert [one["order_id"] for one in case_of(exams, OWN).candidates] == [order]
    second, third = place(exams, "ACC002"), place(exams, "ACC003")
    exams.work()
    assert {one["order_id"] for one in case_of(exams, OWN).candidates} == {order, second, third}


def test_a_study_held_for_a_record_is_let_in_when_the_record_is_put_right(exams, order):
    """Row 38; and what the rules let in then can be taken back as well (P7)."""
    (patient,) = exams.rows(Patient)
    exams.set(Patient, patient.key, birth_date="19700102")
    exams.send(OWN)
    exams.work()
    assert states(exams, OWN) == ("IN_REVIEW", ["HELD"])
    exams.set(Patient, patient.key, birth_date="19700101")
    exams.work()
    assert states(exams, OWN) == ("ARCHIVED", ["STORED"])
    undo(exams, OWN)
    assert states(exams, OWN) == ("IN_REVIEW", ["HIDDEN"])
    resolve(exams, OWN, "match", order_id=order)
    exams.work()
    assert states(exams, OWN) == ("ARCHIVED", ["STORED"])


def test_the_rules_never_decide_where_a_person_has_begun_to(exams, order):
    (patient,) = exams.rows(Patient)
    exams.set(Patient, patient.key, birth_date="19700102", sex="F")
    exams.send(OWN)
    exams.work()
    resolve(exams, OWN, "reject", code="113037")  # the first of two
    exams.set(Patient, patient.key, birth_date="19700101", sex="M")
    exams.work()
    assert states(exams, OWN) == ("IN_REVIEW", ["HELD"])


def test_a_red_case_stays_red_though_less_is_wrong_now(exams, order):
    (patient,) = exams.rows(Patient)
    exams.set(Patient, patient.key, birth_date="19700102", sex="F")
    exams.send(OWN)
    exams.work()
    assert case_of(exams, OWN).level == "red"
    exams.set(Patient, patient.key, sex="M")
    exams.work()
    assert (verdicts(exams, OWN)[-1], case_of(exams, OWN).level) == (("8", "H"), "red")


@pytest.mark.parametrize("going_on", [True, False])
def test_a_study_is_whole_when_all_that_every_mpps_of_it_names_is_here(exams, order, going_on):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)
    if going_on:
        perform(exams, order, study_uid=uid, uid="2.25.2")
    (key,) = exams.send(uid)
    image = exams.get(Instance, key)
    db.run(lambda session: session.add(
        PerformedSeries(performed_pk=performed, series_instance_uid="1.9", instance_uids=[image.sop_instance_uid])
    ))  # fmt: skip
    exams.set(PerformedStep, performed, status="COMPLETED")
    exams.settings.reconcile.settle_seconds = 3600
    gate.work(exams.settings)
    assert study(exams, uid).state == ("RECEIVING" if going_on else "ACCEPTED")


@pytest.mark.parametrize(
    ("cause", "changes", "known"),
    [("ADT^A08", {}, ("SUZUKI^HANAKO",)), ("order", {}, ()), ("ADT^A08", {"birth_date": "19700102"}, ()),
     ("ADT^A08", {"sex": "F"}, ())],
)  # fmt: skip
def test_a_former_name_counts_where_adt_changed_nothing_else(exams, order, cause, changes, known):
    (patient,) = exams.rows(Patient)
    before = {"name": "SUZUKI^HANAKO", "birth_date": patient.birth_date, "sex": patient.sex, "cause": cause} | changes
    db.run(lambda session: session.add(PatientVersion(patient_pk=patient.key, **before)))
    assert db.read(candidates.person, patient.key).names_before == known


# The archive


def test_lost_bytes_are_found_again_in_whatever_transfer_syntax_they_come(exams, order):
    uid = exams.uid("ACC001")
    (key,) = exams.send(uid)
    lost = exams.get(Instance, key)
    exams.staging.path(lost.staged_key).unlink()
    exams.set(Instance, key, missing=True, canonical_digest="")
    (again,) = exams.send(uid, SOPInstanceUID=lost.sop_instance_uid)
    assert again != key, "other pixels are another object"
    assert exams.get(Instance, key).missing


def test_an_exam_whose_mpps_names_no_image_is_available_only_when_it_is_quiet(exams, order):
    uid = exams.uid("ACC001")
    performed = perform(exams, order, study_uid=uid)

    def move(event: str) -> None:
        def each(session) -> None:
            for step in session.exec(select(ScheduledStep)):
                orders.move_step(session, step, event, now=clock.now(), actor="CT1", cause="MPPS")

        db.run(each)

    move("start")
    exams.set(PerformedStep, performed, status="COMPLETED", flags=["no_instances"])
    move("complete")
    exams.send(uid)
    exams.work()
    performed_by_images.work(exams.settings)
    assert document(exams, order)["state"] == "ACQUIRED"
    exams.settings.reconcile.complete_without_mpps_seconds = 0
    performed_by_images.work(exams.settings)
    assert document(exams, order)["state"] == "AVAILABLE"
    exams.settings.reconcile.complete_without_mpps_seconds = 900
    exams.send(uid)
    assert document(exams, order)["state"] == "ACQUIRED"
