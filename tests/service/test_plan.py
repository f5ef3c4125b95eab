"""What the database finds is what the rules say of each item: nothing more, nothing less, whatever is asked."""

import datetime as dt
import random

import pytest
from sqlmodel import select

from broker import config, db
from broker.dicom import habits
from broker.dicom.habits import Directory, Habits
from broker.dicom.service import NodeInfo
from broker.dicom.tree import Tree
from broker.errors import InvalidValue, TooMany
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier
from broker.mwl import funnel, keys, matching, plan, texts, view, worklist
from broker.mwl.answers import item_of
from broker.mwl.dataset import STEP_SEQUENCE, build, encode_item
from broker.mwl.keys import step_keys
from broker.mwl.snapshot import Snapshot

pytestmark = pytest.mark.usefixtures("database")
NOW = dt.datetime(2035, 7, 6, 3, tzinfo=dt.UTC)  # noon in Tokyo
NAMES = [
    "YAMADA^TARO=山田^太郎=ヤマダ^タロウ",
    "YAMADA^JIRO",
    "SMITH^ANNA^^DR",
    "=髙橋^一郎",
    "MU_ELLER%^JÜRGEN",
    "O'NEIL^PAT",
]
STATIONS = ["CT1", "CT2", "CT_1", "CTPOOL", "MR1"]
STATUSES = ["SCHEDULED", "ARRIVED", "READY", "STARTED", "COMPLETED", "DISCONTINUED", "CANCELED", "ON_HOLD"]
NODES = {
    "CT1": Habits(aliases=frozenset({"CT_1"}), groups=frozenset({"CTPOOL"})),
    "CT2": Habits(groups=frozenset({"CTPOOL"})),
    "MR1": Habits(),
}
SEEN = [(), ("own",), ("modality",), ("own", "location:ROOM 2"), ("ae:CT2", "modality")]


def write(session, chance: random.Random, count: int) -> None:
    for n in range(count):
        patient = Patient(name=chance.choice(NAMES), birth_date="19700101", sex=chance.choice("MF"))
        session.add(patient)
        session.flush()
        known = PatientIdentifier(patient_pk=patient.key, value=f"{n % 7:04d}-{n}", issuer="HOSP")
        order = ImagingOrder(patient_pk=patient.key, accession_number=f"A{n:03}")
        session.add_all([known, order])
        session.flush()
        procedure = RequestedProcedure(
            order_pk=order.key, requested_procedure_id=f"R{n % 9}", study_instance_uid=f"1.2.{n + 1}",
            description=chance.choice(["CT CHEST", "MR HEAD"]),
        )  # fmt: skip
        session.add(procedure)
        session.flush()
        day = NOW.date() + dt.timedelta(days=chance.randrange(-2, 3))
        step = ScheduledStep(
            requested_procedure_pk=procedure.key, order_pk=order.key, sps_id=f"S{n:03}", version=1,
            modality=chance.choice(["CT", "MR"]), start_date=f"{day:%Y%m%d}", label=chance.choice(["", "WARD"]),
            start_time=f"{chance.randrange(24):02d}{chance.choice(['00', '30'])}00", status=chance.choice(STATUSES),
            status_at=NOW - dt.timedelta(hours=chance.randrange(48)), patient_id=known.value,
            accession_number=order.accession_number, description="x", offerable=chance.random() > 0.1,
            name_key=texts.compared(patient.name) if chance.random() > 0.2 else "",
            attributes={"ScheduledProcedureStepLocation": chance.choice(["ROOM 1", "ROOM 2"])},
        )  # fmt: skip
        titles = chance.sample(STATIONS, chance.choice([1, 1, 2]))
        step.dataset = encode_item(build(patient, [known], order, procedure, step, titles))
        session.add(step)
        session.flush()
        for title in titles:
            session.add(
                ScheduledStation(
                    step_pk=step.key, ae_title=title, start_date=step.start_date,
                    is_open=step.status in ("SCHEDULED", "ARRIVED", "READY", "STARTED"),
                )
            )  # fmt: skip


def any_query(chance: random.Random) -> Tree:
    def some(*values: str) -> str:
        return chance.choice(values) if chance.random() < 0.2 else ""

    step: Tree = {
        0x00400001: ("AE", some("CT1", "CT2", "CT_1", "CTPOOL", "MR1", "C*", "NOWHERE")),
        0x00400002: ("DA", some("20350706", "20350705-20350707", "-20350706", "20350707-")),
        0x00400003: ("TM", some("0900-1700", "12", "-1200", "1000-")),
        0x00080060: ("CS", some("CT", "MR", "C?", "ct")),
        0x00400009: ("SH", some("S00?", "S003", "*1*", "?00*", "S?", "s0?3")),
        0x00400020: ("CS", some("SCHEDULED", "STARTED", "DEPARTED", "?TARTED", "NONSENSE")),
        0x00400011: ("SH", some("ROOM 1", "ROOM*")),
    }
    if chance.random() < 0.1:  # both: they may be one interval, and each is drawn too rarely
        step[0x00400002] = ("DA", chance.choice(["20350706", "20350705-20350707", "-20350706", "20350707-"]))
        step[0x00400003] = ("TM", chance.choice(["0900-1700", "12", "-1200", "1000-"]))
        drawn = [0x00400002, 0x00400003]
    else:
        drawn = chance.sample(sorted(step), chance.randrange(1, 5))
    return {
        0x00100010: ("PN", some("yamada*", "*TARO", "=山田*", "高橋^*", "^=髙橋*", "mu_*", "%*", "SMITH^ANNA^^DR^", "O'N*=", "==*ウ")),
        0x00100020: ("LO", some("0001-*", "0003-3", "*-1?", "_*", "%", "000?-?", "?-??", " *?-3 ")),
        0x00080050: ("SH", some("A00*", "A012", "a012", "A?1?", "A ?*")),
        0x00401001: ("SH", some("R1", "R?")),
        0x0020000D: ("UI", some("1.2.3", "1.2.3\\1.2.4", uids(chance), uids(chance), "1.2.?", "1.2.*\\1.2.5", "\\")),
        0x00741202: ("LO", some("WARD", "WARD", "ward", " WARD ", "W*", "ＷＡＲＤ", "WAR?")),
        0x00321060: ("LO", some("CT*", "MR HEAD")),
        STEP_SEQUENCE: ("SQ", [{tag: step[tag] for tag in drawn}]),
    }  # fmt: skip


def uids(chance: random.Random) -> str:
    """A list of several, padded and parted as some write it; most are of no exam."""
    listed = [f"1.2.{chance.randrange(120)}" for _ in range(chance.randrange(2, 40))]
    return "\\".join(chance.choice([uid, uid, uid + "\0", ""]) for uid in listed)


def is_shown(row: ScheduledStep, node: NodeInfo, asked: bool) -> bool:
    """asked: for a status."""
    own = node.habits.hide
    hide = config.Settings().worklist.hide if own is None else own
    recent = row.status_at >= NOW - dt.timedelta(hours=24)
    if row.status == "STARTED":
        return recent and ("STARTED" not in hide or (asked and own is None))
    if row.status in ("COMPLETED", "DISCONTINUED"):
        return recent and row.status not in hide
    return row.status in ("SCHEDULED", "ARRIVED", "READY") and row.status not in hide


def meant(query: Tree, what: view.View) -> Tree:
    """The query with the days that today stands for; a time stays a time of day then."""
    step = step_keys(query)
    if not what.today_is_window or step.get(0x00400002, ("", ""))[1] != what.today:
        return query
    return {**query, STEP_SEQUENCE: ("SQ", [{tag: value for tag, value in step.items() if tag != 0x00400002}])}


def expected(
    rows, query: Tree, what: view.View, node: NodeInfo, directory: Directory, fuzzy: bool = False
) -> list[str]:
    """By the rules alone, one item after the other."""
    asked = bool(step_keys(query).get(0x00400020, ("", ""))[1])
    query = meant(query, what)
    found = []
    for row in rows:
        if not row.offerable or not is_shown(row, node, asked):
            continue
        item = item_of(row.dataset, view.SHOWN_AS.get(row.status, row.status))
        step = step_keys(item)
        if what.labels and row.label not in what.labels:
            continue
        if what.first_day and not what.first_day <= row.start_date <= what.last_day:
            continue
        if what.sees and not view.sees_item(what, step, directory):
            continue
        titles = {other for title in step[0x00400001][1].split("\\") for other in (title, *directory.shown(title))}
        asked_for = matching.selective(query)
        key = step_keys(asked_for).get(0x00400001, ("", ""))[1]
        titled = directory.means(key) if key and "*" not in key else {key}
        keys_ = {tag: value for tag, value in step_keys(asked_for).items() if tag != 0x00400001}
        fits = (
            not key
            or bool(titled & titles)
            or ("*" in key and any(texts.glob(key, one) for one in shown(step, directory)))
        )
        rest = {**asked_for, STEP_SEQUENCE: ("SQ", [keys_])} if STEP_SEQUENCE in asked_for else asked_for
        if fits and matching.matches(rest, item, fuzzy):
            found.append(row.sps_id)
    return sorted(found)


def shown(step: Tree, directory: Directory) -> list[str]:
    return [other for title in step[0x00400001][1].split("\\") for other in directory.shown(title)]


def test_the_database_finds_what_the_rules_say_of_each_item_and_so_does_the_snapshot(tmp_path):
    chance = random.Random(20261126)
    db.run(write, chance, 60)
    rows = db.read(lambda session: session.exec(select(ScheduledStep)).all())
    directory, settings = habits.directory(NODES), config.Settings(data_dir=tmp_path)
    copy = Snapshot(settings)
    copy.refresh()
    found_some = 0
    for _ in range(400):
        hide = chance.choice(
            [None, ["COMPLETED", "DISCONTINUED"], ["READY"], ["STARTED", "COMPLETED"], ["DISCONTINUED"]]
        )
        node = NodeInfo(
            1, "CT1", "", True, "CT1", frozenset(), "", None, "CT",
            Habits(
                sees=chance.choice(SEEN), labels=frozenset(chance.choice([[], ["WARD"]])), hide=hide and frozenset(hide),
                days_before=(days := chance.choice([None, None, 1])), days_after=days,
                quirks=frozenset({"today_is_window"} if days and chance.random() < 0.5 else ()),
            ),
        )  # fmt: skip
        query = any_query(chance)
        try:
            keys.check(query)
        except InvalidValue:
            continue
        what = view.of(node, "CT1", settings, NOW)
        if fuzzy := chance.random() < 0.1:
            query[0x00100010] = ("PN", chance.choice(["taro^yam", "yam^tar", "ANNA^SMI", "=一郎^高", "PAT^O'N*"]))
        found = sorted(step_id(one) for one in worklist.search(query, what, directory, fuzzy=fuzzy))
        assert found == expected(rows, query, what, node, directory, fuzzy), (query, what)
        on_copy = worklist.search(query, what, directory, fuzzy=fuzzy, on=copy.engine("CT1"))
        assert found == sorted(step_id(one) for one in on_copy)
        if fuzzy:
            found_some += bool(found)
            continue  # the counts are of a query whose names are compared whole
        counts = funnel.count(plan.of(query, what, directory), what, directory)
        assert counts.considered - sum(number for _, number in counts.removed) == len(found), (query, what, counts)
        found_some += bool(found)
    assert found_some > 100


def step_id(found: worklist.Found) -> str:
    return str(step_keys(item_of(found.dataset, found.status))[0x00400009][1])


ENDED = frozenset({"COMPLETED", "DISCONTINUED"})


@pytest.mark.parametrize(
    ("hide", "days_after", "border"),
    [
        (ENDED, None, (matching.EARLIEST, matching.LATEST)),
        (ENDED, 3, ("20350705", "20350709")),
        (frozenset({"READY"}), 3, ("20350707", "20350707")),
    ],
)
def test_the_days_of_a_key_narrow_what_a_device_sees_only_where_ended_exams_are_of_it(hide, days_after, border):
    """Elsewhere they would be counted as what the rule took away."""
    before = None if days_after is None else 1
    node = NodeInfo(
        1, "CT1", "", True, "CT1", frozenset(), "", None, "CT",
        Habits(sees=("own",), hide=hide, days_before=before, days_after=days_after),
    )  # fmt: skip
    query: Tree = {STEP_SEQUENCE: ("SQ", [{0x00400002: ("DA", "20350707")}])}
    made = plan.of(query, view.of(node, "CT1", config.Settings(), NOW), Directory())
    assert [one.values for one in made.conditions if one.of == plan.SEES] == [(*border, "CT1")]


@pytest.fixture
def few_looks(monkeypatch) -> view.View:
    """Of 100 exams only 5 may be looked at one by one."""
    db.run(write, random.Random(1), 100)
    monkeypatch.setattr(worklist, "PAGE_ROWS", 3)
    settings = config.Settings()
    settings.limits.worklist_looked_at_max = 5
    return view.of(None, "CT1", settings, NOW)


def test_more_than_may_be_looked_at_one_by_one_is_told(few_looks):
    with pytest.raises(TooMany, match="too many items to look at, refine query"):
        worklist.search({0x00321060: ("LO", "NOTHING*")}, few_looks, habits.directory({}))


@pytest.mark.parametrize(
    "query",
    [
        {0x0020000D: ("UI", "1.2.3\\1.2.4\\1.2.5")},
        {0x00741202: ("LO", "NOWHERE")},
        {0x00080050: ("SH", "A?9")},
        {0x00100020: ("LO", "000?-?9")},
        {STEP_SEQUENCE: ("SQ", [{0x00400009: ("SH", "S?9")}])},
    ],
)
def test_what_the_database_can_find_is_not_looked_for_one_by_one(few_looks, query):
    worklist.search(query, few_looks, habits.directory({}))
