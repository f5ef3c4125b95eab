"""Die at the k-th durable effect, for k = 1, 2, … until a run ends (durability.md A1, after SQLite's own method).

No hook in the product: a child process wraps `os` and the database's commit, counts, and kills itself with SIGKILL."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from broker import db

EFFECTS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir")
_INHERITED: list[object] = []  # the parent's connections: a child neither uses them nor throws them away
Scenario = Callable[[Callable[[str], None]], None]


@dataclass
class Run:
    """One child. answered: what it acknowledged. ended: it came to its end without being killed."""

    k: int
    answered: list[str]
    ended: bool


def every_crash(scenario: Scenario) -> Iterator[Run]:
    """One run for each effect, killed just before it (a write: halfway through it); the last one ends by itself.

    scenario: gets a function to call where an answer would be sent. It works on the engine that is open, with connections
    of its own."""
    k = 0
    while True:
        k += 1
        run = _child(scenario, k)
        yield run
        if run.ended:
            return


def _child(scenario: Scenario, k: int) -> Run:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _live(scenario, k, writer)
    os.close(writer)
    with os.fdopen(reader, "r") as answers:
        answered = answers.read().splitlines()
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, f"the scenario failed at effect {k}"
    return Run(k, answered, os.WIFEXITED(status))


def _live(scenario: Scenario, k: int, writer: int) -> None:
    status = 1
    try:
        counter = _Counter(k)
        send = os.write
        for name in EFFECTS:
            setattr(os, name, counter.before(name, getattr(os, name)))
        io.open = counter.making(io.open)  # what pathlib opens files with

        def answer(what: str) -> None:
            counter.effect()
            send(writer, f"{what}\n".encode())

        engine = db.engine()
        _INHERITED.append(engine.pool)
        engine.dispose(close=False)
        dialect = engine.dialect
        dialect.do_commit = counter.before("commit", dialect.do_commit)  # type: ignore[method-assign]
        scenario(answer)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


class _Counter:
    def __init__(self, k: int) -> None:
        self.left = k

    def effect(self, half: Callable[[], object] | None = None) -> None:
        self.left -= 1
        if not self.left:
            if half:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if name == "write":
                self.effect(lambda: real(args[0], args[1][: len(args[1]) // 2]))
            elif name != "open" or args[1] & os.O_CREAT:
                self.effect()
            return real(*args, **kwargs)

        return wrapped

    def making(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """Killed when the file is there and nothing is in it."""

        def wrapped(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            opened = real(file, mode, *args, **kwargs)
            if set(mode) & set("wxa"):
                self.effect()
            return opened

        return wrapped
