"""What waits for a person: listed, decided, taken back (contract.md 4)."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from broker import clock, db
from broker.archive import cases
from broker.web.auth import Principal, needs
from broker.web.fields import Number, Text

QUALITY = needs("qc")
router = APIRouter(prefix="/api/v1/cases", dependencies=[Depends(QUALITY)])
REASON_CHARACTERS_MAX = 1_000


class Resolution(BaseModel):
    """order_id, sps_id: for match. code: for reject."""

    model_config = ConfigDict(extra="forbid")
    action: Text
    order_id: Number | None = None
    sps_id: Text | None = None
    code: Text | None = None
    reason: Annotated[Text, Field(max_length=REASON_CHARACTERS_MAX)] = ""


class Undo(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: Annotated[Text, Field(max_length=REASON_CHARACTERS_MAX)] = ""


@router.get("")
def listing(
    request: Request,
    state: Literal["OPEN", "TAKEN", "RESOLVED"] | None = None,
    limit: Annotated[int, Query(ge=1)] = 100,
    after: Number = 0,
) -> dict[str, Any]:
    """Those that wait for a person; with state, those of that state."""
    limit = min(limit, request.app.state.settings.limits.list_items_max)
    items, following = db.read(cases.listing, (state,) if state else cases.WAITING, limit, after)
    return {"items": items, "next": following}


@router.get("/{case_id}")
def one(case_id: Number) -> dict[str, Any]:
    return db.read(cases.get, case_id)


@router.post("/{case_id}/resolve")
def resolve(
    request: Request, case_id: Number, wanted: Resolution, who: Annotated[Principal, Depends(QUALITY)]
) -> dict[str, Any]:
    """The case afterwards: RESOLVED, or TAKEN where a second person must say the same."""
    db.run(
        cases.resolve, case_id, wanted.action, principal=who.name, is_person=who.is_person, now=clock.now(),
        settings=request.app.state.settings, order_id=wanted.order_id, sps_id=wanted.sps_id, code=wanted.code,
        reason=wanted.reason,
    )  # fmt: skip
    return db.read(cases.get, case_id)


@router.post("/{case_id}/undo")
def undo(case_id: Number, wanted: Undo, who: Annotated[Principal, Depends(QUALITY)]) -> dict[str, Any]:
    db.run(
        cases.undo, case_id, principal=who.name, is_person=who.is_person, now=clock.now(), reason=wanted.reason
    )  # fmt: skip
    return db.read(cases.get, case_id)
