"""Which patients were merged, and taking it back."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from broker import clock, db
from broker.mwl import merge_log, merges
from broker.web.auth import Principal, needs
from broker.web.fields import Number, Text

QUALITY = needs("qc")
router = APIRouter(prefix="/api/v1/patients", dependencies=[Depends(QUALITY)])
REASON_CHARACTERS_MAX = 1_000


class Undo(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: Annotated[Text, Field(max_length=REASON_CHARACTERS_MAX)] = ""


@router.get("/merges")
def listing(request: Request, limit: Annotated[int, Query(ge=1)] = 100, before: Number | None = None) -> dict[str, Any]:
    """The newest first; `next` is the `before` of the next page."""
    limit = min(limit, request.app.state.settings.limits.list_items_max)
    items, following = db.read(merge_log.listing, limit, before)
    return {"items": items, "next": following}


@router.post("/merges/{merge_id}/undo")
def undo(merge_id: Number, wanted: Undo, who: Annotated[Principal, Depends(QUALITY)]) -> dict[str, Any]:
    db.run(merges.undo, merge_id, now=clock.now(), actor=who.name, reason=wanted.reason)
    return db.read(merge_log.get, merge_id)
