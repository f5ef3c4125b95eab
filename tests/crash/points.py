"""Die at the k-th durable effect, for k = 1, 2, … until a run ends (durability.md A1, after SQLite's own method).

No hook in the product: a child process wraps `os` and the database's commit, counts, and kills itself with SIGKILL."""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from broker import db

EFFECTS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir")
Scenario = Callable[[Callable[[str], None]], None]


@dataclass
class Run:
    """One child. answered: what it acknowledged. ended: it came to its end without being killed."""

    k: int
    answered: list[str]
    ended: bool


def every_crash(scenario: Scenario) -> Iterator[Run]:
    """One run for each effect, killed just before it (a write: halfway through it); the last one ends by itself.

    scenario: gets a function to call where an answer would be sent. It opens its own database."""
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

        def answer(what: str) -> None:
            counter.effect()
            send(writer, f"{what}\n".encode())

        opened = db.open_engine

        def open_engine(*args: Any, **kwargs: Any) -> Any:
            engine = opened(*args, **kwargs)
            engine.dialect.do_commit = counter.before("commit", engine.dialect.do_commit)  # type: ignore[method-assign]
            return engine

        db.open_engine = open_engine  # type: ignore[assignment]
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
