"""Lists for people with rights: worklist, messages, nodes."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from sqlmodel import Session, col, select

from broker import clock, db, site
from broker.errors import UnknownKey
from broker.model.messages import Message
from broker.mwl import worklist
from broker.web.auth import needs

router = APIRouter(prefix="/api/v1")


@router.get("/worklist", dependencies=[Depends(needs("ris", "qc"))])
def get_worklist(request: Request, ae: str | None = None) -> dict[str, Any]:
    return {"items": db.read(worklist.listing, ae, request.app.state.settings.limits.list_items_max)}


@router.get("/messages", dependencies=[Depends(needs("ris", "qc"))])
def get_messages(
    request: Request, state: str | None = None, limit: Annotated[int, Query(ge=1)] = 100
) -> dict[str, Any]:
    return {"items": db.read(messages, state, min(limit, request.app.state.settings.limits.list_items_max))}


@router.get("/messages/{message_id}", dependencies=[Depends(needs("ris", "qc"))])
def get_message(message_id: int) -> dict[str, Any]:
    return db.read(message, message_id)


@router.get("/nodes", dependencies=[Depends(needs())])
def get_nodes() -> dict[str, Any]:
    return {"items": db.read(lambda session: [row.model_dump(exclude={"pk"}) for row in site.nodes(session)])}


def messages(session: Session, state: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest first, without their content."""
    query = select(Message).order_by(col(Message.pk).desc()).limit(limit)
    if state:
        query = query.where(Message.state == state)
    return [summary(row) for row in session.exec(query)]


def message(session: Session, pk: int) -> dict[str, Any]:
    """With its raw bytes and its answer, as Latin-1 text so that every byte shows."""
    row = session.get(Message, pk)
    if row is None:
        raise UnknownKey("message_id", "no such message")
    return {**summary(row), "raw": row.raw.decode("latin_1"), "answer": row.answer.decode("latin_1")}


def summary(row: Message) -> dict[str, Any]:
    return {
        "id": row.pk, "received_at": clock.iso(row.received_at), "type": row.type, "sender": row.sender,
        "peer": row.peer, "control_id": row.control_id, "state": row.state, "error_code": row.error_code,
        "error_place": row.error_place, "error_text": row.error_text, "became": row.became, "order_id": row.order_pk,
        "sha256": row.sha256,
    }  # fmt: skip
