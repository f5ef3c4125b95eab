"""What the rows of a CSV file say becomes what a command says: with names of our own, and by a profile."""

import datetime as dt

import pytest

from broker.config import Site
from broker.errors import BrokerError, InvalidValue
from broker.mwl.commands import ProcedureCommand
from broker.ris_bridge import alike, csv_mapped, csv_road
from broker.ris_bridge.mapping import profile as profiles

SITE = Site(patient_id_issuer="HOSP")
WRITTEN = dt.datetime(2025, 12, 1, 0, 30, tzinfo=dt.UTC)  # 09:30 here
TARGETS = {
    "note": "procedure.RequestedProcedureComments",
    "acc": "order.accession_number", "at": "order.at", "pid": "patient.id", "name": "patient.name",
    "born": "patient.birth_date", "rp": "procedure.requested_procedure_id", "what": "procedure.description",
    "sps": "step.sps_id", "mod": "step.modality", "ae": "step.station_ae_titles", "start": "step.start",
}  # fmt: skip
PROFILE = profiles.parse(
    'name = "own"\n' + "".join(f'[[field]]\nto = "{to}"\nfrom = ["col:{name}"]\n' for name, to in TARGETS.items())
)
ROW = {"note": "10~12時", "acc": "A1", "at": "", "pid": "1", "name": "YAMADA^TARO", "born": "19700101", "rp": "R1", "what": "CT", "sps": "S1",
       "mod": "CT", "ae": "CT1", "start": "20251201093000"}  # fmt: skip


def mapped(*rows: dict[str, str]):
    read = [
        csv_mapped.reading(PROFILE, list(TARGETS), list((ROW | row).values()), line, SITE)
        for line, row in enumerate(rows, 2)
    ]
    (command,) = csv_mapped.commands(PROFILE, read, SITE, WRITTEN)
    return command


OUR_ROW = {
    "accession_number": "A1", "patient.id": "1", "patient.name.alphabetic": "YAMADA^TARO", "procedure.id": "R1",
    "procedure.description": "CT", "step.sps_id": "S1", "step.modality": "CT", "step.station_ae_titles": "CT1",
    "step.scheduled_start": "2025-12-01T09:30",
}  # fmt: skip
OURS = {"acc": "accession_number", "rp": "procedure.id", "what": "procedure.description", "sps": "step.sps_id",
        "mod": "step.modality", "ae": "step.station_ae_titles"}  # fmt: skip


def ours(*rows: dict[str, str]):
    listed = [(line, OUR_ROW | {OURS[name]: value for name, value in row.items()}) for line, row in enumerate(rows, 2)]
    return csv_road.command(listed, SITE, WRITTEN)


@pytest.mark.parametrize(
    ("said", "at"),
    [("", "00:30"), ("20251201", "00:30"), ("2025120109", "00:30"), ("20251201080000", "23:00"), ("20251130", "15:00")],
)
def test_a_row_of_which_only_the_day_is_said_is_as_old_as_the_file_of_that_day(said, at):
    assert f"{mapped({'at': said}).at.astimezone(dt.UTC):%H:%M}" == at


@pytest.mark.parametrize("read", [mapped, ours])
def test_rows_that_say_two_things_of_one_step_or_procedure_are_refused(read):
    for second, place in (({"mod": "MR"}, "line 3 step.sps_id"), ({"what": "MR", "sps": "S2"}, "line 3 procedure.")):
        with pytest.raises(InvalidValue) as refused:
            read({}, second)
        assert (refused.value.err, refused.value.place.startswith(place)) == ("102", True)
    assert len(read({}, {"mod": "MR", "rp": "R2", "what": "MR"}).procedures) == 2


def test_a_sign_of_hl7_in_a_text_is_text():
    assert mapped({}).procedures[0].attributes["RequestedProcedureComments"] == "10~12時"


@pytest.mark.parametrize("read", [mapped, ours])
def test_rows_that_differ_in_the_station_alone_are_one_step(read):
    (procedure,) = read({}, {"ae": "CT2"}, {}).procedures
    assert [(step.sps_id, step.station_ae_titles) for step in procedure.steps] == [("S1", ("CT1", "CT2"))]


@pytest.mark.parametrize("name", ["", "UTF-8", "CP932"])
def test_a_file_in_another_character_set_says_what_to_change(name):
    with pytest.raises(BrokerError) as refused:
        csv_road.split(b"accession_number\n\xff\x80\n", name, 10, SITE)
    told = str(refused.value)
    assert "MSH" not in told
    assert "character_set" in told and "--character-set" in told and (name or "UTF-8") in told


def test_a_character_set_that_there_is_not_says_what_to_change():
    with pytest.raises(BrokerError) as refused:
        csv_road.split(b"accession_number\n", "EBCDIC", 10, SITE)
    assert "EBCDIC" in str(refused.value) and "--character-set" in str(refused.value)


def test_a_procedure_without_an_id_is_not_the_one_whose_id_is_a_number():
    pair = (ProcedureCommand("1", description="CT"), ProcedureCommand(description="MR"))
    assert alike.contradiction(pair) is None
    assert alike.contradiction((pair[1], pair[0])) is None


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("accession_number,patient.id,step.modalty", "column 3 has a name that is not known: step.modalty"),
        ("accession_number,受付番号", "column 2 has a name that is not known"),
        ("accession_number," + "x" * 40, f"column 2 has a name that is not known: {'x' * 40}"),
        ("accession_number," + "x" * 41, "column 2 has a name that is not known"),
        ("accession_number,a\tb", "column 2 has a name that is not known"),
        ("accession_number,", "column 2 has a name that is not known"),
        # no header at all: it is a patient's row
        ("0000012345,YAMADA^TARO", "column 1 has a name that is not known; the first line must name the columns"),
    ],
)
def test_a_column_that_nobody_knows_is_named_unless_it_may_be_a_patients(header, told):
    with pytest.raises(InvalidValue) as refused:
        csv_road.split(f"{header}\nA,B,C\n".encode(), "", 10, SITE)
    assert (refused.value.place, refused.value.text) == ("line 1", told)
