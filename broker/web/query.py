"""Parameters of which none may be misunderstood: what is not known, is said twice or says nothing is refused, for a
list must not be wider than its reader meant."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastapi import Request

from broker import ids
from broker.errors import InvalidValue, MissingField
from broker.ris_bridge import json_faults, rest_orders

Reader = Callable[[str], Any]  # raises ValueError with what it must be
TEXT_CHARACTERS_MAX = 64


def said(request: Request, known: Mapping[str, Reader], must: Collection[str] = ()) -> dict[str, Any]:
    """What is said, as it was read. Raises InvalidValue or MissingField with the parameter; no value is repeated."""
    found: dict[str, Any] = {}
    for name, text in request.query_params.multi_items():
        if name not in known:
            place = name if json_faults.PLAIN_NAME.fullmatch(name) else "query"
            raise InvalidValue(place, f"is not known here; what can be said is {', '.join(known)}")
        if name in found:
            raise InvalidValue(name, "is said twice")
        try:
            found[name] = known[name](text)
        except ValueError as error:
            empty = "is empty: leave it out, or say what is meant"
            raise InvalidValue(name, str(error) if text.strip() else empty) from None
    for name in must:
        if name not in found:
            raise MissingField(name, "must be said")
    return found


def documented(known: Mapping[str, Reader], must: Collection[str] = ()) -> dict[str, Any]:
    """The same for /openapi.json."""
    return {
        "parameters": [
            {"name": name, "in": "query", "required": name in must, "schema": {"type": "string"}} for name in known
        ]
    }


def like(pattern: str, words: str) -> Reader:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(words)
        return text

    return read


def text(said: str) -> str:
    if len(said) > TEXT_CHARACTERS_MAX or not said.strip() or not re.fullmatch(rest_orders.PLAIN, said):
        raise ValueError(f"must have at most {TEXT_CHARACTERS_MAX} characters, no backslash and no control character")
    return said


def text_or_empty(said: str) -> str:
    return text(said) if said else said


def whole(least: int) -> Reader:
    def read(said: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", said) or int(said) < least:
            raise ValueError(f"must be a whole number of at most 18 digits, at least {least}")
        return int(said)

    return read


def yes(said: str) -> bool:
    if said not in ("true", "false"):
        raise ValueError("must be true or false")
    return said == "true"


title = like(ids.AE_TITLE, rest_orders.PATTERNS[ids.AE_TITLE])
