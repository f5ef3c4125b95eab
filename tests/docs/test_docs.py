"""The documents say what the program does."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from broker import cli, config
from broker.archive import decide, detectors
from broker.ris_bridge.hl7.road import READERS

ROOT = Path(__file__).parent.parent.parent


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def test_every_setting_is_documented_with_its_default():
    documented = dict(re.findall(r"^\| `([a-z0-9_.]+)` \| (?:`([^`]*)`|–) \|", text("docs/operate.md"), re.M))
    actual = {name: value for name, value, _ in config.show(config.Settings(), {})}
    actual["data_dir"] = "./data"
    assert documented == actual


def test_every_row_and_detector_of_the_gate_is_in_the_statement():
    statement = text("docs/conformance/reconciliation.md")
    for rule in decide.TABLE:
        assert re.search(rf"^\| {re.escape(rule.row)} \|", statement, re.M), rule.row
    assert re.findall(r"(D[0-9]+) \(not yet\)", statement) == list(detectors.MISSING)
    for name in detectors.DETECTORS:
        assert name in statement


def test_every_message_type_that_is_taken_is_in_the_statement():
    statement = text("docs/conformance/hl7.md")
    for kind in READERS:
        assert kind.split("^")[1] in statement, kind


@pytest.mark.parametrize("name", ["README.md", "README.ja.md", "docs/operate.md", "CHANGELOG.md"])
def test_commands_in_the_documents_exist(name):
    known = get_command(cli.app)
    for words in re.findall(r"broker ((?:[a-z]+ ?){1,2})", re.sub(r"[^\x00-\x7f]", "\n", text(name))):
        if f"bin/broker {words}" not in text(name) and f"`broker {words}" not in text(name):
            continue
        command = known
        for word in words.split():
            if hasattr(command, "commands"):
                assert word in command.commands, f"{name}: broker {words}"
                command = command.commands[word]


@pytest.mark.parametrize("name", ["README.md", "README.ja.md", "CONTRIBUTING.md", "ARCHITECTURE.md"])
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", text(name)):
        assert target.startswith("http") or (ROOT / target).exists(), f"{name}: {target}"


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = text("Makefile")
    for target in ("demo", "test"):
        assert re.search(rf"^{target}:", makefile, re.M)
    assert "make test" in text(".ci/run")


def test_the_example_site_file_is_valid():
    from broker import site

    assert {entry.named for entry in site.read_file(ROOT / "docker" / "site.example.toml")} == {"CT1", "US1", "RIS"}
