"""Messages about one patient or one order are applied in the order in which they came, whatever connection they came by
(conformance.md 5.8). All others go side by side."""

import itertools
import threading
from collections.abc import Iterable

from broker.errors import NoRoom

Keys = frozenset[tuple[str, str]]


class Turns:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._open: dict[int, Keys | None] = {}  # what each message in work is about; None: not read yet

    def draw(self) -> "Turn":
        """To be called in the order of arrival. It must be ended by `done`."""
        with self._changed:
            number = next(self._numbers)
            self._open[number] = None
        return Turn(self, number)

    def wait(self, number: int, keys: Keys, seconds: float) -> None:
        with self._changed:
            self._open[number] = keys
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._is_next(number, keys), seconds):
                raise NoRoom("", "an earlier message about the same patient or order is still in work")

    def _is_next(self, number: int, keys: Keys) -> bool:
        return all(other is not None and not keys & other for n, other in self._open.items() if n < number)

    def done(self, number: int) -> None:
        with self._changed:
            self._open.pop(number, None)
            self._changed.notify_all()


class Turn:
    """One message's place in the queue."""

    def __init__(self, turns: Turns, number: int) -> None:
        self._turns, self._number = turns, number

    def wait(self, keys: Iterable[tuple[str, str]], seconds: float) -> None:
        """Until no earlier message with one of these keys is in work. Raises NoRoom after so many seconds."""
        self._turns.wait(self._number, frozenset(keys), seconds)

    def done(self) -> None:
        self._turns.done(self._number)


TURNS = Turns()
