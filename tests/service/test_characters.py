"""What a device's character set keeps from it is said once; what it is not offered at all becomes a person's question."""

import pytest
import structlog.testing

from broker import casebook, clock, db
from broker.model.images import ReconciliationCase
from broker.model.orders import ScheduledStep
from broker.mwl import items, patients
from broker.mwl.commands import Identifier, PatientCommand, PersonCommand
from broker.mwl.offered import Loss, Recorder
from tests.service.exam import Exams

ROMAJI = "romaji missing"


@pytest.fixture
def exams(database, settings) -> Exams:
    return Exams(settings)


@pytest.fixture
def recorder(settings) -> Recorder:
    return Recorder(settings)


def tell(recorder: Recorder, exams: Exams, *ae_titles: str, withheld: str = ROMAJI) -> None:
    """Each of these devices asks for its worklist."""
    for ae_title in ae_titles:
        steps = exams.rows(ScheduledStep)
        losses = [Loss(step.key, step.version, frozenset({"group"}), withheld) for step in steps]
        recorder.tell(ae_title, losses, clock.now())


def cases(exams: Exams) -> list[tuple[str, str, int]]:
    """(subject, state, how many reasons) of each."""
    return [
        (case.subject, case.state, len(case.reasons)) for case in exams.rows(ReconciliationCase, kind=items.CHARACTERS)
    ]


def test_an_order_has_one_case_for_all_its_steps_and_devices(exams, recorder):
    first, second = exams.place("ACC001", steps=2), exams.place("ACC002")
    with structlog.testing.capture_logs() as logs:
        tell(recorder, exams, "CT1", "CT1", "CT2")
    assert cases(exams) == [(f"order:{first}", "OPEN", 4), (f"order:{second}", "OPEN", 2)]
    assert len(logs) == 6, "once for each device and version of a step"
    case = exams.rows(ReconciliationCase)[0]
    assert (case.level, case.order_pk) == ("amber", first)
    assert case.reasons[0] == "step S0ACC001, version 1, is not offered to CT1: romaji missing"


def test_what_a_person_has_seen_is_asked_again_only_for_another_version(exams, recorder, settings):
    order = exams.place()
    tell(recorder, exams, "CT1")
    db.run(close)
    tell(Recorder(settings), exams, "CT1")  # another process, or this one after a start
    assert cases(exams) == [(f"order:{order}", "RESOLVED", 1)]
    db.run(rename, "=山田^次郎")
    tell(recorder, exams, "CT1")
    assert cases(exams) == [(f"order:{order}", "RESOLVED", 1), (f"order:{order}", "OPEN", 1)]


def close(session) -> None:
    case = session.get_one(ReconciliationCase, 1)
    casebook.close_case(session, case, now=clock.now(), actor="test", resolution={"action": "acknowledge"})


def rename(session, name: str) -> None:
    person = PersonCommand((Identifier("0000012345", "HOSP"),), name=name)
    patients.apply(session, PatientCommand("update", person, cause="ADT^A08"), now=clock.now(), actor="test")


def test_a_changed_item_closes_the_question_about_the_version_before(exams, recorder):
    order = exams.place()
    tell(recorder, exams, "CT1")
    db.run(rename, "YAMADA^TARO=山田^太郎")
    assert cases(exams) == [(f"order:{order}", "RESOLVED", 1)]


def test_what_is_shown_in_part_is_logged_and_asks_nobody(exams, recorder):
    exams.place()
    with structlog.testing.capture_logs() as logs:
        tell(recorder, exams, "CT1", withheld="")
    assert [(event["event"], event["lost"]) for event in logs] == [("worklist.characters", ["group"])]
    assert cases(exams) == []


def test_the_reasons_of_a_case_have_an_end(exams, recorder):
    order = exams.place()
    tell(recorder, exams, *(f"CT{n}" for n in range(items.REASONS_MAX + 5)))
    assert cases(exams) == [(f"order:{order}", "OPEN", items.REASONS_MAX)]


def test_a_question_that_cannot_be_written_costs_no_answer_and_is_asked_at_the_next_query(exams, recorder, monkeypatch):
    order = exams.place()

    def fail(*_args, **_kwargs):
        raise OSError("database away")

    monkeypatch.setattr(items, "ask_about_characters", fail)
    tell(recorder, exams, "CT1")
    assert cases(exams) == []
    monkeypatch.undo()
    tell(recorder, exams, "CT1")
    assert cases(exams) == [(f"order:{order}", "OPEN", 1)]
