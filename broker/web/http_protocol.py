"""What uvicorn has not: deadlines for what a client sends, and a bound on how many are connected (durability.md 1.8).

Half-sent requests would hold their sockets for ever, and the descriptors of all ports with them."""

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from broker import descriptors, log
from broker.config import Limits

FULL_SECONDS_BETWEEN = 10.0  # of two log lines about it


class Connections:
    """All that are open on one server, by address, the oldest first."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_address: dict[str, dict[Watched, None]] = {}
        self._told_at = -FULL_SECONDS_BETWEEN

    def add(self, new: "Watched") -> None:
        """Count it in. Where there are too many, the oldest of the address that has most gives way, if nothing of it is
        in work; else the new one does."""
        same = self._by_address.setdefault(new.address, {})
        same[new] = None
        limits, crowd = self._limits, same
        total = sum(map(len, self._by_address.values()))
        if total > min(limits.http_connections_max, descriptors.left_for_http(limits)):
            crowd = max(self._by_address.values(), key=len)
        elif len(same) <= limits.http_connections_per_address_max:
            return
        victim = next((one for one in crowd if one.is_idle and one is not new), new)
        if victim is new and time.monotonic() - self._told_at >= FULL_SECONDS_BETWEEN:
            self._told_at = time.monotonic()
            log.get().warning("http.full", connections=total, address=new.address)
        self.remove(victim)
        victim.transport.abort()

    def remove(self, one: "Watched") -> None:
        same = self._by_address.get(one.address, {})
        same.pop(one, None)
        if not same:
            self._by_address.pop(one.address, None)


class Watched(H11Protocol):
    """One connection: closed when its client does not send what it owes in time. That is the rest of the headers, then
    the rest of the body, also of one that nobody reads; at the first request and at every later one."""

    limits: Limits
    open: Connections
    _timer: asyncio.TimerHandle | None = None
    _owed: Any = None

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """Nothing is in work for it."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()
        self.open.add(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._expect()
        else:
            self._disarm()  # idle between requests: uvicorn's keep-alive time-out watches that

    def shutdown(self) -> None:
        """At the end requests are answered, but nobody waits for the rest of one."""
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.open.remove(self)
        super().connection_lost(exc)

    def _expect(self) -> None:
        """One timer for each part: a byte now and then does not extend it."""
        owed = self.conn.their_state
        if owed is not self._owed:
            self._disarm()
            self._owed = owed
            seconds = {h11.IDLE: self.limits.http_header_seconds_max, h11.SEND_BODY: self.limits.http_body_seconds_max}
            if owed in seconds:
                self._timer = self.loop.call_later(seconds[owed], self.transport.abort)

    def _disarm(self) -> None:
        self._owed = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def with_limits(limits: Limits) -> type[Watched]:
    """The class that uvicorn makes one of for each connection."""
    return type("WatchedOfThisServer", (Watched,), {"limits": limits, "open": Connections(limits)})
