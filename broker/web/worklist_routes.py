"""The worklist over REST (contract.md 4): lists, what a device gets, what is kept from it and why, labels.

A parameter that is none, is said twice or has no value that can be meant is refused: nothing widens an answer."""

import base64
import datetime as dt
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request, Response
from starlette.datastructures import QueryParams

from broker import access, clock, db, ids
from broker.config import Settings, StepState
from broker.errors import InvalidValue
from broker.mwl import exceptions, listed
from broker.mwl.listed import Cursor, Filters
from broker.ris_bridge import json_faults, rest_orders, rest_road, upstream
from broker.web import intake
from broker.web.auth import Principal, needs
from broker.web.fields import NO_TEXT, Number
from broker.web.intake import Key, body

RIS = Annotated[Principal, Depends(needs("ris"))]
READERS = [Depends(needs("ris", "qc"))]
MEDIA = {"application/json": "application/json"}
TEXT_CHARACTERS_MAX = 64
router = APIRouter(prefix=rest_road.STEPS)


# What is asked


@dataclass(frozen=True)
class Asked:
    """ae: of whom it is a preview, unless statuses are asked for."""

    filters: Filters
    ae: str = ""
    as_shown: bool = False
    limit: int = 100
    cursor: Cursor | None = None
    after: int = 0


def _like(pattern: str, words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(words)
        return text

    return read


def _text(text: str) -> str:
    if len(text) > TEXT_CHARACTERS_MAX or not re.fullmatch(rest_orders.PLAIN, text):
        raise ValueError(f"must have at most {TEXT_CHARACTERS_MAX} characters, no backslash and no control character")
    return text


def _day(text: str) -> str:
    """DICOM's form."""
    try:
        return f"{dt.date.fromisoformat(_like(rest_orders.DAY, '')(text)):%Y%m%d}"
    except ValueError:
        raise ValueError("must be a day of a calendar, written as 1970-01-31") from None


def _statuses(text: str) -> tuple[str, ...]:
    known = get_args(StepState)
    said = tuple(dict.fromkeys(text.split(",")))
    if not set(said) <= set(known):
        raise ValueError(f"must be one or several, parted by commas, of {', '.join(known)}")
    return said


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise ValueError(f"must be a whole number, at least {least}")
        return int(text)

    return read


def _yes(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _cursor(text: str) -> Cursor:
    """As `next` was told."""
    try:
        date, time, sps_id, key = json.loads(base64.b64decode(text, altchars=b"-_", validate=True))
        is_text = all(isinstance(one, str) and not NO_TEXT.search(one) for one in (date, time, sps_id))
        if not is_text or type(key) is not int or not 0 <= key < 2**63:
            raise ValueError
    except (ValueError, TypeError, RecursionError):
        raise ValueError("must be what `next` of the page before says") from None
    return date, time, sps_id, key


def _written(cursor: Cursor | None) -> str | None:
    return base64.urlsafe_b64encode(json.dumps(cursor).encode()).decode() if cursor else None


Reader = Callable[[str], Any]
FILTERS: Mapping[str, Reader] = {
    "ae": _like(ids.AE_TITLE, rest_orders.PATTERNS[ids.AE_TITLE]), "date": _day, "from": _day, "to": _day,
    "modality": _like(rest_orders.MODALITY, rest_orders.PATTERNS[rest_orders.MODALITY]), "patient_id": _text,
    "accession_number": _text, "status": _statuses, "label": _text,
}  # fmt: skip
LISTED = {**FILTERS, "limit": _whole(1), "cursor": _cursor, "as_shown": _yes}
PAGED = {"limit": _whole(1), "after": _whole(0)}


def _asked(params: QueryParams, known: Mapping[str, Reader]) -> Asked:
    """Raises InvalidValue with the parameter; its value is not repeated."""
    said: dict[str, Any] = {}
    for name, text in params.multi_items():
        if name not in known:
            place = name if json_faults.PLAIN_NAME.fullmatch(name) else "query"
            raise InvalidValue(place, f"is not known here; what can be said is {', '.join(known)}")
        if name in said:
            raise InvalidValue(name, "is said twice")
        try:
            said[name] = known[name](text)
        except ValueError as error:
            raise InvalidValue(name, str(error) if text else "is empty: leave it out, or say what is meant") from None
    if "date" in said and {"from", "to"} & said.keys():
        raise InvalidValue("date", "goes without from and to")
    first, last = said.get("date", said.get("from", "")), said.get("date", said.get("to", ""))
    if first and last and first > last:
        raise InvalidValue("from", "is after to")
    filters = Filters(
        first=first, last=last, modality=said.get("modality", ""), patient_id=said.get("patient_id", ""),
        accession_number=said.get("accession_number", ""), statuses=said.get("status", ()),
        label=said.get("label", ""),
    )  # fmt: skip
    options = {name: said[name] for name in ("ae", "as_shown", "limit", "cursor", "after") if name in said}
    return Asked(filters, **options)


def _of(asked: Asked, settings: Settings, now: dt.datetime) -> Filters:
    """With the steps or stations of the device that is asked for. A device gets nothing of an asked status: then it is
    the record that is listed."""
    if asked.as_shown and (not asked.ae or asked.filters.statuses):
        raise InvalidValue("as_shown", "is of what one device gets: it goes with ae, and without status")
    if not asked.ae:
        return asked.filters
    db.read(listed.check_title, asked.ae)
    if asked.filters.statuses:
        return replace(asked.filters, ae_titles=access.directory().means(asked.ae))
    found = listed.of_device(asked.ae, asked.filters, settings, now)
    return replace(asked.filters, step_pks=tuple(one.step_pk for one in found))


# Routes


@router.get("", dependencies=READERS)
def listing(request: Request) -> dict[str, Any]:
    """Steps by their start: `ae` alone is what that device gets now, further filters narrow it; with `status` it is
    the record, hidden or not."""
    settings, now = request.app.state.settings, clock.now()
    asked = _asked(request.query_params, LISTED)
    filters = _of(asked, settings, now)
    limit = min(asked.limit, settings.limits.list_items_max)
    rows, following = db.read(listed.listing, filters, settings.worklist, limit, asked.cursor, now=now)
    if asked.as_shown:
        rows = listed.with_shown(rows, asked.ae, settings, now)
    rows = db.read(upstream.marked, rows)
    return {"items": rows, "next": _written(following)}


@router.get("/count", dependencies=READERS)
def count(request: Request) -> dict[str, int]:
    """Of what the list would hold."""
    settings, now = request.app.state.settings, clock.now()
    asked = _asked(request.query_params, FILTERS)
    return {"count": db.read(listed.count, _of(asked, settings, now), settings.worklist, now=now)}


@router.get("/exceptions", dependencies=READERS)
def kept_out(request: Request) -> dict[str, Any]:
    """Steps that are on no worklist, or not on that of one device: what is missing, and how to mend it."""
    asked = _asked(request.query_params, PAGED)
    limit = min(asked.limit, request.app.state.settings.limits.list_items_max)
    items, following = db.read(exceptions.listing, limit, asked.after)
    return {"items": items, "next": following}


@router.post("/{step_id}/label", openapi_extra=intake.BODY)
def label(
    request: Request, step_id: Number, body: Annotated[bytes, Depends(body)], who: RIS, idempotency_key: Key = ""
) -> Response:
    """`{"label"}`: of the worklist on which the step stands; null: of none."""
    return intake.take(rest_road.take, request, body, who, idempotency_key, MEDIA)
