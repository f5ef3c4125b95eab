"""An exam that is moved to another day or another device is found where it is now, and no longer where it was."""

import datetime as dt

import pytest

from tests.flow.test_schedule_and_report import SIU_ONLY, slot, told, use
from tests.house import House
from tests.world import TOKYO, order

JULY, AUGUST = (dt.datetime(2035, month, 5, 9, 30, tzinfo=TOKYO) for month in (7, 8))


def found(broker: House, station: str, day: str) -> list[str]:
    """SPS IDs that a device gets which asks for its station and that day, as most do."""
    items = broker.modality(station).worklist(ScheduledProcedureStepStartDate=day)
    return [item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for item in items]


def on(broker: House) -> dict[tuple[str, str], list[str]]:
    """Where something is found."""
    days = ("20350705", "20350805", "20350704-20350706", "20350801-")
    asked = {(station, day): found(broker, station, day) for station in ("CT1", "CT2") for day in days}
    return {where: items for where, items in asked.items() if items}


IN_JULY = {("CT1", "20350705"): ["S1ACC001"], ("CT1", "20350704-20350706"): ["S1ACC001"]}
IN_AUGUST = {("CT1", "20350805"): ["S1ACC001"], ("CT1", "20350801-"): ["S1ACC001"]}
AT_CT2 = {("CT2", day): items for (_, day), items in IN_JULY.items()}
ELSEWHERE = {("CT2", day): items for (_, day), items in IN_AUGUST.items()}


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"start": AUGUST}, IN_AUGUST), ({"start": JULY, "station": "CT2"}, AT_CT2),
        ({"start": AUGUST, "station": "CT2"}, ELSEWHERE),
    ],
    ids=["another day", "another device", "both"],
)  # fmt: skip
def test_a_change_of_the_order_moves_it(broker, changed, where):
    broker.place(order("ACC001", start=JULY))
    assert on(broker) == IN_JULY
    broker.place(order("ACC001", **changed), "XO")
    assert on(broker) == where


@pytest.mark.parametrize(
    ("start", "room", "where"),
    [(AUGUST, "CT-A", IN_AUGUST), (JULY, "CT-B", AT_CT2), (AUGUST, "CT-B", ELSEWHERE)],
    ids=["another day", "another device", "both"],
)
def test_its_appointment_moves_it(broker, start, room, where):
    use(broker, SIU_ONLY.replace('"place"', '"refuse"'), application="RIS")
    broker.place(order("ACC001", start=JULY))
    assert on(broker) == IN_JULY
    assert told(broker, slot("S13", start, room=room)) == "AA"
    assert on(broker) == where


def test_of_two_exams_of_an_order_that_alone_which_is_moved_leaves_its_device(broker):
    broker.place(order("ACC001", start=JULY, steps=2))
    broker.place(order("ACC001", start=JULY, station="CT2", steps=1), "XO")
    assert on(broker) == {
        **{where: ["S2ACC001"] for where in IN_JULY}, **{where: ["S1ACC001"] for where in AT_CT2},
    }  # fmt: skip


def test_what_was_held_while_it_was_moved_is_found_on_its_new_day_when_it_is_released(broker):
    broker.place(order("ACC001", start=JULY))
    broker.place(order("ACC001", start=JULY), "HD")
    broker.place(order("ACC001", start=AUGUST), "XO")
    assert on(broker) == {}
    broker.place(order("ACC001", start=AUGUST), "RL")
    assert on(broker) == IN_AUGUST
