"""`python -m broker`, in a process that has just been forked: what the command line does, without its second of imports."""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from broker import cli

_PROCESSES = multiprocessing.get_context("forkserver")  # it imports the program once, and forks it for each command
_PROCESSES.set_forkserver_preload(["__main__", "pytest", "broker.serve", __name__])


def begin(arguments: list[str], environment: dict[str, str], folder: Path) -> ForkServerProcess:
    """A process that runs the command; what it says goes to the files `stdout` and `stderr` of the folder."""
    process = _PROCESSES.Process(target=_typed, args=(arguments, environment, folder), daemon=True)
    process.start()
    return process


def _typed(arguments: list[str], environment: dict[str, str], folder: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = ["broker", *arguments]
    cli.main()


def environment(database_url: str, data_dir: Path, **more: str) -> dict[str, str]:
    """This process's own, without its settings of the broker. more: settings by the rest of their variable's name."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("BROKER_")},
        "BROKER_DATABASE_URL": database_url,
        "BROKER_DATA_DIR": str(data_dir),
        "BROKER_DICOM__PORT": "0",
        "BROKER_HL7__PORT": "0",
        "BROKER_HTTP__PORT": "0",
        **{f"BROKER_{name}": value for name, value in more.items()},
    }
