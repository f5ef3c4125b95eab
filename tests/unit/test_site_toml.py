"""What a site file may say of a node, and that it is read back as it was written."""

import tomllib
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from broker.config import StepState
from broker.dicom import habits
from broker.errors import ConfigError
from broker.ris_bridge.mapping.lines import problem
from broker.site_toml import NodeEntry, SenderEntry, emit, parse


def node(**fields: object) -> NodeEntry:
    return NodeEntry(**{"ae_title": "CT1", "host": "192.0.2.1", "modality": "CT", **fields})


@pytest.mark.parametrize(
    ("fields", "place", "said"),
    [
        ({"aliases": ["CT OLD\\"]}, "aliases.0", "must be 1 to 16 ASCII characters"),
        ({"groups": ["CT 1234567890123456"]}, "groups.0", "must be 1 to 16 ASCII characters"),
        ({"aliases": ["CT1"]}, "", "names CT1 twice"), ({"groups": ["CT1"]}, "", "names CT1 twice"),
        ({"aliases": ["A"], "groups": ["A"]}, "", "names A twice"), ({"aliases": ["A", "A"]}, "", "names A twice"),
        ({"profile": "none-such"}, "profile", "no such profile: none-such; there are asks-without-station, asks-for"),
        ({"quirks": ["loud"]}, "quirks.0", "no such quirk: loud; there are query_level"),
        ({"sees": ["all"]}, "sees.0", "must be own, modality, ae:TITLE or location:TEXT"),
        ({"sees": ["own:"]}, "sees.0", "must be own"), ({"sees": ["ae:"]}, "sees.0", "must be own"),
        ({"sees": ["ae:A\\B"]}, "sees.0", "must be own"), ({"sees": ["location:"]}, "sees.0", "must be own"),
        ({"sees": ["location:a room of 17 char"]}, "sees.0", "must be own"),
        ({"sees": ["location:CT "]}, "sees.0", "must be own"), ({"sees": ["OWN"]}, "sees.0", "must be own"),
        ({"sees": ["modality"], "modality": ""}, "", "needs a modality"),
        ({"hide": ["CANCELLED"]}, "hide.0", "'CANCELED'"), ({"labels": ["A,B"]}, "labels.0", "without commas"),
        ({"labels": [" A"]}, "labels.0", "without a blank at either end"), ({"labels": [" "]}, "labels.0", "without a blank"),
        ({"labels": [","]}, "labels.0", "without commas"), ({"sees": [""]}, "sees.0", "must be own"),
        ({"sees": [","]}, "sees.0", "must be own"), ({"hide": [""]}, "hide.0", "'CANCELED'"),
        ({"rights": [""]}, "rights.0", "'worklist'"), ({"aliases": [""]}, "aliases.0", "must be 1 to 16"),
        ({"groups": [","], "aliases": [" "]}, "aliases.0", "must be 1 to 16"), ({"requires": [""]}, "requires.0", "keyword"),
        ({"quirks": [""]}, "quirks.0", "no such quirk"), ({"station_names": [""]}, "station_names.0", "empty"),
        ({"station_names": [" "]}, "station_names.0", "empty"),
        ({"profile": ","}, "profile", "a member that is empty"), ({"profile": " "}, "profile", "a member that is empty"),
        ({"profile": "ascii-only,"}, "profile", "a member that is empty"),
        ({"started_hours": -1}, "started_hours", "greater than or equal to 0"),
        ({"started_hours": float("nan")}, "started_hours", "finite number"),
        ({"idle_days": float("inf")}, "idle_days", "finite number"),
        ({"finished_hours": 9e9}, "finished_hours", "less than or equal"), ({"matches_max": 0}, "matches_max", "1"),
        ({"days_before": -1}, "days_before", "0"), ({"days_after": 1.5}, "days_after", "integer"),
        ({"expire_days": 0}, "expire_days", "greater than 0"),
        ({"character_sets_also": ["ISO_IR 999"]}, "character_sets_also.0", "must be a value of (0008,0005)"),
        ({"character_sets_also": ["REQUEST"]}, "character_sets_also.0", "must be a value of (0008,0005)"),
        ({"character_sets_also": [""]}, "character_sets_also.0", "must be a value of (0008,0005)"),
        ({"lengths": {"AccessionNumber": 8}}, "lengths.AccessionNumber", "what is left would name something else"),
        ({"lengths": {"PatientName": 16}}, "lengths.PatientName", "what is left would name somebody else"),
        ({"lengths": {"ReferringPhysicianName": 8}}, "lengths.ReferringPhysicianName", "would name somebody else"),
        ({"lengths": {"PatientSex": 1}}, "lengths.PatientSex", "must be for a text, and PatientSex is none"),
        ({"lengths": {"PixelData": 1}}, "lengths.PixelData", "of what a worklist item has"),
        ({"lengths": {"Nonsense": 1}}, "lengths.Nonsense", "of what a worklist item has"),
        ({"lengths": {"RequestedProcedureDescription": 0}}, "lengths.RequestedProcedureDescription", "1"),
        ({"requires": ["PixelData"]}, "requires.0", "of what a worklist item has"),
        ({"requires": ["SpecificCharacterSet"]}, "requires.0", "of what a worklist item has"),
        ({"requires": ["TimezoneOffsetFromUTC"]}, "requires.0", "of what a worklist item has"),
        ({"requires": ["accession number"]}, "requires.0", "of what a worklist item has"),
        ({"quirks": ["today_is_window"]}, "", "needs days_before and days_after"),
        ({"quirks": ["today_is_window"], "days_before": 1}, "", "needs days_before and days_after"),
        ({"quirks": ["half_width_kana"], "character_set": "\\ISO 2022 IR 87"}, "", "half_width_kana needs a character"),
        ({"profile": "half-width-kana", "character_set": "ASCII"}, "", "half_width_kana needs a character"),
        ({"groups": [f"G{n}" for n in range(101)]}, "groups", "100"),
        ({"patient_id_issuer": "a\\b"}, "patient_id_issuer", "no backslash"),
        ({"accession_issuer": "a\\b"}, "accession_issuer", "no backslash"), ({"labels": ["a\\b"]}, "labels.0", "backslashes"),
    ],
)  # fmt: skip
def test_what_cannot_be_of_a_node_is_refused_with_its_place(fields, place, said):
    with pytest.raises(ValidationError) as refused:
        node(**fields)
    found, sentence = problem(refused.value)
    assert (found, said in sentence) == (place, True), sentence


@pytest.mark.parametrize(
    "fields",
    [
        {"profile": " asks-for-today ,ascii-only,asks-for-today"}, {"sees": ["own", "modality", "ae:MR 1", "location:処置室 3"]},
        {"hide": ["SCHEDULED", "ARRIVED", "READY"]}, {"hide": []}, {"labels": ["救急", ""]},
        {"requires": ["AccessionNumber", "ScheduledStationName", "PatientBirthDate"]},
        {"lengths": {"PatientComments": 16, "CodeMeaning": 20, "ScheduledProcedureStepDescription": 1}},
        {"quirks": ["today_is_window"], "days_before": 0, "days_after": 0}, {"quirks": ["half_width_kana"]},
        {"quirks": ["half_width_kana"], "character_set": "REQUEST"}, {"started_hours": 0, "expire_days": 0.5},
        {"mpps_strict": False}, {"character_sets_also": ["ISO 2022 IR 159", "ISO_IR 192"]},
    ],
)  # fmt: skip
def test_what_a_node_may_say_is_read_back_as_it_was_written(fields):
    said = node(**fields)
    assert parse(emit([said]), "site.toml") == [said]


def test_the_profiles_of_a_node_are_written_in_one_way():
    assert node(profile=" asks-for-today ,ascii-only,asks-for-today").profile == "asks-for-today,ascii-only"


def test_a_fault_in_a_list_is_said_with_its_line():
    text = '[[node]]\nae_title = "CT1"\nany_address = true\nlengths = {PatientID = 3}\n'
    with pytest.raises(ConfigError, match=r"site\.toml line 4: \[\[node\]\] lengths\.PatientID: must not shorten"):
        parse(text, "site.toml")


def test_lengths_may_stand_in_a_table_of_their_own():
    text = '[[node]]\nae_title = "CT1"\nany_address = true\n[node.lengths]\nRequestedProcedureDescription = 16\n'
    assert parse(text, "site.toml")[0].lengths == {"RequestedProcedureDescription": 16}


def test_the_worklist_of_a_sender_is_written_too():
    said = SenderEntry(name="HIS", label="救急")
    assert parse(emit([said]), "site.toml") == [said]


AE = st.text("ABCxyz019_- ", min_size=1, max_size=16).filter(lambda title: title == title.strip())
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=64)
SEEN = st.one_of(
    st.just("own"), st.just("modality"), AE.map("ae:{}".format), st.sampled_from(["location:処置室", "location:ER 1"])
)


def some(*values: object) -> st.SearchStrategy:
    return st.none() | st.lists(st.sampled_from(values), max_size=4)


ENTRIES = st.fixed_dictionaries(
    {"ae_title": AE, "any_address": st.just(True), "modality": st.just("CT")},
    optional={
        "host": st.sampled_from(["", "192.0.2.1", "ct1.example"]), "port": st.integers(0, 65535), "device": TEXT,
        "station_names": st.lists(TEXT, max_size=3), "rights": st.sampled_from([[], ["worklist"], ["mpps", "store"]]),
        "mpps_strict": st.none() | st.booleans(), "accession_issuer": TEXT,
        "profile": st.lists(st.sampled_from([*habits.PROFILES]), max_size=3).map(",".join),
        "aliases": st.lists(AE, max_size=3), "groups": st.lists(AE, max_size=3), "sees": st.none() | st.lists(SEEN, max_size=4),
        "labels": some("ER", "救急", ""), "hide": some(*get_args(StepState)),
        "started_hours": st.none() | st.floats(0, 100), "finished_hours": st.none() | st.floats(0, 100),
        "matches_max": st.none() | st.integers(1, 500), "days_before": st.none() | st.integers(0, 30),
        "days_after": st.none() | st.integers(0, 30), "character_set": st.sampled_from(["", "ASCII", "\\ISO 2022 IR 87"]),
        "character_sets_also": some("ISO_IR 192", "ISO 2022 IR 159"),
        "lengths": st.none() | st.dictionaries(st.sampled_from(["InstitutionName", "PatientComments", "CodeMeaning"]), st.integers(1, 64)),
        "requires": some("AccessionNumber", "PatientSex"), "quirks": some(*habits.QUIRKS),
        "expire_days": st.none() | st.floats(1e-9, 100), "idle_days": st.none() | st.floats(1e-9, 100),
    },
)  # fmt: skip


@given(st.lists(ENTRIES, max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_node_that_may_be_is_read_back_as_it_was_written(said):
    entries = []
    for fields in said:
        try:
            entries.append(NodeEntry(**fields))
        except ValidationError:
            continue
    text = emit(entries)
    assert parse(text, "site.toml") == entries
    assert len(tomllib.loads(text).get("node", [])) == len(entries)
