"""The database hangs, is gone, or somebody holds its lock: every peer is told so in time, and in its own words
(durability.md 1.7, conformance.md 1.9, 2.4, 3.1)."""

import contextlib
import dataclasses
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from broker import access, db
from broker.dicom import pdu, tree
from broker.mwl.snapshot import Snapshot
from broker.sim.ris import omi
from tests import raw
from tests.house import House, eventually
from tests.objects import ct
from tests.performed import created
from tests.trouble import gone, hung, locked
from tests.world import order

TOLD_SECONDS_MAX = 8
STEP = tree.write(created(), raw.IMPLICIT, ("",))
on_postgresql = pytest.mark.parametrize("premises", ["postgresql"], indirect=True, scope="session")
on_sqlite = pytest.mark.parametrize("premises", ["sqlite"], indirect=True, scope="session")


@pytest.fixture
def hurried(broker: House, monkeypatch) -> House:
    """It waits for its database less long than others do."""
    monkeypatch.setattr(db, "_patience", dataclasses.replace(db._patience, wait=3, statement=0.5))
    return broker


KINDS: dict[str, Callable[[Any], contextlib.AbstractContextManager[None]]] = {
    "gone": gone,
    "hung": lambda database: hung(database._server.url.render_as_string(False)),
}


def find(peer: raw.Raw) -> tuple[int, str]:
    peer.send(raw.message(1, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME))
    return peer.status()


def store(peer: raw.Raw) -> tuple[int, str]:
    peer.send(raw.store(ct()))
    return peer.status()


def step(peer: raw.Raw, verb: int) -> tuple[int, str]:
    peer.send(raw.message(1, raw.command(verb, raw.MPPS, "1.2.3.4"), STEP))
    return peer.status()


def echo(broker: House) -> tuple[int, str]:
    with raw.associated(broker.ports["dicom"], raw.VERIFICATION) as peer:
        peer.send(raw.message(1, raw.command(raw.C_ECHO, raw.VERIFICATION, dataset=False)))
        return peer.status()


def rejection(broker: House, calling: str) -> bytes:
    with raw.Raw(broker.ports["dicom"]) as peer:
        peer.send(raw.request(*raw.asks_for(raw.VERIFICATION), calling=calling))
        kind, body = peer.read()
        assert kind == pdu.ASSOCIATE_RJ
        return body


def hl7(broker: House, accession: str = "ACC001") -> bytes:
    with socket.create_connection(("127.0.0.1", broker.ports["hl7"])) as sock:
        sock.settimeout(20)
        sock.sendall(b"\x0b" + omi(order(accession)) + b"\x1c\x0d")
        return sock.recv(4096)


def web(broker: House, path: str, role: str = "") -> httpx.Response:
    headers = {"Authorization": f"Bearer {broker.tokens[role]}"} if role else {}
    return httpx.get(f"http://127.0.0.1:{broker.ports['http']}{path}", headers=headers, timeout=20)


def all_at_once(**asked: Callable[[], object]) -> tuple[dict[str, object], float]:
    """What each is told, and how long the slowest waited."""
    started = time.monotonic()
    with ThreadPoolExecutor(len(asked)) as pool:
        told = {name: pool.submit(call) for name, call in asked.items()}
        return {name: future.result() for name, future in told.items()}, time.monotonic() - started


@contextlib.contextmanager
def open_associations(broker: House) -> Iterator[dict[str, raw.Raw]]:
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(raw.associated(broker.ports["dicom"], sop_class))
            for name, sop_class in (("store", raw.CT), ("find", raw.WORKLIST), ("set", raw.MPPS), ("create", raw.MPPS))
        }


@on_postgresql
@pytest.mark.parametrize("kind", KINDS)
def test_while_the_database_is_away_everybody_is_told_in_time_and_in_his_own_words(premises, hurried, kind):
    broker = hurried
    (snapshot,) = broker._parts[Snapshot]
    snapshot.refresh()
    with open_associations(broker) as peers:
        with KINDS[kind](premises._database):
            told, seconds = all_at_once(
                store=lambda: store(peers["store"]),
                find=lambda: find(peers["find"]),
                set=lambda: step(peers["set"], raw.N_SET),
                create=lambda: step(peers["create"], raw.N_CREATE),
                echo=lambda: echo(broker),
                stranger=lambda: rejection(broker, "STRANGER"),
                hl7=lambda: hl7(broker),
                live=lambda: web(broker, "/healthz/live").status_code,
                api=lambda: web(broker, "/api/v1/status", "ehr").status_code,
            )
            started = time.monotonic()
            ready = web(broker, "/healthz/ready")
            assert time.monotonic() - started < broker.settings.limits.http_ready_seconds_max + 1
            access.forget()
            unknowable = rejection(broker, "CT1")
        assert told.pop("find")[0] == 0x0000, "from the snapshot (test_outage.py)"
        for name, status in {"store": 0xA702, "set": 0x0213, "create": 0x0213}.items():
            assert told[name][0] == status
            assert told.pop(name)[1].endswith("database away: send again later")
        assert told == {
            "echo": (0x0000, ""), "stranger": bytes([0, 1, 1, 3]), "hl7": b"", "live": 200, "api": 503,
        }  # fmt: skip
        assert seconds < TOLD_SECONDS_MAX
        assert (ready.status_code, ready.json()["database"]) == (503, "away")
        assert unknowable == bytes([0, 2, 3, 2])
        assert eventually(lambda: web(broker, "/healthz/ready").status_code == 200)
        assert store(peers["store"])[0] == find(peers["find"])[0] == step(peers["create"], raw.N_CREATE)[0] == 0x0000
    assert b"MSA|AA|" in hl7(broker)
    assert echo(broker) == (0x0000, "")


@on_sqlite
def test_while_somebody_holds_the_lock_who_writes_is_told_in_time_and_who_reads_is_served(premises, hurried):
    broker = hurried
    broker.place(order("ACC002"))
    with open_associations(broker) as peers:
        with locked(premises._database, "all"):
            told, seconds = all_at_once(
                store=lambda: store(peers["store"])[0],
                create=lambda: step(peers["create"], raw.N_CREATE)[0],
                find=lambda: find(peers["find"])[0],
                hl7=lambda: hl7(broker),
                api=lambda: web(broker, "/api/v1/status/ACC002", "ehr").status_code,
                ready=lambda: web(broker, "/healthz/ready").status_code,
            )
        assert told == {"store": 0xA702, "create": 0x0213, "find": 0x0000, "hl7": b"", "api": 200, "ready": 200}
        assert seconds < TOLD_SECONDS_MAX
        assert store(peers["store"])[0] == step(peers["create"], raw.N_CREATE)[0] == 0x0000
    assert b"MSA|AA|" in hl7(broker)


@on_postgresql
def test_a_poll_that_waits_is_woken_also_after_the_database_was_away(premises, hurried):
    broker = hurried
    broker.place(order("ACC001"))
    with ThreadPoolExecutor(1) as pool:
        polled = pool.submit(web, broker, "/api/v1/status/changes?since=1&wait=15", "ehr")
        time.sleep(0.5)
        with gone(premises._database):
            time.sleep(1)
        assert eventually(lambda: b"MSA|AA|" in hl7(broker, "ACC002"))
        answer = polled.result()
    assert answer.json()["next"] > 1
