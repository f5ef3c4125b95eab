"""How many items each key took away, in words; and what of a query one item fails, in the same order."""

import datetime as dt

import pytest

from broker.config import Settings
from broker.dicom import habits, tree
from broker.dicom.habits import NO_HABITS, Habits
from broker.dicom.service import NodeInfo
from broker.mwl import funnel, plan, replay, view, why_keys
from broker.mwl.history import Run
from broker.mwl.replay import Item

NOON = dt.datetime(2025, 12, 1, 3, tzinfo=dt.UTC)
STATION, MODALITY, DATE, TIME, STATUS, NAME = 0x00400001, 0x00080060, 0x00400002, 0x00400003, 0x00400020, 0x00100010
PATIENT, STEPS = 0x00100020, 0x00400100
DIRECTORY = habits.directory({"CT1": Habits(aliases=frozenset({"CT_1"})), "CT2": NO_HABITS})


def query(step: dict[int, str], **keys: str) -> tree.Tree:
    made: tree.Tree = {int(name[1:], 16): (tree.vr_of(int(name[1:], 16)), value) for name, value in keys.items()}
    return made | {STEPS: ("SQ", [{tag: (tree.vr_of(tag), value) for tag, value in step.items()}])}


def item(status: str = "SCHEDULED", hours: float = 0, label: str = "", stations: tuple[str, ...] = ("CT1",)) -> Item:
    """hours: since when it has its status."""
    step = query({
        MODALITY: "CT", STATION: "\\".join(stations), DATE: "20251201", TIME: "0930", STATUS: status,
        0x00400011: "ROOM 1",
    }, x00100010="YAMADA^TARO", x00100020="12345")  # fmt: skip
    named = {"modality": "CT", "patient_id": "12345", "sps_id": "S1", "accession_number": "ACC001"}
    return Item(status, NOON - dt.timedelta(hours=hours), "20251201", label, stations, named, step)


def failing(asked: tree.Tree, shown: Item | None = None, **said: object) -> list[int | str]:
    node = NodeInfo(1, "CT1", "", False, "CT1", frozenset(), "", None, "CT", Habits(**said))
    what = view.of(node, "CT1", Settings(), NOON)
    return replay.failing(plan.of(asked, what, DIRECTORY), what, DIRECTORY, shown or item())


@pytest.mark.parametrize(
    ("step", "keys", "failed"),
    [
        ({}, {}, []), ({STATION: "CT1"}, {}, []), ({STATION: "CT_1"}, {}, []), ({STATION: "CT2"}, {}, [STATION]),
        ({STATION: "CT2", MODALITY: "MR", DATE: "20251202"}, {}, [DATE, MODALITY, STATION]),
        ({TIME: "10"}, {"x00100010": "SATO", "x00100020": "9"}, [PATIENT, TIME, NAME]),
        ({DATE: "20251201-20251202", TIME: "1000-0900"}, {}, [TIME]), ({STATUS: "ARRIVED"}, {}, [STATUS]),
        ({STATION: "CT*", 0x00400011: "ROOM 2"}, {}, [0x00400011]),
    ],
)  # fmt: skip
def test_the_keys_that_an_item_fails_come_in_the_order_in_which_they_count(step, keys, failed):
    assert failing(query(step, **keys)) == failed


@pytest.mark.parametrize(
    ("shown", "said", "failed"),
    [
        (item(), {"hide": habits.NEVER_SHOWN | {"SCHEDULED"}}, [plan.HIDDEN]),
        (item("CANCELED"), {}, [plan.HIDDEN]),
        (item("STARTED", 1), {}, [plan.HIDDEN]),
        (item("STARTED", 1), {"hide": habits.NEVER_SHOWN, "started_hours": 2}, []),
        (item("STARTED", 3), {"hide": habits.NEVER_SHOWN, "started_hours": 2}, [plan.HIDDEN]),
        (item("COMPLETED", 1), {"hide": habits.NEVER_SHOWN, "finished_hours": 2}, []),
        (item("DISCONTINUED", 3), {"hide": habits.NEVER_SHOWN, "finished_hours": 2}, [plan.HIDDEN]),
        (item("COMPLETED", 1), {"hide": habits.NEVER_SHOWN | {"STARTED"}, "finished_hours": 2}, []),
        (item("STARTED", 1), {"hide": habits.NEVER_SHOWN | {"COMPLETED", "DISCONTINUED"}, "started_hours": 2}, []),
        (item(), {"labels": frozenset({"ER"})}, [plan.LABELS]), (item(label="ER"), {"labels": frozenset({"ER"})}, []),
        (item(), {"days_after": 0}, []), (item(), {"days_before": -1}, [plan.WINDOW]),
        (item(stations=("CT2",)), {"sees": ("own",)}, [plan.SEES]), (item(stations=("CT2", "CT_1")), {"sees": ("own",)}, []),
        (item(stations=("CT2",)), {"sees": ("own", "modality")}, []),
        (item(stations=("CT2",)), {"sees": ("own", "location:ROOM 2")}, [plan.SEES]),
        (item(stations=("CT2",)), {"sees": ("location:ROOM 1",)}, []),
    ],
)  # fmt: skip
def test_the_rules_that_hide_an_item_are_named(shown, said, failed):
    assert failing(query({}), shown, **said) == failed


def test_who_asks_for_a_status_may_see_what_has_started():
    assert failing(query({STATUS: "STARTED"}), item("STARTED", 1)) == []


def test_an_item_that_cannot_be_shown_fails_by_its_columns_alone():
    bare = Item("SCHEDULED", None, "20251201", "", ("CT1",), {"modality": "CT"}, {})
    assert failing(query({MODALITY: "MR"}, x00100010="SATO"), bare) == [MODALITY]


def run(removed: list[tuple[str, int]], considered: int = 14) -> Run:
    return Run(1, 1, {}, 0, "", considered, tuple(removed), (), "", "", NOON, NOON, 1)


def test_the_funnel_of_a_query_in_words_holds_the_values_that_name_nobody():
    removed = [("ScheduledProcedureStepStartDate", 0), ("ScheduledStationAETitle", 4), ("PatientName", 10)]
    said = why_keys.funnel(run(removed), query({DATE: "20251201", STATION: "CT_1"}, x00100010="SATO*"))
    assert said == (
        "14 waiting -> 14 after ScheduledProcedureStepStartDate = 20251201"
        " -> 10 after ScheduledStationAETitle = CT_1 -> 0 after PatientName"
    )


def test_what_was_not_counted_is_not_told():
    assert why_keys.funnel(run([], 0), query({})) == ""


def test_each_part_that_is_looked_at_item_by_item_is_counted_with_those_before_it():
    what = view.of(None, "CT1", Settings(), NOON)
    wanted = plan.of(query({DATE: "20251201-", TIME: "1000-", 0x00400011: "R*"}, x00100010="A*"), what, DIRECTORY)
    parts = funnel._parts(wanted)
    assert [name for name, _ in parts] == [
        "ScheduledProcedureStepStartTime", "ScheduledProcedureStepLocation", "PatientName",
    ]  # fmt: skip
    assert set(parts[0][1].rest[STEPS][1][0]) == {DATE, TIME}, "one interval"
    assert parts[-1][1].rest.keys() == {NAME, STEPS}


@pytest.mark.parametrize(
    ("of", "name"), [(STATION, "ScheduledStationAETitle"), (0x00091001, "(0009,1001)"), ("x", "x")]
)
def test_a_key_is_told_by_its_keyword(of, name):
    assert funnel.name_of(of) == name
