"""The command line as an administrator types it: a process each."""

import json
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from broker import __version__, config
from broker.dicom import habits
from tests import commands
from tests.world import today

NODE = ("node", "add", "CT1", "--host", "127.0.0.1", "--port", "104")


@pytest.fixture
def broker_command(database_url, tmp_path):
    environment = commands.environment(database_url, tmp_path / "data")

    def command(*arguments: str, status: int = 0, **more: str) -> str:
        process = commands.begin([*arguments], {**environment, **more}, tmp_path)
        process.join(60)
        said, complained = ((tmp_path / stream).read_text("utf-8") for stream in ("stdout", "stderr"))
        assert process.exitcode == status, said + complained
        assert "Traceback" not in complained
        return said if status == 0 else complained

    command.environment = environment
    return command


def test_a_device_is_added_listed_exported_and_removed(broker_command, tmp_path):
    assert broker_command("node", "add", "CT1", "--host", "127.0.0.1", "--port", "104", "--modality", "CT") == "added\n"
    assert (
        broker_command("node", "add", "CT1", "--host", "127.0.0.1", "--port", "104", "--modality", "CT")
        == "unchanged\n"
    )
    (node,) = json.loads(broker_command("node", "list", "--json"))
    assert (node["ae_title"], node["rights"]) == ("CT1", ["worklist", "mpps", "store", "commitment"])
    site = tmp_path / "site.toml"
    site.write_text(broker_command("site", "export"))
    broker_command("node", "remove", "CT1")
    assert broker_command("node", "list") == "none\n"
    assert broker_command("site", "import", str(site)) == "node CT1: added\n"
    assert broker_command("site", "import", str(site)) == "node CT1: unchanged\n"


def test_a_token_is_printed_once_and_senders_are_kept(broker_command):
    token = broker_command("token", "create", "--name", "ehr", "--role", "ehr").strip()
    assert len(token) > 30
    assert token not in broker_command("token", "list")
    assert broker_command("sender", "add", "RIS", "--application", "HIS", "--facility", "HOSP") == "added\n"
    assert json.loads(broker_command("sender", "list", "--json"))[0]["application"] == "HIS"
    assert broker_command("sender", "change", "RIS", "--label", "ER") == "changed\n"
    assert json.loads(broker_command("sender", "list", "--json"))[0]["label"] == "ER"


def test_what_a_device_is_shown_is_said_with_it_changed_listed_and_taken_away(broker_command):
    (*more,) = ("--profile", "asks-for-today", "--aliases", "CTOLD, CT OLD 2", "--hide", "STARTED", "--days-before", "2",
                "--lengths", "RequestedProcedureDescription=16", "--mpps-strict", "yes", "--sees", "own,ae:MR1")  # fmt: skip
    assert broker_command(*NODE, *more) == "added\n"
    (row,) = json.loads(broker_command("node", "list", "--json"))
    assert (row["profile"], row["aliases"], row["hide"]) == ("asks-for-today", ["CTOLD", "CT OLD 2"], ["STARTED"])
    assert (row["days_before"], row["days_after"], row["mpps_strict"]) == (2, None, True)
    assert (row["lengths"], row["sees"]) == ({"RequestedProcedureDescription": 16}, ["own", "ae:MR1"])
    listed = broker_command("node", "list")
    assert re.search(r"asks-for-today +own,ae:MR1$", listed, re.M)
    gone = ("--sees", "", "--hide", "none", "--mpps-strict", "", "--aliases", "", "--lengths", "", "--no-any-address")
    assert broker_command("node", "change", "CT1", *gone, "--finished-hours", "1.5") == "changed\n"
    assert broker_command("node", "change", "CT1", *gone) == "unchanged\n"
    (row,) = json.loads(broker_command("node", "list", "--json"))
    assert (row["sees"], row["hide"], row["mpps_strict"], row["aliases"], row["lengths"]) == (None, [], None, [], None)
    assert (row["finished_hours"], row["profile"], row["host"]) == (1.5, "asks-for-today", "127.0.0.1")
    assert "says nothing that is to change" in broker_command("node", "change", "CT1", status=1)


def test_a_list_that_is_empty_where_that_shows_everything_is_called_all(broker_command):
    assert broker_command(*NODE, "--profile", "asks-without-station", "--sees", "all", "--labels", "all") == "added\n"
    (row,) = json.loads(broker_command("node", "list", "--json"))
    assert (row["sees"], row["labels"]) == ([], [])
    assert broker_command("node", "change", "CT1", "--sees", "own", "--labels", "ER") == "changed\n"
    for option, words in (("--sees", "none"), ("--labels", "None"), ("--labels", "ER,none"), ("--sees", "own,all")):
        assert f"node {option[2:]}: " in broker_command("node", "change", "CT1", option, words, status=1)
    (row,) = json.loads(broker_command("node", "list", "--json"))
    assert (row["sees"], row["labels"]) == (["own"], ["ER"])


def test_a_stray_comma_takes_no_rule_away(broker_command):
    rules = ("--sees", "own", "--labels", "ER", "--hide", "STARTED", "--profile", "ascii-only", "--aliases", "CTOLD",
             "--lengths", "RequestedProcedureDescription=16")  # fmt: skip
    assert broker_command(*NODE, "--modality", "CT", *rules) == "added\n"
    before = broker_command("node", "list", "--json")
    for option, said in [("sees", ","), ("labels", "ER,,all"), ("hide", " "), ("lengths", ","), ("profile", ",")]:
        refused = broker_command("node", "change", "CT1", f"--{option}", said, status=1)
        assert f"node {option}: has a member that is empty" in refused, (option, said)
    assert broker_command("node", "list", "--json") == before
    refused = broker_command("sender", "add", "RIS", "--application", "HIS", "--messages", ",", status=1)
    assert "sender messages: has a member that is empty" in refused
    options = ("rights", "aliases", "sees", "labels", "hide", "lengths", "profile")
    taken = [part for one in options for part in (f"--{one}", "")]
    assert broker_command("node", "change", "CT1", *taken) == "changed\n"
    (row,) = json.loads(broker_command("node", "list", "--json"))
    assert (row["sees"], row["labels"], row["hide"], row["lengths"]) == (None, None, None, None)
    assert (row["rights"], row["aliases"], row["profile"]) == (["worklist", "mpps", "store", "commitment"], [], "")


def test_the_profiles_are_listed_and_what_queries_say_is_accepted(broker_command):
    names = [row["name"] for row in json.loads(broker_command("node", "profiles", "--json"))]
    assert names == list(habits.PROFILES)
    assert "asks-for-today" in broker_command("node", "profiles")
    broker_command(*NODE)
    assert broker_command("node", "suggest", "CT1") == "none\n"
    assert broker_command("node", "accept", "CT1") == "nothing is proposed\n"
    refused = broker_command("node", "accept", "CT1", "ascii-only", status=1)
    assert "node CT1: its queries do not propose ascii-only; nothing is proposed now" in refused


def test_senders_and_intakes_are_changed_by_what_is_named(broker_command):
    broker_command("sender", "add", "RIS", "--application", "HIS", "--messages", "ORM", "--order-responses")
    more = ("--messages", "ORM,ADT^A08", "--character-set", "CP932", "--address", "127.0.0.1", "--mapping", "jahis")
    assert broker_command("sender", "change", "RIS", *more) == "changed\n"
    assert broker_command("sender", "change", "RIS", *more) == "unchanged\n"
    (row,) = json.loads(broker_command("sender", "list", "--json"))
    assert (row["application"], row["messages"], row["address"]) == ("HIS", ["ORM", "ADT^A08"], "127.0.0.1")
    assert (row["character_set"], row["mapping"], row["order_responses"]) == ("CP932", "jahis", True)
    broker_command("sender", "change", "RIS", "--messages", "", "--no-order-responses", "--mapping", "")
    (row,) = json.loads(broker_command("sender", "list", "--json"))
    assert (row["messages"], row["mapping"], row["order_responses"], row["address"]) == ([], "", False, "127.0.0.1")
    assert "says nothing that is to change" in broker_command("sender", "change", "RIS", status=1)
    broker_command("intake", "add", "in", "--kind", "folder", "--path", "/orders", "--format", "csv")
    assert broker_command("intake", "change", "in", "--every-seconds", "60", "--character-set", "CP932") == "changed\n"
    (row,) = json.loads(broker_command("intake", "list", "--json"))
    assert (row["path"], row["format"], row["every_seconds"], row["character_set"]) == ("/orders", "csv", 60, "CP932")


def test_an_order_by_hand_is_on_the_worklist_until_it_is_cancelled(broker_command, tmp_path):
    body = {
        "accession_number": "ACC001", "accession_issuer": "RIS",
        "patient": {"id": "0000012345", "issuer": "HOSP", "birth_date": "1970-01-01", "sex": "M",
                    "name": {"alphabetic": "YAMADA^TARO", "ideographic": "山田^太郎"}},
        "requested_procedures": [{"id": "RP001", "description": "胸部CT", "steps": [
            {"sps_id": "SPS001", "modality": "CT", "station_ae_titles": ["CT1"],
             "scheduled_start": today().isoformat()}]}],
    }  # fmt: skip
    file = tmp_path / "order.json"
    file.write_text(json.dumps(body), "utf-8")
    assert broker_command("order", "place", str(file)) == "order 1, accession number ACC001\n"
    assert broker_command("order", "place", str(file)) == "order 1, accession number ACC001\n"
    (item,) = json.loads(broker_command("worklist", "list", "--ae", "CT1", "--json"))
    assert item["patient"]["name"] == "YAMADA^TARO=山田^太郎"
    assert json.loads(broker_command("order", "show", "1"))["state"] == "SCHEDULED"
    (due,) = json.loads(broker_command("worklist", "expiring", "--days", "3650", "--json"))
    assert {name: due[name] for name in ("step_id", "order_id", "state")} == {
        "step_id": item["step_id"], "order_id": item["order_id"], "state": "SCHEDULED",
    }  # fmt: skip
    broker_command("order", "cancel", "1")
    assert broker_command("worklist", "list") == "none\n"
    refused = broker_command("order", "cancel", "99", status=1)
    assert refused == "broker: order_id: no such order\n", "a sentence alone, without the log's line"


@pytest.mark.parametrize(
    ("arguments", "environment", "status", "said"),
    [
        (("config", "show"), {"BROKER_DICOM__PROT": "1"}, 1, "dicom.prot: no such setting (from BROKER_DICOM__PROT)"),
        (("node", "remove", "NONE"), {}, 1, "node NONE: is not known here"),
        (("order", "show", "4711"), {}, 1, "order_id: no such order"),
        (("order", "place", "nowhere.json"), {}, 1, "nowhere.json: cannot be read"),
        (("token", "create", "--name", "x", "--role", "king"), {}, 1, "role"),
        (("serve", "--roles", "cook"), {}, 2, "no such role"),
        (("serve", "--roles", "web,"), {}, 1, "--roles: has a member that is empty"),
        (("node", "add"), {}, 2, "Missing argument"),
        (("node", "add", "CT\\1", *NODE[3:]), {}, 1, "node ae_title: must be 1 to 16 ASCII characters, without a backslash"),
        ((*NODE, "--character-set", "ISO_IR 999"), {}, 1, "node character_set: must be ASCII, REQUEST (the one that"),
        ((*NODE, "--aliases", "CT1"), {}, 1, "node: names CT1 twice"),
        ((*NODE, "--sees", "none"), {}, 1, "node sees: none is not clear: write all for no rule of its own"),
        ((*NODE, "--labels", "none"), {}, 1, "node labels: none is not clear: write all for no rule of its own"),
        (("worklist", "why", "--accession", "", "--ae", "CT1"), {}, 1, "--accession: is empty: say the accession number"),
        (("worklist", "why", "--accession", "A", "--ae", "あ"), {}, 1, "--ae: must be an AE title"),
        (("worklist", "list", "--at", "09:42", "--ae", "あ"), {}, 1, "--ae: must be an AE title"),
        ((*NODE, "--lengths", "AccessionNumber"), {}, 1, "node lengths: must be KEYWORD=CHARACTERS each"),
        ((*NODE, "--lengths", "AccessionNumber=9"), {}, 1, "node lengths.AccessionNumber: must not shorten"),
        ((*NODE, "--started-hours", "two"), {}, 1, "node started_hours: Input should be a valid number"),
        ((*NODE, "--hide", "DONE"), {}, 1, "node hide.0: Input should be 'SCHEDULED', 'ARRIVED'"),
        (("node", "change", "CT9", "--modality", "CT"), {}, 1, "node CT9: is not known here; broker node list shows"),
        ((*NODE, "--modality", "ct"), {}, 1, "node modality: must be at most 16 capital letters"),
        (("sender", "add", "RIS", "--messages", "ORM,order"), {}, 1, "sender messages.1: must be a message type, such as"),
        (("sender", "add", "RIS", "--character-set", "utf\\8"), {}, 1, "sender character_set: must be as MSH-18 has it"),
        (("sender", "add", "RIS", "--character-set", "KLINGON"), {}, 1, "known are UNICODE UTF-8,"),
        (("sender", "add", "RIS", "--messages", "FOO,ORM^O99"), {}, 1, "no such message is read: FOO, ORM^O99; known are"),
        (("intake", "change", "in", "--mapping", "jahis"), {}, 1, "intake in: is not known here"),
        (("sender", "add", "R\tIS"), {}, 1, "sender name: must not hold control characters"),
        (("message", "list", "--state", "BOGUS"), {}, 2, "states are APPLIED, DISMISSED, RECEIVED, REJECTED"),
        (("message", "list", "--limit", "-5"), {}, 2, "Invalid value for '--limit'"),
        (("node", "list"), {"BROKER_DATABASE_URL": "postgresql+psycopg://127.0.0.1:1/x"}, 1, "is it up?"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_that_says_how_to_mend_it(broker_command, arguments, environment, status, said):
    complaint = " ".join(re.sub(r"[│╭╮╰╯─\n]", " ", broker_command(*arguments, status=status, **environment)).split())
    assert said in complaint
    assert "pattern" not in complaint


@pytest.mark.parametrize(
    "setting", ["ASCII", "REQUEST", "ISO_IR 192", "\\ISO 2022 IR 87", "ISO 2022 IR 13\\ISO 2022 IR 87"]
)
def test_a_device_takes_every_character_set_that_the_help_names(broker_command, setting):
    broker_command("node", "add", "CT1", "--host", "127.0.0.1", "--port", "104", "--character-set", setting)
    (node,) = json.loads(broker_command("node", "list", "--json"))
    assert node["character_set"] == setting


def test_blanks_after_the_commas_of_a_list_do_not_count(broker_command):
    broker_command("sender", "add", "RIS", "--messages", "ORM, ADT^A08")
    assert json.loads(broker_command("sender", "list", "--json"))[0]["messages"] == ["ORM", "ADT^A08"]
    broker_command("node", "add", "CT1", "--host", "127.0.0.1", "--port", "104", "--rights", "worklist, store")
    assert json.loads(broker_command("node", "list", "--json"))[0]["rights"] == ["worklist", "store"]


def test_init_makes_the_folder_the_schema_and_one_administrator(broker_command, tmp_path):
    first = broker_command("init")
    assert "administrator's token, shown once: " in first
    assert "exists already" in broker_command("init")
    assert (tmp_path / "data").is_dir()
    assert "in order" in broker_command("config", "check")


def test_settings_are_shown_with_their_source_and_secrets_masked(broker_command):
    rows = {
        row["setting"]: row
        for row in json.loads(
            broker_command("config", "show", "--json", BROKER_DATABASE_URL="postgresql+psycopg://u:secret@h/db")
        )
    }
    assert rows["database_url"]["value"] == "postgresql+psycopg://***@h/db"
    assert rows["database_url"]["source"] == "BROKER_DATABASE_URL"
    assert rows["dicom.ae_title"]["source"] == "default"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://u:secret@h/db", "postgresql+psycopg://***@h/db"),
        ("postgresql+psycopg://h/db?user=u&password=secret", "postgresql+psycopg://h/db?user=***&password=***"),
        ("s3://key:sec@ret@h/b?secret", "s3://***@h/b?***"), ("postgresql://u:sec?ret@h/db", "postgresql://***"),
        ("postgresql://h/db?user=a@b&password=secret", "postgresql://***"), ("sqlite:////a/b", "sqlite:////a/b"), ("", ""),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_what_may_be_secret(url, shown):
    assert config.masked(url) == shown


def test_serve_says_what_is_open_and_who_cannot_reach_it_and_ends_well(broker_command, tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "broker", "serve"], env=broker_command.environment, cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = [running.stdout.readline().strip() for _ in range(6)]
    assert [line.split()[1] for line in lines[:3]] == ["dicom", "hl7", "http"]
    assert lines[3] == "DICOM listens on loopback only: no scanner can reach it; set BROKER_DICOM__HOST"
    port = int(lines[1].split()[2].rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=40)
    assert running.returncode == 0
    assert "Traceback" not in said


def test_the_program_starts_as_a_module_and_says_its_version():
    ran = subprocess.run([sys.executable, "-m", "broker", "version"], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, f"ris-broker {__version__}\n")


def test_help_names_the_verbs(broker_command):
    assert "worklist" in broker_command("--help")
    assert "remove" in broker_command("node", "--help")
