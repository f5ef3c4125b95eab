"""What queries say about a device's habits, and what they do not."""

import datetime as dt

import pytest

from broker.dicom import tree
from broker.errors import Unreadable
from broker.model.site import Node
from broker.mwl import learned
from broker.mwl.learned import Query

STEPS, STATION, DATE = 0x00400100, 0x00400001, 0x00400002
TOKYO = dt.timezone(dt.timedelta(hours=9))
NOON = dt.datetime(2025, 12, 1, 12, 0, tzinfo=TOKYO)


def keys(station: str = "CT1", date: str = "", charset: str = "", level: str = "") -> tree.Tree:
    made: tree.Tree = {STEPS: ("SQ", [{STATION: ("AE", station), DATE: ("DA", date)}])}
    if charset:
        made[tree.CHARSET] = ("CS", charset)
    if level:
        made[0x00080052] = ("CS", level)
    return made


def queries(count: int = 12, *, today: bool = False, at: dt.datetime = NOON, **said: str) -> list[Query]:
    """One a day."""
    days = [at + dt.timedelta(days=n) for n in range(count)]
    return [Query(keys(date=f"{day:%Y%m%d}" if today else "", **said), day, day) for day in days]


def proposed(sent: list[Query], node: Node | None = None, site: str = "ISO_IR 192") -> list[str]:
    return [one.name for one in learned.propose(sent, node or Node(ae_title="CT1"), site)]


def test_a_device_that_asks_as_the_standard_says_is_proposed_nothing():
    assert proposed(queries()) == []


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"station": ""}, "asks-without-station"), ({"station": "*"}, "asks-without-station"),
        ({"today": True}, "asks-for-today"), ({"level": "STUDY"}, "sends-query-level"),
        ({"level": " "}, "sends-query-level"), ({"charset": "\\ISO 2022 IR 87"}, "character-set"),
    ],
)  # fmt: skip
def test_what_every_query_shows_is_proposed_and_what_one_does_not_is_not(said, name):
    assert proposed(queries(**said)) == [name]
    assert proposed([*queries(**said), *queries(1)]) == []


def test_a_device_without_a_step_key_asks_without_station():
    assert proposed([Query({}, NOON, NOON, times=10)]) == ["asks-without-station"]


def test_few_queries_say_nothing_however_they_were_counted():
    assert proposed([Query(keys(station=""), NOON, NOON, times=9)]) == []
    assert proposed([Query(keys(station=""), NOON, NOON, times=10)]) == ["asks-without-station"]
    assert proposed([]) == []


def test_the_evidence_counts_each_query_and_says_since_when():
    later = NOON + dt.timedelta(hours=1)
    (one,) = learned.propose(
        [Query(keys(""), later, later, 4), Query(keys("*"), NOON, later, 8)], Node(ae_title="CT1"), ""
    )
    assert (one.name, one.evidence) == ("asks-without-station", "12 of 12 queries since 2025-12-01 12:00")
    assert one.changes == {"profile": "asks-without-station"}


@pytest.mark.parametrize("date", ["", "20251201-", "20251201-20251202", "20251130", "x", "*"])
def test_a_date_key_that_is_not_the_day_it_came_on_is_no_question_for_today(date):
    other = Query(keys(date=date), NOON, NOON)
    assert proposed([*queries(today=True), other]) == []


def test_the_same_day_as_a_range_is_that_day():
    ranged = Query(keys(date="20251201-20251201"), NOON, NOON)
    assert proposed([*queries(today=True), ranged]) == ["asks-for-today"]


def test_one_day_of_such_questions_is_not_a_habit_yet():
    assert proposed([Query(keys(date="20251201"), NOON, NOON, times=50)]) == []


def test_around_midnight_the_devices_day_may_be_another_than_ours():
    just_before = dt.datetime(2025, 12, 1, 23, 59, tzinfo=TOKYO)
    ahead = Query(keys(date="20251202"), just_before, just_before)
    assert proposed([*queries(today=True), ahead]) == ["asks-for-today"]
    by_day = Query(keys(date="20251202"), NOON, NOON)
    assert proposed([*queries(today=True), by_day]) == []


def test_a_question_that_was_repeated_on_another_day_was_not_for_today():
    for date in ("20251201", "20251202"):
        repeated = Query(keys(date=date), NOON, NOON + dt.timedelta(days=1), 2)
        assert proposed([*queries(today=True), repeated]) == []


@pytest.mark.parametrize(
    ("said", "node"),
    [
        ({"station": ""}, {"profile": "ascii-only,asks-without-station"}),
        ({"station": ""}, {"sees": ["modality"]}),
        ({"station": ""}, {"sees": []}),
        ({"today": True}, {"profile": "asks-for-today"}),
        ({"today": True}, {"profile": "asks-for-today", "quirks": []}),
        ({"today": True}, {"quirks": ["today_is_window"]}),
        ({"level": "STUDY"}, {"quirks": ["query_level"]}),
        ({"charset": "ISO_IR 100"}, {"character_set": "ISO_IR 100"}),
        ({"charset": "ISO_IR 100"}, {"character_set": "REQUEST"}),
        ({"charset": "ISO_IR 100"}, {"profile": "ascii-only"}),
        ({"charset": "ISO_IR 192"}, {}),
        ({"charset": "ISO_IR 6"}, {}),
        ({"charset": "ISO_IR 999"}, {}),
    ],
)
def test_what_the_node_has_or_says_otherwise_is_not_proposed(said, node):
    assert proposed(queries(**said), Node(ae_title="CT1", **node)) == []


def test_a_device_that_declares_now_this_set_now_that_is_proposed_none():
    assert proposed([*queries(charset="ISO_IR 100"), *queries(charset="\\ISO 2022 IR 87")]) == []


def test_all_that_is_taken_is_one_change_beside_what_the_node_says():
    node = Node(ae_title="CT1", profile="ascii-only", quirks=["omit_empty"])
    sent = queries(station="", today=True, level="STUDY")
    proposals = learned.propose(sent, node, "")
    assert [one.name for one in proposals] == ["asks-without-station", "asks-for-today", "sends-query-level"]
    changes = learned.merged(proposals)
    assert changes["profile"] == "ascii-only,asks-without-station,asks-for-today,sends-query-level"
    assert changes["quirks"] == ["omit_empty", "today_is_window", "query_level"]
    for name, value in changes.items():
        setattr(node, name, value)
    assert learned.propose(sent, node, "") == []


@pytest.mark.parametrize("declared", ["", "\\ISO 2022 IR 87", "ISO_IR 100", "ISO_IR 999"])
def test_a_recorded_query_is_read_as_utf_8_whatever_it_declares(declared):
    keys = {tree.CHARSET: ("CS", "ISO_IR 192"), 0x00100010: ("PN", "=山田*")}
    kept = tree.write(keys, tree.EXPLICIT_LE, ("ISO_IR 192",))
    assert learned.keys_of(kept, declared) == {tree.CHARSET: ("CS", declared), 0x00100010: ("PN", "=山田*")}


def test_a_record_that_is_no_data_set_is_said_to_be_none():
    with pytest.raises(Unreadable):
        learned.keys_of(b"\x10\x00\x10\x00PN\xff\xff", "")
