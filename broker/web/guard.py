"""Who asks for the API is known before a byte of the body is read: no stranger keeps anything open with half of one."""

from typing import Any

import anyio.to_thread
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers

from broker.web import errors
from broker.web.auth import PRINCIPAL, Unauthorised, authenticate, bearer

GUARDED = ("/api", "/fhir")
OPEN = "/fhir/metadata"


class Guard:
    """ASGI middleware. The routes ask again, for the role."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(GUARDED) and scope["path"] != OPEN:
            try:
                token = bearer(Headers(scope=scope).get("authorization", ""))
                scope[PRINCIPAL] = await anyio.to_thread.run_sync(authenticate, token)
            except (Unauthorised, SQLAlchemyError) as error:
                await errors.answer(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
