"""The only clock. Everything below an adapter gets `now` as an argument."""

import datetime as dt
from zoneinfo import ZoneInfo


def now() -> dt.datetime:
    """The present, aware, UTC."""
    return dt.datetime.now(dt.UTC)


def iso(at: dt.datetime) -> str:
    """`2025-12-01T01:02:03.456789Z`: the form of every time that leaves over HTTP."""
    return at.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def local(at: dt.datetime, zone: str) -> tuple[str, str]:
    """DICOM DA and TM (whole seconds) of `at` in the site's zone, as modalities show them."""
    here = at.astimezone(ZoneInfo(zone))
    return here.strftime("%Y%m%d"), here.strftime("%H%M%S")


def aware(date: str, time: str, zone: str) -> dt.datetime | None:
    """The moment of a DICOM DA + TM in `zone`; None where they are not a moment.

    time: HHMMSS.FFFFFF cut anywhere at an even digit; empty is midnight."""
    digits = time.split(".")[0].ljust(6, "0")
    try:
        naive = dt.datetime.strptime(date + digits[:6], "%Y%m%d%H%M%S")  # noqa: DTZ007  zone is set on the next line
        return naive.replace(tzinfo=ZoneInfo(zone)).astimezone(dt.UTC)
    except (ValueError, OverflowError):  # year 1 in Tokyo is none of UTC; some systems say it for no time at all
        return None
