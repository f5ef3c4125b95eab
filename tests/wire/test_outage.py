"""While the database is away devices still get their worklist: that of a moment ago, and everybody can see so
(durability.md 1.7)."""

import datetime as dt
import time

import httpx
import pytest
import structlog.testing
from sqlalchemy.exc import OperationalError

from broker import access, clock, db, site
from broker.model.orders import OfferedItem, ScheduledStep
from broker.model.worklist import WorklistQuery
from broker.mwl.offered import Recorder
from broker.mwl.snapshot import Snapshot
from tests import raw
from tests.house import House, eventually
from tests.trouble import gone, hung
from tests.wire.test_worklist import find, query
from tests.world import SATO, YAMADA, order

on_postgresql = pytest.mark.parametrize("premises", ["postgresql"], indirect=True, scope="session")
KEYS = {"ScheduledStationAETitle": "CT1", "Modality": "CT", "ScheduledProcedureStepID": ""}


def snapshot(broker: House) -> Snapshot:
    (made,) = broker._parts[Snapshot]
    return made


def asked(broker: House, ae_title: str = "CT1", **keys: str) -> tuple[int, list[str]]:
    statuses, items, _ = find(broker, query(KEYS, **{"PatientID": "", **keys}), ae_title)
    return statuses[-1], sorted(item.ScheduledProcedureStepSequence[0].ScheduledProcedureStepID for item in items)


def metric(broker: House, name: str) -> float:
    page = httpx.get(f"http://127.0.0.1:{broker.ports['http']}/metrics").text
    return next(float(line.split()[1]) for line in page.splitlines() if line.startswith(f"broker_{name} "))


@on_postgresql
@pytest.mark.parametrize("away", [gone, lambda database: hung(database._server.url.render_as_string(False))])
def test_a_device_gets_the_worklist_of_a_moment_ago_and_then_the_new_one(premises, broker, away):
    broker.place(order("ACC001"))
    snapshot(broker).refresh()
    broker.place(order("ACC002", SATO))
    assert asked(broker) == (0x0000, ["S1ACC001", "S1ACC002"])
    with structlog.testing.capture_logs() as logs, away(premises._database):
        assert asked(broker) == (0x0000, ["S1ACC001"]), "ACC002 came after the snapshot"
        assert asked(broker, AccessionNumber="ACC001") == (0x0000, ["S1ACC001"])
        assert asked(broker, PatientName="yamada^*") == (0x0000, ["S1ACC001"])
        assert asked(broker, PatientID="nobody") == (0x0000, [])
        assert metric(broker, "worklist_stale") == 1.0
    assert [one["ae_title"] for one in logs if one["event"] == "worklist.stale"][:1] == ["CT1"]
    assert YAMADA.id not in str(logs)
    assert eventually(lambda: asked(broker) == (0x0000, ["S1ACC001", "S1ACC002"]))
    assert eventually(lambda: asked(broker)[0] == metric(broker, "worklist_stale") == 0.0), "a snapshot may be new, too"


@on_postgresql
def test_what_was_shown_meanwhile_is_on_record_when_the_database_is_back(premises, broker):
    broker.place(order("ACC001"))
    snapshot(broker).refresh()
    assert access.find_node("CT2")
    with gone(premises._database):
        assert asked(broker, "CT2") == (0x0000, ["S1ACC001"])
    assert eventually(lambda: [row.ae_title for row in broker.rows(OfferedItem)] == ["CT2"])
    assert eventually(lambda: [row.times for row in broker.rows(WorklistQuery, ae_title="CT2")] == [1])


@on_postgresql
def test_a_snapshot_that_is_too_old_is_shown_to_nobody(premises, broker):
    broker.place(order("ACC001"))
    snapshot(broker).refresh()
    asked(broker)
    snapshot(broker).taken_at = clock.now() - dt.timedelta(hours=broker.settings.worklist.snapshot_hours_max, minutes=1)
    with gone(premises._database):
        statuses, items, answers = find(broker, query(KEYS))
    assert (statuses, items) == ([0xA700], [])
    assert "database is away" in answers[0][0].ErrorComment


@on_postgresql
def test_the_status_page_says_that_the_database_is_away_and_what_devices_see(premises, broker):
    broker.place(order("ACC001"))
    snapshot(broker).refresh()
    asked(broker)
    with gone(premises._database):
        asked(broker)
        page = httpx.get(f"http://127.0.0.1:{broker.ports['http']}/")
    assert page.status_code == 200
    assert "データベースに接続できません" in page.text and "0 分前のワークリスト" in page.text


def test_a_snapshot_follows_what_changes_ends_and_moves(broker):
    taken = snapshot(broker)
    broker.place(order("ACC001"))
    broker.place(order("ACC002", SATO))
    taken.refresh()
    known = dict(taken._known)
    assert sorted(known) == sorted(step.pk for step in broker.rows(ScheduledStep))
    broker.place(order("ACC002", SATO), "CA")
    taken.refresh()
    (left,) = taken._known
    assert known[left] == taken._known[left], "what has not changed is not written again"
    assert shown(taken) == [("ACC001", "CT1")]


def shown(taken: Snapshot) -> list[tuple[str, str]]:
    with taken._engine.connect() as copy:
        return [
            tuple(row)
            for row in copy.exec_driver_sql(
                "SELECT accession_number, ae_title FROM scheduled_step JOIN scheduled_station"
                " ON step_pk = scheduled_step.pk ORDER BY 1, 2"
            )
        ]


def test_a_query_is_kept_once_for_as_long_as_its_answer_is_the_same(broker):
    broker.place(order("ACC001"))
    for _ in range(3):
        asked(broker)
    recorder(broker).flush()
    asked(broker)
    broker.place(order("ACC002", SATO))
    asked(broker)
    recorder(broker).flush(repeats=True)
    first, second = broker.rows(WorklistQuery, ae_title="CT1")
    assert (first.times, second.times) == (4, 1)
    assert first.keys_pk == second.keys_pk
    assert first.answer_pk != second.answer_pk
    assert first.first_at < first.last_at < second.first_at
    assert second.removed == [["Modality", 0], ["ScheduledStationAETitle", 0]]
    assert sorted(row.times for row in broker.rows(OfferedItem, ae_title="CT1")) == [1, 5]


def recorder(broker: House) -> Recorder:
    (made,) = broker._parts[Recorder]
    return made


def test_a_refused_query_is_kept_too(broker):
    asked_for = query(KEYS)
    asked_for.QueryRetrieveLevel = "STUDY"
    assert find(broker, asked_for)[0] == [0xA900]
    recorder(broker).flush()
    (row,) = broker.rows(WorklistQuery)
    assert (row.status, row.times) == (0xA900, 1)
    assert db.read(lambda session: session.get_one(type(row), row.pk)).answer_pk


def test_what_is_recorded_is_the_status_that_the_device_saw(broker, monkeypatch):
    def is_away():
        raise OperationalError("", None, ConnectionError("gone"), connection_invalidated=True)

    with monkeypatch.context() as broken:
        broken.setattr(access, "directory", is_away)
        assert find(broker, query(KEYS))[0] == [0xA700]
    recorder(broker).flush()
    assert [row.status for row in broker.rows(WorklistQuery)] == [0xA700]


def test_nobody_waits_for_the_record_of_what_the_snapshot_shows(broker, monkeypatch):
    broker.place(order("ACC001"))
    snapshot(broker).refresh()
    waits, before_the_end = [], Recorder.before_the_end

    def watched(*args, **kwargs):
        waits.append(kwargs["waits"])
        before_the_end(*args, **kwargs)

    monkeypatch.setattr(Recorder, "before_the_end", watched)
    with monkeypatch.context() as away:
        away.setattr(Snapshot, "is_asked_first", True)
        assert asked(broker) == (0x0000, ["S1ACC001"])
    assert asked(broker) == (0x0000, ["S1ACC001"])
    assert waits == [False, True]


def test_an_alias_of_another_device_counts_at_the_next_query(broker):
    """What was worked out for a query is of the titles that the site had then."""
    broker.place(order("ACC001", station="CT_ROOM"))
    for aliases, found in (([], 0), (["CT_ROOM"], 1), ([], 0)):
        db.run(site.change_node, "CT2", now=clock.now(), actor="test", aliases=aliases)
        access.forget()
        statuses, items, _ = find(broker, query({**KEYS, "ScheduledStationAETitle": "CT2"}), "CT1")
        assert (statuses[-1], len(items)) == (0x0000, found)


@on_postgresql
def test_while_the_server_hangs_a_device_waits_a_moment_and_the_next_one_not_at_all(premises, broker):
    broker.place(order("ACC001"))
    snapshot(broker).refresh()
    asked(broker)
    with (
        raw.associated(broker.ports["dicom"], raw.WORKLIST) as first,
        hung(premises._database._server.url.render_as_string(False)),
    ):
        assert seconds_of(first) < 6
        with raw.associated(broker.ports["dicom"], raw.WORKLIST) as second:
            assert seconds_of(second) < 1
    assert eventually(lambda: asked(broker)[1] == ["S1ACC001"])


def seconds_of(peer: raw.Raw) -> float:
    began = time.monotonic()
    peer.send(raw.message(1, raw.command(raw.C_FIND, raw.WORKLIST), raw.ANY_NAME))
    assert peer.status()[0] == 0x0000
    return time.monotonic() - began
