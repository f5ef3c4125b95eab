"""Wire everything once and run it: the only place that knows all parts."""

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence

import uvicorn

from broker import __version__, access, audit, clock, db, descriptors, leases, log, schema, site
from broker.archive import recovery, status
from broker.archive import scp as archive_scp
from broker.archive.staging import Staging
from broker.config import Settings
from broker.dicom import verification
from broker.dicom.listener import Listener
from broker.dicom.service import Registry
from broker.errors import ConfigError
from broker.jobs import Jobs
from broker.mpps import scp as mpps_scp
from broker.mwl import scp as mwl_scp
from broker.mwl.offered import Recorder
from broker.mwl.snapshot import Snapshot
from broker.ris_bridge.crashes import CRASHES
from broker.ris_bridge.hl7 import road
from broker.ris_bridge.hl7.mllp import MllpServer
from broker.web.app import create_app
from broker.web.http_protocol import with_limits
from broker.web.metrics import AGE, STALE, Figure

ROLES = ("web", "dicom", "hl7", "jobs")
OWNERS = {"dicom", "jobs"}  # they fill and empty the staging folder
START_SECONDS_MAX = 30
SWITCH_SECONDS = 0.001  # a device does not wait as long as Python would let a background thread work
NOTE_SECONDS_MAX = 5  # for the audit row of a start or stop


class Broker:
    """A running broker. ports: role -> the port it listens on, also where 0 was asked for."""

    def __init__(self, settings: Settings, roles: Sequence[str] = ROLES) -> None:
        self.settings, self.roles = settings, roles
        self.ports: dict[str, int] = {}
        self._alive: dict[str, Callable[[], bool]] = {}  # role -> whether its port takes connections
        self._figures: dict[str, Figure] = {}  # for /metrics
        self._stops: list[Callable[[], None]] = []  # run in reverse order of the start

    def start(self) -> None:
        """Recovery finishes before any port opens (durability.md 1.4). A failed start leaves nothing running."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        descriptors.raise_limit(self.settings.limits)
        self.settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)  # names and messages are in it
        owns = bool(OWNERS & set(self.roles))
        if owns:
            self._stops.append(leases.hold_folder(self.settings.data_dir))
        self._stops.append(CRASHES.open(self.settings.data_dir, self.settings.limits.message_deaths_max))
        self._open_database()
        if owns:
            self._recover()
        self._note("process.start")
        self._stops.append(lambda: self._note("process.stop"))
        if "jobs" in self.roles:  # before the ports, so that they close before it ends
            self._run(Jobs(self.settings))
        if "dicom" in self.roles:
            self._start_dicom()
        if "hl7" in self.roles:
            self._start_hl7()
        if "web" in self.roles:
            self._start_web()

    def stop(self) -> None:
        while self._stops:
            step = self._stops.pop()
            try:
                step()
            except Exception:  # the others must still stop
                log.get().exception("stop.failed")

    def _recover(self) -> None:
        self._staging = Staging(self.settings)
        with db.unhurried():
            report = recovery.recover(self.settings, self._staging)
        log.get().info("recovery.done", **report.counts())

    def _open_database(self) -> None:
        settings = self.settings
        db.open_engine(
            settings.database,
            pool=settings.limits.database_pool_connections,
            look_pool=settings.limits.database_worklist_connections,
            wait_seconds=settings.limits.database_wait_seconds_max,
            statement_seconds=settings.limits.database_statement_seconds_max,
            job_seconds=settings.limits.database_job_seconds_max,
            connect_seconds=settings.limits.database_connect_seconds_max,
        )
        self._stops.append(db.close_engine)
        schema.prepare()
        if settings.site_file:
            site.apply_file(settings.site_file)
        status.configure(settings)
        db.on_finish(status.publish)

    def _start_dicom(self) -> None:
        recorder = Recorder(self.settings)
        self._run(recorder)
        self._run(snapshot := Snapshot(self.settings))
        self._figures |= {
            STALE: Figure("1 while devices are answered from the snapshot", lambda: snapshot.stale_since is not None),
            AGE: Figure("Age of the worklist's snapshot", lambda: snapshot.age_seconds),
            "worklist_queries": Figure("Worklist queries since the start", lambda: recorder.queries, counts=True),
        }
        registry = Registry()
        for offers in (
            verification.offers(),
            mwl_scp.offers(self.settings, recorder, snapshot),
            mpps_scp.offers(self.settings),
        ):
            for sop_class, offer in offers:
                registry.add(sop_class, offer)
        archive_scp.register(registry, self.settings, self._staging)
        access.learn()
        listener = Listener(self.settings, registry, access.find_node, access.address_allowed, access.note_refusal)
        listener.start()
        self._stops.append(lambda: listener.stop(self.settings.limits.stop_seconds_max))
        self.ports["dicom"] = listener.port
        self._alive["dicom"] = lambda: listener.is_accepting

    def _start_hl7(self) -> None:
        server = MllpServer(self.settings, lambda raw, peer, turn: road.receive(raw, peer, self.settings, turn))
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="hl7", daemon=True)
        thread.start()
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(START_SECONDS_MAX)

        def stop() -> None:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(self.settings.limits.stop_seconds_max)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

        self._stops.append(stop)
        if self.settings.hl7.port != "off":
            self.ports["hl7"] = server.port
        if self.settings.hl7.tls_port is not None:
            self.ports["hl7_tls"] = server.tls_port
        self._alive["hl7"] = lambda: server.is_accepting

    def _start_web(self) -> None:
        http = self.settings.http
        listening = _listen(http.host, http.port)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(self.settings, self.ports, self._alive, self._figures),
                http=with_limits(self.settings.limits),
                h11_max_incomplete_event_size=self.settings.limits.http_header_bytes_max,
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=descriptors.HTTP_BACKLOG,
            )
        )
        thread = threading.Thread(target=server.run, args=([listening],), name="web", daemon=True)
        thread.start()

        def stop() -> None:
            server.should_exit = True
            thread.join(self.settings.limits.stop_seconds_max)
            listening.close()

        self._stops.append(stop)
        self.ports["http"] = listening.getsockname()[1]

    def _run(self, worker: Recorder | Snapshot | Jobs) -> None:
        worker.start()
        self._stops.append(worker.stop)

    def _note(self, action: audit.Action) -> None:
        with db.within(NOTE_SECONDS_MAX):
            db.run(
                audit.record, action, "process", actor="broker", now=clock.now(), version=__version__, roles=self.roles
            )


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=256
        )
    except OSError as error:
        raise ConfigError("http.port", f"cannot listen on {host}:{port}: {error.strerror}") from None


def main(settings: Settings, roles: Sequence[str] = ROLES) -> None:
    """Run until SIGTERM or SIGINT; then finish what is under way."""
    log.configure(settings.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    stopping = threading.Event()
    sys.setswitchinterval(SWITCH_SECONDS)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    broker = Broker(settings, roles)
    broker.start()
    for line in ready_lines(settings, broker.ports):
        print(line, flush=True)
    stopping.wait()
    broker.stop()


def ready_lines(settings: Settings, ports: dict[str, int]) -> list[str]:
    """What the person who started it reads: one line per open port, and what nobody outside can reach."""
    described = {
        "dicom": (
            settings.dicom.host,
            f"AE title {settings.dicom.ae_title}",
            "DICOM",
            "no scanner",
            "BROKER_DICOM__HOST",
        ),
        "hl7": (settings.hl7.host, "HL7 v2 over MLLP", "HL7", "no RIS", "BROKER_HL7__HOST"),
        "hl7_tls": (settings.hl7.host, "HL7 v2 over MLLP with TLS", "HL7 with TLS", "no RIS", "BROKER_HL7__HOST"),
        "http": (settings.http.host, "REST and console", "HTTP", "no other computer", "BROKER_HTTP__HOST"),
    }
    lines = []
    for role, port in ports.items():
        host, what, _, _, _ = described[role]
        lines.append(f"ready {role} {host}:{port} ({what})")
    for role in ports:
        host, _, name, whom, variable = described[role]
        if host in ("127.0.0.1", "localhost", "::1"):
            lines.append(f"{name} listens on loopback only: {whom} can reach it; set {variable}")
    return lines
