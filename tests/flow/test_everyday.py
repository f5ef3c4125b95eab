"""Exams of every day, end to end (reconciliation.md 3.5)."""

import datetime as dt

import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from sqlmodel import select

from broker import access, clock, db, ids, site
from broker.model.images import Decision, Instance, ReconciliationCase, Study
from broker.model.orders import ScheduledStep
from broker.mwl import orders
from broker.sim.ris import Patient, code_of, omi
from tests import world
from tests.house import eventually


@pytest.fixture
def exam(broker):
    """A scanner and its one worklist item."""
    broker.place(world.order("ACC001"))
    scanner = broker.modality("CT1")
    return scanner, eventually(scanner.worklist)[0]


def decision(broker):
    eventually(lambda: broker.rows(Decision))
    return broker.rows(Decision)[-1]


def test_an_exam_as_ordered_becomes_available(broker, exam):
    """STO-01"""
    scanner, item = exam
    uid = scanner.start([item])
    images = scanner.images(item, 3, mpps_uid=uid)
    assert scanner.store(images) == [0x0000] * 3
    scanner.finish(uid, images)
    document = broker.status("ACC001", "AVAILABLE")
    assert document["images"] == {"announced": 3, "received": 3, "available": 3, "missing": []}
    assert (decision(broker).row, decision(broker).outcome) == ("1", "A")


def test_another_patients_image_is_held_and_not_in_the_archive(broker, exam):
    """STO-07"""
    scanner, item = exam
    uid = scanner.start([item])
    images = scanner.images(item, 2, mpps_uid=uid, PatientID="9999999999", PatientName="OTHER^ONE")
    scanner.store(images)
    scanner.finish(uid, images)
    document = broker.status("ACC001", "HELD")
    assert document["held"]["reasons"]
    assert (decision(broker).row, decision(broker).outcome) == ("11", "HH")
    assert [one.state for one in broker.rows(Instance)] == ["HELD"] * 2
    assert [case.level for case in broker.rows(ReconciliationCase, kind="study")] == ["red"]
    assert not any((broker.settings.data_dir / "archive").rglob("*.dcm"))


def test_an_exam_without_an_order_waits(broker, exam):
    scanner, _ = exam
    images = scanner.images(None, 2, PatientID="0000088888", PatientName="NEW^ONE", PatientBirthDate="19900101")
    scanner.store(images)
    eventually(lambda: broker.rows(Study)[0].state == "IN_REVIEW")
    assert (decision(broker).row, decision(broker).outcome) == ("13", "H")


@pytest.mark.parametrize(
    ("row", "outcome", "changes"),
    [
        ("3", "C", {"AccessionNumber": ""}),
        ("1", "A", {"RequestAttributesSequence": []}),
        ("2", "C", {"PatientSex": ""}),
        ("2", "C", {"PatientName": "=山田"}),
        ("1", "A", {"IssuerOfPatientID": ""}),
        ("4", "C", {"StudyInstanceUID": "2.25.77", "RequestAttributesSequence": []}),
        ("1b", "C", {"StudyInstanceUID": "2.25.78"}),
    ],
)
def test_what_a_device_leaves_out_is_filled_in_where_the_table_says_so(broker, exam, row, outcome, changes):
    scanner, item = exam
    images = scanner.images(item, 2, **changes)
    if "=" in changes.get("PatientName", ""):
        for image in images:
            image.SpecificCharacterSet = "ISO_IR 192"
    scanner.store(images)
    assert eventually(lambda: broker.rows(Study)[0].state == "ARCHIVED"), (
        decision(broker).row,
        decision(broker).reasons,
    )
    assert (decision(broker).row, decision(broker).outcome) == (row, outcome)
    assert len({image.SOPInstanceUID for image in images}) == 2
    assert ids.valid_uid(images[0].StudyInstanceUID)


def test_two_steps_of_one_order_make_one_study_that_becomes_available(broker):
    broker.place(world.order("ACC002", steps=2))
    scanner = broker.modality("CT1")
    first, second = eventually(scanner.worklist)
    sent = []
    for item in (first, second):
        uid = scanner.start([item])
        images = scanner.images(item, 2, mpps_uid=uid)
        scanner.store(images)
        scanner.finish(uid, images)
        sent += images
    document = broker.status("ACC002", "AVAILABLE")
    assert document["images"]["available"] == len(sent)
    assert [step["state"] for step in document["steps"]] == ["COMPLETED", "COMPLETED"]


# The ten everyday situations of reconciliation.md 3.5; those that a device leaves something out are in the table above.


def add_node(broker, ae_title, **fields):
    db.run(site.add_node, ae_title, host="127.0.0.1", port=11999, actor="test", now=clock.now(), **fields)
    access.forget()


def settled(broker, study_uid, state="ARCHIVED"):
    """(row, outcome) of the last decision on the study, once it is in that state."""

    def there():
        return [study for study in broker.rows(Study, study_instance_uid=study_uid) if study.state == state]

    found = eventually(there)
    assert found, decision(broker).reasons
    last = broker.rows(Decision, study_pk=found[0].pk)[-1]
    return last.row, last.outcome


def test_a_cr_room_works_through_its_day_though_not_everybody_was_checked_in(broker):
    room = broker.modality("CR1")
    patients = [Patient(f"00000{n:05d}", f"患者^番{n}", f"カンジャ^バン{n}", "19600101", "F") for n in range(12)]
    for n, patient in enumerate(patients):
        broker.place(world.order(f"CR{n:03d}", patient, modality="CR", station="CR1"))
    for step in broker.rows(ScheduledStep)[::2]:
        db.run(check_in, step.pk)
    items = eventually(room.worklist)
    assert len(items) == len(patients)
    for item in items:
        assert room.store(room.images(item, 1)) == [0x0000]
    for item in items:
        assert settled(broker, item.StudyInstanceUID) == ("1", "A")


def check_in(session, step_pk):
    orders.move_step(
        session, session.get_one(ScheduledStep, step_pk), "arrive", now=clock.now(), actor="test", cause="test"
    )


def test_a_device_may_store_under_another_title_than_it_asks_for_its_worklist(broker, exam):
    _, item = exam
    add_node(broker, "CT1_STORE", modality="CT", device="CT1")
    storing = broker.modality("CT1_STORE")
    storing.store(storing.images(item, 2))
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")


def test_a_device_with_study_uids_of_its_own_is_known_by_its_mpps(broker, exam):
    scanner, item = exam
    uid = scanner.start([item])
    images = scanner.images(item, 2, mpps_uid=uid, StudyInstanceUID="2.25.79", RequestAttributesSequence=[])
    scanner.store(images)
    scanner.finish(uid, images)
    assert settled(broker, "2.25.79") == ("1b", "C")
    document = broker.status("ACC001", "AVAILABLE")
    assert "2.25.79" in document["study_instance_uids"], "the UID is an alias, and not rewritten"


def test_the_accession_number_alone_is_enough_where_the_rest_agrees(broker, exam):
    scanner, item = exam
    scanner.store(scanner.images(item, 2, StudyInstanceUID="2.25.80", RequestAttributesSequence=[], PatientSex=""))
    assert settled(broker, "2.25.80") == ("4", "C")


def test_a_portable_loaded_yesterday_sends_what_it_acquired_after_docking(broker):
    add_node(broker, "PORTABLE", modality="CR", kind="mobile")
    yesterday = world.today() - dt.timedelta(days=1)
    order = world.order("ACC001", modality="CR", station="PORTABLE", start=yesterday)
    assert code_of(broker.ris().send(omi(order, sent=yesterday))) == "AA"
    portable = broker.modality("PORTABLE")
    portable.modality = "CR"
    (item,) = eventually(portable.worklist)
    portable.store(portable.images(item, 2, **acquired(yesterday + dt.timedelta(minutes=30))))
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")


def acquired(at):
    """Attributes of images acquired then."""
    moments = {f"{what}Date": at.strftime("%Y%m%d") for what in ("Study", "Series", "Acquisition", "Content")}
    return moments | {name.replace("Date", "Time"): at.strftime("%H%M%S") for name in moments}


def test_an_ultrasound_without_mpps_and_without_a_sex_is_filled_in(broker):
    broker.place(world.order("ACC001", modality="US", station="US1"))
    scanner = broker.modality("US1")
    (item,) = eventually(scanner.worklist)
    scanner.store(scanner.images(item, 2, PatientSex=""))
    assert settled(broker, item.StudyInstanceUID) == ("2", "C")


def test_what_a_workstation_sends_is_judged_by_the_device_that_acquired_it(broker, exam):
    scanner, item = exam
    add_node(broker, "WS1")
    uid = scanner.start([item])
    images = scanner.images(item, 2, mpps_uid=uid)
    broker.modality("WS1").store(images)
    scanner.finish(uid, images)
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")


def hours_ago(session, hours):
    """As if everything that was decided had been decided then."""
    for decided in session.exec(select(Decision)):
        decided.at -= dt.timedelta(hours=hours)
        session.add(decided)


@pytest.mark.parametrize(
    "derived", [{"Modality": "SR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67"},
                {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"}],
)  # fmt: skip
def test_a_dose_report_or_capture_hours_later_goes_where_its_study_went(broker, exam, derived):
    scanner, item = exam
    scanner.store(scanner.images(item, 2))
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")
    db.run(hours_ago, 30)
    add_node(broker, "WS1")
    late = scanner.images(item, 1, **derived)
    assert broker.modality("WS1").store(late) == [0x0000]
    (instance,) = eventually(lambda: broker.rows(Instance, sop_instance_uid=late[0].SOPInstanceUID, state="STORED"))
    assert settled(broker, item.StudyInstanceUID) == ("47", "A")
    assert instance.store_key


def told(broker):
    document = broker.ehr().status("ACC001")
    return document["steps"][0]["state"], document["images"]["available"]


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_the_whole_study_again_changes_nothing(broker, exam, transfer_syntax):
    scanner, item = exam
    images = scanner.images(item, 2)
    scanner.store(images)
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")
    before = [(one.pk, one.sha256, one.store_key, one.state) for one in broker.rows(Instance)]
    assert eventually(lambda: told(broker) == ("STARTED", 2)), "all that the images have to say has been said"
    version = broker.ehr().status("ACC001")["version"]
    assert scanner.store(images, transfer_syntax=transfer_syntax) == [0x0000] * 2
    assert [(one.pk, one.sha256, one.store_key, one.state) for one in broker.rows(Instance)] == before
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")
    assert len(broker.rows(Decision)) == 1
    assert broker.ehr().status("ACC001")["version"] == version


def test_a_study_uid_that_is_used_again_a_week_later_waits(broker, exam):
    scanner, item = exam
    week_ago = world.today() - dt.timedelta(days=7)
    scanner.store(scanner.images(item, 2))
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")
    db.run(hours_ago, 7 * 24)
    db.run(acquired_then, week_ago)
    again = scanner.images(item, 2)
    scanner.store(again)
    assert settled(broker, item.StudyInstanceUID, "IN_REVIEW") == ("28", "H")
    states = {one.sop_instance_uid: one.state for one in broker.rows(Instance)}
    assert [states[image.SOPInstanceUID] for image in again] == ["HELD"] * 2
    assert sorted(states.values()) == ["HELD", "HELD", "STORED", "STORED"], "what was released stays"


def acquired_then(session, at):
    """As if all images had been acquired then."""
    for instance in session.exec(select(Instance)):
        instance.facts = instance.facts | {
            f"{what}_{kind}": at.strftime(form)
            for what in ("acquisition", "content", "series", "study")
            for kind, form in (("date", "%Y%m%d"), ("time", "%H%M%S"))
        }
        session.add(instance)


def test_the_study_uid_of_one_exam_in_the_next_exam_of_that_patient_waits(broker, exam):
    scanner, item = exam
    scanner.store(scanner.images(item, 2))
    assert settled(broker, item.StudyInstanceUID) == ("1", "A")
    broker.place(world.order("ACC002"))
    following = next(one for one in eventually(scanner.worklist) if one.AccessionNumber == "ACC002")
    scanner.store(scanner.images(following, 2, StudyInstanceUID=item.StudyInstanceUID))
    row, outcome = settled(broker, item.StudyInstanceUID, "IN_REVIEW")
    assert (row, outcome) == ("48", "H"), "the Study UID says one order, the request another"
