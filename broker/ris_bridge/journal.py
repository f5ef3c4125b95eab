"""Reads of the journal, for the command line and the API, and the note that an answer went out."""

from collections.abc import Collection
from typing import Any

from sqlmodel import Session, col, select, update

from broker import clock
from broker.errors import UnknownKey
from broker.model.messages import Message


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


def note_sent(session: Session, pks: Collection[int]) -> None:
    """Their answers reached the socket."""
    session.exec(update(Message).where(col(Message.pk).in_(pks)).values(answer_sent=True))


def summary(row: Message) -> dict[str, Any]:
    return {
        "id": row.pk, "received_at": clock.iso(row.received_at), "type": row.type, "sender": row.sender,
        "peer": row.peer, "control_id": row.control_id, "state": row.state, "error_code": row.error_code,
        "error_place": row.error_place, "error_text": row.error_text, "became": row.became, "order_id": row.order_pk,
        "sha256": row.sha256, "answer_sent": row.answer_sent,
    }  # fmt: skip
