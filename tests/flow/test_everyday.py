"""Exams of every day, end to end (reconciliation.md 3.5)."""

import pytest

from broker import ids
from broker.model.images import Decision, Instance, ReconciliationCase, Study
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
