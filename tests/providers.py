"""Worklist providers that tests ask: one that plays a script of bytes, one of pynetdicom, DCMTK's."""

import contextlib
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.sop_class import ModalityWorklistInformationFind

from broker.config import Limits
from broker.dicom import dimse, pdu, tree
from broker.dicom.negotiate import Negotiator
from broker.dicom.pdu import Wire
from broker.dicom.service import Command, Offer, Registry, Response
from broker.mwl.dataset import STEP_SEQUENCE, to_tree
from tests.world import YAMADA, today

MWL = str(ModalityWorklistInformationFind)
DONE, PENDING, TOO_MANY = 0x0000, 0xFF00, 0xA700


def item(
    accession: str = "ACC001",
    *,
    patient: Any = YAMADA,
    character_set: str = "\\ISO 2022 IR 87",
    raw_as: str = "",
    step: dict[str, Any] | None = None,
    **said: Any,
) -> bytes:
    """An entry of a list for today, as a provider sends it. said, step: by keyword; None leaves out. raw_as: the set
    that it is in, where it names another."""
    values = {
        "AccessionNumber": accession, "PatientID": patient.id, "IssuerOfPatientID": "HOSP",
        "PatientName": f"YAMADA^TARO={patient.kanji}={patient.kana}", "PatientBirthDate": patient.birth_date,
        "PatientSex": patient.sex, "StudyInstanceUID": f"1.2.3.{int.from_bytes(accession.encode(), 'big')}",
        "RequestedProcedureID": f"R{accession}", "RequestedProcedureDescription": "胸部CT",
        "IssuerOfAccessionNumberSequence": [{"LocalNamespaceEntityID": "RIS"}], **said,
    }  # fmt: skip
    inner = {
        "ScheduledStationAETitle": "CT1", "ScheduledProcedureStepStartDate": f"{today():%Y%m%d}",
        "ScheduledProcedureStepStartTime": "0930", "Modality": "CT", "ScheduledProcedureStepID": f"S{accession}",
        "ScheduledProcedureStepDescription": "胸部単純", **(step or {}),
    }  # fmt: skip
    made = to_tree({name: value for name, value in values.items() if value is not None})
    made[STEP_SEQUENCE] = ("SQ", [to_tree({name: value for name, value in inner.items() if value is not None})])
    if character_set:
        made[tree.CHARSET] = ("CS", character_set)
    return tree.write(made, tree.IMPLICIT_LE, tuple((raw_as or character_set).split("\\")))


Play = Callable[[Wire, Command, int], None]


class Scripted:
    """entries: what it lists. status: its last word. play: in place of both. accept: whether it takes associations."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.status = DONE
        self.play: Play | None = None
        self.refusal = b""
        self.delay = 0.0
        self.asked: list[tree.Tree] = []
        self.calling: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        registry = Registry()
        registry.add(MWL, Offer(None, (tree.IMPLICIT_LE,), frozenset({0x0020})))
        self._negotiator = Negotiator(registry, 128 * 1024)
        threading.Thread(target=self._serve, daemon=True).start()

    def offer_nothing(self) -> None:
        self._negotiator = Negotiator(Registry(), 128 * 1024)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=[sock], daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with contextlib.closing(sock), contextlib.suppress(pdu.Gone, OSError):
            wire = Wire(sock, 1024 * 1024, 10)
            _, body = wire.read(10)
            request = bytes(body)
            self.calling.append(request[20:36].decode().strip())
            if self.refusal:
                wire.send(self.refusal)
                return
            reply, contexts = self._negotiator.accept(request, 8)
            wire.send(reply)
            if not contexts:
                return
            (context,) = contexts
            command, identifier = self._request(wire)
            self.asked.append(tree.read(identifier, tree.IMPLICIT_LE, Limits()))
            time.sleep(self.delay)
            (self.play or self._list)(wire, command, context)
            wire.read(5)
            wire.send(pdu.release_reply())

    def _request(self, wire: Wire) -> tuple[Command, bytes]:
        parts: dict[bool, bytearray] = {True: bytearray(), False: bytearray()}
        while True:
            _, body = wire.read(10)
            for _, is_command, is_last, data in pdu.fragments(body):
                parts[is_command] += data
                if is_last and not is_command:
                    return dimse.command(dimse.parse(bytes(parts[True]))), bytes(parts[False])

    def _list(self, wire: Wire, command: Command, context: int) -> None:
        for entry in self.entries:
            wire.send(pending(command, context, entry))
        wire.send(final(command, context, self.status))


def pending(command: Command, context: int, entry: bytes, status: int = PENDING) -> bytes:
    head = dimse.response(command, Response(status, entry), dimse_n=False)
    return pdu.p_data(context, head, is_command=True, peer_bytes_max=0) + pdu.p_data(
        context, entry, is_command=False, peer_bytes_max=0
    )


def final(command: Command, context: int, status: int) -> bytes:
    return pdu.p_data(
        context, dimse.response(command, Response(status), dimse_n=False), is_command=True, peer_bytes_max=0
    )


@contextlib.contextmanager
def pynetdicom_provider(items: Sequence[Dataset]) -> Iterator[int]:
    """Its port."""

    def find(_: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        yield from ((PENDING, one) for one in items)

    ae = AE("PYNET")
    ae.add_supported_context(ModalityWorklistInformationFind, ImplicitVRLittleEndian)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find)])
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


@contextlib.contextmanager
def wlmscpfs(folder: Path, entries: Sequence[bytes], *options: str, title: str = "WLM") -> Iterator[int]:
    """DCMTK's provider on files. Its port."""
    home = folder / title
    home.mkdir(parents=True)
    (home / "lockfile").touch()
    for number, entry in enumerate(entries):
        file_meta = b"".join(
            struct.pack("<HH2sH", 2, element, vr.encode(), len(value)) + value
            for element, vr, value in ((0x0010, "UI", b"1.2.840.10008.1.2\0"),)
        )
        group = struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(file_meta))
        (home / f"{number}.wl").write_bytes(b"\0" * 128 + b"DICM" + group + file_meta + entry)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["wlmscpfs", "-dfp", str(folder), "-dfr", *options, "--single-process", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()
