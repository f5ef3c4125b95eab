"""Which digits are a moment, and which are not."""

import datetime as dt

import pytest

from broker import clock

UTC = dt.UTC


@pytest.mark.parametrize(
    ("date", "time", "zone", "moment"),
    [
        ("20251201", "093000", "Asia/Tokyo", dt.datetime(2025, 12, 1, 0, 30, tzinfo=UTC)),
        ("20251201", "0930", "Asia/Tokyo", dt.datetime(2025, 12, 1, 0, 30, tzinfo=UTC)),
        ("20251201", "", "Asia/Tokyo", dt.datetime(2025, 11, 30, 15, tzinfo=UTC)),
        ("00010101", "000000", "UTC", dt.datetime(1, 1, 1, tzinfo=UTC)),
        ("20250230", "093000", "Asia/Tokyo", None),
        ("", "093000", "Asia/Tokyo", None),
        ("20251201", "half past nine", "Asia/Tokyo", None),
    ],
)
def test_a_date_and_a_time_of_the_site_are_a_moment(date, time, zone, moment):
    assert clock.aware(date, time, zone) == moment


@pytest.mark.parametrize(
    ("date", "time", "zone"), [("00010101", "000000", "Asia/Tokyo"), ("99991231", "235959", "America/New_York")]
)
def test_what_lies_before_or_after_the_calendar_of_utc_is_no_moment(date, time, zone):
    """Some systems say `0001-01-01` for none."""
    assert clock.aware(date, time, zone) is None
