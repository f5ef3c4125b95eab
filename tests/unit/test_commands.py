"""What the command line refuses by itself, before it looks for a broker."""

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from broker.cli import app
from broker.commands.common import opened, split
from broker.config import Site
from broker.errors import ConfigError, InvalidValue

NONE = "9223372036854775808"  # one more than a database can have


@pytest.mark.parametrize(
    "words",
    [
        ("order", "show", NONE), ("order", "cancel", NONE), ("order", "show", "0"), ("message", "show", NONE),
        ("message", "replay", NONE), ("message", "dismiss", NONE, "--reason", "x"), ("message", "list", "--limit", NONE),
        ("message", "list", "--after", NONE), ("patient", "undo", NONE, "--reason", "x"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_number_that_no_row_has_is_refused_with_its_range(words):
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 2
    assert "than or equal to" in " ".join(said.output.replace("│", "").split())


def test_a_folder_without_a_broker_does_not_become_one_by_asking(tmp_path, monkeypatch):
    monkeypatch.setenv("BROKER_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("BROKER_DATABASE_URL", raising=False)
    with pytest.raises(ConfigError, match="there is no broker here: run broker init"):
        opened()
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("said", [",", " ", ",,", "own,", ",own", "own, ,modality"])
def test_an_empty_member_of_a_list_is_refused_with_its_place(said):
    with pytest.raises(InvalidValue, match=r"^node sees: has a member that is empty"):
        split("node sees", said)


@pytest.mark.parametrize(("said", "members"), [("", []), ("own", ["own"]), (" own , ae:MR 1", ["own", "ae:MR 1"])])
def test_a_list_is_separated_by_commas(said, members):
    assert split("node sees", said) == members


@pytest.mark.parametrize("name", ["patient_id_issuer", "accession_issuer"])
def test_an_issuer_of_the_site_is_one_value(name):
    with pytest.raises(ValidationError):
        Site(**{name: "a\\b"})
