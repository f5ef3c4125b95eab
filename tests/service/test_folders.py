"""A watched folder: every order of a file once, the file where it belongs, the reasons beside it."""

import datetime as dt
import errno
import os
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import DataError
from sqlmodel import select

from broker import clock, db, site
from broker.errors import BrokerError
from broker.model.messages import Message
from broker.model.orders import RequestedProcedure, ScheduledStep
from broker.model.work import AuditEvent
from broker.ris_bridge import csv_road, folders, inbox, journal, replay
from broker.ris_bridge.mapping import store
from broker.sim.ris import omi
from tests.intakes import away_at, change_intake, intake, numbers, rows
from tests.world import SATO, YAMADA, order

HEADER = (
    "accession_number,accession_issuer,patient.id,patient.issuer,patient.name.ideographic,patient.name.phonetic,"
    "patient.birth_date,patient.sex,procedure.id,procedure.description,step.sps_id,step.modality,"
    "step.station_ae_titles,step.scheduled_start"
)


def row(
    accession: str = "ACC001", step: str = "S1", *, patient=YAMADA, modality: str = "CT", start: str = "09:30"
) -> str:
    return (
        f"{accession},RIS,{patient.id},HOSP,{patient.kanji},{patient.kana},1970-01-01,M,R{accession},胸部CT,"
        f"{step}{accession},{modality},CT1,2025-12-01T{start}:00"
    )


def csv_of(*rows: str) -> str:
    return "\r\n".join([HEADER, *rows, ""])


class Folder:
    def __init__(self, path: Path, settings) -> None:
        self.path, self.settings = path, settings

    def add(self, **fields: object) -> None:
        said = {"kind": "folder", "path": str(self.path), "every_seconds": 1, **fields}
        db.run(site.add_intake, "in", now=clock.now(), actor="test", **said)

    def put(self, name: str, content: bytes | str) -> Path:
        file = self.path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    def work(self) -> None:
        """One pass, as if its time had come."""
        change_intake(next_at=None)
        folders.work(self.settings)

    def names(self, where: str = ".") -> list[str]:
        return sorted(
            one.name for one in (self.path / where).iterdir() if one.name not in (".claimed", "done", "failed")
        )

    def reasons(self) -> str:
        (file,) = (self.path / "failed").glob("*.reason.txt")
        return file.read_text("utf-8")

    @property
    def error(self) -> str:
        return intake().last_error


@pytest.fixture
def folder(exams, settings, tmp_path) -> Folder:
    settings.limits.intake_quiet_seconds = 0
    path = tmp_path / "orders"
    path.mkdir()
    return Folder(path, settings)


# HL7


def test_a_file_with_one_message_becomes_an_order_and_is_done(folder):
    folder.add()
    raw = omi(order("ACC001"))
    folder.put("a.hl7", raw)
    folder.work()
    (message,) = rows(Message)
    assert (message.raw, message.state, message.protocol, message.peer) == (raw, "APPLIED", "hl7", "folder:in")
    assert (folder.names(), folder.names("done"), folder.names("failed")) == ([], ["a.hl7"], [])
    assert (folder.path / "done" / "a.hl7").read_bytes() == raw
    assert folder.names(".claimed") == []


@pytest.mark.parametrize(
    "around",
    [(b"", b""), (b"FHS|^~\\&|HIS\rBHS|^~\\&|HIS\r", b"BTS|2\rFTS|1\r"), (b"\r\n", b"\r\n"), (b"\xef\xbb\xbf", b"")],
)
def test_a_file_with_several_messages_or_a_batch_gives_each_its_own_place_in_the_journal(folder, around):
    folder.add()
    first, second = omi(order("ACC001")), omi(order("ACC002", SATO))
    folder.put("a.hl7", around[0] + first + second + around[1])
    folder.work()
    assert [message.raw.strip() for message in rows(Message)] == [first.strip(), second.strip()]
    assert (numbers(), folder.names("done")) == (["ACC001", "ACC002"], ["a.hl7"])


def test_frames_of_mllp_in_a_file_are_looked_through(folder):
    folder.add()
    folder.put("a.hl7", b"".join(b"\x0b" + omi(order(f"ACC{n}")) + b"\x1c\r" for n in range(2)))
    folder.work()
    assert numbers() == ["ACC0", "ACC1"]


def test_a_refused_message_puts_the_file_aside_with_the_reason_and_the_others_are_taken(folder):
    folder.add()
    bad = omi(order("ACC002", SATO, study_uid="1.2.03.4"))
    folder.put("a.hl7", omi(order("ACC001")) + bad + omi(order("ACC003")))
    folder.work()
    assert numbers() == ["ACC001", "ACC003"]
    assert folder.names("failed") == ["a.hl7", "a.hl7.reason.txt"]
    assert folder.reasons().startswith("message 2: refused with 102 at IPC^1^3: ")
    assert not any(text in folder.reasons() for text in (SATO.id, SATO.kanji, "1.2.03.4", "ACC002"))


def test_a_count_that_is_not_right_is_told(folder):
    folder.add()
    folder.put("a.hl7", b"BHS|^~\\&|HIS\r" + omi(order("ACC001")) + b"BTS|2\r")
    folder.work()
    assert numbers() == ["ACC001"]
    assert folder.reasons().startswith("batch: BTS^1^1")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"PID|1\r", "山田".encode()])
def test_a_file_that_is_no_hl7_is_put_aside(folder, content):
    folder.add()
    folder.put("a.hl7", content)
    folder.work()
    assert folder.names("failed") == ["a.hl7", "a.hl7.reason.txt"]
    assert rows(Message) == []


def test_the_folders_character_set_stands_in_for_what_the_messages_say(folder):
    folder.add(character_set="CP932")
    folder.put("a.hl7", omi(order()).decode("iso2022_jp").encode("cp932"))
    folder.work()
    assert numbers() == ["ACC001"]
    shown = db.read(journal.message, 1, settings=folder.settings, language="ja", now=clock.now())
    assert YAMADA.kanji in shown["raw"]


def test_a_refused_message_of_a_folder_is_looked_at_again_as_the_folder_is_told_now(folder):
    folder.add()
    folder.put("a.hl7", omi(order()).decode("iso2022_jp").encode("cp932"))
    folder.work()
    assert [message.state for message in rows(Message)] == ["REJECTED"]
    change_intake(character_set="CP932")
    assert replay.replay(1, folder.settings, actor="meyer")["outcome"] == "applied"


def test_a_file_that_is_put_there_again_is_looked_at_again(folder):
    """A person moves it back from failed when the reason is mended."""
    folder.add()
    folder.put("a.hl7", omi(order("ACC001"), "XO"))
    folder.work()
    assert folder.names("failed") == ["a.hl7", "a.hl7.reason.txt"]
    folder.put("b.hl7", omi(order("ACC001")))
    folder.work()
    os.rename(folder.path / "failed" / "a.hl7", folder.path / "a.hl7")
    folder.work()
    assert [message.state for message in rows(Message)] == ["APPLIED", "APPLIED"]
    assert folder.names("done") == ["a.hl7", "b.hl7"]


def test_a_file_that_grows_while_it_is_read_is_put_back_and_read_whole(folder, monkeypatch):
    folder.add()
    first, second = omi(order("ACC001")), omi(order("ACC002", SATO))
    file, take = folder.put("a.hl7", first), inbox.take

    def slowly(*args: object, **kwargs: object) -> object:
        claimed = next((folder.path / ".claimed").glob("*/a.hl7"))
        with claimed.open("ab") as writer:
            writer.write(second)
        return take(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "take", slowly)
        folder.work()
    assert (folder.names(), folder.names("done")) == (["a.hl7"], [])
    folder.work()
    assert (numbers(), folder.names("done")) == (["ACC001", "ACC002"], ["a.hl7"])
    assert len(rows(Message)) == 2
    assert not file.exists()


def test_no_file_is_put_over_another_one_whatever_they_are_called(folder):
    """Neither a file of that name nor the reasons of another."""
    folder.add()
    folder.put("a.hl7.reason.txt", b"precious and unreadable")
    folder.work()
    folder.put("a.hl7", b"unreadable too")
    folder.work()
    folder.put("a.hl7", b"and a third")
    folder.work()
    kept = {file.read_bytes() for file in (folder.path / "failed").iterdir()}
    assert {b"precious and unreadable", b"unreadable too", b"and a third"} < kept
    assert len(kept - {b"precious and unreadable", b"unreadable too", b"and a third"}) >= 1
    assert len(folder.names("failed")) == 6
    assert (folder.names(), folder.names(".claimed")) == ([], [])


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_folder_without_links_works_as_well(folder, monkeypatch, error):
    """vfat, some shares."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(error, "no links")

    monkeypatch.setattr(os, "link", refuse)
    folder.add()
    for name in ("a.hl7", "b.hl7"):
        folder.put(name, b"unreadable")
    folder.work()
    folder.put("a.hl7", omi(order("ACC001")))
    folder.put("b.hl7", b"unreadable anew")
    folder.work()
    assert folder.names("done") == ["a.hl7"]
    assert len(folder.names("failed")) == 6


def test_a_message_that_nobody_foresaw_is_told_and_holds_nobody_up(folder, monkeypatch):
    folder.add()
    take = inbox.take

    def stumble(received: inbox.Received, *args: object, **kwargs: object) -> object:
        if b"ACC001" in received.raw:
            raise DataError("", {}, Exception("no text"))
        return take(received, *args, **kwargs)

    monkeypatch.setattr(inbox, "take", stumble)
    folder.put("a.hl7", omi(order("ACC001")) + omi(order("ACC002", SATO)))
    folder.put("b.hl7", omi(order("ACC003")))
    folder.work()
    assert numbers() == ["ACC002", "ACC003"]
    assert folder.names("failed") == ["a.hl7", "a.hl7.reason.txt"]
    assert folder.reasons().startswith("message 1: ")


# Which files


def test_only_complete_regular_files_are_taken(folder, tmp_path):
    folder.add()
    raw = omi(order("ACC001"))
    secret = tmp_path / "secret.hl7"
    secret.write_bytes(raw)
    (folder.path / "link.hl7").symlink_to(secret)
    (folder.path / "deep.hl7").mkdir()
    os.mkfifo(folder.path / "pipe.hl7")
    for name in (".hidden.hl7", "a.hl7.tmp", "a.hl7.part", "A.HL7.PART"):
        folder.put(name, raw)
    before = folder.names()
    folder.work()
    assert (folder.names(), rows(Message)) == (before, [])
    assert secret.read_bytes() == raw


def test_a_file_that_is_being_written_is_left_alone(folder):
    folder.settings.limits.intake_quiet_seconds = 3600
    folder.add()
    file = folder.put("a.hl7", omi(order("ACC001")))
    os.utime(file, (0, 0))  # its writer may set any time it likes
    folder.work()
    assert (folder.names(), rows(Message)) == (["a.hl7"], [])


def test_a_file_over_the_limit_is_put_aside_unread(folder):
    folder.settings.limits.intake_file_bytes_max = 100
    folder.add()
    folder.put("a.hl7", omi(order("ACC001")))
    folder.work()
    assert "larger than 100 bytes" in folder.reasons()
    assert rows(Message) == []


def test_files_are_taken_in_the_order_in_which_they_were_written(folder):
    folder.add()
    for n, (name, control) in enumerate([("z", "NW"), ("m", "XO"), ("a", "CA")]):
        file = folder.put(f"{name}.hl7", omi(order("ACC001"), control, sent=clock.now() + dt.timedelta(seconds=n)))
        os.utime(file, (n, n))
    folder.work()
    assert [message.state for message in rows(Message)] == ["APPLIED"] * 3
    assert [step.status for step in rows(ScheduledStep)] == ["CANCELED"]


def test_a_file_of_a_name_that_was_there_before_replaces_nothing(folder):
    folder.add()
    for accession in ("ACC001", "ACC002"):
        folder.put("a.hl7", omi(order(accession)))
        folder.work()
    assert len(folder.names("done")) == 2
    assert numbers() == ["ACC001", "ACC002"]


@pytest.mark.parametrize(
    "name", ["山田太郎.hl7", "a" * 251 + ".hl7"[:4], os.fsdecode(b"\xff\xfe.hl7"), "-rf .hl7", "a\nb.hl7"]
)
def test_a_file_may_have_any_name(folder, name):
    folder.add()
    folder.put(name, b"no HL7")
    folder.work()
    assert folder.names() == []
    assert len(folder.names("failed")) == 2


def test_a_folder_that_is_not_there_is_told_and_tried_again(folder, tmp_path):
    folder.add(path=str(tmp_path / "nowhere"))
    folder.work()
    assert "cannot be used" in folder.error
    (tmp_path / "nowhere").mkdir()
    folder.work()
    assert folder.error == ""


def test_where_done_leads_elsewhere_nothing_is_moved(folder, tmp_path):
    folder.add()
    (folder.path / "done").symlink_to(tmp_path)
    folder.put("a.hl7", omi(order("ACC001")))
    folder.work()
    assert "a.hl7" in folder.names()
    assert folder.error != ""


def test_a_folder_is_looked_at_no_more_often_than_it_says(folder):
    folder.add(every_seconds=3600)
    folder.work()
    folder.put("a.hl7", omi(order("ACC001")))
    folders.work(folder.settings)
    assert folder.names() == ["a.hl7"]


# Trouble


class Killed(BaseException):
    """As kill -9: nothing behind it runs."""


STEPS = ["claim", "read", "take", "state", "reason", "move", "clean"]


def break_at(monkeypatch, step: str) -> None:
    """The process dies just before this, or (take) just after."""

    def die(*_args: object, **_kwargs: object) -> None:
        raise Killed

    take = inbox.take

    def take_and_die(*args: object, **kwargs: object) -> None:
        take(*args, **kwargs)
        raise Killed

    at: dict[str, tuple[object, str, object]] = {
        "claim": (folders.os, "rename", die), "read": (folders, "_bytes", die), "take": (inbox, "take", take_and_die),
        "state": (inbox, "take", die), "reason": (folders, "_write", die), "move": (folders, "_finish", die),
        "clean": (Path, "rmdir", die),
    }  # fmt: skip
    monkeypatch.setattr(*at[step])


@pytest.mark.parametrize("step", STEPS)
def test_a_process_that_dies_at_any_step_loses_no_file_and_doubles_no_order(folder, monkeypatch, step):
    folder.add()
    content = omi(order("ACC001")) + omi(order("ACC002", SATO), "XO") + omi(order("ACC003"))
    folder.put("a.hl7", content)
    with monkeypatch.context() as patch:
        break_at(patch, step)
        with pytest.raises(Killed):
            folder.work()
    if step not in ("claim", "clean"):
        folder.work()
        assert folder.names("failed") == []  # the lease of the dead one holds
    for claimed in (folder.path / ".claimed").iterdir():
        os.utime(claimed, (time.time() - 3600,) * 2)
    folder.work()
    assert [message.state for message in rows(Message)] == ["APPLIED", "REJECTED", "APPLIED"], step
    assert numbers() == ["ACC001", "ACC003"]
    assert [step.version for step in rows(ScheduledStep)] == [1, 1]
    assert (folder.path / "failed" / "a.hl7").read_bytes() == content
    assert folder.names("failed") == ["a.hl7", "a.hl7.reason.txt"]
    assert (folder.names(), folder.names(".claimed")) == ([], [])


def test_when_the_database_goes_away_the_file_is_where_it_was(folder, monkeypatch):
    folder.add()
    folder.put("a.hl7", omi(order("ACC001")) + omi(order("ACC002")))
    with away_at(monkeypatch, 2):
        folder.work()
    assert folder.names() == ["a.hl7"]
    folder.work()
    assert (numbers(), folder.names("done")) == (["ACC001", "ACC002"], ["a.hl7"])
    assert len(rows(Message)) == 2


def test_of_two_processes_one_has_the_file(folder, monkeypatch):
    """The second looks while the first is at it: it sees nothing to take."""
    folder.add()
    folder.put("a.hl7", omi(order("ACC001")))
    taken = []
    read = folders._bytes

    def meanwhile(*args: object) -> object:
        if not taken:
            taken.append(1)
            folder.work()
            taken.append(len(rows(Message)))
        return read(*args)

    monkeypatch.setattr(folders, "_bytes", meanwhile)
    folder.work()
    assert taken == [1, 0]
    assert (numbers(), folder.names("done")) == (["ACC001"], ["a.hl7"])


# CSV


def test_rows_of_one_accession_number_are_one_order_and_one_message(folder):
    folder.add(format="csv")
    text = csv_of(row("ACC001", "S1"), row("ACC002", "S1", patient=SATO), row("ACC001", "S2", start="10:00"))
    folder.put("a.csv", text)
    folder.work()
    lines = text.split("\r\n")
    assert [message.raw.decode() for message in rows(Message)] == [
        "\r\n".join([lines[0], lines[1], lines[3], ""]), "\r\n".join([lines[0], lines[2], ""])
    ]  # fmt: skip
    assert {(message.protocol, message.state) for message in rows(Message)} == {("csv", "APPLIED")}
    assert numbers() == ["ACC001", "ACC002"]
    assert [(step.sps_id, step.start_time) for step in rows(ScheduledStep)][:2] == [
        ("S1ACC001", "093000"), ("S2ACC001", "100000"),
    ]  # fmt: skip
    assert len(rows(RequestedProcedure)) == 2
    assert folder.names("done") == ["a.csv"]


@pytest.mark.parametrize(
    ("character_set", "codec"), [("", "utf-8"), ("", "utf-8-sig"), ("CP932", "cp932"), ("EUC-JP", "euc_jp")]
)
def test_a_csv_file_is_read_in_the_folders_character_set(folder, character_set, codec):
    folder.add(format="csv", character_set=character_set)
    folder.put("a.csv", csv_of(row()).encode(codec))
    folder.work()
    assert folder.names("done") == ["a.csv"]
    assert rows(Message)[0].raw.decode(codec).lstrip("\ufeff") == csv_of(row())


def test_a_bad_row_refuses_its_order_alone_and_says_its_line(folder):
    folder.add(format="csv")
    folder.put("a.csv", csv_of(row("ACC001"), row("ACC002", modality=""), row("ACC003"), row("ACC004") + ",too much"))
    folder.work()
    assert numbers() == ["ACC001", "ACC003"]
    assert folder.names("failed") == ["a.csv", "a.csv.reason.txt"]
    first, second = folder.reasons().splitlines()
    assert first.startswith("order of line 3: refused with 101 at line 3 step.modality: is required")
    assert second.startswith("order of line 5: refused with 100 at line 5: has 15 cells, the header 14")
    assert not any(text in folder.reasons() for text in (YAMADA.id, YAMADA.kanji))


def test_rows_of_one_order_that_contradict_each_other_are_refused(folder):
    folder.add(format="csv")
    folder.put("a.csv", csv_of(row("ACC001"), row("ACC001", "S2", patient=SATO)))
    folder.work()
    assert numbers() == []
    assert "at line 3 patient.id: differs" in folder.reasons()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "must name each column"), ("a,b\n1,2\n", "line 1: column 1 has a name"), (HEADER + "\n", "holds no row"),
        (HEADER + ",step.sps_id\n", "none twice"), (csv_of('"' + row()), "line 2: is no CSV"), ("\x00", "NUL"),
        (csv_of(row()).encode("cp932"), "not valid in this set"), (f"{YAMADA.id},{YAMADA.kanji}\n", "column 1"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_csv_of_ours_is_put_aside_as_a_whole(folder, content, reason):
    folder.add(format="csv")
    folder.put("a.csv", content)
    folder.work()
    assert reason in folder.reasons()
    assert YAMADA.id not in folder.reasons()
    assert rows(Message) == []


def test_a_cell_may_hold_line_ends_and_commas(folder):
    folder.add(format="csv")
    text = HEADER + ",procedure.comments\n" + row() + ',"first, and\r\nsecond"\n' + row("ACC002") + ",\n"
    folder.put("a.csv", text)
    folder.work()
    assert numbers() == ["ACC001", "ACC002"]
    assert [message.raw.count(b"\n") for message in rows(Message)] == [3, 2]


def test_a_later_file_moves_an_exam_and_moves_it_back(folder):
    """The same rows again, in a later file, are said anew; the same file is not."""
    folder.add(format="csv")
    for n, start in enumerate(["09:30", "11:00", "09:30"]):
        file = folder.put("a.csv", csv_of(row(start=start)))
        os.utime(file, (n + 1000, n + 1000))
        folder.work()
        assert [step.start_time for step in rows(ScheduledStep)] == [start.replace(":", "") + "00"]
    assert [message.state for message in rows(Message)] == ["APPLIED"] * 3


def test_a_file_that_is_older_than_what_is_known_changes_nothing(folder):
    folder.add(format="csv")
    for at, start in ((2000, "11:00"), (1000, "09:30")):
        os.utime(folder.put("a.csv", csv_of(row(start=start))), (at, at))
        folder.work()
    assert [step.start_time for step in rows(ScheduledStep)] == ["110000"]


def test_a_row_with_ca_cancels_its_order(folder):
    folder.add(format="csv")
    folder.put("a.csv", csv_of(row()))
    folder.work()
    folder.put(
        "b.csv",
        f"control,accession_number,accession_issuer,patient.id,patient.issuer\nCA,ACC001,RIS,{YAMADA.id},HOSP\n",
    )
    folder.work()
    assert [step.status for step in rows(ScheduledStep)] == ["CANCELED"]
    folder.put("c.csv", f"control,accession_number,patient.id\nXX,ACC001,{YAMADA.id}\n")
    folder.work()
    assert "line 2 control: must be NW, CA or empty" in folder.reasons()


def test_a_refused_order_of_a_csv_file_is_found_and_looked_at_again(folder):
    folder.add(format="csv")
    folder.put("a.csv", csv_of(row("ACC001")))
    folder.put("b.csv", csv_of(row("ACC001", patient=SATO)))
    folder.work()
    wanted = journal.Wanted(accession="ACC001", state="REJECTED", protocol="csv")
    (found,), _ = db.read(journal.find, wanted, limit=10, looked_at=100)
    assert replay.replay(found.key, folder.settings, actor="meyer")["outcome"] == "refused"
    shown = db.read(journal.message, found.key, settings=folder.settings, language="ja", now=clock.now())
    assert SATO.kanji in shown["raw"]
    assert shown["answer"].startswith("refused: 205")


@pytest.mark.parametrize("path", ["requested_procedures.0.steps.1.modality", "patient.id", "requested_procedures.0.id",
                                  "requested_procedures.0.steps.0.protocol_codes.0.value", "body"])  # fmt: skip
def test_an_error_of_the_order_body_names_line_and_column(path):
    places = {"requested_procedures.0": 2, "requested_procedures.0.steps.0": 2, "requested_procedures.0.steps.1": 3}
    assert csv_road._place(path, 2, places) == {
        "requested_procedures.0.steps.1.modality": "line 3 step.modality", "patient.id": "line 2 patient.id",
        "requested_procedures.0.id": "line 2 procedure.id", "body": "line 2 body",
        "requested_procedures.0.steps.0.protocol_codes.0.value": "line 2 step.protocol_code.value",
    }[path]  # fmt: skip


PROFILE = """
name = "clinic-csv"
[[field]]
to = "order.accession_number"
from = ["col:受付番号"]
[[field]]
to = "patient.id"
from = ["col:患者番号"]
[[field]]
to = "patient.name"
from = ["col:氏名"]
[[field]]
to = "procedure.requested_procedure_id"
from = ["col:受付番号"]
[[field]]
to = "procedure.description"
from = ["col:検査名"]
[[field]]
to = "step.modality"
from = ["col:種別"]
table = "modality"
[[field]]
to = "step.start"
from = ["col:予約日時"]
[tables.modality]
"X線" = "CR"
[[station]]
priority = 1
ae_titles = ["CR1"]
[identity]
patient_id_issuer = "CLINIC"
"""
CLINIC = "受付番号,患者番号,氏名,検査名,種別,予約日時,担当\r\n"


def test_a_profile_reads_a_file_whose_columns_have_names_of_their_own(folder):
    db.run(store.put, PROFILE, now=clock.now(), actor="test")
    folder.add(format="csv", mapping="clinic-csv", character_set="CP932")
    name = f"{YAMADA.kanji}~{YAMADA.kana}"
    text = (
        CLINIC + f"ACC001,{YAMADA.id},{name},胸部,X線,20251201093000,医師\r\n"
        f"ACC002,{YAMADA.id},{name},腹部,超音波,20251201100000,\r\nACC001,{YAMADA.id},{name},胸部,X線,20251201094500,医師\r\n"
    )
    folder.put("a.csv", text.encode("cp932"))
    folder.work()
    assert [(message.state, message.mapping) for message in rows(Message)] == [
        ("APPLIED", "clinic-csv v1"), ("REJECTED", "clinic-csv v1"),
    ]  # fmt: skip
    assert (numbers(), len(rows(RequestedProcedure))) == (["ACC001"], 1)
    assert [(step.modality, step.start_time) for step in rows(ScheduledStep)] == [("CR", "093000"), ("CR", "094500")]
    assert "order of line 3: refused with 101 at line 3 step.modality: is required" in folder.reasons()
    wanted = journal.Wanted(accession="ACC002", patient=YAMADA.id)
    (found,), _ = db.read(journal.find, wanted, limit=10, looked_at=100)
    db.run(store.put, PROFILE.replace('"X線"', '"超音波" = "US"\n"X線"'), now=clock.now(), actor="test")
    told = replay.replay(found.key, folder.settings, actor="meyer")
    assert (told["outcome"], told["mapping"]) == ("applied", "clinic-csv v2")


RULES = """
[[message]]
type = "ORM"
when = ["col:担当 = 試験"]
means = "ignore"
[controls.meanings]
"取消" = "CA"
"保留" = "HD"
"""


def test_a_profile_says_which_rows_are_ignored_and_which_cancel(folder):
    profile = PROFILE.replace("[tables.modality]", f"{RULES}[tables.modality]")
    db.run(store.put, profile, now=clock.now(), actor="test")
    folder.add(format="csv", mapping="clinic-csv")

    def put(control: str, number: str, by: str = "医師", patient: str = YAMADA.id) -> None:
        head = CLINIC.replace("担当", "担当,control")
        row = f"{number},{patient},{YAMADA.kanji},胸部,X線,20251201093000,{by},{control}\r\n"
        folder.put(f"{len(rows(Message))}.csv", head + row)
        folder.work()

    put("", "ACC001")
    put("", "ACC002", by="試験")
    assert (numbers(), rows(Message)[1].became) == (["ACC001"], "ignored by its profile")
    put("保留", "ACC001")
    put("何か", "ACC001")
    put("取消", "", "医師")
    put("取消", "ACC001", by="試験")
    assert [step.status for step in rows(ScheduledStep)] == ["SCHEDULED"]
    put("取消", "ACC001")
    assert [step.status for step in rows(ScheduledStep)] == ["CANCELED"]
    assert [(one.error_code, one.error_place) for one in rows(Message) if one.state == "REJECTED"] == [
        ("103", "line 2 control"), ("103", "line 2 control"), ("101", "line 2 accession_number"),
    ]  # fmt: skip


def test_a_profile_that_is_not_there_puts_the_file_aside(folder):
    folder.add(format="csv")
    change_intake(mapping="nowhere")
    folder.put("a.csv", CLINIC)
    folder.work()
    assert "mapping nowhere" in folder.reasons()


# What an administrator may say


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "folder"}, "needs a path"), ({"kind": "folder", "path": "orders"}, "begins with /"),
        ({"kind": "folder", "path": "/a/../b"}, "begins with /"), ({"kind": "poll"}, "needs a url"),
        ({"kind": "folder", "path": "/a", "format": "json"}, "format hl7 or csv"),
        ({"kind": "poll", "url": "ftp://ris/"}, "http"), ({"kind": "poll", "url": "http://u:p@ris/"}, "without a password"),
        ({"kind": "poll", "url": "http://ris/", "every_seconds": 0}, "greater than or equal to 1"),
        ({"kind": "poll", "url": "http://ris/", "secret_file": "/etc/s"}, "https"),
        ({"kind": "poll", "url": "http://127.0.0.1.ris/", "secret_file": "/etc/s"}, "https"),
        ({"kind": "poll", "url": "http://169.254.169.254/latest"}, "link-local"),
        ({"kind": "poll", "url": "https://[fe80::1]/"}, "link-local"),
        ({"kind": "poll", "url": "http://[::ffff:169.254.169.254]/"}, "link-local"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("database")
def test_an_entry_that_cannot_work_is_refused_with_the_reason(fields, said):
    with pytest.raises(BrokerError, match="intake") as refusal:
        db.run(site.add_intake, "in", now=clock.now(), actor="test", **fields)
    assert said in str(refusal.value)


def test_an_entry_goes_through_a_site_file_and_another_url_begins_anew(folder, tmp_path):
    entry = {
        "kind": "poll",
        "url": "https://ris/orders",
        "format": "json",
        "secret_file": "/etc/secret",
        "every_seconds": 30,
    }
    folder.add(path="", **entry)
    file = tmp_path / "site.toml"
    text = db.read(site.export)
    file.write_text(text, "utf-8")
    change_intake(cursor="17")
    assert db.run(site.apply, site.read_file(file), now=clock.now(), actor="test") == [("intake in", "unchanged")]
    file.write_text(text.replace("https://ris/orders", "https://ris/new"), "utf-8")
    assert db.run(site.apply, site.read_file(file), now=clock.now(), actor="test") == [("intake in", "changed")]
    assert intake().cursor == ""


@pytest.mark.usefixtures("database")
def test_what_the_query_of_a_url_says_is_shown_to_nobody_and_kept_over_a_site_file(tmp_path):
    def add(url: str) -> None:
        db.run(site.add_intake, "in", now=clock.now(), actor="test", kind="poll", url=url, format="json")

    def apply(text: str) -> str:
        file = tmp_path / "site.toml"
        file.write_text(text, "utf-8")
        ((_, outcome),) = db.run(site.apply, site.read_file(file), now=clock.now(), actor="test")
        return outcome

    def url() -> str:
        return intake().url

    add("https://ris/feed?apikey=SECRET&site=1")
    text = db.read(site.export)
    assert 'url = "https://ris/feed?apikey=***&site=***"' in text
    assert apply(text) == "unchanged"
    assert apply(text.replace("***&", "NEW&").replace("=***", "=2")) == "changed"
    assert apply(text) == "unchanged"
    assert url() == "https://ris/feed?apikey=NEW&site=2"
    assert apply(text.replace("//ris", "//other")) == "missing"
    assert url() == "https://ris/feed?apikey=NEW&site=2"
    audited = db.read(lambda session: session.exec(select(AuditEvent)).all())
    assert not any(word in str(row.model_dump()) for row in audited for word in ("SECRET", "NEW"))
    db.run(site.remove_intake, "in", now=clock.now(), actor="test")
    assert apply(text) == "missing"


def test_a_file_at_which_the_program_died_too_often_is_refused_and_named(folder, monkeypatch):
    """Else each start would take it up again, and die of it again."""
    monkeypatch.setattr(inbox.CRASHES, "is_poison", lambda digest: True)
    folder.add()
    folder.put("poison.hl7", omi(order("ACC001")))
    folder.work()
    (parked,) = rows(Message)
    assert (parked.state, parked.error_code, numbers()) == ("REJECTED", "207", [])
    assert "replay it after an upgrade" in folder.reasons()
