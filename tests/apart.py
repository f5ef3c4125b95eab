"""A broker in a process of its own: to be stopped, and to be short of what a process may have."""

import os
import resource
import socket
from pathlib import Path

from broker import clock, db, site
from tests import commands
from tests.house import eventually


class Apart:
    """With a CT1 and a token `qc`. tokens, ports: as the house has them."""

    def __init__(self, database_url: str, folder: Path) -> None:
        now = clock.now()
        db.open_engine(database_url)
        self.tokens = {"qc": db.run(site.create_token, "qc", "qc", actor="test", now=now)}
        db.run(site.add_node, "CT1", host="127.0.0.1", port=104, modality="CT", actor="test", now=now)
        db.close_engine()
        self.ports = _free_ports("dicom", "hl7", "http")
        settings = {f"{name.upper()}__PORT": str(port) for name, port in self.ports.items()}
        settings["LIMITS__STAGING_FREE_BYTES_MIN"] = "1000000"
        environment = commands.environment(database_url, folder / "data", **settings)
        self.process = commands.begin(["serve"], environment, folder)
        said = folder / "stdout"
        assert eventually(lambda: said.exists() and "ready http" in said.read_text())

    def allow_descriptors(self, number: int) -> None:
        resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (number, number))

    def open_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.process.terminate()

    def close(self) -> None:
        self.process.terminate()
        self.process.join(40)
        self.process.kill()


def _free_ports(*names: str) -> dict[str, int]:
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = [one.getsockname()[1] for one in listening]
    for one in listening:
        one.close()
    return dict(zip(names, ports, strict=True))
