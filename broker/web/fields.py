"""What a client may write, beyond its type: bounds that a database has, in one place."""

import datetime as dt
import re
from typing import Annotated

from annotated_types import Interval
from pydantic import AfterValidator

from broker.errors import InvalidValue

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


NO_TEXT = re.compile("[\x00\ud800-\udfff]")  # in UTF-8, or in a column


def _is_text(text: str) -> str:
    if NO_TEXT.search(text):
        raise ValueError("holds what is no character")
    return text


Number = Annotated[int, Interval(ge=-(2**63), le=2**63 - 1)]
Text = Annotated[str, AfterValidator(_is_text)]


def check_time(place: str, text: str) -> None:
    """A time that is UTC within the years of a calendar, whatever its zone. What is no time is left to its reader."""
    try:
        year = dt.datetime.fromisoformat(text).year
    except ValueError:
        return
    if not dt.MINYEAR < year < dt.MAXYEAR:
        raise InvalidValue(place, f"its year must lie between {dt.MINYEAR} and {dt.MAXYEAR}")
