"""Each cause of an exam's absence, from facts alone."""

import datetime as dt
import itertools
from dataclasses import replace

import pytest

from broker.config import Settings
from broker.dicom import habits
from broker.dicom.habits import NEVER_SHOWN, NO_HABITS, Habits
from broker.dicom.service import NodeInfo
from broker.mwl import questions, view, why
from broker.mwl.history import Run
from broker.mwl.why_facts import Asked, Cause, Device, Facts, Moved, Near, Offered, Order, Refusal, Step, Told
from tests.unit.test_funnel import DATE, MODALITY, NOON, STATION, TIME, item, query

HOUR = dt.timedelta(hours=1)
ASKED = Asked("ACC001", "CT1")
NODES = {"CT1": NO_HABITS, "CT2": Habits(aliases=frozenset({"CT_B"}), groups=frozenset({"POOL"})), "MR1": NO_HABITS}


def run(keys=None, *, pk: int = 1, hours: float = 0.5, status: int = 0, items=(), keys_pk: int = 0) -> Run:
    """hours: ago."""
    at = NOON - hours * HOUR
    asked = query({STATION: "CT1"}) if keys is None else keys
    return Run(pk, keys_pk or pk, asked, status, "", 0, (), tuple(items), "127.0.0.1", "BROKER", at, at, 1)


def device(runs=None, **said) -> Device:
    """said: of Habits, or of Device."""
    own = {name: said.pop(name) for name in [*said] if name in Device.__dataclass_fields__}
    node = NodeInfo(1, "CT1", "", False, "CT1", frozenset(), "", None, "CT", Habits(**said))
    directory = habits.directory(NODES | {"CT1": node.habits})
    what = view.of(node, "CT1", Settings(), NOON)
    asked = (run(),) if runs is None else tuple(runs)
    return Device("CT1", what, directory, habits=node.habits, changed_at=NOON - 9 * HOUR, runs=asked, **own)


def step(**said) -> Step:
    return Step(**{"pk": 1, "sps_id": "S1", "version": 1, "made_at": NOON - 2 * HOUR, "item": item()} | said)


def facts(one: Step | None = None, of: Device | None = None, **said) -> Facts:
    own = {"order": Order(17, "ACC001", "RIS"), "step": one or step(), "steps": ("S1",)} | said
    return Facts(ASKED, NOON, Settings(), of or device(), **own)


def codes(found: list[Cause]) -> list[str]:
    return [one.code for one in found]


REFUSED = Told(4, "REJECTED", "OMI^O23", "HIS|HOSP", "102 TQ1-7 is no time", NOON)
NONE = {"order": None, "step": None}
DOOR = Refusal("10.0.0.9", "OTHER", "called AE title is not ours", 3, NOON)
TOMORROW = item()
TOMORROW = replace(TOMORROW, start_date="20251202", tree=query({DATE: "20251202", STATION: "CT1"}))
CASES = [
    # the order
    (facts(**NONE), ["no_order"]),
    (facts(**NONE, messages=[REFUSED]), ["message_refused", "no_order"]),
    (facts(**NONE, messages=[replace(REFUSED, state="RECEIVED")]), ["message_unread", "no_order"]),
    (facts(**NONE, near=[Near(9, "HIS", "accession")]), ["other_issuer", "no_order"]),
    (facts(**NONE, near=[Near(9, "", "placer")]), ["other_number", "no_order"]),
    (facts(order=Order(17, "ACC001", "RIS", "patient_conflict", 5)), ["order_withheld"]),
    (replace(facts(), step=None), ["no_step"]),
    (facts(messages=[REFUSED]), ["nothing_in_the_way", "change_refused"]),
    # the step
    (facts(step(item=item("CANCELED"))), ["cancelled"]), (facts(step(item=item("NO_SHOW"))), ["no_show"]),
    (facts(step(item=item("EXPIRED"))), ["expired"]), (facts(step(item=item("ON_HOLD"))), ["on_hold"]),
    (facts(step(item=item("STARTED", 1))), ["started"]), (facts(step(item=item("COMPLETED", 1))), ["finished"]),
    (facts(step(item=item("DISCONTINUED", 1))), ["finished"]),
    (facts(of=device(hide=NEVER_SHOWN | {"SCHEDULED"})), ["hidden"]),
    (facts(step(missing=["Modality"], item=replace(item(), tree={}))), ["incomplete"]),
    # the device
    (facts(of=device(configured=False)), ["unknown_device"]),
    (facts(of=device(rights=frozenset({"store"}))), ["no_right"]),
    (facts(of=device(refusals=[DOOR])), ["refused_at_the_door"]),
    (facts(of=device(refusals=[replace(DOOR, last_at=NOON - HOUR)])), ["nothing_in_the_way"]),
    (facts(step(item=item(stations=("CT2",))), device(sees=("own",))), ["other_device", "other_device"]),
    (facts(step(item=item(stations=("MR9",))), device([])), ["unknown_station", "never_asked"]),
    (facts(step(item=item(stations=("POOL",))), device([])), ["other_device", "never_asked"]),
    (facts(step(item=item(stations=("CT2",))), device([run(query({}))])), ["nothing_in_the_way"]),
    (facts(step(item=item(stations=("CT2",))), device([run(query({}))], sees=("ae:MR1", "location:X"))), ["not_of_this_device"]),
    (facts(step(item=replace(item(), named={"modality": "MR"})), device(sees=("modality",))), ["modality"]),
    (facts(of=device(labels=frozenset({"ER"}))), ["label"]),
    (facts(step(item=TOMORROW), device(days_after=0)), ["date_window"]),
    (facts(step(item=item(stations=("CT2",))), device([], sees=("own",))), ["other_device", "never_asked"]),
    # how it looks
    (facts(step(withheld="romaji missing", lost=frozenset({"group"}))), ["characters"]),
    (facts(step(withheld="romaji missing")), ["characters"]),
    (facts(step(withheld="an identifier is longer than it takes")), ["length"]),
    (facts(step(drops=["AccessionNumber"])), ["device_drops"]),
    (facts(step(lost=frozenset({"variant"}))), ["nothing_in_the_way", "shown_in_other_characters"]),
    (facts(step(lost=frozenset({"length"}))), ["nothing_in_the_way", "shown_cut"]),
    # its queries
    (facts(of=device([])), ["never_asked"]),
    (facts(of=device([run(hours=3)])), ["not_asked_since"]),
    (facts(step(moved=Moved("reinstate", "test", NOON)), device()), ["not_asked_since"]),
    (facts(step(moved=Moved("arrive", "test", NOON)), device()), ["nothing_in_the_way"]),
    (facts(of=device([run(status=0xA900)])), ["query_refused"]), (facts(of=device([run(status=0xC001)])), ["query_refused"]),
    (facts(of=device([run(status=0xFE00)])), ["query_cancelled"]),
    (facts(of=device([run(status=0xA900), run(pk=2, hours=0.6, items=[(1, 1, "SCHEDULED")])])), ["on_the_list", "query_refused"]),
    (facts(step(found_by=frozenset({1})), device(crowded=frozenset({1}))), ["too_many"]),
    (facts(step(found_by=frozenset({1, 2})), device(crowded=frozenset({1}))), ["nothing_in_the_way"]),
    (facts(of=device([run(query({STATION: "CT_1"}))])), ["asks_for_unknown_station"]),
    (facts(of=device([run(query({STATION: "CT2"}))])), ["asks_for_other_device"]),
    (facts(step(item=item(stations=("CT2",)))), ["other_device"]),
    (facts(step(item=item(stations=("CT_B",)))), ["other_device"]),
    (facts(of=device([run(query({MODALITY: "MR"}))])), ["modality"]),
    (facts(of=device([run(query({DATE: "20251130"}))])), ["date"]),
    (facts(step(item=TOMORROW), device([run(query({DATE: "20251201"}))])), ["date"]),
    (facts(step(made_at=NOON - 48 * HOUR), device([run(query({DATE: "20251130"}), hours=24)])), ["not_asked_today"]),
    (facts(of=device([run(query({TIME: "10"}))])), ["time"]),
    (facts(of=device([run(query({DATE: "20251202-20251203", TIME: "1000-1100"}))])), ["date"]),
    (facts(of=device([run(query({DATE: "20251201"}, x00080201="-1200"))])), ["time_zone"]),
    (facts(of=device([run(query({}, x00100020="9"))])), ["key"]),
    (facts(of=device([run(query({}, x00100020="9")), run(pk=2, hours=1)])), ["nothing_in_the_way"]),
    (facts(of=device([run(query({}, x00100020="9")), run(pk=2, hours=25)])), ["key"]),
    (facts(of=device([run(query({MODALITY: "CT"})), run(query({MODALITY: "CT"}, x00100010="*"), pk=2)])), ["nothing_in_the_way"]),
    (facts(of=device([run(query({MODALITY: "MR"}), hours=1), run(query({}, x00100020="12345"), pk=2)])), ["modality"]),
    (facts(of=device([run(query({}, x00100020="9")), run(query({}, x00100020="12345"), pk=2)])), ["nothing_in_the_way"]),
    (facts(step(made_at=NOON - HOUR), device([run(query({}, x00100020="9")), run(pk=2, hours=2)])), ["not_asked_since"]),
    (facts(step(made_at=NOON - HOUR), device([run(query({}, x00100020="9"), items=[(1, 1, "SCHEDULED")]), run(pk=2, hours=2)])), ["nothing_in_the_way"]),
    (facts(step(made_at=NOON - HOUR), device([run(status=0xA900), run(pk=2, hours=2)])), ["query_refused"]),
    (facts(step(found_by=frozenset())), ["unexplained"]),
    (facts(of=device([run(status=0xA700)])), ["nothing_in_the_way"]),
    (facts(step(missing=["Modality"], item=replace(item(), tree={})), device([run(query({MODALITY: "MR"}))])), ["incomplete"]),
    (facts(of=device([run(query({MODALITY: "MR"}, x00080052="STUDY"))], quirks=frozenset({"query_level"}))), ["modality"]),
    (facts(of=device([run(query({MODALITY: "CT"}, x00080052="STUDY"))])), ["query_refused"]),
    # what it was shown
    (facts(step(offered=[Offered(1, NOON, NOON, 1)])), ["nothing_in_the_way", "shown"]),
    (facts(step(version=2, offered=[Offered(1, NOON, NOON, 1)])), ["nothing_in_the_way", "shown_older"]),
]  # fmt: skip


@pytest.mark.parametrize(("known", "expected"), CASES, ids=lambda one: "-".join(one) if isinstance(one, list) else "")
def test_the_first_thing_in_the_way_is_told_first(known, expected):
    found = why.explain(known)
    assert codes(found) == expected
    assert all(one.says and not one.says.endswith(".") for one in found)
    assert [one.blocks for one in found] == sorted((one.blocks for one in found), reverse=True)


def test_all_that_stands_behind_it_is_told_after_it():
    of = device([run(query({MODALITY: "MR", STATION: "CT9"}, x00100020="9"))], labels=frozenset({"ER"}))
    found = why.explain(facts(step(item=item("CANCELED"), drops=["AccessionNumber"]), of))
    assert codes(found) == ["cancelled", "label", "modality", "asks_for_unknown_station", "key", "device_drops"]
    assert "12345" not in str(found)
    assert found[0].mend == "broker order reinstate 17 --step S1 --reason …"


def test_what_was_shown_and_is_not_in_the_answer_to_the_same_question_is_withdrawn():
    before, now = run(pk=1, keys_pk=7, hours=1, items=[(1, 1, "SCHEDULED")]), run(pk=2, keys_pk=7)
    other = run(query({MODALITY: "MR"}), pk=3, keys_pk=8, hours=0.2)
    shown = step(item=item("CANCELED"), offered=[Offered(1, NOON - 5 * HOUR, NOON - HOUR, 4)])
    (_, cause) = why.explain(facts(shown, device([now, before])))
    assert (cause.code, cause.evidence["withdrawn_at"], cause.evidence["times"]) == (
        "shown_and_withdrawn", "2025-12-01T02:30:00.000000Z", 4,
    )  # fmt: skip
    assert codes(why.explain(facts(shown, device([other, before])))) == ["cancelled", "shown"], "another question"
    again = run(pk=3, keys_pk=7, hours=0.1, items=[(1, 1, "SCHEDULED")])
    back = replace(shown, offered=[Offered(1, NOON - 5 * HOUR, again.last_at, 5)])
    assert codes(why.explain(facts(back, device([again, now, before])))) == ["cancelled", "shown"], "and came back"
    late = facts(shown, device([replace(before, last_at=NOON), replace(before, pk=0)]))
    assert codes(why.explain(late)) == ["cancelled", "shown"], "what is known of the item is older than of the query"


def test_what_is_to_be_typed_keeps_what_the_device_has():
    of = device([run(query({STATION: "CT_1"}))], aliases=frozenset({"CT_OLD"}))
    assert why.explain(facts(of=of))[0].mend == "broker node change CT1 --aliases CT_OLD,CT_1"
    of = device([], groups=frozenset({"ALL"}))
    assert "--groups ALL,POOL" in why.explain(facts(step(item=item(stations=("POOL",))), of))[0].mend
    of = device(hide=NEVER_SHOWN | {"SCHEDULED", "STARTED"})
    assert "--hide STARTED" in why.explain(facts(of=of))[0].mend
    of = device(rights=frozenset({"store", "mpps"}))
    assert why.explain(facts(of=of))[0].mend.endswith("--rights worklist,mpps,store")


def test_what_the_order_says_instead_is_told():
    (cause, *_) = why.explain(facts(step(item=item(stations=("CT_B",)))))
    assert (
        "for CT_B, an alias of CT2, not for CT1"
        in why.explain(facts(step(item=item(stations=("CT_B",))), device([])))[0].says
    )
    assert "(our orders say CT_B)" in cause.says
    today = why.explain(facts(step(item=TOMORROW), device([run(query({DATE: "20251201"}))])))[0]
    ranged = why.explain(facts(step(item=TOMORROW), device([run(query({DATE: "20251201-20251201"}))])))[0]
    assert ranged.mend == today.mend
    assert ("asks for its today" in today.says, "asks-for-today" in today.mend) == (True, True)
    other = why.explain(facts(of=device([run(query({DATE: "20251130"}))])))[0]
    assert ("asks for its today" in other.says, "on 20251201" in other.says) == (False, True)


@pytest.mark.parametrize(
    ("keys", "searches"),
    [
        ({"x00100010": "A*"}, True), ({"x00100020": "1"}, True), ({"x00100030": "19700101"}, True),
        ({"x00080050": "1"}, True), ({"x00380010": "1"}, True), ({"x00401001": "1"}, True), ({"x0020000D": "1.2"}, True),
        ({"x00100010": "*", "x00100020": "", "x00100040": "M", "x00321032": "A*"}, False), ({}, False),
    ],
)  # fmt: skip
def test_a_key_that_names_one_patient_or_one_exam_makes_a_search(keys, searches):
    assert bool(questions.searched_by(query({STATION: "CT1"}, **keys))) == searches
    assert questions.searched_by(query({STATION: "CT1", 0x00400009: "S1"}, **keys))


SEARCHES = [query({STATION: "CT1"}, x00100020=f"X{n}") for n in range(5)]


def searched(*, of: int = 5, first: int = 1, hours: float = 0.1, **keys) -> list[Run]:
    return [run(asked, pk=first + n, hours=hours + n / 100) for n, asked in enumerate(SEARCHES[:of])]


def test_searches_for_others_are_told_once_and_only_where_it_asked_for_no_list():
    alone = why.explain(facts(of=device(searched())))
    assert codes(alone) == ["key"]
    assert "searched 5 times for one patient or one number (PatientID), last at 2025-12-01 11:54:00" in alone[0].says
    assert (alone[0].evidence["times"], "X0" in str(alone)) == (5, False)
    assert "searched once" in why.explain(facts(of=device(searched(of=1))))[0].says
    for standing, expected in (
        ({STATION: "CT1"}, "nothing_in_the_way"),
        ({STATION: "CT_1"}, "asks_for_unknown_station"),
    ):
        asked = [*searched(), run(query(standing), pk=9)]
        assert codes(why.explain(facts(of=device(asked)))) == [expected]
    again = [*searched(of=2), replace(searched(of=3)[2], times=4)]
    assert "searched 6 times" in why.explain(facts(of=device(again)))[0].says
    for_it = [*searched(), *(run(query({}, x00100020=f"Z{n}"), pk=20 + n) for n in range(3))]
    for_it += [run(query({}, x00100020="12345"), pk=30, hours=0.8)]
    assert codes(why.explain(facts(of=device(for_it)))) == ["nothing_in_the_way"], "one of them finds it"
    by_name = [run(query({}, x00100010="SATO*", x00080050="B"), pk=7), *searched(of=1)]
    assert "(AccessionNumber, PatientName, PatientID)" in why.explain(facts(of=device(by_name)))[0].says


def test_what_several_questions_have_in_common_is_told_once():
    asked = [query({STATION: "CT_1"}), query({STATION: "CT_1", MODALITY: "CT"}), query({STATION: "CT_2"})]
    found = why.explain(facts(of=device([run(one, pk=n + 1) for n, one in enumerate(asked)])))
    assert [one.says.split(" with ")[1].split(",")[0] for one in found] == [
        "ScheduledStationAETitle = CT_1", "ScheduledStationAETitle = CT_2",
    ]  # fmt: skip


@pytest.mark.parametrize("days", [-400, -2, -1, 1, 2, 5])
@pytest.mark.parametrize("asked", ["20251201", "20251130", ""])
@pytest.mark.parametrize(
    "said", [{}, {"days_before": 0, "days_after": 0}, {"days_after": 3}, {"quirks": frozenset({"omit_empty"})},
             {"days_before": 1, "days_after": 1, "quirks": frozenset({"today_is_window"})}],
)  # fmt: skip
def test_what_is_advised_for_another_day_lets_the_step_through_and_is_news(days, asked, said):
    date = f"{NOON.date() + dt.timedelta(days=days):%Y%m%d}"
    wanted = step(item=replace(item(), start_date=date, tree=query({DATE: date, STATION: "CT1"})))
    asks = [run(query({DATE: asked}), hours=24 if asked == "20251130" else 0.5)]
    wanted = replace(wanted, made_at=NOON - 48 * HOUR)
    for _ in range(3):
        found = [one for one in why.explain(facts(wanted, device(asks, **said))) if one.blocks]
        if not found:
            break
        changes = taken(found[0].mend)
        assert changes or found[0].code == "not_asked_today"
        assert any(said.get(name) != value for name, value in changes.items()) or not changes
        said = said | changes
        asks = [run(query({DATE: "20251201"}))] if asked else asks
    assert not found


def taken(mend: str) -> dict:
    """What the command line in it would change of a device."""
    words = mend.split(", or ")[0].split()
    options = {one[2:].replace("-", "_"): value for one, value in itertools.pairwise(words) if one.startswith("--")}
    return {name: frozenset(value.split(",")) if name == "quirks" else int(value) for name, value in options.items()}


def test_what_a_node_has_stays_when_it_is_told_more_days():
    asks = [run(query({DATE: "20251201"}))]
    of = device(asks, days_before=0, days_after=3, quirks=frozenset({"omit_empty"}))
    (cause,) = why.explain(facts(step(item=TOMORROW), of))
    assert "--quirks omit_empty,today_is_window --days-before 0 --days-after 3 (as" in cause.mend


def test_a_step_without_a_date_is_incomplete_and_on_no_other_day():
    bare = step(missing=["ScheduledProcedureStepStartDate"], item=replace(item(), tree={}, start_date=""))
    assert codes(why.explain(facts(bare, device(days_after=0)))) == ["incomplete"]


def test_a_day_that_no_node_can_be_told_is_a_matter_of_the_order():
    far = step(item=replace(item(), start_date="20991201", tree=query({DATE: "20991201", STATION: "CT1"})))
    (cause,) = why.explain(facts(far, device([run(query({DATE: "20251201"}))])))
    assert cause.mend.startswith("PATCH /api/v1/orders/17")


@pytest.mark.parametrize(
    ("status", "hours", "said", "options"),
    [
        ("STARTED", 1, {}, "--hide COMPLETED,DISCONTINUED"),
        ("STARTED", 30.5, {}, "--hide COMPLETED,DISCONTINUED --started-hours 32"),
        ("STARTED", 30.5, {"started_hours": 40.0}, "--hide COMPLETED,DISCONTINUED"),
        ("STARTED", 3, {"hide": NEVER_SHOWN, "started_hours": 2.0}, "--started-hours 4"),
        ("COMPLETED", 25, {"hide": NEVER_SHOWN | {"STARTED"}}, "--finished-hours 26"),
    ],
)  # fmt: skip
def test_what_is_advised_for_what_has_begun_shows_it_and_is_news(status, hours, said, options):
    known = facts(step(item=item(status, hours)), device(**said))
    mend = why.explain(known)[0].mend
    assert mend == f"to have it shown: broker node change CT1 {options}"
    names = dict(zip(options.split()[::2], options.split()[1::2], strict=True))
    told = {one[2:].replace("-", "_"): value for one, value in names.items()}
    changes = {n: NEVER_SHOWN | {*v.split(",")} if n == "hide" else float(v) for n, v in told.items()}
    assert codes(why.explain(facts(known.step, device(**said | changes))))[0] == "nothing_in_the_way"
    ages = facts(step(item=item(status, 9_000)), device(**said))
    assert why.explain(ages)[0].mend == ""


def test_what_keeps_too_many_from_it_is_advised_only_where_that_helps():
    def mend(one: Step, limit: int = 500, **said) -> str:
        of = device(crowded=frozenset({1}), **said)
        known = facts(replace(one, found_by=frozenset({1})), of)
        known.settings.limits.worklist_matches_max = limit
        return why.explain(known)[0].mend

    assert ("--sees own" in mend(step()), "--sees own" in mend(step(), sees=("own",))) == (True, False)
    assert "--sees own" not in mend(step(item=item(stations=("CT2",))))
    assert ("--days-after 1" in mend(step()), "--days-after 1" in mend(step(), days_after=1)) == (True, False)
    assert "--days-after 1" not in mend(step(item=TOMORROW))
    assert ("--matches-max" in mend(step(), matches_max=10), "--matches-max" in mend(step())) == (True, False)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ({"variant"}, "of step S1, CT1 shows another form of a character"),
        ({"group", "variant"}, "CT1 leaves out a group of a name (the kanji, say) and shows another form of"),
        ({"characters"}, "CT1 leaves out characters"), ({"length", "identifier"}, "leaves out an identifier and cuts texts"),
    ],
)  # fmt: skip
def test_what_a_device_shows_otherwise_is_told_in_words(lost, words):
    assert words in why.explain(facts(step(lost=frozenset(lost))))[1].says


def test_a_count_is_said_to_be_of_about_then():
    counted = replace(run(query({STATION: "CT_1"})), considered=4, removed=(("ScheduledStationAETitle", 4),))
    (cause,) = why.explain(facts(of=device([counted])))
    assert "; of what waited about then: 4 waiting -> 0 after ScheduledStationAETitle = CT_1" in cause.says


def test_names_that_were_matched_loosely_are_no_cause_where_the_item_was_shown():
    settings = Settings()
    settings.worklist.fuzzy_names = True
    asked = query({}, x00100010="TARO^YAM")
    for items, expected in (([(1, 1, "SCHEDULED")], "on_the_list"), ([], "key")):
        known = replace(facts(of=device([run(asked, items=items)])), settings=settings)
        assert codes(why.explain(known)) == [expected]


def test_a_zone_that_it_did_not_negotiate_is_no_cause_where_the_item_was_shown():
    asked = query({DATE: "20251201"}, x00080201="-1200")
    of = device([run(asked, items=[(1, 1, "SCHEDULED")])])
    assert codes(why.explain(facts(of=of))) == ["on_the_list"]
    settings = Settings()
    settings.worklist.timezone_adjustment = False
    assert codes(why.explain(replace(facts(of=device([run(asked)])), settings=settings))) == ["nothing_in_the_way"]


def test_a_refusal_before_its_node_was_mended_is_no_cause():
    elsewhere = replace(DOOR, reason="known AE title from another address", last_at=NOON - 10 * HOUR)
    assert codes(why.explain(facts(of=device([], refusals=[elsewhere])))) == ["never_asked"]
    called = replace(DOOR, last_at=NOON - 10 * HOUR)
    assert codes(why.explain(facts(of=device([], refusals=[called])))) == ["refused_at_the_door", "never_asked"]
    (unknown, *_) = why.explain(facts(of=device(configured=False, refusals=[called])))
    assert unknown.mend.endswith("--host ADDRESS --port 104"), "who called another title may be another machine"
    since = replace(elsewhere, last_at=NOON - HOUR)
    assert codes(why.explain(facts(of=device([], refusals=[since])))) == ["refused_at_the_door", "never_asked"]


def test_what_is_to_be_pasted_runs_nothing_that_others_sent():
    (first, *_) = why.explain(facts(of=device([run(query({STATION: "A;reboot"}))])))
    assert (first.code, first.mend) == ("asks_for_unknown_station", "broker node change CT1 --aliases 'A;reboot'")
    knocked = replace(DOOR, address="$(x)", reason="unknown AE title")
    (first, *_) = why.explain(facts(of=device([], refusals=[knocked], configured=False)))
    assert first.mend == "broker node add CT1 --host '$(x)' --port 104"


@pytest.mark.parametrize("title", ["XX*", "A?", "A,B"])
def test_what_no_alias_can_be_is_not_proposed_as_one(title):
    there = facts(step(item=replace(item(), stations=(title,))), device([run(query({}), pk=1)], sees=("own",)))
    found = next(one for one in why.explain(there) if one.code == "unknown_station")
    assert found.mend.startswith("PATCH /api/v1/orders/17 ")


def test_of_two_steps_with_one_id_the_procedure_is_named_as_well():
    ended = item("CANCELED")
    ended = replace(ended, named={**ended.named, "requested_procedure_id": "RP 7"})
    (cause, *_) = why.explain(facts(step(item=ended, moved=Moved("cancel", "RIS", NOON)), steps=("S1", "S1")))
    assert cause.mend == "broker order reinstate 17 --step S1 --id 'RP 7' --reason …"
    assert cause.says == "step S1 was cancelled, 2025-12-01 12:00:00, by RIS", "as the site's clocks do"
