"""What a device's character set keeps from it is said once; what it is not offered at all becomes a person's question."""

import datetime as dt

import pytest
import structlog.testing

from broker import access, casebook, clock, db, site
from broker.dicom import tree
from broker.errors import UnknownKey
from broker.model.images import ReconciliationCase
from broker.model.orders import ScheduledStep
from broker.mwl import answers, as_shown, dataset, exceptions, items, patients
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
    assert case.reasons[0] == "step S0ACC001 of RPACC001, version 1, is not offered to CT1: romaji missing"


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


def test_people_are_told_what_a_device_is_not_offered_and_why(exams, settings):
    exams.place("ACC001")
    exams.place("ACC002", PersonCommand((Identifier("2", "HOSP"),), name="=山田^太郎", birth_date="19700101", sex="M"))
    db.run(site.add_node, "CT1", host="127.0.0.1", port=104, character_set="ASCII", now=clock.now(),
           actor="test")  # fmt: skip
    access.forget()
    shown, withheld = sorted(as_shown.listing("CT1", settings, clock.now()), key=lambda row: row["accession_number"])
    assert shown["shown"]["Patient's Name"] == "YAMADA^TARO"
    assert shown["record"]["Patient's Name"] == "YAMADA^TARO=山田^太郎=ヤマダ^タロウ"
    assert "the ideographic group of Patient's Name is left out" in shown["warnings"]
    assert (withheld["shown"], withheld["warnings"]) == ({}, ["is not offered: romaji missing"])


def test_what_an_unknown_device_would_show_is_told_only_where_it_would_be_answered(exams, settings):
    """It is shown what its keys ask for: its own title, as most do."""
    exams.place()  # for CT1, which nobody has configured here
    access.forget()
    with pytest.raises(UnknownKey, match="broker node add CT1"):
        as_shown.listing("CT1", settings, clock.now())
    settings.dicom.unknown_ae = "accept"
    assert as_shown.listing("CT7", settings, clock.now()) == [], "what is another's"
    (row,) = as_shown.listing("CT1", settings, clock.now())
    assert (row["character_set"], row["warnings"]) == ("\\ISO 2022 IR 87", [])


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


# What cannot be written at all


def item(top: dict | None = None, **step: object) -> bytes:
    scheduled = {
        "ScheduledStationAETitle": "CT1", "ScheduledProcedureStepStartDate": "20350705", "Modality": "CT",
        "ScheduledProcedureStepStartTime": "0900", "ScheduledProcedureStepID": "S1", **step,
    }  # fmt: skip
    said = {"PatientName": "YAMADA^TARO", "PatientID": "1", "AccessionNumber": "A1", **(top or {})}
    return dataset.encode_item(dataset.to_tree({**said, "ScheduledProcedureStepSequence": [scheduled]}))


ALL = tuple(sorted({**as_shown.KEYS, dataset.STEP_SEQUENCE: None}.items()))
LONG = "aあ" * 16_000  # 64,000 bytes as it is stored; in a set with escapes more than an explicit VR can hold
SHORT_LOOK = answers.Look(("\\ISO 2022 IR 87",))


@pytest.mark.parametrize(
    ("data", "zone", "why"),
    [
        (item({"RequestedProcedureComments": LONG}), None, "cannot be encoded: (0040,1400)"),
        (item(CommentsOnTheScheduledProcedureStep=LONG), None, "cannot be encoded: (0040,0400)"),
        (item(ScheduledProtocolCodeSequence=[{"CodeValue": "A"}, {"CodeValue": "B", "CodeMeaning": LONG}]), None,
         "cannot be encoded: (0008,0104)"),
        (item(ScheduledProcedureStepStartDate="20350231"), dt.UTC, "cannot be encoded: (0008,0201)"),
        (item(ScheduledProcedureStepStartTime="noon"), dt.UTC, "cannot be encoded: (0008,0201)"),
        (item(ScheduledProcedureStepStartDate="99991231", ScheduledProcedureStepStartTime="235960"), dt.UTC,
         "cannot be encoded: (0008,0201)"),
        (b"\xff" * 9, None, "cannot be read"),
    ],
    ids=["long", "long, of the step", "long, inside a code", "no day", "no time", "after the last day", "unreadable"],
)  # fmt: skip
def test_an_item_of_which_something_cannot_be_written_is_not_offered_and_says_what_it_is(data, zone, why):
    made = answers.answer(data, "SCHEDULED", ALL, tree.EXPLICIT_LE, SHORT_LOOK, zone)
    assert (made.dataset, made.withheld) == (b"", why)


def test_a_character_where_no_set_of_the_device_is_used_is_named_by_its_tag():
    made = answers.answer(item(), "SCHEDULED", ALL, tree.EXPLICIT_LE, SHORT_LOOK, None, ("山",))
    assert made.withheld == "cannot be encoded: (0040,0001)"


def test_it_costs_the_device_that_item_alone(exams, settings, recorder):
    first, _ = exams.place("ACC001"), exams.place("ACC002")
    exams.set(ScheduledStep, 1, dataset=item({"RequestedProcedureComments": LONG, "AccessionNumber": "ACC001"}))
    db.run(site.add_node, "CT1", host="127.0.0.1", port=104, now=clock.now(), actor="test")
    access.forget()
    rows = {row["step_id"]: row for row in as_shown.listing("CT1", settings, clock.now())}
    assert rows[1]["warnings"] == ["is not offered: cannot be encoded: (0040,1400)"]
    assert (rows[2]["shown"]["Accession Number"], rows[2]["warnings"]) == ("ACC002", [])
    recorder.tell("CT1", [Loss(1, 1, frozenset(), "cannot be encoded: (0040,1400)")], clock.now())
    assert cases(exams) == [(f"order:{first}", "OPEN", 1)]
    (told,), _ = db.read(exceptions.listing, 10)
    assert told["says"] == "CT1 is not shown it: cannot be encoded: (0040,1400)"
