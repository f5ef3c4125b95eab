"""When the transaction under way must be over (durability.md 1.7). Outside of one there is no such time."""

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from sqlalchemy.exc import TimeoutError as NoTurn

_until: ContextVar[float | None] = ContextVar("until", default=None)  # monotonic


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is asked of the database inside has this much time in all, or less where somebody outside said so."""
    before = _until.get()
    until = time.monotonic() + seconds
    token = _until.set(until if before is None else min(before, until))
    try:
        yield
    finally:
        _until.reset(token)


def left() -> float | None:
    """Seconds; None outside."""
    until = _until.get()
    return None if until is None else max(0, until - time.monotonic())


def check(*_: Any) -> None:
    """Raises NoTurn, what the pool says when it has no connection in time."""
    if left() == 0:
        raise NoTurn("the time of this transaction is over")
