"""What a device is shown, and what the AE titles of a site stand for."""

import pytest

from broker.dicom import habits
from broker.dicom.habits import Habits
from broker.model.site import Node
from broker.site_toml import NodeEntry


def device(*aliases: str, groups: tuple[str, ...] = ()) -> Habits:
    return Habits(aliases=frozenset(aliases), groups=frozenset(groups))


SITE = habits.directory(
    {
        "CT1": device("CTOLD", "CT_ROOM3", groups=("CTPOOL", "HOUSE")),
        "CT2": device("CTNEW", groups=("CTPOOL",)),
        "MR1": device(groups=("HOUSE",)),
        "US1": device(),
    }
)


@pytest.mark.parametrize(
    ("title", "means"),
    [
        ("CT1", "CT1 CTOLD CT_ROOM3 CTPOOL HOUSE"),
        ("CTOLD", "CT1 CTOLD CT_ROOM3 CTPOOL HOUSE"),
        ("CT2", "CT2 CTNEW CTPOOL"),
        ("US1", "US1"),
        ("NOBODY", "NOBODY"),
        ("ct1", "ct1"),
    ],
)
def test_a_key_with_a_devices_title_asks_for_what_any_of_its_names_and_groups_has(title, means):
    assert SITE.means(title) == {*means.split()}


def test_a_key_with_a_group_asks_for_its_members_but_not_for_their_other_groups():
    assert SITE.means("CTPOOL") == {"CTPOOL", "CT1", "CTOLD", "CT_ROOM3", "CT2", "CTNEW"}
    assert SITE.means("HOUSE") == {"HOUSE", "CT1", "CTOLD", "CT_ROOM3", "MR1"}


@pytest.mark.parametrize(
    ("title", "shown", "kind"),
    [
        ("CT1", ("CT1",), "node"),
        ("CTOLD", ("CT1",), "alias"),
        ("CTPOOL", ("CT1", "CT2"), "group"),
        ("HOUSE", ("CT1", "MR1"), "group"),
        ("NOBODY", ("NOBODY",), ""),
    ],
)
def test_an_answer_names_devices_in_place_of_aliases_and_groups(title, shown, kind):
    assert SITE.shown(title) == shown
    assert SITE.kind(title) == kind
    assert SITE.devices(title) == (shown if kind else ())


def test_a_title_that_says_two_things_means_the_same_to_a_key_as_to_an_answer():
    found = habits.directory(
        {
            "A": device("B", "X", groups=("X", "G")),
            "B": device("X", groups=("A", "G")),
            "C": device("G"),
        }
    )
    assert (found.kind("B"), found.shown("B"), found.means("B")) == ("node", ("B",), {"B"})
    assert (found.kind("X"), found.shown("X"), found.means("X")) == ("alias", ("A",), {"A", "X"})
    assert (found.kind("G"), found.shown("G"), found.means("G")) == ("alias", ("C",), {"C", "G"})
    assert found.means("A") == {"A", "X"}


def test_what_finds_an_order_is_symmetric_for_devices():
    """A device that is found by another name finds what stands under it."""
    for title in ("CT1", "CT2", "MR1", "US1"):
        for name in SITE.means(title):
            assert title in SITE.shown(name)


def test_nobody_is_known_in_an_empty_site():
    empty = habits.directory({})
    assert (empty.means("CT1"), empty.shown("CT1"), empty.devices("CT1")) == ({"CT1"}, ("CT1",), ())


def row(**fields: object) -> Node:
    return Node(ae_title="CT1", **fields)


def test_a_node_without_a_word_has_no_habits():
    assert habits.of(row()) == habits.NO_HABITS


def test_a_profile_says_what_the_node_does_not_and_the_node_goes_before_it():
    assert habits.of(row(profile="asks-for-today")).days_before == 1
    said = habits.of(row(profile="asks-for-today", days_before=7, quirks=[]))
    assert (said.days_before, said.days_after, said.quirks) == (7, 1, frozenset())
    assert habits.of(row(profile="asks-without-station", sees=[])).sees == ()
    assert habits.of(row(profile="ascii-only")).character_set == "ASCII"
    assert habits.of(row(profile="ascii-only", character_set="ISO_IR 192")).character_set == "ISO_IR 192"


def test_of_two_profiles_both_count_and_the_first_where_they_differ():
    both = habits.of(row(profile="sends-query-level, asks-for-today,drops-incomplete,short-texts"))
    assert both.quirks == {"query_level", "today_is_window"}
    assert (both.days_before, both.days_after, len(both.requires), len(both.lengths)) == (1, 1, 3, 2)
    assert habits.of(row(profile="ascii-only,half-width-kana")).character_set == "ASCII"
    assert habits.of(row(profile="half-width-kana,ascii-only")).character_set.startswith("ISO 2022 IR 13")


def test_of_two_lengths_the_shorter_counts(monkeypatch):
    mine = {"a": Habits(lengths=(("X", 16), ("Y", 8))), "b": Habits(lengths=(("X", 10), ("Z", 3)))}
    monkeypatch.setattr(habits, "PROFILES", mine)
    for profile in ("a,b", "b,a"):
        assert habits.of(row(profile=profile)).lengths == (("X", 10), ("Y", 8), ("Z", 3))


def test_a_profile_that_is_not_shipped_any_more_counts_as_none():
    assert habits.of(row(profile="gone,asks-for-today")) == habits.PROFILES["asks-for-today"]


@pytest.mark.parametrize("said", [[], ["STARTED"], ["SCHEDULED", "CANCELED"]])
def test_no_list_shows_what_nobody_is_to_examine(said):
    assert habits.of(row(hide=said)).hide == {*said, "CANCELED", "NO_SHOW", "EXPIRED", "ON_HOLD"}


def test_a_node_without_a_list_hides_what_the_site_does():
    assert habits.of(row()).hide is None


def test_every_field_of_habits_is_one_of_a_node():
    said = {
        "aliases": ["A"], "groups": ["G"], "sees": ["own", "ae:X"], "labels": ["ER"], "hide": ["STARTED"],
        "started_hours": 0.0, "finished_hours": 1.0, "matches_max": 10, "days_before": 0, "days_after": 2,
        "character_set": "ISO_IR 100", "character_sets_also": ["ISO_IR 192", "ISO_IR 13"], "lengths": {"B": 2, "A": 1},
        "requires": ["PatientSex"], "quirks": ["omit_empty"], "expire_days": 3.0, "idle_days": 1.0,
    }  # fmt: skip
    assert said.keys() == Habits.__dataclass_fields__.keys()
    found = habits.of(row(**said))
    assert all(getattr(found, name) != getattr(habits.NO_HABITS, name) for name in said)
    assert (found.sees, found.character_sets_also) == (("own", "ae:X"), ("ISO_IR 192", "ISO_IR 13"))
    assert (found.started_hours, found.days_before, found.lengths) == (0.0, 0, (("A", 1), ("B", 2)))
    hash(found)  # it is held in caches


@pytest.mark.parametrize("name", habits.PROFILES)
def test_every_shipped_profile_is_one_that_a_node_may_have_and_has_a_sentence(name):
    entry = NodeEntry(ae_title="CT1", any_address=True, profile=name)
    assert habits.of(entry) == habits.PROFILES[name] != habits.NO_HABITS
    assert habits.PROFILES[name].quirks <= habits.QUIRKS.keys()
    shipped = habits.PROFILES[name]
    NodeEntry(
        ae_title="CT1", any_address=True, sees=list(shipped.sees), requires=list(shipped.requires),
        lengths=dict(shipped.lengths), character_set=shipped.character_set,
    )  # fmt: skip
    assert habits.SENTENCES[name]
