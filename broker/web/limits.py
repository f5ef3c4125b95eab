"""Bounds on every request, before anything is parsed (security V6, V8): characters, size, encoding, how many."""

from typing import Any
from urllib.parse import unquote_plus

from broker.config import Limits
from broker.web.errors import problem
from broker.web.fields import CONTROL

HEADERS = [
    (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"), (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'"),
]  # fmt: skip


class BodyTooLarge(Exception):
    pass


class Bounded:
    """ASGI middleware on the raw messages."""

    def __init__(self, app: Any, limits: Limits) -> None:
        self.app, self.limits, self._in_flight = app, limits, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if CONTROL.search(scope["path"]) or CONTROL.search(unquote_plus(scope["query_string"].decode("latin-1"))):
            await problem(422, "not acceptable", "control characters in the path or the query")(scope, receive, send)
        elif headers.get(b"content-encoding", b"identity") != b"identity":
            await problem(415, "encoded bodies are not taken")(scope, receive, send)
        elif _length(headers) > self._body_bytes_max(scope):
            await self._too_large(scope, receive, send)
        elif self._in_flight >= self.limits.http_in_flight_max + self.limits.http_waiters_max:
            await problem(429, "too many requests at once", headers={"Retry-After": "1"})(scope, receive, send)
        else:
            self._in_flight += 1
            try:
                await self._pass(scope, receive, send)
            finally:
                self._in_flight -= 1

    async def _pass(self, scope: Any, receive: Any, send: Any) -> None:
        received, started = 0, False

        async def counted() -> Any:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._body_bytes_max(scope):
                raise BodyTooLarge
            return message

        async def guarded(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        except BodyTooLarge:
            if not started:
                await self._too_large(scope, receive, send)

    async def _too_large(self, scope: Any, receive: Any, send: Any) -> None:
        await problem(413, "the body is too large", f"at most {self._body_bytes_max(scope)} bytes")(
            scope, receive, send
        )

    def _body_bytes_max(self, scope: Any) -> int:
        limits = self.limits
        return limits.fhir_body_bytes_max if scope["path"].startswith("/fhir") else limits.http_body_bytes_max


def _length(headers: dict[bytes, bytes]) -> int:
    try:
        return int(headers.get(b"content-length", b"0"))
    except ValueError:
        return 0
