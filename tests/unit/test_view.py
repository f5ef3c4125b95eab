"""What a device may see, whatever it asks for."""

import datetime as dt

import pytest
from pydantic import ValidationError

from broker.config import DAYS_MAX, HOURS_MAX, Settings, Worklist
from broker.dicom.habits import Habits
from broker.dicom.service import NodeInfo
from broker.mwl import view

NOON = dt.datetime(2035, 7, 6, 3, tzinfo=dt.UTC)  # in Tokyo


def of(now: dt.datetime = NOON, **habits) -> view.View:
    node = NodeInfo(1, "CT1", "", True, "CT1", frozenset(), "", None, "CT", Habits(**habits))
    return view.of(node, "CT1", Settings(), now)


def test_today_is_that_of_the_site():
    assert of(dt.datetime(2035, 7, 5, 23, tzinfo=dt.UTC)).today == "20350706"
    assert of(dt.datetime(2035, 7, 6, 14, 59, tzinfo=dt.UTC)).today == "20350706"
    assert of(dt.datetime(2035, 7, 6, 15, tzinfo=dt.UTC)).today == "20350707"


def test_a_window_is_counted_from_today_and_may_be_open_at_either_end():
    assert (of(days_before=1, days_after=2).first_day, of(days_before=1, days_after=2).last_day) == (
        "20350705",
        "20350708",
    )
    assert (of(days_before=0).first_day, of(days_before=0).last_day) == ("20350706", "")


def test_no_device_is_answered_more_than_the_site_allows():
    most = Settings().limits.worklist_matches_max
    assert of().matches_max == of(matches_max=most + 1).matches_max == most
    assert of(matches_max=2).matches_max == 2


LONGEST = {"started_hours": HOURS_MAX, "finished_hours": HOURS_MAX, "snapshot_hours_max": HOURS_MAX,
           "expire_days": DAYS_MAX, "idle_days": DAYS_MAX, "queries_days": DAYS_MAX}  # fmt: skip


@pytest.mark.parametrize("name", LONGEST)
def test_what_a_site_means_as_never_has_a_limit_that_is_still_a_time(name):
    with pytest.raises(ValidationError):
        Worklist(**{name: LONGEST[name] + 1})
    view.of(None, "CT1", Settings(worklist=Worklist(**LONGEST)), NOON)


@pytest.mark.parametrize(
    ("hide", "waiting", "shown"),
    [
        (None, ("SCHEDULED", "ARRIVED", "READY"), []),
        (["READY", "STARTED"], ("SCHEDULED", "ARRIVED"), ["COMPLETED", "DISCONTINUED"]),
        (["COMPLETED"], ("SCHEDULED", "ARRIVED", "READY"), ["STARTED", "DISCONTINUED"]),
        (["DISCONTINUED"], ("SCHEDULED", "ARRIVED", "READY"), ["STARTED", "COMPLETED"]),
        ([], ("SCHEDULED", "ARRIVED", "READY"), ["STARTED", "COMPLETED", "DISCONTINUED"]),
    ],
)
def test_each_status_is_hidden_by_itself(hide, waiting, shown):
    what = of(hide=None if hide is None else frozenset(hide))
    assert what.waiting == waiting
    states = ("STARTED", "COMPLETED", "DISCONTINUED", "CANCELED", "NO_SHOW", "EXPIRED", "ON_HOLD")
    assert [status for status in states if what.border(status)] == shown


def test_what_has_begun_or_ended_stays_for_the_hours_of_the_device():
    what = of(hide=frozenset(), started_hours=2, finished_hours=0.5)
    assert what.border("STARTED") == NOON - dt.timedelta(hours=2)
    assert what.border("COMPLETED") == NOON - dt.timedelta(minutes=30)


def test_who_asks_for_a_status_is_shown_what_has_begun_unless_its_node_hides_it():
    assert of().started_if_asked == NOON - dt.timedelta(hours=24)
    assert of(hide=frozenset({"COMPLETED"})).started_if_asked
    assert of(hide=frozenset({"STARTED"})).started_if_asked is None
