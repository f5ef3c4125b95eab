"""The HTTP port against clients that stall and flood."""

import contextlib
import resource
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from broker import descriptors
from broker.config import Limits
from broker.sim.ris import Ris, code_of, omi
from tests import raw
from tests.apart import Apart
from tests.objects import ct
from tests.world import order

HALF = (
    b"POST /api/v1/cases/1/resolve HTTP/1.1\r\nHost: x\r\n%sContent-Type: application/json\r\n"
    b"Content-Length: 1000\r\n\r\n{"
)


def closed(sock: socket.socket) -> bool:
    """Whether the other side closes, with nothing or a refusal said before."""
    sock.settimeout(20)
    said = b""
    try:
        while data := sock.recv(65536):
            said += data
    except ConnectionResetError:
        pass
    return said == b"" or said.startswith(b"HTTP/1.1 4")


def test_half_sent_headers_are_cut_and_others_are_served_meanwhile(broker):
    broker.settings.limits.http_header_seconds_max = 1.0
    address = ("127.0.0.1", broker.ports["http"])
    slow = [socket.create_connection(address) for _ in range(100)]
    for sock in slow:
        sock.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    assert httpx.get(f"http://127.0.0.1:{address[1]}/healthz/live").status_code == 200
    assert all(closed(sock) for sock in slow)


def test_the_second_request_of_a_kept_connection_has_the_same_deadline(broker):
    broker.settings.limits.http_header_seconds_max = 1.0
    with socket.create_connection(("127.0.0.1", broker.ports["http"])) as sock:
        sock.settimeout(20)
        sock.sendall(b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = sock.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        time.sleep(0.2)
        sock.sendall(b"GET /healthz/live HT")
        rest = sock.recv(65536)
        assert rest == b"" or not rest.startswith(b"HTTP/1.1 200")


def test_a_waiting_poll_outlives_the_deadline_for_headers(broker):
    broker.settings.limits.http_header_seconds_max = 0.5
    headers = {"Authorization": f"Bearer {broker.tokens['ehr']}"}
    url = f"http://127.0.0.1:{broker.ports['http']}/api/v1/status/changes?wait=2"
    assert httpx.get(url, headers=headers, timeout=20).json() == {"items": [], "next": 0}


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x00\x05hello\r\n\r\n", b"A" * 40_000])
def test_what_is_no_request_is_refused_and_closed(broker, data):
    with socket.create_connection(("127.0.0.1", broker.ports["http"])) as sock:
        sock.sendall(data)
        assert closed(sock)


def half(broker, role: str = "") -> bytes:
    """A request of which all but one byte of the body is missing."""
    return HALF % (f"Authorization: Bearer {broker.tokens[role]}\r\n".encode() if role else b"")


def connect(broker, data: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", broker.ports["http"]))
    sock.settimeout(20)
    sock.sendall(data)
    return sock


def alive(broker) -> bool:
    return httpx.get(f"http://127.0.0.1:{broker.ports['http']}/healthz/live", timeout=5).status_code == 200


def test_a_stranger_is_refused_before_the_body_is_read(broker):
    with connect(broker, half(broker)) as sock:
        assert sock.recv(4096).startswith(b"HTTP/1.1 401")


def test_the_rest_of_a_body_that_nobody_reads_has_a_deadline_although_bytes_trickle(broker):
    broker.settings.limits.http_body_seconds_max = 1.0
    with connect(broker, half(broker)) as sock:
        started = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            while time.monotonic() - started < 10:
                sock.sendall(b" ")
                time.sleep(0.1)
        assert time.monotonic() - started < 5


def test_a_body_half_sent_with_a_token_is_cut_at_its_deadline_although_bytes_trickle(broker):
    broker.settings.limits.http_body_seconds_max = 1.0
    with connect(broker, half(broker, "qc")) as sock:
        started = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            while time.monotonic() - started < 10:
                sock.sendall(b" ")
                time.sleep(0.1)
        assert time.monotonic() - started < 5
    assert alive(broker)


def test_a_slow_body_that_ends_in_time_is_taken(broker):
    broker.settings.limits.http_body_seconds_max = 3.0
    body = b'{"action": "reject"}'
    head = half(broker, "qc").replace(b"Content-Length: 1000", b"Content-Length: %d" % len(body))[:-1]
    with connect(broker, head) as sock:
        for byte in body:
            sock.sendall(bytes([byte]))
            time.sleep(0.05)
        assert sock.recv(4096).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("limit", ["http_connections_max", "http_connections_per_address_max"])
def test_of_too_many_connections_the_oldest_idle_ones_give_way(broker, limit):
    setattr(broker.settings.limits, limit, 20)
    broker.settings.limits.http_header_seconds_max = broker.settings.limits.http_body_seconds_max = 60
    crowd = [connect(broker, b"GET / HT" if n % 2 else half(broker)) for n in range(60)]
    assert alive(broker)
    crowd[0].settimeout(2)
    assert closed(crowd[0])
    for sock in crowd:
        sock.close()


def test_a_poll_that_waits_gives_way_to_nobody(broker):
    broker.settings.limits.http_connections_max = 3
    token = f"Authorization: Bearer {broker.tokens['ehr']}\r\n\r\n".encode()
    waiting = [connect(broker, b"GET /api/v1/status/changes?wait=3 HTTP/1.1\r\nHost: x\r\n" + token) for _ in range(3)]
    time.sleep(0.5)
    with connect(broker, b"GET /healthz/live HTTP/1.1\r\nHost: x\r\n\r\n") as late:
        assert closed(late)
    assert [sock.recv(4096)[:12] for sock in waiting] == [b"HTTP/1.1 200"] * 3
    for sock in waiting:
        sock.close()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def poor(database_url, tmp_path, many_descriptors) -> Iterator[Apart]:
    """May have 1,024 descriptors."""
    broker = Apart(database_url, tmp_path)
    broker.allow_descriptors(1024)
    yield broker
    broker.close()


@pytest.mark.parametrize("role", ["", "qc"])
def test_a_flood_of_half_requests_shuts_no_port_of_a_process_with_few_descriptors(poor, role):
    with contextlib.ExitStack() as crowd:
        for _ in range(1100):
            with contextlib.suppress(OSError):  # it was shut at once
                crowd.enter_context(connect(poor, half(poor, role)))
        assert poor.open_descriptors() < 1000
        with raw.associated(poor.ports["dicom"], raw.CT) as scanner:
            scanner.send(raw.store(ct()))
            assert scanner.status() == (0x0000, "")
        ris = Ris("127.0.0.1", poor.ports["hl7"])
        crowd.callback(ris.close)
        answer = ris.send(omi(order("ACC001")))
        assert code_of(answer) == "AA", answer
        if not role:
            assert alive(poor)


def test_what_is_left_for_http_is_what_the_others_may_not_need(monkeypatch):
    limits = Limits()
    for allowed, left in ((100_000, 90_000), (1024, 80), (64, 1)):
        monkeypatch.setattr(resource, "getrlimit", lambda _which, allowed=allowed: (allowed, allowed))
        assert left <= descriptors.left_for_http(limits) < allowed


def test_the_start_takes_all_descriptors_that_it_may_have_and_says_when_they_are_few(monkeypatch, capsys):
    have = [(256, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: have[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limit: have.append(limit))
    descriptors.raise_limit(Limits())
    assert have[-1] == (4096, 4096)
    assert "process.few_descriptors" in capsys.readouterr().out
    have[:] = [(65536, 65536)]
    descriptors.raise_limit(Limits())
    assert len(have) == 1
    assert "process.few_descriptors" not in capsys.readouterr().out
