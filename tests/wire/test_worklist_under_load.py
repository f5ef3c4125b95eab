"""Twenty devices ask again and again while orders change: every answer is complete, and of one moment."""

import datetime as dt
import itertools
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from broker.config import Limits
from broker.dicom import dimse, pdu, tree
from broker.dicom.tree import Tree
from broker.sim.ris import Ris, code_of, omi
from tests import raw
from tests.house import House, eventually
from tests.world import order, today

ASSOCIATIONS, QUERIES, ORDERS, SENDERS = 20, 50, 12, 3
DESCRIPTION, ACCESSION, STEP = 0x00321060, 0x00080050, 0x00400100
DATE, TIME, STATION, SPS_ID = 0x00400002, 0x00400003, 0x00400001, 0x00400009
KEYS: Tree = {
    ACCESSION: ("SH", ""), DESCRIPTION: ("LO", ""),
    STEP: ("SQ", [{STATION: ("AE", "CT1"), DATE: ("DA", ""), TIME: ("TM", ""), SPS_ID: ("SH", "")}]),
}  # fmt: skip


def answers(peer: raw.Raw, message_id: int) -> list[Tree]:
    """Of one C-FIND, with its final status checked; none where no turn was free, so that the device asks again."""
    command = raw.command(raw.C_FIND, raw.WORKLIST, message_id=message_id)
    peer.send(raw.message(1, command, tree.write(KEYS, raw.IMPLICIT, ("",))))
    found, status = [], 0xFF00
    while status == 0xFF00:
        for is_command, data in _parts(peer):
            if is_command:
                status = int.from_bytes(dimse.parse(data)[dimse.E["Status"]], "little")
            else:
                found.append(tree.read(data, raw.IMPLICIT, Limits()))
    assert status in (0x0000, 0xA700), f"{status:04X}"
    return found if status == 0x0000 else []


def _parts(peer: raw.Raw) -> Iterator[tuple[bool, bytes]]:
    kind, body = peer.read()
    assert kind == pdu.P_DATA
    for _, is_command, _, data in pdu.fragments(memoryview(body)):
        yield is_command, bytes(data)


def faults(items: list[Tree], expected: set[str]) -> list[str]:
    """Steps that are lost or there twice, and orders of which two steps tell of two moments."""
    moments, steps = defaultdict(set), []
    for item in items:
        ((step,),) = [item[STEP][1]]
        steps.append(str(step[SPS_ID][1]))
        moments[item[ACCESSION][1]].add((item[DESCRIPTION][1], step[DATE][1], step[TIME][1]))
    wrong = [f"{accession}: {found}" for accession, found in moments.items() if len(found) > 1]
    return wrong + ([] if sorted(steps) == sorted(expected) else [f"{len(steps)} of {len(expected)} steps"])


def test_every_answer_is_complete_and_of_one_moment_while_orders_change(broker: House):
    start = today(9, 30) + dt.timedelta(days=1)
    orders = [order(f"L{n:03}", steps=2, start=start) for n in range(ORDERS)]
    for one in orders:
        broker.place(one)
    expected = {step.sps_id for one in orders for step in one.steps}
    over, changed = threading.Event(), []

    def change(mine: int) -> None:
        ris = Ris("127.0.0.1", broker.ports["hl7"])
        for n in itertools.count(1):
            if over.is_set():
                break
            one = orders[(n * SENDERS + mine) % ORDERS]
            said = replace(one, description=f"V{mine}-{n}", start=start + dt.timedelta(minutes=n % 600))
            assert code_of(ris.send(omi(said, "XO"))) == "AA"
            changed.append(n)
        ris.close()

    def ask(_: int) -> list[str]:
        with raw.associated(broker.ports["dicom"], raw.WORKLIST) as peer:
            found = [eventually(lambda n=n: answers(peer, n + 1)) for n in range(QUERIES)]
            return [wrong for items in found for wrong in faults(items, expected)]

    with ThreadPoolExecutor(SENDERS + ASSOCIATIONS) as pool:
        senders = [pool.submit(change, n) for n in range(SENDERS)]
        try:
            found = [wrong for one in pool.map(ask, range(ASSOCIATIONS)) for wrong in one]
        finally:
            over.set()
        for one in senders:
            one.result()
    assert found == []
    assert len(changed) > SENDERS, "orders changed meanwhile"
