"""The journal: found, read, and what was refused worked off (contract.md 4)."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from broker import clock, db
from broker.config import Settings
from broker.ris_bridge import journal, replay
from broker.ris_bridge.journal import Wanted
from broker.web.auth import Principal, needs
from broker.web.fields import Number, Text

READ = needs("ris", "qc")
QUALITY = needs("qc")
router = APIRouter(prefix="/api/v1/messages")
REASON_CHARACTERS_MAX = 1_000


class Filters(BaseModel):
    """As journal.Wanted has them; a time without its zone is the site's."""

    model_config = ConfigDict(extra="forbid")
    number: Text = ""
    accession: Text = ""
    patient: Text = ""
    placer: Text = ""
    filler: Text = ""
    appointment: Text = ""
    study: Text = ""
    sender: Text = ""
    type: Text = ""
    state: Text = ""
    protocol: Text = ""
    error_code: Text = ""
    since: Text = ""
    until: Text = ""
    limit: Annotated[int, Field(ge=1)] = 100
    after: Annotated[Number, Field(ge=0)] = 0

    def wanted(self, zone: str) -> Wanted:
        return journal.wanted(self.model_dump(include=set(journal.FILTERS)), zone)


class Again(Filters):
    state: Text = "REJECTED"


class Dismissal(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: Annotated[Text, Field(min_length=1, max_length=REASON_CHARACTERS_MAX)]


@router.get("", dependencies=[Depends(READ)])
def listing(request: Request, filters: Annotated[Filters, Query()]) -> dict[str, Any]:
    """The newest first. A page may hold fewer than `limit` and yet go on: there is more until `next` is null."""
    settings: Settings = request.app.state.settings
    return db.read(
        journal.messages, filters.wanted(settings.site.timezone), now=clock.now(),
        limit=min(filters.limit, settings.limits.list_items_max), looked_at=settings.limits.journal_rows_max,
        after=filters.after,
    )  # fmt: skip


@router.get("/exceptions", dependencies=[Depends(READ)])
def exceptions(request: Request) -> dict[str, Any]:
    """What was refused and waits for a person, counted by kind."""
    return db.read(journal.exceptions, now=clock.now(), looked_at=request.app.state.settings.limits.journal_rows_max)


@router.post("/replay")
def replay_many(request: Request, filters: Again, who: Annotated[Principal, Depends(QUALITY)]) -> dict[str, Any]:
    """Refused messages looked at again, in the order in which they came; `next` says where to go on."""
    settings: Settings = request.app.state.settings
    limit = min(filters.limit, settings.limits.list_items_max)
    return replay.replay_many(
        filters.wanted(settings.site.timezone), settings, actor=who.name, limit=limit, after=filters.after
    )


@router.get("/{message_id}", dependencies=[Depends(READ)])
def one(request: Request, message_id: Number, language: Literal["ja", "en"] | None = None) -> dict[str, Any]:
    settings: Settings = request.app.state.settings
    return db.read(
        journal.message, message_id, settings=settings, language=language or settings.site.language, now=clock.now()
    )


@router.post("/{message_id}/replay")
def replay_one(request: Request, message_id: Number, who: Annotated[Principal, Depends(QUALITY)]) -> dict[str, Any]:
    return replay.replay(message_id, request.app.state.settings, actor=who.name)


@router.post("/{message_id}/dismiss")
def dismiss(message_id: Number, wanted: Dismissal, who: Annotated[Principal, Depends(QUALITY)]) -> dict[str, Any]:
    now = clock.now()
    row = db.run(replay.dismiss, message_id, reason=wanted.reason, actor=who.name, now=now)
    return journal.summary(row, now)
