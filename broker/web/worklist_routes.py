"""The worklist over REST (contract.md 4): lists, what a device gets, what is kept from it and why, labels.

A parameter that is none, is said twice or has no value that can be meant is refused: nothing widens an answer."""

import base64
import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Request, Response

from broker import access, clock, db
from broker.config import Settings, StepState
from broker.errors import InvalidValue
from broker.mwl import exceptions, listed
from broker.mwl.listed import Cursor, Filters
from broker.ris_bridge import rest_orders, rest_road, upstream
from broker.web import intake, query
from broker.web.auth import Principal, needs
from broker.web.fields import NO_TEXT, Number
from broker.web.intake import Key, body
from broker.web.query import Reader

RIS = Annotated[Principal, Depends(needs("ris"))]
READERS = [Depends(needs("ris", "qc"))]
MEDIA = {"application/json": "application/json"}
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


def _day(text: str) -> str:
    """DICOM's form."""
    try:
        return f"{dt.date.fromisoformat(query.like(rest_orders.DAY, '')(text)):%Y%m%d}"
    except ValueError:
        raise ValueError(f"must be a day of the years {rest_orders.YEARS}, written as 1970-01-31") from None


def _statuses(text: str) -> tuple[str, ...]:
    known = get_args(StepState)
    said = tuple(dict.fromkeys(text.split(",")))
    if not set(said) <= set(known):
        raise ValueError(f"must be one or several, parted by commas, of {', '.join(known)}")
    return said


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


FILTERS: Mapping[str, Reader] = {
    "ae": query.title, "date": _day, "from": _day, "to": _day,
    "modality": query.like(rest_orders.MODALITY, rest_orders.PATTERNS[rest_orders.MODALITY]),
    "patient_id": query.text, "accession_number": query.text, "status": _statuses, "label": query.text,
}  # fmt: skip
LISTED = {**FILTERS, "limit": query.whole(1), "cursor": _cursor, "as_shown": query.yes}
PAGED = {"limit": query.whole(1), "after": query.whole(0)}


def _asked(request: Request, known: Mapping[str, Reader]) -> Asked:
    """Raises InvalidValue with the parameter."""
    said = query.said(request, known)
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


@router.get("", dependencies=READERS, openapi_extra=query.documented(LISTED))
def listing(request: Request) -> dict[str, Any]:
    """Steps by their start: `ae` alone is what that device gets now, further filters narrow it; with `status` it is
    the record, hidden or not."""
    settings, now = request.app.state.settings, clock.now()
    asked = _asked(request, LISTED)
    filters = _of(asked, settings, now)
    limit = min(asked.limit, settings.limits.list_items_max)
    rows, following = db.read(listed.listing, filters, settings.worklist, limit, asked.cursor, now=now)
    if asked.as_shown:
        rows = listed.with_shown(rows, asked.ae, settings, now)
    rows = db.read(upstream.marked, rows)
    return {"items": rows, "next": _written(following)}


@router.get("/count", dependencies=READERS, openapi_extra=query.documented(FILTERS))
def count(request: Request) -> dict[str, int]:
    """Of what the list would hold."""
    settings, now = request.app.state.settings, clock.now()
    asked = _asked(request, FILTERS)
    return {"count": db.read(listed.count, _of(asked, settings, now), settings.worklist, now=now)}


@router.get("/exceptions", dependencies=READERS, openapi_extra=query.documented(PAGED))
def kept_out(request: Request) -> dict[str, Any]:
    """Steps that are on no worklist, or not on that of one device: what is missing, and how to mend it."""
    asked = _asked(request, PAGED)
    limit = min(asked.limit, request.app.state.settings.limits.list_items_max)
    items, following = db.read(exceptions.listing, limit, asked.after)
    return {"items": items, "next": following}


@router.post("/{step_id}/label", openapi_extra=intake.BODY)
def label(
    request: Request, step_id: Number, body: Annotated[bytes, Depends(body)], who: RIS, idempotency_key: Key = ""
) -> Response:
    """`{"label"}`: of the worklist on which the step stands; null: of none."""
    return intake.take(rest_road.take, request, body, who, idempotency_key, MEDIA)
