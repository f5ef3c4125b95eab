"""A hospital that goes on working while its broker is killed again and again.

Everyone sends a thing until it is answered, as real senders do; some devices give up on an image. What was answered is
written down here, and `ledger.py` compares it with what the broker has in the end."""

import dataclasses
import datetime as dt
import itertools
import os
import queue
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.sop_class import ModalityPerformedProcedureStep

from broker import ids
from broker.sim.modality import Modality, Refused, _status, _with_meta, evidence, held
from broker.sim.ris import Order, Patient, Ris, code_of, omi
from tests import commands, world

T = TypeVar("T")
SCANNERS, RISES = ("CT1", "CT2", "CT3"), 2
IMAGES_PER_EXAM_MAX = 6
ORDERS_WAITING_MAX = 12
READY_SECONDS_MAX = 60
UPTIME_SECONDS_MAX = 1.6  # from the moment all ports are open to the kill
BEFORE_READY_SHARE = 0.2  # of the kills: in the start, that is in the recovery
GIVE_UP_SHARE, AGAIN_SHARE, CHANGE_SHARE = 0.1, 0.2, 0.2
WRONG_PATIENT_EVERY = 10  # exams: the images of every tenth show another patient, from the third on, whatever the seed
UNANSWERED = (Refused, OSError, ConnectionError)


@dataclasses.dataclass
class Exam:
    """One order and what came of it. Every list holds what was acknowledged. wrong: the images show another patient."""

    order: Order
    placed: bool = False
    messages: list[bytes] = dataclasses.field(default_factory=list)
    mpps_uid: str = ""
    started: bool = False
    finished: bool = False
    wrong: bool = False
    images: dict[str, str] = dataclasses.field(default_factory=dict)  # SOP Instance UID -> SHA-256 of the data set
    given_up: dict[str, str] = dataclasses.field(default_factory=dict)  # never answered, never sent again


class Storm:
    """Senders in threads of this process against a broker in one of its own, which `kill` kills and starts again."""

    def __init__(self, database_url: str, folder: Path, seed: int) -> None:
        self.exams: list[Exam] = []
        self.errors: list[BaseException] = []
        self.kills = 0
        self.ports = {name: _free_port() for name in ("DICOM", "HL7", "HTTP")}
        self._folder, self._random, self._lock = folder, random.Random(seed), threading.Lock()
        self._numbers = itertools.count(1)
        self._orders: dict[str, queue.Queue[Exam]] = {name: queue.Queue(ORDERS_WAITING_MAX) for name in SCANNERS}
        self._stopping = threading.Event()
        self._environment = commands.environment(
            database_url, folder / "data", LOG_LEVEL="error", RECONCILE__SETTLE_SECONDS="0.3",
            LIMITS__JOB_SECONDS_BETWEEN="0.2", LIMITS__LEASE_SECONDS="3", LIMITS__DECIDE_RETRY_SECONDS="1",
            LIMITS__STAGING_FREE_BYTES_MIN="1048576",
            **{f"{name}__PORT": str(port) for name, port in self.ports.items()},
        )  # fmt: skip
        works = [self._ris] * RISES + [self._scanner(ae_title) for ae_title in SCANNERS]
        self._threads = [
            threading.Thread(target=self._watched, args=(work, random.Random(f"{seed}:{n}")), daemon=True)
            for n, work in enumerate(works)
        ]

    # the broker

    def start(self) -> None:
        self.process = commands.begin(["serve"], self._environment, self._folder)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not all(map(_listens, self.ports.values())):
            said = (self._folder / "stderr").read_text("utf-8") if not self.process.is_alive() else ""
            assert self.process.is_alive(), f"the broker did not start again:\n{said[-4000:]}"
            assert time.monotonic() < deadline, "the broker is not ready"
            time.sleep(0.02)

    def kill(self) -> None:
        """Once, at a moment of its own choice, in the start or in the work."""
        if self._random.random() < BEFORE_READY_SHARE:
            time.sleep(self._random.uniform(0, 0.5))
        else:
            self.wait_until_ready()
            time.sleep(self._random.uniform(0.05, UPTIME_SECONDS_MAX))
        assert self.process.is_alive(), (self._folder / "stderr").read_text("utf-8")[-4000:]
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.kills += 1

    def stop(self) -> None:
        """SIGTERM: it finishes what is under way and ends well."""
        os.kill(self.process.pid, signal.SIGTERM)
        self.process.join(READY_SECONDS_MAX)
        assert self.process.exitcode == 0, (self._folder / "stderr").read_text("utf-8")[-4000:]

    # the hospital

    def open(self) -> None:
        for thread in self._threads:
            thread.start()

    def calm(self) -> None:
        """No new orders; every exam that has begun is brought to its end."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(READY_SECONDS_MAX)
            assert not thread.is_alive(), "a sender was never answered"
        if self.errors:
            raise self.errors[0]

    def _watched(self, work: Callable[[random.Random], None], chance: random.Random) -> None:
        try:
            work(chance)
        except BaseException as error:
            self.errors.append(error)
            self._stopping.set()

    def _ris(self, chance: random.Random) -> None:
        for exam in self._placing(chance):
            messages = [omi(exam.order)]
            if chance.random() < CHANGE_SHARE:
                later = dataclasses.replace(exam.order, start=exam.order.start + dt.timedelta(minutes=5))
                messages.append(omi(later, "XO"))
            for message in messages:
                answer = until_answered(lambda message=message: self._send(message))
                assert code_of(answer) == "AA", answer
                exam.messages.append(message)
            exam.placed = True
            while not self._stopping.is_set():
                try:
                    self._orders[exam.order.steps[0].station].put(exam, timeout=0.1)
                    break
                except queue.Full:
                    continue

    def _placing(self, chance: random.Random) -> Iterator[Exam]:
        while not self._stopping.is_set():
            with self._lock:
                number = next(self._numbers)
                exam = Exam(_order(number, chance.choice(SCANNERS)), wrong=number % WRONG_PATIENT_EVERY == 3)
                self.exams.append(exam)
            yield exam

    def _send(self, message: bytes) -> bytes:
        ris = Ris("127.0.0.1", self.ports["HL7"])
        try:
            return ris.send(message)
        finally:
            ris.close()

    def _scanner(self, ae_title: str) -> Callable[[random.Random], None]:
        def work(chance: random.Random) -> None:
            scanner = Modality(ae_title, "127.0.0.1", self.ports["DICOM"])
            while True:
                try:
                    exam = self._orders[ae_title].get(timeout=0.1)
                except queue.Empty:
                    if self._stopping.is_set():
                        return
                    continue
                examine(scanner, exam, chance)

        return work


def examine(scanner: Modality, exam: Exam, chance: random.Random) -> None:
    """From the worklist item to the final MPPS."""
    query = scanner.query(ScheduledStationAETitle="")
    query.AccessionNumber = exam.order.accession
    (item,) = until_answered(lambda: scanner.worklist(query))
    uid = ids.uid("2.25")
    created = scanner.performed([item])
    # 0111: the request was applied, and killed before its answer.
    until_answered(lambda: _mpps(scanner, "send_n_create", created, uid, {0x0000, 0x0111}))
    exam.mpps_uid, exam.started = uid, True
    other = {"PatientID": "9999999999", "PatientName": "OTHER^ONE"} if exam.wrong else {}
    images = scanner.images(item, chance.randint(1, IMAGES_PER_EXAM_MAX), mpps_uid=uid, **other)
    _store_all(scanner, exam, images, chance)
    sent = [image for image in images if image.SOPInstanceUID in exam.images]
    final = scanner.final(sent)
    # 0110: it is final already (A710), by the request whose answer was lost.
    until_answered(lambda: _mpps(scanner, "send_n_set", final, uid, {0x0000, 0x0110}))
    exam.finished = True


def _store_all(scanner: Modality, exam: Exam, images: list[Dataset], chance: random.Random) -> None:
    """Over one association as long as it holds; what is not answered is sent again, or given up."""
    waiting = list(images)
    while waiting:
        try:
            association = scanner.associate([(images[0].SOPClassUID, [ExplicitVRLittleEndian])])
        except UNANSWERED:
            time.sleep(0.05)
            continue
        try:
            with held(association):
                while waiting:
                    assert _status(association.send_c_store(_with_meta(waiting[0], ExplicitVRLittleEndian))) == 0x0000
                    exam.images.update([evidence(waiting[0])])
                    if chance.random() >= AGAIN_SHARE:  # else the same object once more, as impatient devices do
                        waiting.pop(0)
        except UNANSWERED:
            if chance.random() < GIVE_UP_SHARE and waiting[0].SOPInstanceUID not in exam.images and exam.images:
                exam.given_up.update([evidence(waiting.pop(0))])


def _mpps(scanner: Modality, verb: str, attributes: Dataset, uid: str, fine: set[int]) -> int:
    with held(scanner.associate([(ModalityPerformedProcedureStep, [ExplicitVRLittleEndian])])) as association:
        status, _ = getattr(association, verb)(attributes, ModalityPerformedProcedureStep, uid)
        code = _status(status)
    assert code in fine, f"{verb} {code:04X}"
    return code


def until_answered(ask: Callable[[], T]) -> T:
    """Again and again, as a sender does whose peer is away."""
    while True:
        try:
            return ask()
        except UNANSWERED:
            time.sleep(0.05)


def _order(number: int, station: str) -> Order:
    patient = Patient(f"{number:010d}", f"山田^番{number}", f"ヤマダ^バン{number}", "19700101", "M")
    return world.order(f"A{number:06d}", patient, station=station)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
