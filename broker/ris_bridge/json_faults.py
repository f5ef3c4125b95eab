"""What is wrong in a body of JSON: where, and in our words. Pure.

A name that a client made up may be the patient's: it is repeated only where it could be a name of ours."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice, takewhile
from typing import Any

from broker.errors import BrokerError, InvalidValue

FAULTS_MAX = 20  # told in one answer
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
Where = Sequence[str | int]
# Kind of fault, as pydantic calls it -> our words for it.
WORDS = {
    "extra_forbidden": "is not known here", "missing": "is required", "string_type": "must be a text",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "too_long": "must have at most {max_length} items", "list_type": "must be a list",
    "model_type": "must be an object", "model_attributes_type": "must be an object", "dict_type": "must be an object",
    "bool_type": "must be true or false", "bool_parsing": "must be true or false",
    "int_type": "must be a whole number", "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number", "int_parsing_size": "must be a whole number of at most 63 bits",
    "float_parsing": "must be a number", "float_type": "must be a number",
    "greater_than_equal": "must be at least {ge}", "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}", "json_invalid": "is no JSON",
    "date_from_datetime_parsing": "is no date of a calendar", "date_parsing": "is no date of a calendar",
    "datetime_parsing": "is no time of a calendar", "datetime_from_date_parsing": "is no time of a calendar",
}  # fmt: skip


def plain(where: Where) -> tuple[str | int, ...]:
    """Up to the first name that cannot be one of ours."""
    return tuple(takewhile(lambda one: isinstance(one, int) or PLAIN_NAME.fullmatch(one), where))


def faults(found: Iterable[Mapping[str, Any]], patterns: Mapping[str, str]) -> list[tuple[Where, str]]:
    """Each once, the first of them. found: pydantic's errors. patterns: expression -> what it wants, in words."""
    each = ((plain(one["loc"]), _words(one, patterns)) for one in found)
    return list(islice(dict.fromkeys(each), FAULTS_MAX))


def refusal(
    found: Iterable[Mapping[str, Any]], patterns: Mapping[str, str], path: Callable[[Where], str]
) -> BrokerError:
    """path: how a place is written."""
    return several(InvalidValue, [(path(where), words) for where, words in faults(found, patterns)])


def several(kind: type[BrokerError], found: Sequence[tuple[str, str]]) -> BrokerError:
    """One error that tells all of them. found: place and text, at least one."""
    error = kind(*found[0])
    error.also = tuple(found[1:FAULTS_MAX])
    return error


def _words(one: Mapping[str, Any], patterns: Mapping[str, str]) -> str:
    kind, said = one["type"], one.get("ctx") or {}
    if kind == "extra_forbidden" and len(plain(one["loc"])) < len(one["loc"]):
        return "holds a name that is not known here"
    if kind == "value_error":
        return str(one["msg"]).removeprefix("Value error, ")
    if kind == "string_pattern_mismatch":
        return patterns.get(said["pattern"], "is not acceptable")
    return WORDS.get(kind, "is not acceptable").format_map(said)
