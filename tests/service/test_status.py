"""Status documents: what they show, when a version is made, and the feed without gaps."""

import json
import threading

import pytest
from sqlmodel import Session, select

from broker import clock, db, outbox
from broker.archive import cases, commit, performed_by_images, status
from broker.errors import DuplicateKey, InvalidValue, UnknownKey
from broker.model.images import ReconciliationCase, Study, StudyOrder
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.performed import PerformedSeries, PerformedStep, PerformedStepLink
from broker.model.status import StatusChange
from broker.model.work import Destination, Outbox
from broker.mwl import orders, patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from tests.service.exam import SATO, Exams


@pytest.fixture
def order(exams) -> int:
    return exams.place()


def document(exams: Exams, order_pk: int) -> dict:
    return json.loads(exams.status(order_pk).document)


def state(exams: Exams, order_pk: int) -> str:
    return document(exams, order_pk)["state"]


def move(order_pk: int, event: str) -> None:
    def each(session: Session) -> None:
        for step in session.exec(select(ScheduledStep).where(ScheduledStep.order_pk == order_pk)).all():
            orders.move_step(session, step, event, now=clock.now(), actor="CT1", cause="mpps")

    db.run(each)


def perform(
    exams: Exams, order_pk: int, uids: list[str], *, final: str = "COMPLETED", wrong_entry: bool = False
) -> None:
    """An MPPS for every step of the order, which names these images."""

    def write(session: Session) -> None:
        performed = PerformedStep(sop_instance_uid=f"2.25.{order_pk}", status=final)
        if wrong_entry:
            performed.discontinuation_code, performed.discontinuation_scheme = "110514", "DCM"
        session.add(performed)
        session.flush()
        session.add(PerformedSeries(performed_pk=performed.key, series_instance_uid="1.2", instance_uids=uids))
        for step in session.exec(select(ScheduledStep).where(ScheduledStep.order_pk == order_pk)).all():
            session.add(PerformedStepLink(performed_pk=performed.key, step_pk=step.key, rule=1))
        outbox.touch(session, order_pk)

    db.run(write)


def sop_uids(exams: Exams, study: int) -> list[str]:
    return [one.sop_instance_uid for one in exams.instances(study)]


# The document


def test_a_new_order_has_a_document_of_keys_and_no_name(exams, order):
    shown = document(exams, order)
    assert shown | {"updated_at": ""} == {
        "order_id": order, "accession_number": "ACC001", "accession_issuer": "RIS",
        "requested_procedures": [
            {"id": "RPACC001", "placer_order_number": "PACC001", "filler_order_number": ""}
        ],
        "patient": {"id": "0000012345", "issuer": "HOSP"},
        "state": "SCHEDULED",
        "steps": [{"sps_id": "S0ACC001", "modality": "CT", "scheduled_start": "2025-12-01T09:30:00+09:00",
                   "station_ae_titles": ["CT1"], "state": "SCHEDULED", "performed": []}],
        "study_instance_uids": [exams.uid("ACC001")],
        "images": {"announced": 0, "received": 0, "available": 0, "missing": []},
        "held": None,
        "links": {
            "viewer": f"/IHEInvokeImageDisplay?requestType=STUDY&studyUID={exams.uid('ACC001')}",
            "dicomweb": f"/dicom-web/studies/{exams.uid('ACC001')}", "fhir": f"/fhir/ServiceRequest/{order}",
        },
        "version": 1, "updated_at": "",
    }  # fmt: skip
    assert not {"YAMADA", "山田", "19700101", "胸部"} & set(exams.status(order).document.split('"'))


def test_the_document_tells_an_exam_with_mpps_from_the_first_image_to_the_last(exams, order):
    """STO-01: AVAILABLE only when the last expected image is committed."""
    move(order, "start")
    assert state(exams, order) == "IN_PROGRESS"
    study = exams.receive(exams.uid("ACC001"), 2)
    later = exams.receive(exams.uid("ACC001"), 0)
    assert later == study
    perform(exams, order, [*sop_uids(exams, study), "1.2.3.999"])
    move(order, "complete")
    shown = document(exams, order)
    assert shown["state"] == "ACQUIRED"
    assert shown["images"] == {"announced": 3, "received": 2, "available": 0, "missing": ["1.2.3.999"]}
    assert shown["steps"][0]["performed"] == [
        {"sop_instance_uid": f"2.25.{order}", "status": "COMPLETED", "discontinuation": None}
    ]
    exams.accept(study, order, outcome="A")
    commit.work(exams.settings)
    shown = document(exams, order)
    assert (shown["state"], shown["images"]["available"]) == ("ACQUIRED", 2)
    exams.receive(exams.uid("ACC001"), 1, SOPInstanceUID="1.2.3.999")
    assert state(exams, order) == "ACQUIRED"
    exams.accept(study, order, outcome="A")
    exams.set(Study, study, not_before=None)
    commit.work(exams.settings)
    shown = document(exams, order)
    assert shown["state"] == "AVAILABLE"
    assert shown["images"] == {"announced": 3, "received": 3, "available": 3, "missing": []}


def test_without_mpps_images_begin_the_exam_and_quiet_ends_it(exams, order):
    study = exams.receive(exams.uid("ACC001"))
    assert performed_by_images.work(exams.settings) == 0
    exams.accept(study, order, outcome="A")
    performed_by_images.work(exams.settings)
    assert state(exams, order) == "IN_PROGRESS"
    commit.work(exams.settings)
    assert performed_by_images.work(exams.settings) == 0
    assert state(exams, order) == "IN_PROGRESS"
    exams.settings.reconcile.complete_without_mpps_seconds = 0
    assert performed_by_images.work(exams.settings) == 1
    assert state(exams, order) == "AVAILABLE"


def test_quiet_never_ends_an_exam_whose_device_reports(exams, order):
    move(order, "start")
    perform(exams, order, [], final="IN PROGRESS")
    study = exams.receive(exams.uid("ACC001"))
    exams.accept(study, order, outcome="A")
    exams.settings.reconcile.complete_without_mpps_seconds = 0
    assert performed_by_images.work(exams.settings) == 0
    assert state(exams, order) == "IN_PROGRESS"


def test_images_begin_only_steps_of_their_own_modality(exams):
    order = exams.place("ACC002", steps=2)
    first, second = exams.rows(ScheduledStep, order_pk=order)
    exams.set(ScheduledStep, second.key, modality="US")
    study = exams.receive(exams.uid("ACC002"))
    exams.accept(study, None)

    link = StudyOrder(study_pk=study, order_pk=order, requested_procedure_pk=first.requested_procedure_pk)
    db.run(lambda session: session.add(link))
    performed_by_images.work(exams.settings)
    assert [one.status for one in exams.rows(ScheduledStep, order_pk=order)] == ["STARTED", "SCHEDULED"]


def test_a_cancelled_step_is_not_begun_by_its_images(exams, order):
    """STO-19."""
    exams.place(control="CA")
    study = exams.receive(exams.uid("ACC001"))
    exams.accept(study, order)
    assert performed_by_images.work(exams.settings) == 0
    assert state(exams, order) == "CANCELLED"


@pytest.mark.parametrize("how", ["named by the case", "known by the Study UID", "known by the MPPS"])
def test_an_order_is_held_while_some_image_of_it_waits_for_a_person(exams, order, how):
    uid = exams.uid("ACC001") if how == "known by the Study UID" else "1.2.392.99999.5"
    study = exams.receive(uid, PatientID="999")
    if how == "known by the MPPS":
        perform(exams, order, [], final="IN PROGRESS")
        exams.set(PerformedStep, exams.rows(PerformedStep)[0].key, study_instance_uid=uid)
    case = exams.hold(study, order_pk=order)
    if how != "named by the case":
        exams.set(ReconciliationCase, case, order_pk=None)
        db.run(outbox.touch, order)
    shown = document(exams, order)
    assert shown["state"] == "HELD"
    assert shown["held"] == {"reasons": ["the patient differs from the order's"]}
    assert shown["images"]["available"] == 0


def test_a_match_undone_takes_the_order_from_available_back_to_held(exams, order):
    study = exams.receive("1.2.392.99999.5", PatientID="999")
    case = exams.hold(study)
    how = {"principal": "token:qc", "is_person": False, "now": clock.now()}
    for who in ("token:colleague", "token:qc"):
        db.run(cases.resolve, case, "match", order_id=order, settings=exams.settings, **how | {"principal": who})
    exams.settings.reconcile.complete_without_mpps_seconds = 0
    commit.work(exams.settings)
    performed_by_images.work(exams.settings)
    shown = document(exams, order)
    assert (shown["state"], shown["images"]["available"]) == ("AVAILABLE", 2)
    assert shown["study_instance_uids"] == [exams.uid("ACC001"), "1.2.392.99999.5"]
    assert shown["links"]["dicomweb"] == "/dicom-web/studies/1.2.392.99999.5"
    db.run(cases.undo, case, **how)
    shown = document(exams, order)
    assert (shown["state"], shown["images"]["available"]) == ("HELD", 0)
    other = exams.place("ACC002", SATO)
    for who in ("token:colleague", "token:qc"):
        db.run(cases.resolve, case, "match", order_id=other, settings=exams.settings, **how | {"principal": who})
    assert state(exams, order) == "SCHEDULED"
    assert document(exams, order)["images"]["received"] == 0
    assert document(exams, other)["images"]["received"] == 2


def test_images_that_carry_the_order_s_uid_but_were_given_to_another_are_not_its_own(exams, order):
    study = exams.receive(exams.uid("ACC001"), PatientID="999")
    assert document(exams, order)["images"]["received"] == 0  # nobody said so yet
    case = exams.hold(study, order_pk=order, level="red")
    assert document(exams, order)["images"]["received"] == 2
    other = exams.place("ACC002", SATO)
    for who in ("token:one", "token:two"):
        how = {"principal": who, "is_person": False, "now": clock.now()}
        db.run(cases.resolve, case, "match", order_id=other, settings=exams.settings, **how)
    shown = document(exams, order)
    assert (shown["state"], shown["images"]["received"]) == ("SCHEDULED", 0)


def test_a_rejected_image_is_no_longer_expected(exams, order):
    move(order, "start")
    study = exams.receive(exams.uid("ACC001"), 1)
    exams.accept(study, order, outcome="A")
    commit.work(exams.settings)
    exams.receive(exams.uid("ACC001"), 1)
    perform(exams, order, sop_uids(exams, study))
    move(order, "complete")
    case = exams.hold(study, order_pk=order)
    how = {"principal": "token:qc", "is_person": False, "now": clock.now()}
    db.run(cases.resolve, case, "reject", code="113001", settings=exams.settings, **how)
    shown = document(exams, order)
    assert (shown["state"], shown["images"]["missing"]) == ("AVAILABLE", [])


def test_what_an_mpps_from_the_wrong_item_names_is_not_expected(exams, order):
    perform(exams, order, ["1.2.3.1"], final="DISCONTINUED", wrong_entry=True)
    shown = document(exams, order)
    assert (shown["state"], shown["images"]["announced"]) == ("SCHEDULED", 0)
    assert shown["steps"][0]["performed"][0]["discontinuation"] == {"code": "110514", "scheme": "DCM"}


def test_a_merge_shows_the_survivor_s_identifier(exams, order):
    merge = PatientCommand("merge", PersonCommand((Identifier("0000099999", "HOSP"),)),
                           prior=Identifier("0000012345", "HOSP"), cause="ADT^A40")  # fmt: skip
    db.run(patients.apply, merge, now=clock.now(), actor="test")
    assert document(exams, order)["patient"] == {"id": "0000099999", "issuer": "HOSP"}


# Versions and events


def test_a_version_is_made_only_when_the_document_changes(exams, order):
    db.run(outbox.touch, order)
    assert exams.status(order).version == 1
    move(order, "arrive")
    assert exams.status(order).version == 2
    assert [(one.version, one.state) for one in db.read(_all_changes)] == [(1, "SCHEDULED"), (2, "ARRIVED")]


def _all_changes(session: Session) -> list[StatusChange]:
    return list(session.exec(select(StatusChange).order_by(StatusChange.sequence)).all())


def test_each_transition_is_an_event_with_an_id_only_body_in_the_lane_of_its_exam(exams):
    db.run(lambda session: session.add(Destination(name="ehr", kind="webhook")))
    order = exams.place()
    for event in ("arrive", "start", "complete"):
        move(order, event)
    exams.set(ImagingOrder, order, priority="STAT")
    rows = exams.rows(Outbox)
    assert [one.event for one in rows] == ["order.scheduled", "order.arrived", "order.started", "order.acquired"]
    assert {one.lane for one in rows} == {"ehr|ACC001"}
    assert [one.body["version"] for one in rows] == [1, 2, 3, 4]


def test_a_refused_transaction_leaves_no_version_and_no_gap(exams, order):
    def fail(session: Session) -> None:
        step = session.exec(select(ScheduledStep).where(ScheduledStep.order_pk == order)).one()
        orders.move_step(session, step, "arrive", now=clock.now(), actor="t", cause="t")
        status.publish(session)
        raise UnknownKey("x")

    with pytest.raises(UnknownKey):
        db.run(fail)
    move(order, "arrive")
    assert [sequence for sequence, _ in db.read(status.changes, 0, 10)] == [1, 2]


def test_the_feed_has_no_gap_no_repetition_and_the_order_of_the_commits(exams):
    """Concurrent writers; a reader that polls with its cursor meanwhile sees every version of every order, in order."""
    made = [exams.place(f"ACC{n:03d}") for n in range(4)]
    writers_done = threading.Event()
    seen: list[tuple[int, str]] = []

    def write(n: int) -> None:
        for round_ in range(6):
            for order in made[n % 2 :: 2] + made[:1]:
                exams.set(ScheduledStep, exams.rows(ScheduledStep, order_pk=order)[0].key,
                          modality=f"M{n}{round_}")  # fmt: skip

    def read() -> None:
        cursor = 0
        while True:
            finished = writers_done.is_set()
            rows = db.read(status.changes, cursor, 3)
            seen.extend(rows)
            cursor = rows[-1][0] if rows else cursor
            if finished and not rows:
                return

    reader = threading.Thread(target=read)
    reader.start()
    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    writers_done.set()
    reader.join()
    assert [sequence for sequence, _ in seen] == list(range(1, len(seen) + 1))
    for order in made:
        versions = [json.loads(one)["version"] for _, one in seen if json.loads(one)["order_id"] == order]
        assert versions == list(range(1, exams.status(order).version + 1))
        last = [one for _, one in seen if json.loads(one)["order_id"] == order][-1]
        assert last == exams.status(order).document


def test_of_two_transactions_that_change_one_order_the_later_shows_what_both_did(exams):
    """The second one met the rows before it waited for the first: its document must not be older than its version."""
    order = exams.place(steps=2)
    first, second = exams.rows(ScheduledStep, order_pk=order)
    looked, go = threading.Barrier(2), threading.Barrier(2)

    def arrive(step_pk: int) -> None:
        met = []

        def change(session: Session) -> None:
            session.exec(select(ScheduledStep).where(ScheduledStep.order_pk == order)).all()
            if not met and not db.is_sqlite():  # SQLite has one writer at a time
                met.append(True)
                looked.wait()
            step = session.get_one(ScheduledStep, step_pk)
            orders.move_step(session, step, "arrive", now=clock.now(), actor="t", cause="t")

        go.wait()
        db.run(change)

    threads = [threading.Thread(target=arrive, args=(one.key,)) for one in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one["state"] for one in document(exams, order)["steps"]] == ["ARRIVED", "ARRIVED"]


# Reads


def test_a_document_is_found_by_its_accession_number(exams, order):
    text, version, order_pk = db.read(status.find, "ACC001")
    assert (json.loads(text)["order_id"], version, order_pk) == (order, 1, order)
    with pytest.raises(UnknownKey):
        db.read(status.find, "NONE")
    with pytest.raises(UnknownKey):
        db.read(status.find, "ACC001", "OTHER")


def test_two_issuers_of_one_number_are_told_and_can_be_told_apart(exams, order):
    other = exams.place("ACC002", SATO)
    exams.set(ImagingOrder, other, accession_number="ACC001", accession_issuer="CLINIC")
    with pytest.raises(DuplicateKey, match="'CLINIC', 'RIS'"):
        db.read(status.find, "ACC001")
    assert db.read(status.find, "ACC001", "CLINIC")[2] == other


def test_documents_are_listed_by_what_identifies_them(exams, order):
    other = exams.place("ACC002", SATO)
    study = exams.receive("1.2.392.99999.5")
    exams.accept(study, other)

    def listed(**filters: str) -> list[int]:
        texts, _ = db.read(status.listing, filters, 10)
        return [json.loads(text)["order_id"] for text in texts]

    assert listed() == [order, other]
    assert listed(patient_id="0000023456") == [other]
    assert listed(placer_order_number="PACC001") == [order]
    assert listed(study_instance_uid=exams.uid("ACC001")) == [order]
    assert listed(study_instance_uid="1.2.392.99999.5") == [other]
    assert listed(state="SCHEDULED", patient_id="0000012345") == [order]
    assert listed(updated_since="2999-01-01T00:00:00Z") == []
    assert listed(updated_since="2000-01-01T00:00:00+09:00") == [order, other]
    with pytest.raises(InvalidValue):
        listed(updated_since="yesterday")
    with pytest.raises(InvalidValue):
        listed(colour="red")
    texts, following = db.read(status.listing, {}, 1)
    assert (json.loads(texts[0])["order_id"], following) == (order, order)
    assert [json.loads(text)["order_id"] for text in db.read(status.listing, {}, 1, following)[0]] == [other]
