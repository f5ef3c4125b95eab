"""What the routes share that put requests into the inbox: the body as it came, its type, the answer, the note of it."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Annotated

from fastapi import Header, Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.background import BackgroundTask

from broker import db
from broker.errors import Unsupported
from broker.ris_bridge import http_road, journal
from broker.ris_bridge.inbox import Answer
from broker.web.auth import Principal

Key = Annotated[str, Header(alias="Idempotency-Key")]
BODY = {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}}


async def body(request: Request) -> bytes:
    """A dependency: byte for byte, for the journal."""
    return await request.body()


def take(
    take: Callable[..., Answer], request: Request, body: bytes, who: Principal, key: str, media: Mapping[str, str]
) -> Response:
    """media: the types that a body may have -> what it is answered in."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and kind and kind not in media:
        raise Unsupported("Content-Type", f"must be {' or '.join(media)}")
    headers = {name: request.headers[name] for name in http_road.KEPT if name in request.headers}
    asked = http_road.Request(request.method, request.url.path, body, headers)
    answer = take(
        asked, sender=who.name, peer=request.client.host if request.client else "", key=key,
        settings=request.app.state.settings,
    )  # fmt: skip
    reply = http_road.reply_of(answer.raw)
    return Response(
        reply.body, reply.status, dict(reply.headers), reply.media, BackgroundTask(_note, answer.message_pk)
    )


def _note(message_pk: int) -> None:
    """The answer is out, which is what counts."""
    with contextlib.suppress(SQLAlchemyError):
        db.run(journal.note_sent, [message_pk])
