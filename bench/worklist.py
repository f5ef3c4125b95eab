"""The worklist: our broker, recording what it is asked and shows, beside DCMTK's wlmscpfs and Orthanc's plugin.

See README.md. All hold the same items and get the same queries from the same client; rounds are interleaved."""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from bench import hl7, servers
from bench.servers import database, process

HERE = Path(__file__).resolve().parent

TOKYO = ZoneInfo("Asia/Tokyo")
PER_DAY = 20  # items of one station on one day
STATIONS = 50
READY_SECONDS_MAX = 120
CONNECTIONS = 8  # of HL7
PEERS_TAKE = 10  # clients at once; wlmscpfs refuses beyond 50
MWL = "1.2.840.10008.5.1.4.31"
OURS, WLMSCPFS, ORTHANC = "ris-broker", "wlmscpfs", "Orthanc"
RETURN_KEYS = (
    "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "PatientWeight", "MedicalAlerts", "Allergies", "PregnancyStatus", "StudyInstanceUID", "RequestingPhysician",
    "RequestedProcedureDescription", "AdmissionID", "SpecialNeeds", "CurrentPatientLocation", "PatientState",
    "RequestedProcedureID", "RequestedProcedurePriority", "PatientTransportArrangements",
)  # fmt: skip
STEP_KEYS = (
    "ScheduledPerformingPhysicianName", "ScheduledProcedureStepDescription", "ScheduledProcedureStepID",
    "ScheduledStationName", "ScheduledProcedureStepLocation", "PreMedication",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    number: int
    station: str
    day: dt.date

    @property
    def time(self) -> str:
        return f"{8 + self.number % 10:02d}{self.number * 7 % 60:02d}00"

    @property
    def patient_id(self) -> str:
        return f"{self.number:08d}"

    @property
    def accession(self) -> str:
        return f"A{self.number}"


def items(count: int, today: dt.date, many: int) -> list[Item]:
    """STATIONS stations of PER_DAY items a day, from today on; and of the whole, `many` of one station today."""
    made = [Item(n, "MANY", today) for n in range(many)]
    for n in range(many, count):
        place = n - many
        made.append(
            Item(n, f"CT{place // PER_DAY % STATIONS}", today + dt.timedelta(days=place // (PER_DAY * STATIONS)))
        )
    return made


def dataset(item: Item) -> Dataset:
    """In ASCII: wlmscpfs compares bytes."""
    made, step = Dataset(), Dataset()
    made.PatientName, made.PatientID = f"YAMADA{item.number % 97}^TARO", item.patient_id
    made.PatientBirthDate, made.PatientSex, made.AccessionNumber = "19700101", "M", item.accession
    made.StudyInstanceUID, made.RequestedProcedureID = f"2.25.{10**20 + item.number}", f"R{item.number}"
    made.RequestedProcedureDescription, made.RequestedProcedurePriority = "CHEST CT", "ROUTINE"
    step.ScheduledStationAETitle, step.Modality, step.ScheduledProcedureStepID = item.station, "CT", f"S{item.number}"
    step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime = f"{item.day:%Y%m%d}", item.time
    step.ScheduledProcedureStepDescription = "CHEST CT"
    made.ScheduledProcedureStepSequence = [step]
    return made


def query(day: dt.date, station: str = "", accession: str = "") -> Dataset:
    """What a scanner asks: its own list of a day, or the one exam of a barcode; and 26 keys to be returned."""
    made, step = Dataset(), Dataset()
    for keyword in RETURN_KEYS:
        setattr(made, keyword, None if keyword == "PregnancyStatus" else "")
    for keyword in STEP_KEYS:
        setattr(step, keyword, "")
    made.AccessionNumber = accession
    step.Modality, step.ScheduledStationAETitle = "CT", station
    step.ScheduledProcedureStepStartDate, step.ScheduledProcedureStepStartTime = f"{day:%Y%m%d}", ""
    made.ScheduledProcedureStepSequence = [step]
    return made


def encoded(one: Dataset) -> bytes:
    out = DicomBytesIO()
    out.is_little_endian, out.is_implicit_VR = True, True
    write_dataset(out, one)
    return out.getvalue()


# Our side


def fill(url: str, wanted: Sequence[Item]) -> None:
    """The rows that as many orders leave, without their messages: placing 100,000 of them takes half an hour."""
    from broker import clock, db, schema
    from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep, StepVersion
    from broker.model.patients import Patient, PatientIdentifier
    from broker.model.site import Node
    from broker.mwl.dataset import build, encode_item
    from broker.mwl.texts import compared

    db.open_engine(url)
    schema.prepare()
    now = clock.now()

    def write(session: Any, part: Sequence[Item]) -> None:
        rows: dict[Any, list[dict[str, Any]]] = {}
        for item in part:
            pk, ds = item.number + 1, dataset(item)
            keys = {"pk": pk, "created_at": now, "updated_at": now}
            patient = Patient(**keys, name=str(ds.PatientName), birth_date="19700101", sex="M")
            known = PatientIdentifier(**keys, patient_pk=pk, value=item.patient_id, issuer="")
            order = ImagingOrder(**keys, patient_pk=pk, accession_number=item.accession, identifier_pk=pk)
            procedure = RequestedProcedure(
                **keys, order_pk=pk, requested_procedure_id=f"R{item.number}",
                study_instance_uid=str(ds.StudyInstanceUID), description="CHEST CT",
            )  # fmt: skip
            step = ScheduledStep(
                **keys, requested_procedure_pk=pk, order_pk=pk, sps_id=f"S{item.number}", modality="CT",
                start_date=f"{item.day:%Y%m%d}", start_time=item.time, patient_id=item.patient_id,
                name_key=compared(str(ds.PatientName)),
                accession_number=item.accession, description="CHEST CT", version=1,
            )  # fmt: skip
            step.dataset = encode_item(build(patient, [known], order, procedure, step, [item.station]))
            version = StepVersion(**keys, step_pk=pk, version=1, dataset=step.dataset)
            station = ScheduledStation(**keys, step_pk=pk, ae_title=item.station, start_date=step.start_date)
            for row in (patient, known, order, procedure, step, version, station):
                rows.setdefault(type(row), []).append(db.with_defaults(type(row), dict(row)))
        for table, values in rows.items():
            session.connection().execute(table.__table__.insert(), values)

    for at in range(0, len(wanted), 2000):
        with db.unhurried():
            db.run(write, wanted[at : at + 2000])
    db.run(lambda session: session.add(Node(ae_title="LOADGEN", any_address=True)))
    with contextlib.suppress(Exception), db.engine().connect() as connection:
        connection.exec_driver_sql("ANALYZE")
    db.close_engine()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def broker(folder: Path, url: str, wanted: Sequence[Item], roles: str = "dicom") -> Iterator[dict[str, int]]:
    """By role the port."""
    folder.mkdir()
    fill(url, wanted)
    with servers.broker(folder, url, roles) as ours:
        time.sleep(len(wanted) / 5_000)  # for its first snapshot
        yield ours.ports


# The peers


def files(folder: Path, wanted: Sequence[Item]) -> None:
    folder.mkdir(parents=True)
    for item in wanted:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MWL, f"2.25.{item.number + 1}"
        meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        FileDataset(str(folder / f"{item.number}.wl"), dataset(item), file_meta=meta, preamble=b"\0" * 128).save_as(
            folder / f"{item.number}.wl"
        )
    (folder / "lockfile").touch()


@contextlib.contextmanager
def wlmscpfs(folder: Path, wanted: Sequence[Item]) -> Iterator[int]:
    files(folder / "BROKER", wanted)
    port = free_port()
    with process(["wlmscpfs", "-dfp", str(folder), str(port)], folder):
        yield _listening(port)


@contextlib.contextmanager
def orthanc(folder: Path, wanted: Sequence[Item]) -> Iterator[int]:
    files(folder / "worklists", wanted)
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "DicomPort": port,
        "DicomAet": "BROKER", "HttpServerEnabled": False, "DicomCheckCalledAet": False, "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowFindWorklist": True, "Plugins": ["/usr/share/orthanc/plugins/libModalityWorklists.so"],
        "Worklists": {"Enable": True, "Database": str(folder / "worklists"), "FilterIssuerAet": False},
        "DicomModalities": {"load": ["LOADGEN", "127.0.0.1", 104]},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with process(["Orthanc", str(folder / "orthanc.json")], folder):
        yield _listening(port)


def _listening(port: int) -> int:
    until = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return port
        time.sleep(0.1)
    raise AssertionError("a peer does not start")


# The figures


def load(folder: Path) -> Path:
    """The client: raw sockets, so that it costs next to nothing."""
    made = folder / "dimseload"
    subprocess.run(["cc", "-O2", "-pthread", "-o", str(made), str(HERE / "dimseload.c")], check=True)
    return made


def run(
    client: Path, port: int, queries: Path, count: int, threads: int, per_association: int, answers: int
) -> dict[str, Any]:
    command = [str(client), "find", "127.0.0.1", str(port), str(threads), str(count), str(queries), "BROKER", "1",
               str(per_association)]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    figures: dict[str, Any] = json.loads(ran.stdout)
    assert figures["errors"] == 0, (command, ran.stdout, ran.stderr)
    assert figures["answers"] == figures["ops"] * answers, (command, figures["answers"], figures["ops"])
    return figures


@dataclass(frozen=True)
class Case:
    """many: items of one station today. answers: to each query."""

    name: str
    count: int
    answers: int
    threads: int = 1
    per_association: int = 1

    def queries(self, today: dt.date) -> list[Dataset]:
        if self.answers == 1:
            return [query(today, accession=f"A{n}") for n in range(500, 520)]
        if self.answers == PER_DAY:
            busy = min(STATIONS, max(1, (self.count - many_of(self.count)) // PER_DAY))
            return [query(today, station=f"CT{n}") for n in range(busy)]
        return [query(today, station="MANY")]


def many_of(count: int) -> int:
    return 500 if count >= 1000 else 0


CASES = {
    "20": lambda count: Case("20 answers", count, PER_DAY),
    "1": lambda count: Case("1 answer", count, 1),
    "500": lambda count: Case("500 answers", count, 500),
    "kept": lambda count: Case("20 answers, association kept", count, PER_DAY, per_association=1000),
    "60": lambda count: Case("20 answers, 60 clients", count, PER_DAY, threads=60),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--counts", default="100,1000,10000")
    options.add_argument("--cases", default="20,1,500,kept,60")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=float, default=1.0)
    options.add_argument("--database", default="sqlite", help="sqlite, postgresql, or the URL of an empty database")
    options.add_argument("--peers", default=f"{WLMSCPFS},{ORTHANC}", help="empty: ours alone")
    options.add_argument("--changes", type=int, default=0, help="a second, that arrive while 20 devices ask")
    options.add_argument("--folder", type=Path, default=None)
    said = options.parse_args()
    today = dt.datetime.now(TOKYO).date()
    results: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="bench-worklist-", dir=said.folder))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        client = load(folder)
        for count in map(int, said.counts.split(",")):
            results += measure(folder / str(count), client, count, said, today)
        if said.changes:
            results.append(under_changes(folder / "changes", client, said, today))
    print(json.dumps({"results": results, "versions": versions(), "database": said.database}))


def measure(folder: Path, client: Path, count: int, said: Any, today: dt.date) -> list[dict[str, Any]]:
    folder.mkdir()
    folder.chmod(0o755)
    wanted = items(count, today, many_of(count))
    found = []
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(database(said.database, folder))
        ports = {OURS: stack.enter_context(broker(folder / "ours", url, wanted))["dicom"]}
        for name, serve in ((WLMSCPFS, wlmscpfs), (ORTHANC, orthanc)):
            if name in said.peers.split(","):
                ports[name] = stack.enter_context(serve(folder / name.lower(), wanted))
        for name in said.cases.split(","):
            case = CASES[name](count)
            if (case.answers == 500 and count < 1000) or (case.answers == 1 and count < 1000):
                continue
            asked = {OURS: ports[OURS]} if case.threads > PEERS_TAKE else ports
            found.append(compare(folder, client, asked, case, said, today))
    return found


class Changes:
    """Orders, and then changes of them, on CONNECTIONS of HL7: so many a second in all as far as they are answered."""

    def __init__(self, port: int, rate: int) -> None:
        self._port, self._every, self._over = port, CONNECTIONS / rate, threading.Event()
        self.done = 0

    def __enter__(self) -> "Changes":
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(CONNECTIONS)]
        for thread in self._threads:
            thread.start()
        time.sleep(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, mine: int) -> None:
        messages = hl7.order(900_000 + 2 * mine, 5_000)
        due = time.monotonic()
        with socket.create_connection(("127.0.0.1", self._port), 60) as connection:
            for message in messages:
                code, _ = hl7.exchange(connection, message.raw)
                assert code == "AA", code
                self.done += 1
                due = max(due + self._every, time.monotonic() - 1)
                if self._over.wait(max(0, due - time.monotonic())):
                    return


def under_changes(folder: Path, client: Path, said: Any, today: dt.date) -> dict[str, Any]:
    """20 associations of 50 queries each, without changes and with them."""
    folder.mkdir()
    folder.chmod(0o755)
    case = Case("20 associations of 50 queries", 1_000, PER_DAY, threads=20, per_association=50)
    wanted = items(case.count, today, 0)
    queries = folder / "queries"
    queries.write_bytes(b"".join(len(data).to_bytes(4, "little") + data for data in map(encoded, case.queries(today))))
    found: dict[str, Any] = {"case": f"{case.name}, {said.changes} changes a second arrive"}
    with database(said.database, folder) as url, broker(folder / "ours", url, wanted, "dicom,hl7") as ports:
        for name, rate in (("quiet", 0), ("changing", said.changes)):
            with Changes(ports["hl7"], rate) if rate else contextlib.nullcontext() as changes:
                before, began = changes.done if changes else 0, time.monotonic()
                some = [
                    run(client, ports["dicom"], queries, 1_000, case.threads, case.per_association, case.answers)
                    for _ in range(said.rounds)
                ]
                taken = (changes.done - before) / (time.monotonic() - began) if changes else 0
            figures = {key: statistics.median(one["lat"][key] for one in some) for key in ("p50", "p99")}
            found[name] = {"rate": statistics.median(one["ops_s"] for one in some), **figures, "changes": taken}
            print(f"\n{case.name}, {name}: {found[name]}", flush=True)
    return found


def compare(folder: Path, client: Path, ports: dict[str, int], case: Case, said: Any, today: dt.date) -> dict[str, Any]:
    queries = folder / "queries"
    queries.write_bytes(b"".join(len(data).to_bytes(4, "little") + data for data in map(encoded, case.queries(today))))
    size, runs = {}, {name: [] for name in ports}  # type: dict[str, int], dict[str, list[dict[str, Any]]]
    for name, port in ports.items():
        for count in (case.threads, case.threads * 4, 200 if name == OURS else case.threads):
            trial = run(client, port, queries, count, case.threads, case.per_association, case.answers)
        size[name] = max(case.threads, round(trial["ops_s"] * said.seconds))
    for n in range(said.rounds):
        names = list(ports)
        for name in names[n % len(names) :] + names[: n % len(names)]:
            runs[name].append(
                run(client, ports[name], queries, size[name], case.threads, case.per_association, case.answers)
            )
    print(f"\n{case.count} items, {case.name}")
    rates = {name: statistics.median(one["ops_s"] for one in some) for name, some in runs.items()}
    for name, some in runs.items():
        spread = " ".join(f"{one['ops_s']:.1f}" for one in some)
        latencies = [statistics.median(one["lat"][p] for one in some) for p in ("p50", "p99")]
        ratio = f"  ours is {rates[OURS] / rates[name]:.1f} x" if name != OURS else ""
        times = f"p50 {latencies[0]:.2f} p99 {latencies[1]:.2f} ms"
        print(f"  {name:<12}{rates[name]:>10.1f}/s  {times}  ({spread}){ratio}", flush=True)
    return {"items": case.count, "case": case.name, "rates": rates,
            "latency": {name: [statistics.median(one["lat"][p] for one in some) for p in ("p50", "p99")]
                        for name, some in runs.items()}}  # fmt: skip


def versions() -> dict[str, str]:
    def first_line(*command: str) -> str:
        with contextlib.suppress(OSError):
            return subprocess.run(command, capture_output=True, text=True).stdout.strip().split("\n")[0]
        return "absent"

    return {
        "python": platform.python_version(), "wlmscpfs": first_line("wlmscpfs", "--version"),
        "orthanc": first_line("Orthanc", "--version"), "cores": str(os.cpu_count()),
    }  # fmt: skip


if __name__ == "__main__":
    main()
