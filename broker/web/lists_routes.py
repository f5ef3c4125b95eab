"""Lists for people with rights: nodes."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from broker import clock, db, site
from broker.errors import Unsupported
from broker.web.auth import Principal, needs
from broker.web.fields import Text

router = APIRouter(prefix="/api/v1")


@router.get("/nodes", dependencies=[Depends(needs())])
def get_nodes() -> dict[str, Any]:
    return {"items": db.read(lambda session: [row.model_dump(exclude={"pk"}) for row in site.nodes(session)])}


def of_json(request: Request) -> None:
    """A dependency: a body of another type would be read as no object at all."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Unsupported("Content-Type", "must be application/json")


class Accepted(BaseModel):
    """proposals: their names; empty = all."""

    model_config = ConfigDict(extra="forbid")
    proposals: Annotated[list[Text], Field(max_length=100)] = []


@router.get("/nodes/{ae_title:path}/suggestions", dependencies=[Depends(needs())])
def get_suggestions(ae_title: Text, request: Request) -> dict[str, Any]:
    """What its last queries say about a device, and nobody has said yet."""
    return {"items": db.read(site.suggestions, ae_title, request.app.state.settings)}


@router.post("/nodes/{ae_title:path}/suggestions/accept")
def post_accept(
    ae_title: Text,
    wanted: Accepted,
    request: Request,
    who: Annotated[Principal, Depends(needs())],
    _: Annotated[None, Depends(of_json)],
) -> dict[str, Any]:
    """Make the device what is proposed of it."""
    settings = request.app.state.settings
    taken = db.run(site.accept, ae_title, wanted.proposals, settings, now=clock.now(), actor=who.name)
    return {"accepted": taken, "node": db.read(lambda session: site.node(session, ae_title).model_dump(exclude={"pk"}))}
