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

from broker import clock, config, db, ids, log, site
from broker.serve import Broker
from broker.sim.ehr import Ehr
from broker.sim.modality import Modality
from broker.sim.ris import Order, Patient, Ris, Step, code_of, omi

YAMADA = Patient("0000012345", "山田^太郎", "ヤマダ^タロウ", "19700101", "M")
SATO = Patient("0000023456", "佐藤^花子", "サトウ^ハナコ", "19850315", "F")
SUZUKI = Patient("0000034567", "鈴木^一郎", "スズキ^イチロウ", "19601224", "M")
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Outcome:
    """expected, reached: the state that the story names, and that the EHR saw. offered: items on the worklist."""

    story: str
    accession: str
    expected: str
    reached: str
    offered: int
    offered_expected: int

    @property
    def ok(self) -> bool:
        return self.expected == self.reached and self.offered == self.offered_expected


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

    def reached(self, order: Order, state: str) -> str:
        """The state that the EHR sees, once it is the expected one or the wait is over."""
        document = self.ehr.wait_for(order.accession, state, WAIT_SECONDS)
        self.say(f"EHR       {order.accession} {document.get('state')} version {document.get('version')}")
        return str(document.get("state"))


def normal_ct(stage: Stage) -> Outcome:
    """A CT with Japanese names becomes a worklist item"""
    order = stage.order(YAMADA)
    stage.place(order)
    items = stage.item(order)
    return Outcome(
        normal_ct.__doc__ or "", order.accession, "SCHEDULED", stage.reached(order, "SCHEDULED"), len(items), 1
    )


def two_steps(stage: Stage) -> Outcome:
    """Two steps in one order: plain and contrast CT"""
    order = stage.order(SATO, steps=2)
    stage.place(order)
    items = stage.item(order)
    return Outcome(
        two_steps.__doc__ or "", order.accession, "SCHEDULED", stage.reached(order, "SCHEDULED"), len(items), 2
    )


def cancelled(stage: Stage) -> Outcome:
    """An order that is cancelled leaves the worklist"""
    order = stage.order(SUZUKI)
    stage.place(order)
    stage.item(order)
    stage.place(order, "CA")
    left = stage.item(order)
    return Outcome(
        cancelled.__doc__ or "", order.accession, "CANCELLED", stage.reached(order, "CANCELLED"), len(left), 0
    )


STORIES: tuple[Callable[[Stage], Outcome], ...] = (normal_ct, two_steps, cancelled)


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
    say(f"\n{'accession':<12}{'must end':<12}{'ended':<12}{'offered':<10}{'':<7}story")
    for one in outcomes:
        offered = f"{one.offered} of {one.offered_expected}"
        verdict = "ok" if one.ok else "WRONG"
        say(f"{one.accession:<12}{one.expected:<12}{one.reached:<12}{offered:<10}{verdict:<7}{one.story}")
    wrong = sum(not one.ok for one in outcomes)
    say(f"\n{len(outcomes)} exams, {len(outcomes) - wrong} as their story says, {wrong} not.")


def _until_interrupted() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
