"""A deadline for request headers: uvicorn has none, and half-sent requests would hold their sockets for ever."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from broker.config import Limits


class Deadline(H11Protocol):
    """Closes a connection whose headers are not complete in time, at the first request and at every later one."""

    limits: Limits
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
        elif self._timer is None:
            self._arm()  # the next request on a kept connection has begun

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._disarm()  # idle between requests: uvicorn's keep-alive time-out watches that

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.limits.http_header_seconds_max, self.transport.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def with_limits(limits: Limits) -> type[Deadline]:
    """The class that uvicorn makes one of for each connection."""
    return type("DeadlineOfThisServer", (Deadline,), {"limits": limits})
