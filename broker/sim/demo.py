"""`broker demo`: a live broker on embedded defaults and three simulators that walk real exams over the real protocols.

Every step prints its evidence; the table at the end says which state each story had to end in and which it reached."""

import datetime as dt
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset
from sqlmodel import Session, select

from broker import clock, config, db, ids, log, site
from broker.archive.part10 import data_set_offset
from broker.archive.store import hash_of
from broker.model.images import Instance
from broker.serve import Broker
from broker.sim.ehr import Ehr
from broker.sim.modality import Modality, evidence
from broker.sim.ris import Order, Patient, Ris, Step, code_of, omi

YAMADA = Patient("0000012345", "山田^太郎", "ヤマダ^タロウ", "19700101", "M")
SATO = Patient("0000023456", "佐藤^花子", "サトウ^ハナコ", "19850315", "F")
SUZUKI = Patient("0000034567", "鈴木^一郎", "スズキ^イチロウ", "19601224", "M")
TANAKA = Patient("0000056789", "田中^美咲", "タナカ^ミサキ", "19920704", "F")
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """expected, reached: what the story names (a state, or `no order`). archived: pictures in the archive."""

    story: str
    accession: str
    expected: str
    reached: str
    archived: int
    archived_expected: int

    @property
    def ok(self) -> bool:
        return self.expected == self.reached and self.archived == self.archived_expected


class Stage:
    """The live broker and the three who talk to it."""

    def __init__(self, broker: Broker, token: str, say: Callable[[str], None]) -> None:
        self.broker, self.say = broker, say
        ports = broker.ports
        self.ris = Ris("127.0.0.1", ports["hl7"])
        self.ct = Modality("CT1", "127.0.0.1", ports["dicom"], modality="CT")
        self.ehr = Ehr(f"http://127.0.0.1:{ports['http']}", token)
        self.zone = ZoneInfo(broker.settings.site.timezone)
        self._numbers = iter(range(1, 10_000))

    def close(self) -> None:
        self.ris.close()
        self.ehr.close()

    def order(self, patient: Patient, *, steps: int = 1) -> Order:
        number = f"{next(self._numbers):04d}"
        start = dt.datetime.now(self.zone).replace(second=0, microsecond=0)
        return Order(
            accession=f"DEMO{number}",
            patient=patient,
            start=start,
            steps=tuple(
                Step(f"SPS{number}-{n + 1}", "CT", "CT1", code, text)
                for n, (code, text) in enumerate(
                    [("6000000200000000", "胸部単純CT"), ("6000100200000000", "胸部造影CT")][:steps]
                )
            ),
            procedure_id=f"RP{number}",
            study_uid=ids.uid("2.25"),
        )

    def place(self, order: Order, control: str = "NW") -> None:
        control_id = ids.control_id()
        answer = self.ris.send(omi(order, control, control_id=control_id))
        self.say(f"RIS       OMI^O23 {control} {control_id} for {order.accession} -> {code_of(answer)}")

    def item(self, order: Order) -> list[Dataset]:
        items = [item for item in self.ct.worklist() if item.AccessionNumber == order.accession]
        for item in items:
            step = item.ScheduledProcedureStepSequence[0]
            self.say(
                f"CT1       worklist: {item.PatientName} {item.PatientID} {step.ScheduledProcedureStepID} "
                f"{step.ScheduledProcedureStepStartDate} {step.ScheduledProcedureStepStartTime}"
            )
        if not items:
            self.say(f"CT1       worklist: nothing for {order.accession}")
        return items

    def send(self, images: Sequence[Dataset]) -> None:
        for image, status in zip(images, self.ct.store(images), strict=True):
            uid, digest = evidence(image)
            self.say(f"CT1       C-STORE {uid} sha256 {digest[:16]} -> {status:04X}")

    def reached(self, order: Order, state: str) -> str:
        """The state that the EHR sees, once it is the expected one or the wait is over."""
        document = self.ehr.wait_for(order.accession, state, WAIT_SECONDS)
        images = document.get("images", {})
        self.say(
            f"EHR       {order.accession} {document.get('state')} version {document.get('version')}, "
            f"pictures available {images.get('available')} of {images.get('announced') or images.get('received')}"
        )
        return str(document.get("state"))

    def archived(self, images: Sequence[Dataset]) -> int:
        """How many of these are in the archive with the bytes that were sent; prints each file's hash."""
        found = 0
        for image in images:
            uid, digest = evidence(image)
            rows = db.read(_instances, uid)
            for row in rows:
                path = Path(self.broker.settings.archive.removeprefix("file://")) / row.store_key
                if row.state == "STORED" and path.is_file() and (in_file := _data_set_digest(path)) == digest:
                    found += 1
                    self.say(f"ARCHIVE   {uid} sha256 {in_file[:16]}, read from {row.store_key[:13]}….dcm")
        return found


def _data_set_digest(path: Path) -> str:
    """SHA-256 of what the device sent: the file without our File Meta."""
    with path.open("rb") as file:
        data_set_offset(file)
        return hash_of(file)


def _instances(session: Session, uid: str) -> list[Instance]:
    return list(session.exec(select(Instance).where(Instance.sop_instance_uid == uid)).all())


def normal_ct(stage: Stage) -> Outcome:
    """A CT with Japanese names, from the order to the open picture"""
    order = stage.order(YAMADA)
    stage.place(order)
    items = stage.item(order)
    mpps = stage.ct.start(items)
    stage.say(f"CT1       N-CREATE IN PROGRESS {mpps}")
    images = stage.ct.images(items[0], 3, mpps_uid=mpps)
    stage.send(images)
    stage.ct.finish(mpps, images)
    stage.say(f"CT1       N-SET COMPLETED, {len(images)} pictures named")
    state = stage.reached(order, "AVAILABLE")
    return Outcome(normal_ct.__doc__ or "", order.accession, "AVAILABLE", state, stage.archived(images), 3)


def two_steps(stage: Stage) -> Outcome:
    """Two steps in one order: plain and contrast CT"""
    order = stage.order(SATO, steps=2)
    stage.place(order)
    everything = []
    for item in stage.item(order):
        mpps = stage.ct.start([item])
        stage.say(f"CT1       N-CREATE IN PROGRESS {mpps}")
        images = stage.ct.images(item, 2, mpps_uid=mpps)
        stage.send(images)
        stage.ct.finish(mpps, images)
        stage.say(f"CT1       step {item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID} COMPLETED")
        everything += images
    state = stage.reached(order, "AVAILABLE")
    return Outcome(two_steps.__doc__ or "", order.accession, "AVAILABLE", state, stage.archived(everything), 4)


def cancelled(stage: Stage) -> Outcome:
    """An order that is cancelled before the exam"""
    order = stage.order(SUZUKI)
    stage.place(order)
    stage.item(order)
    stage.place(order, "CA")
    left = stage.item(order)
    state = stage.reached(order, "CANCELLED")
    return Outcome(
        cancelled.__doc__ or "", order.accession, "CANCELLED", state if not left else "still on the worklist", 0, 0
    )


def unscheduled(stage: Stage) -> Outcome:
    """An unscheduled exam: no order, so it waits for a person"""
    order = stage.order(TANAKA)  # never sent: it only names the patient
    mpps = stage.ct.start([], PatientID=order.patient.id, PatientName="TANAKA^MISAKI")
    stage.say(f"CT1       N-CREATE IN PROGRESS {mpps}, for no worklist item")
    images = stage.ct.images(
        None, 1, mpps_uid=mpps, PatientID=order.patient.id, PatientName="TANAKA^MISAKI",
        PatientBirthDate=order.patient.birth_date, PatientSex=order.patient.sex,
    )  # fmt: skip
    stage.send(images)
    stage.ct.finish(mpps, images)
    held = _held(stage, images[0].StudyInstanceUID)
    return Outcome(unscheduled.__doc__ or "", "-", "HELD", held, stage.archived(images), 0)


def wrong_patient(stage: Stage) -> Outcome:
    """A picture of another patient with this order's Study UID: it must not reach the archive"""
    order = stage.order(YAMADA)
    stage.place(order)
    items = stage.item(order)
    mpps = stage.ct.start(items)
    stage.say(f"CT1       N-CREATE IN PROGRESS {mpps}")
    images = stage.ct.images(
        items[0], 1, mpps_uid=mpps, PatientID=SUZUKI.id, PatientName="SUZUKI^ICHIRO",
        PatientBirthDate=SUZUKI.birth_date,
    )  # fmt: skip
    stage.send(images)
    stage.ct.finish(mpps, images)
    state = stage.reached(order, "HELD")
    _held(stage, images[0].StudyInstanceUID)
    return Outcome(wrong_patient.__doc__ or "", order.accession, "HELD", state, stage.archived(images), 0)


def _held(stage: Stage, study_uid: str) -> str:
    """`HELD` once a case for that study is open at the desk; prints its reasons."""
    deadline = clock.now() + dt.timedelta(seconds=WAIT_SECONDS)
    pause = threading.Event()
    while clock.now() < deadline:
        for case in stage.ehr.cases():
            if case.get("study_instance_uid") == study_uid:
                stage.say(f"DESK      case {case['id']} {case['level']}: {'; '.join(case['reasons'])}")
                return "HELD"
        pause.wait(0.2)
    return "no case"


STORIES: tuple[Callable[[Stage], Outcome], ...] = (normal_ct, two_steps, cancelled, unscheduled, wrong_patient)


def main(*, once: bool = False, exams: int = len(STORIES), say: Callable[[str], None] = print) -> int:
    """Exit status: 0 only if every exam ended as its story says. exams: how many, the stories in turn."""
    with tempfile.TemporaryDirectory(prefix="ris-broker-demo-") as folder:
        settings = demo_settings(Path(folder), once=once)
        log.configure("error")
        broker = Broker(settings)
        broker.start()
        try:
            db.run(site.add_node, "CT1", host="127.0.0.1", port=0, modality="CT", actor="demo", now=clock.now())
            token = db.run(site.create_token, "demo", "admin", actor="demo", now=clock.now())
            say(
                f"A broker runs on {', '.join(f'{role} {port}' for role, port in broker.ports.items())}; data: {folder}"
            )
            stage = Stage(broker, token, say)
            outcomes = _walk(stage, exams)
            stage.close()
            _table(outcomes, say)
            if not once:
                say(f"\nStatus page: http://127.0.0.1:{broker.ports['http']}/   REST token: {token}\nCtrl-C ends it.")
                _until_interrupted()
        finally:
            broker.stop()
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def demo_settings(folder: Path, *, once: bool) -> config.Settings:
    """Embedded defaults; free ports when it ends by itself, the usual ones when a person stays to look."""
    settings = config.Settings(data_dir=folder)
    settings.reconcile.settle_seconds = 1
    settings.limits.job_seconds_between = 0.3
    if once:
        settings.dicom.port = settings.hl7.port = settings.http.port = 0
    return settings


def _walk(stage: Stage, exams: int) -> list[Outcome]:
    outcomes = []
    for number in range(exams):
        story = STORIES[number % len(STORIES)]
        stage.say(f"\n{number + 1}. {story.__doc__}")
        outcomes.append(story(stage))
    return outcomes


def _table(outcomes: Sequence[Outcome], say: Callable[[str], None]) -> None:
    say(f"\n{'accession':<12}{'must end':<12}{'ended':<12}{'archived':<10}{'':<7}story")
    for one in outcomes:
        pictures = f"{one.archived} of {one.archived_expected}"
        verdict = "ok" if one.ok else "WRONG"
        say(f"{one.accession:<12}{one.expected:<12}{one.reached:<12}{pictures:<10}{verdict:<7}{one.story}")
    wrong = sum(not one.ok for one in outcomes)
    say(f"\n{len(outcomes)} exams, {len(outcomes) - wrong} as their story says, {wrong} not.")


def _until_interrupted() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
