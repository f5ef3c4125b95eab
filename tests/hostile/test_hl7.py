"""The HL7 port against broken and hostile senders: an answer or a close, never a traceback, never the patient."""

import random
import socket
import time

from broker.model.messages import Message
from broker.model.orders import ImagingOrder
from broker.sim.ris import code_of, omi
from tests.world import YAMADA, order

MUTATIONS = 300
CPU_SECONDS_MAX = 5  # generous for a loaded machine; the parser needs a fraction of one


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(30)
        sock.sendall(b"\x0b" + data + b"\x1c\x0d")
        received = b""
        while b"\x1c\x0d" not in received:
            more = sock.recv(65536)
            if not more:
                break
            received += more
        return received


def test_mutated_messages_get_an_answer_or_a_close_and_tell_nothing(broker):
    """HL7-42"""
    chance = random.Random(42)
    raw = omi(order())
    for _ in range(MUTATIONS):
        mutated = bytearray(raw)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(mutated))
            mutated[at : at + chance.randint(0, 3)] = bytes(chance.randrange(256) for _ in range(chance.randint(0, 3)))
        data = bytes(mutated).replace(b"\x1c\x0d", b"").replace(b"\x0b", b"")
        answer = exchange(broker.ports["hl7"], data)
        assert b"Traceback" not in answer
        for line in answer.split(b"\r"):
            if line.startswith((b"MSA", b"ERR")):
                assert YAMADA.id.encode() not in line
                assert "山田".encode("iso2022_jp")[3:7] not in line
    assert code_of(broker.ris().send(omi(order("ACC900")))) == "AA"


def test_a_megabyte_of_segments_is_answered_in_bounded_time(broker):
    raw = omi(order()) + b"NTE|1||x\r" * 19_000
    before = time.process_time()
    answer = exchange(broker.ports["hl7"], raw)
    assert b"MSA|AA|" in answer or b"MSA|AE|" in answer
    assert time.process_time() - before < CPU_SECONDS_MAX


def test_an_endless_header_of_escapes_and_delimiters_is_answered_in_bounded_time(broker):
    for noise in (b"\x1b$B", b"\x1b$(D|", b"|", b"\x83|", b"~", b"\x1b$B|" * 9 + b"\x1b(B"):
        before = time.process_time()
        raw = omi(order()).replace(b"|OMI^", b"|" + noise * (4_000_000 // len(noise)) + b"|OMI^", 1)
        answer = exchange(broker.ports["hl7"], raw)
        assert b"\rMSA|A" in answer
        assert time.process_time() - before < CPU_SECONDS_MAX


def test_a_frame_over_the_limit_is_cut_and_half_a_frame_is_dropped(broker):
    broker.settings.limits.mllp_frame_bytes_max = 10_000
    broker.settings.limits.mllp_frame_seconds_max = 0.5
    with socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.settimeout(20)
        sock.sendall(b"\x0b" + b"a" * 20_000)
        assert sock.recv(10) == b""
    with socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.settimeout(20)
        sock.sendall(b"\x0b" + omi(order())[:100])
        assert sock.recv(10) == b""
    assert broker.rows(Message) == []
    assert broker.rows(ImagingOrder) == []


def test_a_poisonous_message_does_not_stop_the_ones_behind_it(broker):
    ris = broker.ris()
    assert code_of(ris.send(omi(order()).replace(b"|M\r", b"|\\C1B2842\\\r"))) in ("AA", "AE")
    assert code_of(ris.send(omi(order("ACC002")))) == "AA"
