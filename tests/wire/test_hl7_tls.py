"""MLLP with TLS: who has no certificate of our authority is not heard (SEC-02, durability.md 1.8, security V18)."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import clock, config, db, serve, site
from broker.errors import ConfigError
from broker.model.messages import Message
from broker.ris_bridge.hl7.mllp import MllpServer
from broker.ris_bridge.hl7.road import Reply
from broker.sim.ris import Ris, code_of, omi
from tests.house import eventually
from tests.world import order

SAYS = b"MSH|^~\\&|A|B|C|D|1||ACK|1|P|2.5\rMSA|AA|1\r"


class Papers:
    """Certificates, made by openssl: two authorities, a server, and clients with NAME.pem and NAME.key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for authority in ("ours", "theirs"):
            self._openssl("req", "-x509", *self._key(authority), "-out", self[f"{authority}.pem"], "-subj",
                          f"/CN={authority}", "-days", "2")  # fmt: skip
        self.sign("server", "ours")
        self.sign("ris", "ours", names="DNS:ris.hosp.example")
        self.sign("stranger", "theirs")
        self.sign("expired", "ours", days=-1)

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def sign(self, name: str, authority: str, *, days: int = 2, names: str = "IP:127.0.0.1") -> None:
        self._openssl("req", *self._key(name), "-out", self[f"{name}.csr"], "-subj", f"/CN={name}")
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={names}\n")
        self._openssl("x509", "-req", "-in", self[f"{name}.csr"], "-CA", self[f"{authority}.pem"], "-CAkey",
                      self[f"{authority}.key"], "-CAcreateserial", "-days", str(days), "-out", self[f"{name}.pem"],
                      "-extfile", self[f"{name}.ext"])  # fmt: skip

    def _key(self, name: str) -> list[str]:
        return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self[f"{name}.key"]]

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], check=True, capture_output=True)

    def client(self, name: str | None = "ris") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self["ours.pem"])
        if name:
            context.load_cert_chain(self[f"{name}.pem"], self[f"{name}.key"])
        return context

    def settle(self, settings: config.Settings) -> None:
        hl7 = settings.hl7
        hl7.port = hl7.tls_port = 0
        hl7.tls_cert, hl7.tls_key = self.folder / "server.pem", self.folder / "server.key"
        hl7.tls_ca = self.folder / "ours.pem"


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@contextlib.contextmanager
def running(settings: config.Settings) -> Iterator[tuple[MllpServer, list[str]]]:
    """A server that says yes to everything, and whom it heard."""
    heard: list[str] = []

    def handle(_raw, peer, _turn):
        heard.append(peer)
        return Reply(SAYS)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = MllpServer(settings, handle)
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
    try:
        yield server, heard
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def secured(papers) -> Iterator[tuple[MllpServer, list[str]]]:
    settings = config.Settings()
    papers.settle(settings)
    settings.limits.mllp_tls_seconds_max = 1
    with running(settings) as server:
        yield server


def say(port: int, context: ssl.SSLContext) -> bytes:
    ris = Ris("127.0.0.1", port, tls=context)
    try:
        return ris.send(b"MSH|")
    finally:
        ris.close()


def test_a_certificate_of_our_authority_is_heard_under_its_names(papers, secured):
    server, heard = secured
    assert say(server.tls_port, papers.client()) == SAYS
    assert heard == ["127.0.0.1 ris|ris.hosp.example"]


@pytest.mark.parametrize("name", [None, "stranger", "expired"])
def test_nobody_else_is_heard(papers, secured, name):
    """SEC-02"""
    server, heard = secured
    with pytest.raises((ssl.SSLError, ConnectionError)):
        say(server.tls_port, papers.client(name))
    assert heard == []
    assert say(server.tls_port, papers.client()) == SAYS


def test_an_old_version_of_tls_and_no_tls_at_all_are_refused(papers, secured):
    server, heard = secured
    old = papers.client()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        say(server.tls_port, old)
    with socket.create_connection(("127.0.0.1", server.tls_port)) as plain:
        plain.sendall(b"\x0bMSH|\x1c\x0d")
        plain.settimeout(30)
        with contextlib.suppress(ConnectionError):
            assert b"MSA" not in plain.recv(1000)
    assert heard == []


def test_a_weak_cipher_of_tls_1_2_is_refused(papers, secured):
    server, _ = secured
    weak = papers.client()
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    assert say(server.tls_port, weak) == SAYS
    weak.set_ciphers("ECDHE-ECDSA-AES128-SHA256")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        say(server.tls_port, weak)


def test_handshakes_that_never_end_keep_nobody_waiting_and_end_by_themselves(papers, secured):
    server, _ = secured
    stuck = [socket.create_connection(("127.0.0.1", server.tls_port)) for _ in range(10)]
    stuck[0].sendall(b"\x16\x03\x01")
    assert eventually(lambda: len(server._open) == 10)
    assert say(server.tls_port, papers.client()) == SAYS
    for sock in stuck:
        sock.settimeout(30)
        with contextlib.suppress(ConnectionError):
            assert sock.recv(1) == b""
        sock.close()
    assert eventually(lambda: not server._open)


def test_handshakes_that_never_end_give_way_to_a_real_client(papers, secured):
    server, _ = secured
    server.limits.mllp_tls_seconds_max = 30
    server.limits.mllp_connections_max = 3
    stuck = [socket.create_connection(("127.0.0.1", server.tls_port)) for _ in range(3)]
    assert eventually(lambda: len(server._open) == 3)
    assert say(server.tls_port, papers.client()) == SAYS
    for sock in stuck:
        sock.close()


def test_the_foreign_client_of_openssl_sends_a_message(papers, secured):
    server, heard = secured
    command = [
        "openssl", "s_client", "-quiet", "-verify_quiet", "-connect", f"127.0.0.1:{server.tls_port}",
        "-CAfile", papers["ours.pem"], "-cert", papers["ris.pem"], "-key", papers["ris.key"],
    ]  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        try:
            client.stdin.write(b"\x0bMSH|\x1c\x0d")
            client.stdin.flush()
            assert client.stdout.read(len(SAYS) + 3) == b"\x0b" + SAYS + b"\x1c\x0d"
        finally:
            client.kill()
    assert heard == ["127.0.0.1 ris|ris.hosp.example"]


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_ca"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_broker_without_its_papers_says_which_one_it_lacks(papers, tmp_path, name, content):
    settings = config.Settings()
    papers.settle(settings)
    (tmp_path / "file").write_bytes(content or b"")
    setattr(settings.hl7, name, tmp_path / "file" if content is not None else None)

    async def start():
        server = MllpServer(settings, lambda *_: None)
        with pytest.raises(ConfigError) as refused:
            await server.start()
        return refused.value.place

    assert asyncio.run(start()) in (f"hl7.{name}", "hl7.tls_cert")


def test_a_sender_is_known_by_its_certificate(broker, papers):
    papers.settle(broker.settings)
    broker.restart()
    broker.settings.hl7.unknown_sender = "reject"
    for name in ("ris", "elsewhere"):
        db.run(site.add_sender, name, now=clock.now(), actor="test", application="HIS", tls_subject=name)
    assert f"ready hl7_tls 127.0.0.1:{broker.ports['hl7_tls']} (HL7 v2 over MLLP with TLS)" in serve.ready_lines(
        broker.settings, broker.ports
    )
    by_name = Ris("127.0.0.1", broker.ports["hl7_tls"], tls=papers.client())
    other = Ris("127.0.0.1", broker.ports["hl7_tls"], tls=papers.client("server"))
    assert code_of(other.send(omi(order("ACC001")))) == "AR", "another certificate of our authority"
    assert code_of(broker.ris().send(omi(order("ACC001")))) == "AR", "no certificate"
    assert code_of(by_name.send(omi(order("ACC001")))) == "AA"
    other.close()
    by_name.close()
    assert {row.peer for row in broker.rows(Message, state="APPLIED")} == {"127.0.0.1 ris|ris.hosp.example"}


def test_the_port_without_tls_may_be_off(papers):
    settings = config.Settings(hl7={"port": "off"})
    with pytest.raises(ConfigError, match="is off"), running(settings):
        pass
    papers.settle(settings)
    settings.hl7.port = "off"
    with running(settings) as (server, heard):
        assert server.port == 0
        assert say(server.tls_port, papers.client()) == SAYS
        assert len(heard) == 1
