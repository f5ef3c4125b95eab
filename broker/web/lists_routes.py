"""Lists for people with rights: worklist, nodes."""

from typing import Any

from fastapi import APIRouter, Depends, Request

from broker import db, site
from broker.mwl import worklist
from broker.web.auth import needs

router = APIRouter(prefix="/api/v1")


@router.get("/worklist", dependencies=[Depends(needs("ris", "qc"))])
def get_worklist(request: Request, ae: str | None = None) -> dict[str, Any]:
    return {"items": db.read(worklist.listing, ae, request.app.state.settings.limits.list_items_max)}


@router.get("/nodes", dependencies=[Depends(needs())])
def get_nodes() -> dict[str, Any]:
    return {"items": db.read(lambda session: [row.model_dump(exclude={"pk"}) for row in site.nodes(session)])}
