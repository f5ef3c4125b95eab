"""Accepted studies into the archive: whatever happens between two steps, nothing is lost and nothing is there twice."""

import hashlib
from pathlib import Path

import pydicom
import pytest

from broker import clock, db, leases
from broker.archive import commit, plan, rendition
from broker.archive.store import LocalStore, custody_key, make_store
from broker.errors import Unreadable
from broker.model.images import Instance, Study
from broker.model.work import AuditEvent
from broker.mwl import patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from tests.service.exam import Exams


@pytest.fixture
def exams(database, settings) -> Exams:
    return Exams(settings)


@pytest.fixture
def accepted(exams) -> int:
    """A study of two images whose name is spelt in another way, accepted for ACC001 with coercion."""
    order = exams.place()
    study = exams.receive(exams.uid("ACC001"), PatientName="YAMADA^TAROU=山田^太郎")
    exams.accept(study, order)
    return study


def archived(exams: Exams) -> list[Path]:
    return sorted(path for path in exams.archive().rglob("*") if path.is_file())


def data_set_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return rendition.digests(file)[0]


def test_an_accepted_study_is_stored_as_received_and_staging_is_empty(exams, accepted):
    """STO-01: available only after the commit."""
    assert commit.work(exams.settings) == 1
    assert exams.states(accepted) == ("ARCHIVED", ["STORED", "STORED"])
    for instance in exams.instances(accepted):
        path = exams.archive() / instance.store_key
        assert data_set_sha256(path) == instance.sha256
        assert hashlib.sha256(path.read_bytes()).hexdigest() == instance.store_sha256
        assert instance.staged_key == ""
    assert exams.staged_files() == []


def test_the_rendition_carries_the_order_s_name_and_the_received_bytes_do_not_change(exams, accepted):
    """STO-09."""
    commit.work(exams.settings)
    for instance in exams.instances(accepted):
        coerced = pydicom.dcmread(exams.archive() / instance.rendition_key)
        received = pydicom.dcmread(exams.archive() / instance.store_key)
        assert str(coerced.PatientName) == "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"
        assert str(received.PatientName) == "YAMADA^TAROU=山田^太郎"
        assert coerced.PixelData == received.PixelData
        assert coerced.SOPInstanceUID == received.SOPInstanceUID
        (item,) = coerced.OriginalAttributesSequence
        assert (item.ReasonForTheAttributeModification, item.SourceOfPreviousValues) == ("COERCE", "CT1")
        assert str(item.ModifiedAttributesSequence[0].PatientName) == "YAMADA^TAROU=山田^太郎"
        assert coerced.RequestAttributesSequence[0].ScheduledProcedureStepID == "S0ACC001"


def test_where_all_agrees_there_is_no_rendition(exams):
    study = exams.receive(exams.uid("ACC001"))
    exams.accept(study, exams.place(), outcome="A")
    commit.work(exams.settings)
    assert [one.rendition_key for one in exams.instances(study)] == ["", ""]
    assert len(archived(exams)) == 2


def test_one_audit_row_says_what_was_archived_under_which_decision(exams, accepted):
    commit.work(exams.settings)
    (event,) = exams.rows(AuditEvent, action="study.archive")
    assert event.subject == f"study:{accepted}"
    assert (event.detail["stored"], event.detail["coerced"], event.detail["waiting"]) == (2, 2, 0)


def test_killed_after_the_copies_the_next_pass_finds_them_and_writes_none_twice(exams, accepted):
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    commit._copy_all(exams.settings, made)
    before = {path: path.stat().st_ino for path in archived(exams)}
    assert len(before) == 4
    assert exams.states(accepted) == ("ACCEPTED", ["STAGED", "STAGED"])
    commit.work(exams.settings)
    assert exams.states(accepted) == ("ARCHIVED", ["STORED", "STORED"])
    assert {path: path.stat().st_ino for path in archived(exams)} == before


def test_killed_after_the_rows_the_next_pass_empties_staging(exams, accepted):
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    stored, _ = commit._copy_all(exams.settings, made)
    db.run(commit.mark_stored, made, stored, now=clock.now())
    assert len(exams.staged_files()) == 2
    commit.work(exams.settings)
    assert exams.staged_files() == []
    assert [one.staged_key for one in exams.instances(accepted)] == ["", ""]


def test_killed_between_the_file_s_removal_and_its_note_the_next_pass_goes_on(exams, accepted):
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    stored, _ = commit._copy_all(exams.settings, made)
    db.run(commit.mark_stored, made, stored, now=clock.now())
    exams.staged_files()[0].unlink()
    commit.work(exams.settings)
    assert [one.staged_key for one in exams.instances(accepted)] == ["", ""]


def test_killed_in_a_copy_the_half_file_is_no_object(exams, accepted):
    instance = exams.instances(accepted)[0]
    (exams.archive() / "in").mkdir(parents=True)
    (exams.archive() / "in" / "0123.part").write_bytes(b"half")
    commit.work(exams.settings)
    assert data_set_sha256(exams.archive() / custody_key(instance.key, instance.sha256)) == instance.sha256


def test_staged_bytes_that_changed_are_never_stored_and_the_others_become_available(exams, accepted):
    bad, good = exams.instances(accepted)
    path = exams.settings.staging_dir / bad.staged_key
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    commit.work(exams.settings)
    assert exams.states(accepted) == ("ACCEPTED", ["STAGED", "STORED"])
    assert path.exists()
    study = exams.get(Study, accepted)
    assert study.attempts == 1
    assert study.not_before is not None
    assert study.lease_until is None
    assert exams.get(Instance, good.key).staged_key == ""
    assert commit.work(exams.settings) == 0  # backs off


def test_while_the_archive_is_away_the_study_stays_accepted_and_is_stored_when_it_is_back(exams, accepted, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as away:
        away.setattr(LocalStore, "_write", refuse)
        commit.work(exams.settings)
    assert exams.states(accepted) == ("ACCEPTED", ["STAGED", "STAGED"])
    assert len(exams.staged_files()) == 2
    exams.set(Study, accepted, not_before=None)
    commit.work(exams.settings)
    assert exams.states(accepted) == ("ARCHIVED", ["STORED", "STORED"])


@pytest.mark.parametrize("state", ["RECEIVING", "IN_REVIEW"])
def test_what_was_let_in_is_stored_though_later_objects_of_its_study_wait(exams, accepted, state):
    exams.set(Study, accepted, state=state)
    assert commit.work(exams.settings) == 1
    assert exams.states(accepted) == (state, ["STORED", "STORED"])


def test_what_was_held_during_the_copy_is_not_stored(exams, accepted):
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    stored, _ = commit._copy_all(exams.settings, made)
    held = exams.instances(accepted)[0]
    exams.set(Instance, held.key, state="HELD", decision_pk=None)
    db.run(commit.mark_stored, made, stored, now=clock.now())
    assert exams.states(accepted)[1] == ["HELD", "STORED"]


def test_a_study_that_was_decided_anew_during_the_copy_is_stored_under_the_new_decision_only(exams, accepted):
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    stored, _ = commit._copy_all(exams.settings, made)
    exams.accept(accepted, exams.get(Study, accepted).order_pk)
    assert db.run(commit.mark_stored, made, stored, now=clock.now()) is False


def test_an_object_that_comes_after_the_decision_is_not_stored_with_it(exams, accepted):
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    exams.send(exams.uid("ACC001"))
    stored, _ = commit._copy_all(exams.settings, made)
    db.run(commit.mark_stored, made, stored, now=clock.now())
    assert exams.states(accepted) == ("RECEIVING", ["STORED", "STORED", "STAGED"])


def test_a_merge_during_the_copy_makes_the_next_pass_write_the_survivor(exams, accepted):
    """STO-17."""
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    stored, _ = commit._copy_all(exams.settings, made)
    survivor = PersonCommand((Identifier("0000099999", "HOSP"),), "YAMADA^TARO", "19700101", "M")
    merge = PatientCommand("merge", survivor, prior=Identifier("0000012345", "HOSP"), cause="ADT^A40")
    db.run(patients.apply, merge, now=clock.now(), actor="test")
    assert db.run(commit.mark_stored, made, stored, now=clock.now()) is False
    commit.work(exams.settings)
    for instance in exams.instances(accepted):
        assert instance.state == "STORED"
        coerced = pydicom.dcmread(exams.archive() / instance.rendition_key)
        assert coerced.PatientID == "0000099999"
        assert [item.PatientID for item in coerced.OtherPatientIDsSequence] == ["0000012345"]


def test_a_conflicting_copy_never_enters_the_archive(exams, accepted):
    first = exams.instances(accepted)[0]
    exams.receive(exams.uid("ACC001"), 1)
    copy = exams.instances(accepted)[-1]
    exams.set(Instance, copy.key, conflict_of=first.key)
    commit.work(exams.settings)
    assert exams.states(accepted) == ("ARCHIVED", ["STORED", "STORED", "STAGED"])


def test_only_accepted_studies_are_claimed(exams):
    study = exams.receive(exams.uid("ACC001"))
    assert commit.work(exams.settings) == 0
    commit.commit_study(exams.settings, study)
    assert exams.states(study) == ("RECEIVING", ["STAGED", "STAGED"])


def test_a_long_commit_holds_on_to_its_lease(exams, accepted, monkeypatch):
    exams.settings.limits.lease_seconds = 0.0
    renewed = []
    monkeypatch.setattr(leases, "renew_study", lambda session, pk, **how: renewed.append(pk))
    commit.commit_study(exams.settings, accepted)
    assert renewed == [accepted, accepted]


def test_the_archive_that_lost_a_byte_is_noticed_before_a_row_says_stored(exams, accepted):
    made = db.read(plan.make_plan, accepted, exams.staging.node, exams.settings)
    store = make_store(exams.settings)
    instance = made.instances[0]
    commit.copy_instance(exams.settings, store, made, instance)
    path = exams.archive() / custody_key(instance.key, instance.sha256)
    path.write_bytes(path.read_bytes() + b"\0")
    commit.work(exams.settings)
    assert exams.states(accepted) == ("ACCEPTED", ["STAGED", "STORED"])


def test_what_another_node_has_staged_is_left_to_it(exams, accepted):
    other = exams.instances(accepted)[1]
    exams.set(Instance, other.key, staged_node="another")
    commit.work(exams.settings)
    assert exams.states(accepted) == ("ACCEPTED", ["STORED", "STAGED"])
    commit.commit_study(exams.settings, accepted)
    assert len(exams.rows(AuditEvent, action="study.archive")) == 1


def test_a_staged_file_that_is_gone_is_told(exams, accepted):
    exams.staged_files()[0].unlink()
    with pytest.raises(Unreadable, match="not in staging"):
        commit.commit_study(exams.settings, accepted)
