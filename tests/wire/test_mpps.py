"""Performed steps over the wire: pynetdicom as the scanner, one status per row of conformance.md 2.4."""

import copy

import pytest
from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import ModalityPerformedProcedureStep, ModalityPerformedProcedureStepRetrieve
from sqlalchemy.exc import OperationalError

from broker import access, clock, db, ids, site
from broker.model.images import ReconciliationCase
from broker.model.orders import ScheduledStep
from broker.model.performed import PerformedSeries, PerformedStep
from broker.mpps import service
from broker.sim.modality import Modality
from tests.house import eventually
from tests.world import SATO, order

WRONG_ENTRY = ("110514", "DCM", "Incorrect worklist entry selected")


def send(
    modality: Modality, verb: str, *args: object, sop_class: str = ModalityPerformedProcedureStep,
    syntax: str = ExplicitVRLittleEndian,
) -> tuple[Dataset, Dataset | None]:  # fmt: skip
    """One request on an association of its own: (command set of the response, attribute list)."""
    association = modality.associate([(sop_class, [syntax])])
    commands: list[Dataset] = []
    association.bind(evt.EVT_DIMSE_RECV, lambda event: commands.append(event.message.command_set))
    try:
        found = getattr(association, verb)(*args)[1]
        return commands[-1], found
    finally:
        association.release()


def create(modality: Modality, said: Dataset, uid: str | None, **how: str) -> Dataset:
    return send(modality, "send_n_create", said, ModalityPerformedProcedureStep, uid, **how)[0]


def update(modality: Modality, said: Dataset, uid: str) -> Dataset:
    return send(modality, "send_n_set", said, ModalityPerformedProcedureStep, uid)[0]


def get(modality: Modality, uid: str, *tags: int) -> tuple[int, Dataset | None]:
    status, found = retrieve(modality, uid, *tags)
    return status.Status, found


def retrieve(modality: Modality, uid: str, *tags: int) -> tuple[Dataset, Dataset | None]:
    return send(
        modality, "send_n_get", list(tags), ModalityPerformedProcedureStepRetrieve, uid,
        sop_class=ModalityPerformedProcedureStepRetrieve,
    )  # fmt: skip


def raw(keyword: str, value: str) -> DataElement:
    """An element as a careless device writes it."""
    tag = tag_for_keyword(keyword)
    return DataElement(tag, dictionary_VR(tag), value, validation_mode=IGNORE)


def states(broker) -> list[str]:
    return [step.status for step in broker.rows(ScheduledStep)]


@pytest.fixture
def exam(broker):
    """A scanner, and the worklist item that it is going to work on."""
    broker.place(order())
    modality = broker.modality()
    (item,) = modality.worklist()
    return modality, item


def test_an_exam_leaves_the_worklist_with_its_last_report(broker, exam):
    """MPP-01 MPP-02"""
    modality, item = exam
    uid = modality.start([item])
    assert states(broker) == ["STARTED"]
    assert broker.status("ACC001", "IN_PROGRESS")["steps"][0]["performed"][0]["sop_instance_uid"] == uid
    images = modality.images(item, 2)
    modality.finish(uid, images)
    assert states(broker) == ["COMPLETED"]
    assert broker.rows(PerformedSeries)[0].instance_uids == [image.SOPInstanceUID for image in images]
    assert broker.status("ACC001", "ACQUIRED")["images"]["announced"] == 2
    assert modality.worklist() == []


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_both_plain_transfer_syntaxes_are_spoken(broker, exam, syntax):
    modality, item = exam
    assert create(modality, modality.performed([item]), "1.2.7", syntax=syntax).Status == 0x0000
    assert states(broker) == ["STARTED"]


def test_an_n_create_that_is_not_in_progress_stores_nothing(broker, exam):
    """MPP-04"""
    modality, item = exam
    said = modality.performed([item])
    said.PerformedProcedureStepStatus = "COMPLETED"
    status = create(modality, said, "1.2.7")
    assert (status.Status, status.AttributeIdentifierList) == (0x0106, 0x00400252)
    assert (broker.rows(PerformedStep), states(broker)) == ([], ["SCHEDULED"])


def test_an_absent_sequence_is_named_in_the_answer(broker, exam):
    """MPP-06"""
    modality, item = exam
    said = modality.performed([item])
    del said.ScheduledStepAttributesSequence
    status = create(modality, said, "1.2.7")
    assert (status.Status, status.AttributeIdentifierList) == (0x0120, 0x00400270)


def test_an_empty_step_id_is_named_in_the_answer(broker, exam):
    """MPP-07"""
    modality, item = exam
    said = modality.performed([item])
    said.PerformedProcedureStepID = ""
    status = create(modality, said, "1.2.7")
    assert (status.Status, status.AttributeIdentifierList) == (0x0121, 0x00400253)


def test_a_second_n_create_with_the_same_uid_is_refused_and_changes_nothing(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    assert create(modality, modality.performed([item]), uid).Status == 0x0111
    assert len(broker.rows(PerformedStep)) == 1


def test_an_n_create_without_a_uid_gets_one(broker, exam):
    modality, item = exam
    answer = create(modality, modality.performed([item]), None)
    assert answer.Status == 0x0000
    assert broker.rows(PerformedStep)[0].sop_instance_uid == answer.AffectedSOPInstanceUID


def test_a_final_report_says_its_last_word_once(broker, exam):
    """MPP-26"""
    modality, item = exam
    uid = modality.start([item])
    last = modality.final(modality.images(item))
    assert update(modality, last, uid).Status == 0x0000
    status = update(modality, last, uid)
    assert (status.Status, status.ErrorID) == (0x0110, 0xA710)
    assert status.ErrorComment == "Performed Procedure Step Object may no longer be updated"


def test_a_fixed_attribute_is_ignored_with_a_warning_that_names_it(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    said = Dataset()
    said.Modality, said.PerformedProcedureStepDescription = "MR", "head"
    status = update(modality, said, uid)
    assert (status.Status, status.AttributeIdentifierList) == (0x0107, 0x00080060)
    assert get(modality, uid, 0x00400254)[1].PerformedProcedureStepDescription == "head"


def test_a_report_about_nothing_known_is_refused(broker):
    said = Dataset()
    said.PerformedProcedureStepDescription = "head"
    assert update(broker.modality(), said, "1.2.7").Status == 0x0112
    assert get(broker.modality(), "1.2.7")[0] == 0x0112


def test_a_strict_device_is_held_to_every_type(broker, exam):
    """MPP-09"""
    modality, item = exam
    now = clock.now()
    db.run(site.remove_node, "CT1", actor="test", now=now)
    db.run(site.add_node, "CT1", host="127.0.0.1", port=11999, mpps_strict=True, actor="test", now=now)
    uid = eventually(lambda: strict_start(modality, item))
    said = modality.final(modality.images(item))
    del said.PerformedProcedureStepEndDate
    status = update(modality, said, uid)
    assert (status.Status, status.AttributeIdentifierList) == (0x0121, 0x00400250)
    assert states(broker) == ["STARTED"]


def strict_start(modality: Modality, item: Dataset) -> str:
    """The UID of a good N-CREATE, once the broker refuses a poor one (a changed node counts after a moment)."""
    poor = modality.performed([item])
    del poor.StudyID
    if create(modality, poor, ids.uid("2.25")).Status != 0x0120:
        return ""
    return modality.start([item])


def test_an_exam_of_very_many_images_can_be_finished(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    last = modality.final(modality.images(item, 1))
    (image,) = last.PerformedSeriesSequence[0].ReferencedImageSequence
    references = [copy.copy(image) for _ in range(12_000)]
    for number, reference in enumerate(references):
        reference.ReferencedSOPInstanceUID = f"1.2.392.200036.9125.9.0.{10**20 + number}"
    last.PerformedSeriesSequence[0].ReferencedImageSequence = references
    assert modality._mpps("send_n_set", last, uid)[0] == 0x0000
    assert broker.rows(PerformedStep)[0].status == "COMPLETED"


def test_a_list_of_series_replaces_the_one_before(broker, exam):
    """MPP-12"""
    modality, item = exam
    uid = modality.start([item])
    for series_uid in ("1.2.1", "1.2.2"):
        said = modality.final(modality.images(item, series_uid=series_uid))
        said.PerformedProcedureStepStatus = "IN PROGRESS"
        assert update(modality, said, uid).Status == 0x0000
    series = get(modality, uid, 0x00400340)[1].PerformedSeriesSequence
    assert [one.SeriesInstanceUID for one in series] == ["1.2.2"]


def test_texts_of_two_character_sets_come_back_together(broker, exam):
    """MPP-19"""
    modality, item = exam
    said = modality.performed([item])
    said.SpecificCharacterSet, said.PatientName = "ISO_IR 100", "Müller^Jörg"
    said.ScheduledStepAttributesSequence[0].ScheduledProcedureStepDescription = "Schädel"
    said.ScheduledStepAttributesSequence[0].RequestedProcedureDescription = None
    said.ScheduledStepAttributesSequence[0].ScheduledProtocolCodeSequence = []
    assert create(modality, said, "1.2.7").Status == 0x0000
    later = Dataset()
    later.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    later.PerformedProcedureStepDescription = "頭部単純"
    assert update(modality, later, "1.2.7").Status == 0x0000
    status, found = get(modality, "1.2.7")
    assert status == 0x0000
    assert (str(found.PatientName), found.PerformedProcedureStepDescription) == ("Müller^Jörg", "頭部単純")
    assert found.ScheduledStepAttributesSequence[0].ScheduledProcedureStepDescription == "Schädel"


def test_text_that_is_not_in_its_character_set_is_refused(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    said = Dataset()
    said.SpecificCharacterSet = "ISO_IR 192"
    said.add_new(0x00400254, "LO", b"\xff\xfe")
    status = update(modality, said, uid)
    assert (status.Status, status.AttributeIdentifierList) == (0x0106, 0x00080005)


def test_an_attribute_that_we_do_not_have_is_answered_with_a_warning(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    status, found = get(modality, uid, 0x00400252, 0x00280010)
    assert status == 0x0001
    assert found.PerformedProcedureStepStatus == "IN PROGRESS"
    assert "Rows" not in found


def test_a_wrong_worklist_entry_is_on_the_worklist_again(broker, exam):
    """MPP-14"""
    modality, item = exam
    uid = modality.start([item])
    modality.finish(uid, modality.images(item), status="DISCONTINUED", reason=WRONG_ENTRY)
    assert states(broker) == ["SCHEDULED"]
    assert len(modality.worklist()) == 1


def test_an_exam_without_an_order_is_taken(broker):
    """MPP-16"""
    modality = broker.modality()
    modality.finish(modality.start([]), modality.images(None))
    assert [case.kind for case in broker.rows(ReconciliationCase)] == ["mpps_unscheduled"]


def test_one_report_for_two_items_moves_both(broker):
    """MPP-17"""
    broker.place(order("ACC001"))
    broker.place(order("ACC002"))
    modality = broker.modality()
    uid = modality.start(modality.worklist())
    assert states(broker) == ["STARTED", "STARTED"]
    modality.finish(uid, modality.images(None))
    assert states(broker) == ["COMPLETED", "COMPLETED"]


def test_a_report_about_another_patient_is_taken_and_starts_nothing(broker, exam):
    """MPP-21"""
    modality, item = exam
    broker.place(order("ACC002", SATO, station="CT2"))
    said = modality.performed([item])
    said.PatientID = SATO.id
    assert create(modality, said, "1.2.7").Status == 0x0000
    assert states(broker) == ["SCHEDULED", "SCHEDULED"]
    assert [(case.kind, case.level) for case in broker.rows(ReconciliationCase)] == [("mpps_patient_mismatch", "red")]


@pytest.mark.parametrize("procedure_id", ["RACC001", "", "OTHER"])
def test_a_step_that_was_not_named_stays_on_the_worklist(broker, procedure_id):
    """The Requested Procedure ID is type 2: the SPS ID that stands beside it names its step all the same."""
    broker.place(order(steps=2))
    modality = broker.modality()
    first, second = modality.worklist()
    said = modality.performed([first])
    said.ScheduledStepAttributesSequence[0].RequestedProcedureID = procedure_id
    assert create(modality, said, "1.2.7").Status == 0x0000
    modality.finish("1.2.7", modality.images(first))
    done = procedure_id != "OTHER"
    assert states(broker) == ["COMPLETED" if done else "SCHEDULED", "SCHEDULED"]
    assert [case.kind for case in broker.rows(ReconciliationCase)] == ([] if done else ["mpps_unscheduled"])
    assert second.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID in [
        item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for item in modality.worklist()
    ]


def test_a_step_that_the_device_invented_is_a_case_and_no_other_step(broker, exam):
    modality, item = exam
    said = modality.performed([item])
    said.ScheduledStepAttributesSequence[0].ScheduledProcedureStepID = "AUTO1"
    said.ScheduledStepAttributesSequence[0].RequestedProcedureID = None
    assert create(modality, said, "1.2.7").Status == 0x0000
    assert states(broker) == ["SCHEDULED"]
    assert [case.kind for case in broker.rows(ReconciliationCase)] == ["mpps_unscheduled"]


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PerformedProcedureStepStartDate", "nonsense"), ("PerformedProcedureStepStartDate", "20250230"),
     ("PerformedProcedureStepStartTime", "25:99"), ("PerformedProcedureStepEndTime", "9h30")],
)  # fmt: skip
def test_a_date_or_time_that_is_none_is_refused_and_named(broker, exam, keyword, value):
    modality, item = exam
    said = modality.performed([item])
    said.add(raw(keyword, value))
    status = create(modality, said, "1.2.7")
    assert (status.Status, status.AttributeIdentifierList) == (0x0106, tag_for_keyword(keyword))
    assert (broker.rows(PerformedStep), states(broker)) == ([], ["SCHEDULED"])


def test_a_study_uid_that_is_none_is_refused_and_named(broker, exam):
    modality, item = exam
    said = modality.performed([item])
    said.ScheduledStepAttributesSequence[0].add(raw("StudyInstanceUID", "abc"))
    status = create(modality, said, "1.2.7")
    assert (status.Status, status.AttributeIdentifierList) == (0x0106, 0x0020000D)
    assert (broker.rows(PerformedStep), states(broker)) == ([], ["SCHEDULED"])


def test_dates_and_times_of_the_old_form_are_understood(broker, exam):
    modality, item = exam
    said = modality.performed([item])
    said.add(raw("PerformedProcedureStepStartDate", "2025.12.01"))
    said.add(raw("PerformedProcedureStepStartTime", "09:30:00"))
    assert create(modality, said, "1.2.7").Status == 0x0000
    assert clock.iso(broker.rows(PerformedStep)[0].started_at) == "2025-12-01T00:30:00.000000Z"


@pytest.mark.parametrize(("keyword", "of"), [("SeriesInstanceUID", "series"), ("ReferencedSOPInstanceUID", "image")])
def test_a_series_or_image_uid_that_is_none_is_refused_and_nothing_changes(broker, exam, keyword, of):
    modality, item = exam
    uid = modality.start([item])
    last = modality.final(modality.images(item))
    series = last.PerformedSeriesSequence[0]
    (series if of == "series" else series.ReferencedImageSequence[0]).add(raw(keyword, "1..2"))
    status = update(modality, last, uid)
    assert (status.Status, status.AttributeIdentifierList) == (0x0106, tag_for_keyword(keyword))
    assert (broker.rows(PerformedStep)[0].status, states(broker)) == ("IN PROGRESS", ["STARTED"])


def test_an_empty_sequence_that_was_never_there_needs_no_warning(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    last = modality.final(modality.images(item))
    last.SpecificCharacterSet = item.SpecificCharacterSet
    last.ScheduledStepAttributesSequence = modality.performed([item]).ScheduledStepAttributesSequence
    last.OtherPatientIDsSequence = []
    status = update(modality, last, uid)
    assert (status.Status, "AttributeIdentifierList" in status) == (0x0000, False)


def test_only_the_machine_that_began_a_step_ends_it(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    node(broker, "CT8", host="192.0.2.8", any_address=True)
    other = Modality("CT8", "127.0.0.1", broker.ports["dicom"])
    last = modality.final(modality.images(item))
    assert update(other, last, uid).Status == 0x0124
    assert states(broker) == ["STARTED"]
    assert update(modality, last, uid).Status == 0x0000


def test_another_console_of_the_same_machine_ends_its_step(broker, exam):
    modality, item = exam
    uid = modality.start([item])
    assert update(broker.modality("CT2"), modality.final(modality.images(item)), uid).Status == 0x0000  # same host
    assert states(broker) == ["COMPLETED"]


@pytest.mark.parametrize("verb", ["start", "update", "get"])
def test_while_the_database_is_away_the_device_is_told_to_come_again(broker, exam, monkeypatch, verb):
    def away(*_: object, **__: object) -> None:
        raise OperationalError("", {}, Exception("server closed the connection"))

    modality, item = exam
    monkeypatch.setattr(service, verb, away)
    said = modality.performed([item])
    status = {"start": lambda: create(modality, said, "1.2.7"), "update": lambda: update(modality, said, "1.2.7"),
              "get": lambda: retrieve(modality, "1.2.7")[0]}[verb]()  # fmt: skip
    assert (status.Status, status.ErrorComment) == (0x0213, "database away: send again later")


def test_text_with_a_nul_inside_is_refused_and_named(broker, exam):
    modality, item = exam
    said = modality.performed([item])
    said.PatientID = "0000" + chr(0) + "12345"
    status = create(modality, said, "1.2.7")
    assert (status.Status, status.AttributeIdentifierList) == (0x0106, 0x00100020)


def test_an_operation_that_is_not_of_the_class_is_refused(broker):
    status, _ = send(broker.modality(), "send_n_get", [], ModalityPerformedProcedureStep, "1.2.7")
    assert status.Status == 0x0211


def node(broker, ae_title: str, **fields: object) -> None:
    db.run(site.add_node, ae_title, port=11999, actor="test", now=clock.now(), **fields)
    access.forget()


def test_a_device_without_the_right_is_told_so(broker):
    db.run(site.add_node, "CT9", host="127.0.0.1", port=11999, rights=["worklist"], actor="test", now=clock.now())
    modality = Modality("CT9", "127.0.0.1", broker.ports["dicom"])
    status = eventually(lambda: create(modality, modality.performed([]), "1.2.7"))
    assert status.Status == 0x0124
