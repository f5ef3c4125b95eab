"""Accepted studies into the archive: whatever happens between two steps, nothing is lost and nothing is there twice."""

import errno
import hashlib
from pathlib import Path

import pydicom
import pytest
import structlog.testing

from broker import clock, db, leases
from broker.archive import commit, plan, rendition
from broker.archive.intake import accept
from broker.archive.store import LocalStore, custody_key, make_store
from broker.errors import Unreadable
from broker.model.images import Instance, ReconciliationCase, Study
from broker.model.work import AuditEvent
from broker.mwl import patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from tests.objects import ct, stage
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


# What stands in the way of one


@pytest.fixture
def another(exams) -> int:
    """A study of one image, accepted for ACC002; it came after `accepted`."""
    order = exams.place("ACC002")
    study = exams.receive(exams.uid("ACC002"), 1, AccessionNumber="ACC002", PatientName="YAMADA^TAROU=山田^太郎")
    exams.accept(study, order)
    return study


def breaks(module, name: str, instance: Instance, error: BaseException, monkeypatch) -> None:
    """That function raises for that instance."""
    real = getattr(module, name)

    def call(*args, **kwargs):
        if any(getattr(one, "pk", None) == instance.key for one in args if isinstance(one, Instance)):
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize(
    "error",
    [ValueError("embedded null character"), TypeError("expected string"), OSError(errno.EIO, "Input/output error")],
    ids=lambda error: type(error).__name__,
)
def test_one_bad_instance_keeps_neither_its_study_s_others_nor_other_studies_waiting(
    exams, accepted, another, monkeypatch, error
):
    bad = exams.instances(accepted)[0]
    with monkeypatch.context() as broken:
        breaks(commit, "_render", bad, error, broken)
        with structlog.testing.capture_logs() as logs:
            assert commit.work(exams.settings) == 2
        assert exams.states(accepted) == ("ACCEPTED", ["STAGED", "STORED"])
        assert exams.states(another) == ("ARCHIVED", ["STORED"])
        study = exams.get(Study, accepted)
        assert study.attempts == 1
        assert study.not_before > clock.now()
        assert commit.work(exams.settings) == 0  # backs off
    assert "null character" not in str([line.get("reason") for line in logs])
    assert [line["instance"] for line in logs if line["event"] == "instance.not_stored"] == [bad.key]
    exams.set(Study, accepted, not_before=None)
    commit.work(exams.settings)
    assert exams.states(accepted) == ("ARCHIVED", ["STORED", "STORED"])
    assert exams.get(Study, accepted).attempts == 0


def test_a_study_whose_plan_cannot_be_made_keeps_no_other_waiting(exams, accepted, another, monkeypatch):
    real = plan.make_plan

    def make_plan(session, study_pk, *args):
        if study_pk == accepted:
            raise KeyError("a bug")
        return real(session, study_pk, *args)

    monkeypatch.setattr(plan, "make_plan", make_plan)
    assert commit.work(exams.settings) == 2
    assert exams.states(another)[0] == "ARCHIVED"
    assert exams.get(Study, accepted).attempts == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EMFILE])
def test_a_full_archive_ends_the_pass_and_is_nobody_s_failure(exams, accepted, another, monkeypatch, number):
    """What was copied until then is available, and leaves staging."""
    first, second = exams.instances(accepted)
    with monkeypatch.context() as broken:
        breaks(commit, "_render", second, OSError(number, "no room"), broken)
        assert commit.work(exams.settings) == 1
    assert exams.states(accepted) == ("ACCEPTED", ["STORED", "STAGED"])
    assert exams.get(Instance, first.key).staged_key == ""
    study = exams.get(Study, accepted)
    assert (study.attempts, study.lease_until) == (0, None)
    for one in (accepted, another):
        exams.set(Study, one, not_before=None)
    commit.work(exams.settings)
    assert [exams.states(one)[0] for one in (accepted, another)] == ["ARCHIVED", "ARCHIVED"]


def test_a_staged_file_that_does_not_go_keeps_nobody_waiting(exams, accepted, another):
    commit.work(exams.settings)
    stuck, after = exams.instances(accepted)
    for one in (stuck, after):
        exams.set(Instance, one.key, staged_key=f"ab/cd/{one.key}.dcm")
    (exams.settings.staging_dir / f"ab/cd/{stuck.key}.dcm").mkdir()  # unlink refuses a folder, whoever asks
    rest = exams.settings.staging_dir / f"ab/cd/{after.key}.dcm"
    rest.write_bytes(b"what somebody who was killed left")
    exams.set(Study, another, state="ACCEPTED", not_before=None)
    assert commit.work(exams.settings) == 1
    assert not rest.exists()
    assert [one.staged_key for one in exams.instances(accepted)] == [f"ab/cd/{stuck.key}.dcm", ""]


def cases(exams: Exams) -> list[tuple[str, str, str, str]]:
    return [(one.kind, one.subject, one.level, one.state) for one in exams.rows(ReconciliationCase)]


def test_what_fails_again_and_again_becomes_a_case_and_goes_on_being_tried(exams, accepted, monkeypatch):
    bad, _ = exams.instances(accepted)
    exams.settings.limits.commit_attempts_max = 3
    subject = f"study:{accepted}"

    def try_once() -> None:
        exams.set(Study, accepted, not_before=None)
        commit.work(exams.settings)

    with monkeypatch.context() as broken:
        breaks(commit, "_render", bad, ValueError("山田"), broken)
        for _ in range(2):
            try_once()
        assert cases(exams) == []
        for _ in range(3):
            try_once()
            assert cases(exams) == [("commit_failed", subject, "amber", "OPEN")]
        (case,) = exams.rows(ReconciliationCase)
        assert case.reasons == [f"not in the archive: instance {bad.key}: cannot be stored: ValueError"]
        assert (case.study_pk, case.order_pk) == (accepted, exams.get(Study, accepted).order_pk)
        exams.set(Study, accepted, attempts=5_000)
        try_once()
        assert exams.get(Study, accepted).attempts == 5_001
    try_once()
    assert exams.states(accepted) == ("ARCHIVED", ["STORED", "STORED"])
    assert cases(exams) == [("commit_failed", subject, "amber", "RESOLVED")]
    assert exams.rows(ReconciliationCase)[0].resolution == {"action": "stored"}


def test_what_another_node_has_to_purge_is_left_to_it(exams, accepted):
    commit.work(exams.settings)
    one = exams.instances(accepted)[0]
    exams.set(Instance, one.key, staged_node="another", staged_key="ab/cd/theirs.dcm")
    commit.purge(exams.settings)
    assert exams.get(Instance, one.key).staged_key == "ab/cd/theirs.dcm"


def test_a_file_that_came_while_the_old_one_was_purged_is_not_forgotten(exams, accepted):
    commit.work(exams.settings)
    one = exams.instances(accepted)[0]
    exams.set(Instance, one.key, staged_key="ab/cd/new.dcm")
    db.run(commit._forget_staged, {one.key: "ab/cd/old.dcm"})
    assert exams.get(Instance, one.key).staged_key == "ab/cd/new.dcm"


def test_what_the_archive_lost_is_hidden_and_comes_back_with_the_next_sending(exams):
    ds = ct(StudyInstanceUID=exams.uid("ACC001"))

    def send() -> Instance:
        instance = accept(exams.settings, exams.staging, stage(exams.staging, ds), now=clock.now()).instance
        assert instance is not None
        return instance

    first = send()
    exams.accept(first.study_pk, exams.place())
    commit.work(exams.settings)
    (exams.archive() / exams.get(Instance, first.key).store_key).unlink()
    assert send().key == first.key
    assert exams.states(first.study_pk) == ("RECEIVING", ["HIDDEN"])
    exams.work()
    assert exams.states(first.study_pk) == ("ARCHIVED", ["STORED"])
    instance = exams.get(Instance, first.key)
    assert data_set_sha256(exams.archive() / instance.store_key) == instance.sha256
    assert instance.staged_key == ""
