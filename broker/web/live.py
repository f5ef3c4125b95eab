"""Long polls hold neither thread nor session: one poller looks at the feed's counter and wakes those who wait."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from broker import db
from broker.archive import status
from broker.config import Limits
from broker.errors import NoRoom

T = TypeVar("T")
POLL_SECONDS = 0.2


class Live:
    """Sees the commits of every process by the feed's counter."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._changed = asyncio.Event()
        self._waiters = 0
        self._sequence = -1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        poller = asyncio.create_task(self._poll())
        yield
        poller.cancel()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            if self._waiters:
                with contextlib.suppress(SQLAlchemyError):  # away: at the next turn, and those who ask are told
                    await self._look()

    async def _look(self) -> None:
        sequence = await asyncio.to_thread(db.read, status.last_change)
        if sequence != self._sequence:
            self._sequence = sequence
            self._changed.set()
            self._changed = asyncio.Event()

    async def until(self, there: Callable[[], object], seconds: float) -> None:
        """Return when there() is true after some change, or the time is over. there() runs in a thread."""
        if self._waiters >= self.limits.http_waiters_max:
            raise NoRoom("wait", "too many are waiting; ask again without wait=")
        self._waiters += 1
        try:
            async with asyncio.timeout(min(seconds, self.limits.http_wait_seconds_max)):
                changed = self._changed
                while not await asyncio.to_thread(there):
                    await changed.wait()
                    changed = self._changed
        except TimeoutError:
            return
        finally:
            self._waiters -= 1

    async def in_thread(self, fn: Callable[..., T], *args: object) -> T:
        return await asyncio.to_thread(fn, *args)


async def in_time(answer: Future[T], seconds: float) -> T:
    """Raises TimeoutError where it is not there by then; it may still come."""
    return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(answer)), seconds)
