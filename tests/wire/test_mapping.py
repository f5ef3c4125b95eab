"""Mapping profiles as an administrator handles them."""

import json
from pathlib import Path

from tests.wire.test_cli import broker_command  # noqa: F401

PROFILE = """name = "north"
extends = "ihe-rad4-2.3.1"

[[field]]
to = "step.ScheduledProcedureStepLocation"
from = ["OBR-20"]

[[station]]
ae_titles = ["CT7"]

[[station]]
when = ["OBR-24 = CT"]
ae_titles = ["CT8"]
"""


def test_a_profile_is_checked_tried_taken_into_use_and_taken_back(broker_command, tmp_path):  # noqa: F811
    file, order = tmp_path / "north.toml", tmp_path / "order.hl7"
    file.write_text(PROFILE, "utf-8")
    golden = (Path(__file__).parent.parent / "fixtures" / "hl7" / "orm1.hl7").read_text("utf-8")
    order.write_text(golden.replace("~ISO IR87", "UNICODE UTF-8").replace("||||||CT1", ""), "utf-8")

    said = broker_command("mapping", "check", str(file))
    assert f"{file}: line 11: warning: never speaks: the rule of line 8" in said
    said = broker_command("mapping", "try", str(file), "--message", str(order))
    assert "(0008,0050) AccessionNumber: ACC002  <- OBR-18" in said
    assert "(0040,0011) ScheduledProcedureStepLocation: SPS003  <- OBR-20" in said
    assert "(0040,0001) ScheduledStationAETitle: CT7  <- station rule of line 8" in said
    assert "  OBR-2: passed over for procedure.placer_number: ORC-2 goes first" in said
    tried = json.loads(broker_command("mapping", "try", str(file), "--message", str(order), "--json"))
    assert tried["profile"] == "north"

    nobody = "no sender or intake names north yet"
    said = broker_command("mapping", "diff", str(file), "--last", "5").splitlines()
    assert (said[0], said[1].partition(",")[0], len(said)) == ("looked at 0: none", nobody, 2)
    said = broker_command("mapping", "diff", str(file), "--sender", "HIS", status=1)
    assert said.startswith("broker: sender HIS: is no name of a sender or intake")
    assert broker_command("mapping", "put", str(file)) == (
        f"north v1: added\n{nobody}: broker sender change NAME --mapping north\n"
    )
    assert broker_command("sender", "add", "HIS", "--application", "HIS") == "added\n"
    assert broker_command("sender", "change", "HIS", "--mapping", "north") == "changed\n"
    assert broker_command("mapping", "diff", str(file), "--sender", "HIS") == "looked at 0: none\n"
    file.write_text(PROFILE + "\n# a remark\n", "utf-8")
    assert broker_command("mapping", "put", str(file)) == "north v2: changed\n"
    assert broker_command("mapping", "rollback", "north") == "north v1 is in use\n"
    assert broker_command("mapping", "show", "north") == PROFILE
    listed = [
        (row["name"], row["version"], row["in_use"]) for row in json.loads(broker_command("mapping", "list", "--json"))
    ]
    assert listed[:3] == [("north", 2, False), ("north", 1, True), ("ihe-rad4-2.3.1", "shipped", True)]


def test_check_tells_what_can_never_work_by_the_limits_of_the_site(broker_command, tmp_path):  # noqa: F811
    file = tmp_path / "odd.toml"
    file.write_text('name = "odd"\n[[field]]\nto = "step.modality"\nfrom = ["ZZZ-300"]\n', "utf-8")
    said = broker_command("mapping", "check", str(file)).splitlines()
    assert (said[0].partition(": ZZZ")[0], said[1]) == (f"{file}: line 4: warning", "odd: in order")
    said = broker_command("mapping", "check", str(file), BROKER_LIMITS__MLLP_FIELDS_MAX="400")
    assert said == "odd: in order\n"


def test_a_profile_with_faults_is_told_them_all(broker_command, tmp_path):  # noqa: F811
    file = tmp_path / "bad.toml"
    file.write_text('name = "bad"\n[[field]]\nto = "a.b"\n[[field]]\nto = "c.d"\n', "utf-8")
    assert broker_command("mapping", "check", str(file), status=1) == f"broker: {file}: not in order\n"
    assert (tmp_path / "stdout").read_text("utf-8").splitlines() == [
        f"{file}: line 3: no such target: a.b", f"{file}: line 5: no such target: c.d",
    ]  # fmt: skip
    for verb in (("put", str(file)), ("diff", str(file)), ("show", "nobody"), ("rollback", "nobody")):
        assert "Traceback" not in broker_command("mapping", *verb, status=1)
