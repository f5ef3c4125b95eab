"""A device repeats its query byte for byte, and gets what is true when it asks: whatever was worked out before."""

import datetime as dt
import struct
import time
from dataclasses import replace

from broker import access, clock, db, site
from broker.dicom import pdu, tree
from broker.model.orders import OfferedItem
from broker.model.worklist import WorklistAnswer, WorklistQuery
from broker.mwl import orders
from broker.mwl.offered import Recorder
from broker.sim.ris import code_of, omi
from tests import raw
from tests.house import House, eventually
from tests.wire.test_worklist import find, query
from tests.world import SATO, order

KEYS = {"ScheduledStationAETitle": "CT1", "ScheduledProcedureStepID": ""}


def change(ae_title: str, **fields) -> None:
    db.run(site.change_node, ae_title, now=clock.now(), actor="test", **fields)
    access.forget()


def found(broker: House, ae_title: str = "CT1", **keys) -> list[str]:
    statuses, items, _ = find(broker, query({**KEYS, **keys}), ae_title)
    assert statuses[-1] == 0x0000
    return [item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for item in items]


def recorder(broker: House) -> Recorder:
    (made,) = broker._parts[Recorder]
    return made


def test_an_alias_counts_at_the_next_query(broker):
    broker.place(order("ACC001", station="CT_ROOM"))
    assert found(broker) == []
    change("CT1", aliases=["CT_ROOM"])
    assert found(broker) == ["S1ACC001"]
    change("CT1", aliases=[])
    assert found(broker) == []


def test_a_new_name_finds_at_the_next_query_and_the_old_one_no_longer(broker):
    broker.place(order("ACC001", SATO))
    married = replace(SATO, kanji="鈴木^花子", kana="スズキ^ハナコ")
    header, person, *_ = omi(order("ACC001", married)).split(b"\r")
    renamed = b"\r".join([header.replace(b"OMI^O23^OMI_O23", b"ADT^A08^ADT_A01"), person, b""])
    assert code_of(broker.ris().send(renamed)) == "AA"
    for key, count in (("=鈴木*", 1), ("*スズキ*", 1), ("=佐藤*", 0), ("*サトウ*", 0)):
        asked = query(KEYS, PatientName=key, SpecificCharacterSet="ISO_IR 192")
        assert len(find(broker, asked)[1]) == count, key


def test_what_has_begun_goes_when_its_hours_are_over(broker, monkeypatch):
    broker.place(order("ACC001"))
    change("CT1", hide=["COMPLETED"], started_hours=1)

    def begin(session):
        from sqlmodel import select

        from broker.model.orders import ScheduledStep

        step = session.exec(select(ScheduledStep)).one()
        orders.move_step(session, step, "start", now=clock.now(), actor="test", cause="test")

    db.run(begin)
    assert found(broker) == ["S1ACC001"]
    real = clock.now
    monkeypatch.setattr(clock, "now", lambda: real() + dt.timedelta(hours=2))
    assert found(broker) == []


def test_rights_and_rules_of_a_device_change_while_it_is_connected(broker):
    broker.place(order("ACC001"))
    with raw.associated(broker.ports["dicom"], raw.WORKLIST) as peer:
        assert ask(peer) == (1, 0x0000)
        change("CT1", sees=["ae:MR1"])
        assert ask(peer) == (0, 0x0000)
        change("CT1", rights=["mpps"], sees=[])
        assert ask(peer) == (0, 0x0124)
        db.run(site.remove_node, "CT1", now=clock.now(), actor="test")
        access.forget()
        assert ask(peer) == (0, 0x0124)


def ask(peer: raw.Raw) -> tuple[int, int]:
    """Answers and final status."""
    peer.send(raw.message(1, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME))
    answers = 0
    while True:
        kind, body = peer.read()
        assert kind == pdu.P_DATA
        for _, is_command, _, data in pdu.fragments(memoryview(body)):
            if is_command and (status := _status(bytes(data))) not in (0xFF00, 0xFF01):
                return answers, status
            answers += not is_command


def _status(command: bytes) -> int:
    at = command.index(struct.pack("<HHI", 0, 0x0900, 2))
    return int(struct.unpack_from("<H", command, at + 8)[0])


def test_of_a_cancelled_list_only_what_was_sent_is_on_record(broker):
    for n in range(25):
        broker.place(order(f"C{n:03}"))
    cancel = struct.pack("<HHIH", 0, 0x0100, 2, 0x0FFF) + struct.pack("<HHIH", 0, 0x0120, 2, 1)
    cancel += struct.pack("<HHIH", 0, 0x0800, 2, 0x0101)
    cancel = struct.pack("<HHII", 0, 0, 4, len(cancel)) + cancel
    with raw.associated(broker.ports["dicom"], raw.WORKLIST) as peer:
        peer.send(raw.message(1, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME) + raw.message(1, cancel))
        while True:
            kind, body = peer.read()
            assert kind == pdu.P_DATA
            statuses = [
                _status(bytes(data)) for _, is_command, _, data in pdu.fragments(memoryview(body)) if is_command
            ]
            if statuses and statuses[-1] not in (0xFF00, 0xFF01):
                break
    assert statuses[-1] == 0xFE00
    recorder(broker).flush()
    (row,) = broker.rows(WorklistQuery)
    (answer,) = broker.rows(WorklistAnswer)
    assert row.status == 0xFE00
    assert len(answer.items) == len(broker.rows(OfferedItem)) < 25


def test_an_internal_error_is_told_and_on_record(broker, monkeypatch):
    from broker.mwl import worklist

    broker.place(order("ACC001"))

    def fail(*_args, **_kwargs):
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(worklist, "find", fail)
        assert find(broker, query(KEYS))[0] == [0xC010]
    recorder(broker).flush()
    assert [row.status for row in broker.rows(WorklistQuery)] == [0xC010]


def test_an_identifier_that_no_device_sends_is_answered_and_not_kept(broker):
    broker.place(order("ACC001"))
    broker.place(order("ACC002", SATO))
    for accession, count in (("ACC001", 1), ("ACC002", 1), ("", 2)):
        asked = query(KEYS, AccessionNumber=accession)
        for n in range(4_000):
            asked.add_new(0x00091000 + n, "LO", "x" * 8)
        statuses, items, _ = find(broker, asked)
        assert (statuses[-1], len(items)) == (0x0000, count)
    recorder(broker).flush()
    from broker.model.worklist import WorklistKeys

    assert max(len(row.dataset) for row in broker.rows(WorklistKeys)) < 16 * 1024


def test_a_place_is_free_as_soon_as_a_release_is_confirmed(broker):
    limits = broker.settings.limits
    before, limits.dicom_associations_per_ae_max = limits.dicom_associations_per_ae_max, 1
    try:
        for _ in range(40):
            with raw.associated(broker.ports["dicom"], raw.WORKLIST) as peer:
                peer.send(struct.pack(">BBII", pdu.RELEASE_RQ, 0, 4, 0))
                assert peer.read()[0] == pdu.RELEASE_RP
    finally:
        limits.dicom_associations_per_ae_max = before


def test_a_crowd_leaves_few_threads_behind(broker):
    from broker.dicom.listener import SPARE_THREADS_MAX, Listener

    (listener,) = broker._parts[Listener]
    crowd = [raw.associated(broker.ports["dicom"], raw.WORKLIST) for _ in range(40)]
    for peer in crowd:
        peer.sock.close()
    assert eventually(lambda: not listener._connections)
    time.sleep(0.2)
    assert 1 <= listener._waiting <= SPARE_THREADS_MAX


def test_a_query_is_read_in_the_set_that_it_declares_each_time(broker):
    broker.place(order("ACC001"))
    kept = tree.write({0x00100010: ("PN", "=山田*")}, tree.IMPLICIT_LE, ("ISO_IR 192",))
    declared = tree.write({tree.CHARSET: ("CS", "ISO_IR 192")}, tree.IMPLICIT_LE, ("",))
    with raw.associated(broker.ports["dicom"], raw.WORKLIST) as peer:
        for data, answers in ((declared + kept, 1), (declared + kept, 1)):
            peer.send(raw.message(1, raw.command(raw.C_FIND, raw.WORKLIST), data))
            counted = 0
            while True:
                _, body = peer.read()
                parts = list(pdu.fragments(memoryview(body)))
                counted += sum(not part[1] for part in parts)
                ends = [_status(bytes(part[3])) for part in parts if part[1]]
                if ends and ends[-1] not in (0xFF00, 0xFF01):
                    break
            assert counted == answers


def test_a_device_that_hangs_up_in_its_list_leaves_no_error_behind(broker):
    for n in range(25):
        broker.place(order(f"H{n:03}"))
    with raw.associated(broker.ports["dicom"], raw.WORKLIST) as peer:
        release = struct.pack(">BBII", pdu.RELEASE_RQ, 0, 4, 0)
        peer.send(raw.message(1, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME) + release)
        while peer.read()[0] not in (0, pdu.RELEASE_RP, pdu.ABORT):
            pass
    assert eventually(lambda: recorder(broker).flush() or broker.rows(WorklistQuery))
    (row,) = broker.rows(WorklistQuery)
    assert row.status in (0x0000, 0xFE00)
