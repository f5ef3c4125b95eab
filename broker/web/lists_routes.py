"""Lists for people with rights: worklist, messages, nodes."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from broker import db, site
from broker.mwl import worklist
from broker.ris_bridge import journal
from broker.web.auth import needs
from broker.web.fields import Number

router = APIRouter(prefix="/api/v1")


@router.get("/worklist", dependencies=[Depends(needs("ris", "qc"))])
def get_worklist(request: Request, ae: str | None = None) -> dict[str, Any]:
    return {"items": db.read(worklist.listing, ae, request.app.state.settings.limits.list_items_max)}


@router.get("/messages", dependencies=[Depends(needs("ris", "qc"))])
def get_messages(
    request: Request, state: str | None = None, limit: Annotated[int, Query(ge=1)] = 100
) -> dict[str, Any]:
    return {"items": db.read(journal.messages, state, min(limit, request.app.state.settings.limits.list_items_max))}


@router.get("/messages/{message_id}", dependencies=[Depends(needs("ris", "qc"))])
def get_message(message_id: Number) -> dict[str, Any]:
    return db.read(journal.message, message_id)


@router.get("/nodes", dependencies=[Depends(needs())])
def get_nodes() -> dict[str, Any]:
    return {"items": db.read(lambda session: [row.model_dump(exclude={"pk"}) for row in site.nodes(session)])}
