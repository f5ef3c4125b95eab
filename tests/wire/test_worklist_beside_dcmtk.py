"""DCMTK's wlmscpfs beside the broker: the same items, the same queries, the same answers, or a reason why not."""

import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import ModalityWorklistInformationFind

from broker import clock, db
from broker.config import Limits
from broker.dicom import tree
from broker.model.orders import ScheduledStep
from broker.mwl import matching, orders
from broker.mwl.answers import item_of
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from tests.house import eventually
from tests.wire.test_worklist import questions_to

STEP = ("ScheduledStationAETitle", "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime", "Modality",
        "ScheduledPerformingPhysicianName", "ScheduledProcedureStepID", "ScheduledProcedureStepDescription")  # fmt: skip
DATE, TIME = "ScheduledProcedureStepStartDate", "ScheduledProcedureStepStartTime"
COLUMNS = (
    "ScheduledProcedureStepID", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
    "AccessionNumber", "RequestedProcedureID", "AdmissionID", "RequestedProcedurePriority", "ReferringPhysicianName",
    "RequestingPhysician", "ScheduledStationAETitle", DATE, TIME, "Modality", "ScheduledPerformingPhysicianName",
)  # fmt: skip
ROWS = [
    ("S1", "YAMADA^TARO", "0000012345", "HOSP", "19700101", "M", "ACC1", "RP1", "V1", "ROUTINE", "WEBER^ANNA", "OTA^KEN", "CT1", "20350705", "080000", "CT", "ABE^JUN"),
    ("S2", "YAMADA^HANAKO", "0000012346", "HOSP", "19700102", "F", "ACC2", "RP2", "V2", "STAT", "WEBER^OTTO", "OTA^KEN", "CT1", "20350705", "123000", "CT", "ABE^JUN"),
    ("S3", "YAMADA", "12345", "HOSP", "19851231", "F", "ACC3", "RP3", "V3", "ROUTINE", "WEBER^ANNA", "", "CT2", "20350705", "200015", "CT", ""),
    ("S4", "SATO^HANAKO", "A 1", "CLINIC", "19700101", "F", "ACC10", "RP10", "", "HIGH", "", "OTA^KEN", "MR1", "20350706", "000000", "MR", "ABE^JUNKO"),
    ("S5", "Smith^Anna", "A1", "CLINIC", "19551111", "F", "ACC11", "RP11", "", "LOW", "LEE^KIM", "SMITH^J", "MR1", "20350706", "090000", "MR", "ABE^JUNKO"),
    ("S6", "O'NEIL^SEAN^P^DR", "a1", "CLINIC", "", "M", "acc1", "RP12", "V10", "MEDIUM", "LEE^KIM", "SMITH^JO", "US1", "20350706", "235959", "US", ""),
    ("S7", "YAMADA^TARO^^DR", "X-7", "", "20000229", "O", "A-1", "R-1", "V/1", "ROUTINE", "", "", "US1", "20350707", "080000", "US", "ABE^JUN"),
    ("S8", "YAMA^DATARO", "0000012345", "CLINIC", "19700101", "M", "ACC8", "RP8", "V8", "ROUTINE", "WEBER^A", "OTA^K", "CT1", "20350707", "120000", "CT", "KIM^A"),
    ("S9", "=山田^太郎", "9", "HOSP", "19700101", "M", "ACC9", "RP9", "V9", "ROUTINE", "", "", "CT1", "20350710", "073000", "CT", ""),
]  # fmt: skip
ITEMS = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]

KEYS = {
    "PatientName": ["YAMADA^TARO", "YAMADA*", "YAMADA", "*HANAKO", "YAMADA^?ARO", "SATO^HANAKO^", "*^*", "S*", "Smith^Anna", "O'NEIL*DR", "YAM?DA^TARO*", "NOBODY", "Y*^T*", "*", "smith^anna", "YAMADA^TARO^^", "=山田^太郎", "=山田*", "山田*", "=山?^太郎", "**"],
    "PatientID": ["0000012345", "12345", "A 1", "A1", "a1", "X-7", "*12345", "000001234?", "A*", "?", "", " A1 ", "*", "**"],
    "IssuerOfPatientID": ["HOSP", "CLINIC", "HOS", "*", "C*", "?*"],
    "PatientBirthDate": ["19700101", "19700101-19700102", "19800101-", "-19691231", "20000229", "19000101"],
    "PatientSex": ["M", "F", "O", "m"],
    "AccessionNumber": ["ACC1", "ACC1?", "ACC*", "acc1", "A-1", "*1", "ACC1 "],
    "RequestedProcedureID": ["RP1", "RP1*", "R-1", "RP?"],
    "AdmissionID": ["V1", "V/1", "V*", "*", "V1?"],
    "RequestedProcedurePriority": ["STAT", "ROUTINE", "R*", "H?GH"],
    "ReferringPhysicianName": ["WEBER^ANNA", "WEBER*", "WEBER^A", "*"],
    "RequestingPhysician": ["SMITH^J", "SMITH^J*", "OTA^KEN"],
    "ScheduledStationAETitle": ["CT1", "CT2", "MR1", "CT?", "ct1", "CT3", "*"],
    "Modality": ["CT", "MR", "US", "XA", "ct", "?T"],
    "ScheduledPerformingPhysicianName": ["ABE^JUN", "ABE^JUN*", "ABE*", "KIM^A", "*"],
}  # fmt: skip
DATES = ["20350705", "20350706", "20350705-20350706", "20350706-", "-20350706", "20350709", "20350707-20350705"]
TIMES = ["", "08", "0800", "080000", "0900-1230", "1200-", "-1200", "2000", "0000-0000", "235959", "1300-0900",
         "200015"]  # fmt: skip
Query = dict[str, str]


def queries() -> list[Query]:
    """Each value of each key alone; dates with times; and three keys by chance."""
    made = [{keyword: value} for keyword, values in KEYS.items() for value in values]
    made += [{DATE: date, TIME: time} for date in DATES for time in TIMES]
    made += [{TIME: time} for time in TIMES if time]
    chance = random.Random(4)
    for _ in range(40):
        chosen = chance.sample(sorted(KEYS), 2)
        made.append({keyword: chance.choice(KEYS[keyword]) for keyword in chosen} | {DATE: chance.choice(DATES)})
    return made


NAMES = {keyword for keyword in KEYS if "Name" in keyword or "Physician" in keyword}
SINGLE = ("PatientID", "ScheduledStationAETitle", "Modality")


def of_names(asked: Query) -> bool:
    return any(
        asked[name].islower() or asked[name].endswith("^") or not asked[name].isascii() for name in NAMES & asked.keys()
    )


def of_wildcards(asked: Query) -> bool:
    return any(set(asked.get(name, "")) & set("*?") and asked[name] != "*" for name in SINGLE)


def of_small_letters(asked: Query) -> bool:
    return any(asked.get(name, "").islower() for name in ("PatientSex", "Modality"))


def of_precision(asked: Query) -> bool:
    return len(asked.get(TIME, "")) in (2, 4)


def of_forms(asked: Query) -> bool:
    date, time = asked.get(DATE, ""), asked.get(TIME, "")
    forms = [(bool(low), bool(high)) for low, dash, high in (date.partition("-"), time.partition("-")) if dash]
    return len(set(forms)) == 2


# Where the two may differ, and what the standard leaves to each.
DIFFERENCES: dict[str, Callable[[Query], bool]] = {
    "PS3.4 C.2.2.2.1: names may be compared without case, and by group; wlmscpfs compares bytes": of_names,
    "Table K.6-1 demands single value matching for these; wlmscpfs has no wildcards there": of_wildcards,
    "a code string in small letters is no code: we find nothing by it, wlmscpfs refuses it": of_small_letters,
    "a time of lower precision means its whole interval (conformance.md 1.4); wlmscpfs fills it with zeros": of_precision,
    "ranges of date and time of different forms count each for itself (conformance.md 1.4); wlmscpfs combines them": of_forms,
}  # fmt: skip


def identifier(asked: Query) -> Dataset:
    made, step = Dataset(), Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    step.ScheduledProcedureStepID = ""
    for keyword, value in asked.items():
        setattr(step if keyword in STEP else made, keyword, value)
    made.ScheduledProcedureStepSequence = [step]
    return made


def uid_of(row: dict[str, str]) -> str:
    return f"1.2.392.{row['ScheduledProcedureStepID'][1:]}"


def place(broker) -> None:
    for row in ITEMS:
        step = StepCommand(
            row["ScheduledProcedureStepID"], row["Modality"], (row["ScheduledStationAETitle"],), row[DATE], row[TIME],
            attributes={"ScheduledPerformingPhysicianName": row["ScheduledPerformingPhysicianName"]},
        )  # fmt: skip
        procedure = ProcedureCommand(row["RequestedProcedureID"], uid_of(row), description="CT", steps=(step,))
        person = PersonCommand(
            (Identifier(row["PatientID"], row["IssuerOfPatientID"]),), row["PatientName"], row["PatientBirthDate"],
            row["PatientSex"],
        )  # fmt: skip
        attributes = {name: row[name] for name in ("AdmissionID", "ReferringPhysicianName", "RequestingPhysician")}
        command = OrderCommand(
            "NW", row["AccessionNumber"], "", row["RequestedProcedurePriority"], person, (procedure,),
            attributes=attributes,
        )  # fmt: skip
        db.run(orders.apply, command, now=clock.now(), actor="test", site=broker.settings.site)


def worklist_file(folder: Path, row: dict[str, str]) -> None:
    made, step = Dataset(), Dataset()
    made.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in row.items():
        setattr(step if keyword in STEP else made, keyword, value)
    step.ScheduledProcedureStepDescription = made.RequestedProcedureDescription = "CT"
    made.StudyInstanceUID = uid_of(row)
    made.ScheduledProcedureStepSequence = [step]
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1"), UID("2.25.2")
    dcmwrite(folder / f"{row['ScheduledProcedureStepID']}.wl", made, enforce_file_format=True)


@pytest.fixture
def wlmscpfs(tmp_path: Path) -> Iterator[int]:
    """Its port."""
    folder = tmp_path / "BROKER"
    folder.mkdir()
    (folder / "lockfile").touch()
    for row in ITEMS:
        worklist_file(folder, row)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["wlmscpfs", "-q", "-s", "-dfp", str(tmp_path), str(port)]
    with subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}) as server:
        with socket.socket() as probe:
            eventually(lambda: probe.connect_ex(("127.0.0.1", port)) == 0)
        yield port
        server.kill()


def answers(port: int, asked: list[Query]) -> list[set[str] | str]:
    """SPS IDs by query, or the status of a failure, all over one association."""
    ae = AE("CT1")
    ae.add_requested_context(ModalityWorklistInformationFind)
    association = ae.associate("127.0.0.1", port, ae_title="BROKER")
    assert association.is_established
    found = []
    with questions_to(association):
        for one in asked:
            got = list(association.send_c_find(identifier(one), ModalityWorklistInformationFind))
            ids = {
                item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for _, item in got if item is not None
            }
            found.append(ids if got[-1][0].Status == 0 else f"{got[-1][0].Status:04X}")
    return found


def test_both_answer_the_same_to_each_query_or_the_standard_leaves_room(broker, wlmscpfs):
    place(broker)
    asked = queries()
    ours, theirs = answers(broker.ports["dicom"], asked), answers(wlmscpfs, asked)
    different = [one for one, our, their in zip(asked, ours, theirs, strict=True) if our != their]
    assert [one for one in different if not any(explains(one) for explains in DIFFERENCES.values())] == []
    assert [why for why, explains in DIFFERENCES.items() if not any(map(explains, different))] == [], "not needed"
    assert len(different) < len(asked) / 5
    assert len({frozenset(found) for found in ours}) > 40, "the queries tell the items apart"


HARD = {
    "PatientName": ["YAMADA^TARO==", "YAMADA^*^=", "O'NEIL^SEAN^P^DR^=", "o'neil^*^=*", "YAMADA^TARO^^=", "^=山田*", "^^=山田^太郎^", "=山田^=", "=山田^*==", "山田^太郎^",
                    "^", "==", "=*", "*=*", "==*", "YAMADA^%", "YAMADA_*", "Y%*", "*\u3000*", "ＹＡＭＡＤＡ*", "＊", "YAMADA *", "* ", "山?^太郎", "?田*"],
    "PatientID": ["A *", "* 1", "A%", "a*", "?-?", "*-*", "_*", "**", "X-7*"],
    "AccessionNumber": ["A-*", "*C?1*", "acc*", "ACC_", "%*"],
    "ScheduledProcedureStepID": ["S*", "s*", "S?", "*9", "S1*"],
}  # fmt: skip


def test_the_database_finds_what_the_rule_finds(broker):
    """What narrows the search in the database leaves no item out, and lets none in."""
    place(broker)
    asked = queries() + [{keyword: key} for keyword, keys_ in HARD.items() for key in keys_]
    rows = {row.sps_id: item_of(row.dataset, row.status) for row in broker.rows(ScheduledStep)}
    for one, found in zip(asked, answers(broker.ports["dicom"], asked), strict=True):
        query = tree.read(encode(identifier(one), True, True) or b"", tree.IMPLICIT_LE, Limits())
        assert found == {sps_id for sps_id, item in rows.items() if matching.matches(query, item)}, one
