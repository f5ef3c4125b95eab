"""After every kind of broken conversation: no half file, no descriptor and no thread stays (durability.md 5.3, B1)."""

import collections
import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from broker.dicom import pdu
from broker.dicom.listener import SPARE_THREADS_MAX
from tests import raw
from tests.house import House, eventually
from tests.objects import ct, encoded

TIMES = 15
CONVERSATIONS = 150
SLACK = 9  # descriptors: connections to PostgreSQL that were opened meanwhile; each attack would leave TIMES
DATABASE_FILES = (".sqlite3", ".sqlite3-wal", ".sqlite3-shm")


def parts(broker: House) -> list[str]:
    return os.listdir(broker.settings.staging_dir / "in")


def descriptors() -> int:
    """Without those of SQLite's files, three for each connection that a pool opens when it likes."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of this very list
            count += not os.readlink(f"/proc/self/fd/{name}").endswith(DATABASE_FILES)
    return count


def serving(broker: House) -> list[str]:
    """Connections that are served, and threads of the port beyond those that may wait at it."""
    threads = [thread.name for thread in threading.enumerate() if thread.name == "dicom"]
    return [*broker.dicom_connections(), *threads[SPARE_THREADS_MAX:]]


def left(broker: House, before: int) -> tuple[list[str], list[str], int]:
    """Half files, threads, and more descriptors than before."""
    return parts(broker), serving(broker), max(0, descriptors() - before - SLACK)


def warm_up(broker: House) -> int:
    """Descriptors of a broker that has had work: the connections to its database are there."""
    peers = [raw.associated(broker.ports["dicom"], raw.CT) for _ in range(8)]
    for peer in peers:
        peer.send(raw.store(ct()))
    assert all(peer.status() == (0x0000, "") for peer in peers)
    for peer in peers:
        peer.sock.close()
    assert eventually(lambda: not serving(broker))
    return descriptors()


def half(broken: raw.Raw) -> None:
    broken.send(raw.store(ct())[:-100])


def half_and_reset(broken: raw.Raw) -> None:
    half(broken)
    broken.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def half_and_something_else(broken: raw.Raw) -> None:
    head, data = whole(ct())
    broken.send(raw.p_data(head) + raw.p_data(raw.pdv(1, data[6:100], is_last=False)) + struct.pack(">BBI", 9, 0, 0))
    assert broken.read()[0] == pdu.ABORT


def whole(ds) -> list[bytes]:
    head = raw.command(raw.C_STORE, raw.CT, ds.SOPInstanceUID)
    return [raw.pdv(1, head, is_command=True), raw.pdv(1, encoded(ds))]


def whole_and_a_lie(broken: raw.Raw) -> None:
    broken.send(raw.p_data(*whole(ct()), raw.pdv(99, b"")))
    assert broken.read()[0] == pdu.ABORT


def many_at_once(broken: raw.Raw) -> None:
    broken.send(raw.p_data(*(part for _ in range(50) for part in whole(ct()))))
    assert broken.read()[0] in (pdu.P_DATA, pdu.ABORT)


def whole_and_gone(broken: raw.Raw) -> None:
    broken.send(raw.store(ct()))


@pytest.mark.parametrize(
    "attack", [half, half_and_reset, half_and_something_else, whole_and_a_lie, many_at_once, whole_and_gone]
)
def test_a_conversation_that_breaks_off_leaves_nothing(broker, attack: Callable[[raw.Raw], None]):
    before = warm_up(broker)
    for _ in range(TIMES):
        with raw.associated(broker.ports["dicom"], raw.CT) as broken:
            attack(broken)
    assert eventually(lambda: not any(left(broker, before))), left(broker, before)


def spoiled(chance: random.Random, data: bytes, times: int) -> bytes:
    changed = bytearray(data)
    for _ in range(times):
        changed[chance.randrange(len(changed))] = chance.choice([0, 1, 2, 3, 255, chance.randrange(256)])
    return bytes(changed)


def conversation(chance: random.Random, port: int, seen: collections.Counter) -> None:
    """An association and a query, an object and a performed step, with some bytes changed."""
    opening = raw.request(*raw.asks_for(raw.CT, raw.MPPS, raw.WORKLIST))
    if chance.random() < 0.3:
        opening = opening[:6] + spoiled(chance, opening[6:], chance.randint(1, 4))
    work = raw.message(5, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME) + raw.store(ct())
    work += raw.message(3, raw.command(raw.N_CREATE, raw.MPPS, "1.2.3"), encoded(ct())[:200])
    with raw.Raw(port, seconds=5) as peer, contextlib.suppress(ConnectionError, BrokenPipeError):
        peer.send(opening)
        kind, _ = peer.read()
        seen[kind] += 1
        if kind == pdu.ASSOCIATE_AC:
            peer.send(spoiled(chance, work, chance.randint(0, 5)))
            peer.sock.shutdown(socket.SHUT_WR)
            while peer.read()[0]:
                pass


def test_bytes_changed_at_random_leave_nothing_and_the_port_alive(broker):
    before = warm_up(broker)
    chance, seen = random.Random(3), collections.Counter()
    for _ in range(CONVERSATIONS):
        conversation(chance, broker.ports["dicom"], seen)
    assert seen[0] == 0, "closed without a word"
    assert seen[pdu.ASSOCIATE_AC] > CONVERSATIONS / 2
    assert eventually(lambda: not any(left(broker, before))), left(broker, before)
    with raw.associated(broker.ports["dicom"], raw.CT) as well:
        well.send(raw.store(ct()))
        assert well.status() == (0x0000, "")
