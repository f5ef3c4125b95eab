"""The HL7 port against broken and hostile senders: an answer or a close, never a traceback, never the patient."""

import random
import socket
import time

import pytest
from sqlmodel import select

from broker import config, db
from broker.errors import BrokerError
from broker.model.messages import Message
from broker.model.orders import ImagingOrder
from broker.model.site import Sender
from broker.ris_bridge.hl7 import road
from broker.sim.ris import code_of, omi
from tests.hostile import mutate
from tests.world import order

CASES_SHARE = 10  # of --cases: each of them is a connection, a journal row and a commit
CPU_SECONDS_MAX = 5  # generous for a loaded machine; the parser needs a fraction of one


def exchange(port: int, data: bytes) -> bytes:
    """All that is answered before the other side closes."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(30)
        sock.sendall(b"\x0b" + data + b"\x1c\x0d")
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while more := sock.recv(65536):
            received += more
        return received


def test_mutated_messages_get_an_answer_or_a_close_and_tell_nothing(broker, request):
    """HL7-42; the long form: --cases 100000."""
    cases, seed = request.config.getoption("--cases") // CASES_SHARE, request.config.getoption("--seed")
    secrets = mutate.secrets()
    for name, data in mutate.mutated(seed or random.randrange(1, 10**9), cases):
        answer = exchange(broker.ports["hl7"], data)
        assert b"Traceback" not in answer, name
        for text in mutate.told(answer):
            assert not any(secret in text for secret in secrets), (name, text)
        failed = db.read(
            lambda session: session.exec(select(Message.pk).where(Message.error_code == "207").limit(1)).first()
        )
        assert failed is None, name
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


# The work grows with the bytes, and no faster: twice the bytes, twice the processor time

HEAD = omi(order())
OBX = b"OBX|1|FT|R^Report||"
HOSTILE = {
    "fields": lambda n: HEAD + b"OBX" + b"|" * n,
    "components": lambda n: HEAD + OBX + b"^" * n,
    "subcomponents": lambda n: HEAD + OBX + b"&" * n,
    "repetitions": lambda n: HEAD + OBX + b"~" * n,
    "all delimiters": lambda n: HEAD + OBX + b"|^~\\&" * (n // 5),
    "open escapes": lambda n: HEAD + OBX + b"\\" * n,
    "escapes": lambda n: HEAD + OBX + b"\\.br\\" * (n // 5),
    "hexadecimal": lambda n: HEAD + OBX + b"\\XE5\\" * (n // 5),
    "hexadecimal without end": lambda n: HEAD + OBX + b"\\X" + b"41" * (n // 2),
    "designations": lambda n: HEAD + OBX + b"\x1b$B\x1b(B" * (n // 6),
    "one field": lambda n: HEAD + OBX + b"a" * n,
    "segments": lambda n: HEAD + b"NTE|1||x\r" * (n // 9),
    "steps": lambda n: HEAD + HEAD[HEAD.index(b"IPC|") :] * (n // 120),
    "orders": lambda n: HEAD + HEAD[HEAD.index(b"ORC|") :] * (n // 500),
    "identifiers": lambda n: HEAD.replace(b"PID|0001||", b"PID|0001||" + b"1^^^A~" * (n // 6)),
    "numbers": lambda n: HEAD + (b"ORC|NW|" + b"A~" * 199 + b"|\r") * (n // 408),
    "names of segments": lambda n: HEAD + b"\r".join(b"Z%02d|" % (i % 100) for i in range(n // 5)),
}  # fmt: skip
BYTES = 200_000
TIMES_MAX = 3  # for twice the bytes; a square would be four
NOISE_SECONDS = 0.03  # of processor time: what is refused at a glance has no ratio


def work(raw: bytes) -> float:
    """Processor seconds until it is known what the message asks for, and the answer to it is there."""
    settings, found = config.Settings(), []
    for _ in range(3):
        before = time.thread_time()
        came = road.received(raw, "127.0.0.1", settings)
        try:
            read = road._read(came, Sender(name="RIS"))
            read.commands()
            read.answer(None, ())
        except BrokerError as error:
            road.ROAD.refuse(came, error)
        found.append(time.thread_time() - before)
    return min(found)


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_work_that_a_message_makes_grows_with_its_bytes_and_no_faster(kind):
    once, twice = work(HOSTILE[kind](BYTES)), work(HOSTILE[kind](2 * BYTES))
    assert twice < once * TIMES_MAX + NOISE_SECONDS


@pytest.mark.parametrize(
    ("limit", "value", "raw"),
    [
        ("mllp_segments_max", 20, HEAD + b"NTE|1||x\r" * 20),
        ("mllp_segment_bytes_max", 1_000, HEAD + b"NTE|1||" + b"x" * 1_000),
        ("mllp_fields_max", 60, HEAD + b"NTE" + b"|" * 60),
        ("mllp_repetitions_max", 20, HEAD + b"NTE|1||" + b"~" * 20),
        ("mllp_components_max", 20, HEAD + b"NTE|1||" + b"^" * 20),
        ("mllp_escapes_max", 50, HEAD + b"NTE|1||" + b"\\.br\\" * 60),
        ("mllp_orders_max", 5, HEAD + HEAD[HEAD.index(b"IPC|") :] * 5),
        ("mllp_orders_max", 5, HEAD + HEAD[HEAD.index(b"ORC|") :] * 5),
        ("mllp_parse_seconds_max", -1, HEAD),
    ],
)
def test_a_message_over_a_limit_is_an_error_and_leaves_nothing_but_its_place_in_the_journal(broker, limit, value, raw):
    """durability.md 1.8: each limit, by its name."""
    setattr(broker.settings.limits, limit, value)
    answer = broker.ris().send(raw)
    assert code_of(answer) == "AE"
    assert [row.state for row in broker.rows(Message)] == ["REJECTED"]
    assert broker.rows(ImagingOrder) == []


def test_the_largest_report_that_a_frame_holds_reaches_its_field(broker):
    """OBX has the frame's limit and not that of other segments."""
    raw = HEAD + OBX + b"a" * 2_000_000 + b"\r"
    assert code_of(broker.ris().send(raw)) == "AA"


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


def test_a_connection_that_says_nothing_for_too_long_is_closed(broker):
    broker.settings.limits.mllp_idle_seconds_max = 0.3
    with socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.settimeout(20)
        assert sock.recv(10) == b""


def test_a_poisonous_message_does_not_stop_the_ones_behind_it(broker):
    ris = broker.ris()
    assert code_of(ris.send(omi(order()).replace(b"|M\r", b"|\\C1B2842\\\r"))) in ("AA", "AE")
    assert code_of(ris.send(omi(order("ACC002")))) == "AA"


@pytest.mark.parametrize(
    "raw", [b"", b"\r", b"BHS", b"BHS|", b"FHS|^~\\&", b"BTS|1", b"MSH", b"MSH|", b"ACK", b"\xef\xbb\xbf"]
)
def test_what_is_hardly_a_message_is_answered_or_hung_up_on_and_the_port_lives(broker, raw):
    exchange(broker.ports["hl7"], raw)
    assert code_of(broker.ris().send(omi(order()))) == "AA"
