"""An exam in rows and files, without the parts that receive and decide: what commit, cases and status stand on."""

import hashlib
import io
import uuid
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian
from sqlmodel import Session, SQLModel, select

from broker import casebook, clock, db, ids, outbox
from broker.archive import commit, gate, intake
from broker.archive.header import Header, read_header
from broker.archive.part10 import file_meta
from broker.archive.staging import Staged, Staging
from broker.config import Settings
from broker.dicom.service import Command
from broker.model.images import Decision, Instance, Series, Study, StudyOrder
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.status import OrderStatus
from broker.mwl import orders
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand

CT = "1.2.840.10008.5.1.4.1.1.2"
YAMADA = PersonCommand((Identifier("0000012345", "HOSP"),), "YAMADA^TARO=山田^太郎=ヤマダ^タロウ", "19700101", "M")
SATO = PersonCommand((Identifier("0000023456", "HOSP"),), "SATO^HANAKO=佐藤^花子=サトウ^ハナコ", "19850315", "F")


class Exams:
    """Everything through db.run; keys out."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.staging = Staging(settings)

    def place(self, accession: str = "ACC001", person: PersonCommand = YAMADA, *, steps: int = 1, issuer: str = "RIS",
              control: str = "NW") -> int:  # fmt: skip
        command = OrderCommand(
            control=control, accession_number=accession, accession_issuer=issuer, patient=person, at=clock.now(),
            procedures=(
                ProcedureCommand(
                    requested_procedure_id=f"RP{accession}"[:16], study_instance_uid=self.uid(accession),
                    placer_number=f"P{accession}", description="胸部CT",
                    steps=tuple(
                        StepCommand(f"S{n}{accession}"[:16], "CT", ("CT1",), "20251201", "093000", "単純")
                        for n in range(steps)
                    ),
                ),
            ),
        )  # fmt: skip
        return db.run(orders.apply, command, now=clock.now(), actor="test", site=self.settings.site).key

    def uid(self, accession: str) -> str:
        """The Study Instance UID of that order."""
        return ids.derived_uid("2.25", accession)

    def receive(self, study_uid: str, count: int = 2, *, state: str = "STAGED", **values: object) -> int:
        """Images in staging, with their rows; the study's key."""
        images = [self._stage(image(study_uid, **values)) for _ in range(count)]
        facts = [self._header(key).facts for _, key, _, _ in images]
        return db.run(_register, images, facts, study_uid, state, self.staging.node)

    def _stage(self, ds: Dataset) -> tuple[Dataset, str, str, int]:
        buffer = io.BytesIO()
        writer = DicomFileLike(buffer)
        writer.is_implicit_VR, writer.is_little_endian = False, True
        write_dataset(writer, ds)
        data = buffer.getvalue()
        key = f"ab/cd/{uuid.uuid4().hex}.dcm"
        path = self.settings.staging_dir / key
        path.parent.mkdir(parents=True, exist_ok=True)
        command = Command(1, 1, sop_class=ds.SOPClassUID, sop_instance=ds.SOPInstanceUID)
        path.write_bytes(file_meta(command, ExplicitVRLittleEndian, "CT1") + data)
        return ds, key, hashlib.sha256(data).hexdigest(), len(data)

    def send(self, study_uid: str, count: int = 1, *, ae_title: str = "CT1", **values: object) -> list[int]:
        """Images through the real intake; their keys."""
        keys = []
        for _ in range(count):
            _, key, sha256, size = self._stage(image(study_uid, **values))
            staged = Staged(
                self.staging.node, key, sha256, size, ExplicitVRLittleEndian, self._header(key), ae_title, "127.0.0.1"
            )
            registered = intake.accept(self.settings, self.staging, staged, now=clock.now())
            assert registered.instance is not None
            keys.append(registered.instance.key)
        return keys

    def _header(self, key: str) -> Header:
        return read_header(self.staging.path(key), ExplicitVRLittleEndian, self.settings.limits)

    def work(self) -> None:
        """What the jobs do when everything has settled; the gate may have to look twice."""
        for _ in range(2):
            self.decide()
        db.run(_let_all_be_due)
        commit.work(self.settings)

    def decide(self) -> None:
        self.settings.reconcile.settle_seconds = 0
        db.run(_let_all_be_due)
        gate.work(self.settings)

    def accept(self, study_pk: int, order_pk: int | None, outcome: str = "C") -> None:
        """What the gate does when the table says A or C."""
        db.run(_accept, study_pk, order_pk, outcome)

    def hold(self, study_pk: int, *, level: str = "amber", order_pk: int | None = None) -> int:
        """What the gate does when the table says H or HH; the case's key."""
        return db.run(_hold, study_pk, level, order_pk)

    def set(self, table: type[SQLModel], pk: int, **values: object) -> None:
        db.run(_set, table, pk, values)

    # looking

    def get(self, table, pk: int):
        return db.read(lambda session: session.get_one(table, pk))

    def rows(self, table, **where: object) -> list:
        def fetch(session: Session) -> list:
            query = select(table)
            for name, value in where.items():
                query = query.where(getattr(table, name) == value)
            return sorted(session.exec(query).all(), key=lambda row: row.pk)

        return db.read(fetch)

    def instances(self, study_pk: int) -> list[Instance]:
        return self.rows(Instance, study_pk=study_pk)

    def states(self, study_pk: int) -> tuple[str, list[str]]:
        return self.get(Study, study_pk).state, [one.state for one in self.instances(study_pk)]

    def status(self, order_pk: int) -> OrderStatus:
        (row,) = self.rows(OrderStatus, order_pk=order_pk)
        return row

    def staged_files(self) -> list[Path]:
        return [path for path in self.settings.staging_dir.rglob("*") if path.is_file()]

    def archive(self) -> Path:
        return Path(self.settings.archive.removeprefix("file://"))


def image(study_uid: str, **values: object) -> Dataset:
    """What CT1 makes of the worklist item of ACC001; pixels are random, so that no two are alike."""
    ds = Dataset()
    ds.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ds.SOPClassUID, ds.SOPInstanceUID = CT, ids.uid("2.25")
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study_uid, f"{study_uid}.1"[:64]
    ds.PatientName, ds.PatientID, ds.IssuerOfPatientID = YAMADA.name, "0000012345", "HOSP"
    ds.PatientBirthDate, ds.PatientSex, ds.Modality = "19700101", "M", "CT"
    ds.AccessionNumber = "ACC001"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    ds.add_new(0x7FE00010, "OW", uuid.uuid4().bytes * 64)
    return ds


def _register(
    session: Session, images: list[tuple[Dataset, str, str, int]], facts: list[dict], study_uid: str, state: str,
    node: str,
) -> int:  # fmt: skip
    now = clock.now()
    study = session.exec(select(Study).where(Study.study_instance_uid == study_uid)).first()
    study = study or Study(study_instance_uid=study_uid, last_received_at=now)
    study.last_received_at = now
    session.add(study)
    session.flush()
    series = session.exec(select(Series).where(Series.study_pk == study.key)).first()
    series = series or Series(study_pk=study.key, series_instance_uid=images[0][0].SeriesInstanceUID, modality="CT")
    session.add(series)
    session.flush()
    for (ds, key, sha256, size), said in zip(images, facts, strict=True):
        session.add(
            Instance(
                study_pk=study.key, series_pk=series.key, sop_instance_uid=ds.SOPInstanceUID, sop_class_uid=CT,
                transfer_syntax_uid=ExplicitVRLittleEndian, state=state, sha256=sha256, size=size,
                staged_node=node, staged_key=key, source_ae="CT1", received_at=now, facts=said,
            )
        )  # fmt: skip
    session.flush()
    for link in session.exec(select(StudyOrder).where(StudyOrder.study_pk == study.key)).all():
        outbox.touch(session, link.order_pk)
    return study.key


def _accept(session: Session, study_pk: int, order_pk: int | None, outcome: str) -> None:
    study = session.get_one(Study, study_pk)
    study.state, study.decided_at = "ACCEPTED", clock.now()
    if order_pk is not None:
        study.order_pk = order_pk
        study.patient_pk = session.get_one(ImagingOrder, order_pk).patient_pk
        procedure = session.exec(select(RequestedProcedure).where(RequestedProcedure.order_pk == order_pk)).one()
        step = session.exec(select(ScheduledStep).where(ScheduledStep.order_pk == order_pk)).first()
        known = session.exec(select(StudyOrder).where(StudyOrder.study_pk == study_pk)).first()
        if known is None:
            session.add(
                StudyOrder(
                    study_pk=study_pk, order_pk=order_pk, requested_procedure_pk=procedure.key,
                    step_pk=step.key if step else None,
                )
            )  # fmt: skip
    decision = Decision(
        study_pk=study_pk, at=clock.now(), rules_version="1", row="1", outcome=outcome, order_pk=order_pk,
        facts={"instances": [], "grade": "G0"},
    )  # fmt: skip
    session.add(decision)
    session.flush()
    for instance in session.exec(select(Instance).where(Instance.study_pk == study_pk, Instance.state == "STAGED")):
        instance.decision_pk = decision.key
        session.add(instance)
    session.add(study)
    outbox.touch(session, order_pk)


def _hold(session: Session, study_pk: int, level: str, order_pk: int | None) -> int:
    study = session.get_one(Study, study_pk)
    study.state = "IN_REVIEW"
    session.add(study)
    held = session.exec(select(Instance).where(Instance.study_pk == study_pk, Instance.state == "STAGED")).all()
    for instance in held:
        instance.state = "HELD"
        session.add(instance)
    session.add(Decision(study_pk=study_pk, at=clock.now(), rules_version="1", row="11", outcome="HH", facts={}))
    case = casebook.open_case(
        session, "study", f"study:{study_pk}", level=level, reasons=["the patient differs from the order's"], row="11",
        instances=[one.key for one in held], study_pk=study_pk, order_pk=order_pk, now=clock.now(), actor="broker",
    )  # fmt: skip
    return case.key


def _let_all_be_due(session: Session) -> None:
    for study in session.exec(select(Study)):
        study.not_before = None
        session.add(study)


def _set(session: Session, table: type[SQLModel], pk: int, values: dict[str, object]) -> None:
    row = session.get_one(table, pk)
    for name, value in values.items():
        setattr(row, name, value)
    session.add(row)
    outbox.touch(session, getattr(row, "order_pk", None))
