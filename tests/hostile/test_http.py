"""The HTTP port against clients that stall and flood."""

import socket
import time

import httpx
import pytest


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
