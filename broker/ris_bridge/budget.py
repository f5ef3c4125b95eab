"""Processor time that one message may take to be read."""

import time
from collections.abc import Callable

from broker.errors import InvalidValue


def budget(seconds: float) -> Callable[[], None]:
    """To be called between the parts of the work: its parts are bounded by the limits of sizes and numbers."""
    until = time.thread_time() + seconds

    def check() -> None:
        if time.thread_time() > until:
            raise InvalidValue("message", f"takes more than {seconds:g} seconds to be read", err="102")

    return check
