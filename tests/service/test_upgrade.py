"""A database that was filled by the version before is brought to the newest schema, and goes on as if it had been so
from the start: its orders go with their numbers, and older messages lose."""

import contextlib
import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, MetaData, create_engine, insert, text
from sqlmodel import SQLModel, select

from broker import clock, db, schema
from broker.config import Settings, Site
from broker.dicom import habits
from broker.dicom.tree import Tree, vr_of
from broker.model.images import ReconciliationCase
from broker.model.messages import MessageKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import Patient
from broker.mwl import dataset, matching, orders, patients, plan, view, worklist
from broker.mwl.commands import Identifier, OrderCommand, PatientCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge import journal

OLD = "0003"
T0 = dt.datetime(2026, 7, 1, tzinfo=dt.UTC)
NAMES = ("YAMADA^TARO", "SATO^HANAKO")
NUMBERS = {1: ("A^HOSP",), 2: ("B^HOSP", "B2^HOSP", "D^HOSP", "D^OTHER")}  # of patients
# accession -> number in PID-3 (None: by hand), patient, status of its steps.
ORDERS = {
    "A1": ("A", 1, ("SCHEDULED", "SCHEDULED")), "A2": ("A", 1, ("CANCELED",)), "A3": ("A", 1, ("ON_HOLD", "ARRIVED")),
    "B1": ("B", 2, ("SCHEDULED",)), "B2": ("B2", 2, ("SCHEDULED",)), "B3": (None, 2, ("SCHEDULED",)),
    "B4": ("LOST", 2, ("SCHEDULED",)), "B5": ("D", 2, ("SCHEDULED",)),
}  # fmt: skip
PLACED, CHANGED = T0 + dt.timedelta(hours=9), T0 + dt.timedelta(hours=12)
RENAMED = T0 + dt.timedelta(hours=20)


@pytest.fixture(params=["sqlite", "postgresql"])
def upgraded(request, tmp_path):
    """The engine is open on a database that was filled at the old revision and upgraded."""
    with _upgraded(request, tmp_path, _fill):
        yield


@contextlib.contextmanager
def _upgraded(request, tmp_path, fill: Callable[[Connection], None]) -> Iterator[None]:
    admin, name = None, f"old_{tmp_path.name.replace('-', '_').lower()}"[:50]
    url = f"sqlite:///{tmp_path / 'old.sqlite3'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        url, admin = server.replace("/postgres?", f"/{name}?"), create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    db.open_engine(url, pool=3)
    config = schema._config()
    with db.engine().begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, OLD)
        fill(connection)
    schema.upgrade()
    yield
    db.close_engine()
    if admin is not None:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def _fill(connection: Connection) -> None:
    old = MetaData()
    old.reflect(connection)

    def add(table: str, **values: object) -> int:
        columns = old.tables[table].columns
        given = {"created_at": CHANGED, "updated_at": CHANGED, **values}
        for column in columns:
            if column.name != "pk" and column.name not in given and not column.nullable:
                given[column.name] = {dict: {}, str: "", int: 0, bool: False, bytes: b""}.get(_python(column), "")
        return connection.execute(insert(old.tables[table]).values(given)).inserted_primary_key[0]

    for name, sex, numbers in zip(NAMES, "MF", NUMBERS.values(), strict=True):
        patient = add("patient", name=name, birth_date="19700101", sex=sex, attributes={})
        for number in numbers:
            value, issuer = number.split("^")
            add("patient_identifier", patient_pk=patient, value=value, issuer=issuer, type="PI")
    add("patient_version", patient_pk=1, name="YAMADA^JIRO", cause="ADT^A08", created_at=RENAMED)
    add("patient_version", patient_pk=2, name="", cause="order", created_at=RENAMED)
    for place, (accession, (pid, patient, statuses)) in enumerate(ORDERS.items(), 1):
        raw = f"MSH|^~\\&|RIS|HOSP|||20260701||ORM^O01|{accession}|P|2.5\rPID|1||{pid}^^^HOSP^PI~X||Y\r".encode()
        message = None if pid is None else add(
            "message", raw=raw, sender="RIS|HOSP", control_id=accession, sha256=accession, state="APPLIED",
            type="ORM^O01", direction="in", protocol="hl7", received_at=PLACED,
        )  # fmt: skip
        order = add(
            "imaging_order", patient_pk=patient, accession_number=accession, accession_issuer="", priority="ROUTINE",
            placed_at=PLACED if pid else None, last_event_at=CHANGED if pid else None, message_pk=message,
            attributes={"RequestingService": "INT"},
        )  # fmt: skip
        if message:
            connection.execute(old.tables["message"].update().where(old.tables["message"].c.pk == message)
                               .values(order_pk=order))  # fmt: skip
        procedure = add(
            "requested_procedure", order_pk=order, requested_procedure_id=f"R{place}", attributes={},
            study_instance_uid=f"2.25.{place}", placer_number=f"P{place}", description="Chest CT",
        )  # fmt: skip
        for n, status in enumerate(statuses):
            step = add(
                "scheduled_step", requested_procedure_pk=procedure, order_pk=order, sps_id=f"S{n}", status=status,
                status_at=CHANGED, modality="CT", start_date="20260710", start_time="150000", patient_id="A",
                accession_number=accession, placer_number=f"P{place}", attributes={"ScheduledStationName": ["CT"]},
                offerable=True, dataset=_item(NAMES[patient - 1], accession, f"S{n}"),
            )  # fmt: skip
            add("scheduled_station", step_pk=step, ae_title="CT1")


def _item(name: str, accession: str, sps_id: str) -> bytes:
    step = {
        "ScheduledStationAETitle": ["CT1"], "ScheduledProcedureStepStartDate": "20260710",
        "ScheduledProcedureStepStartTime": "150000", "Modality": "CT", "ScheduledProcedureStepID": sps_id,
    }  # fmt: skip
    said = {"PatientName": name, "AccessionNumber": accession, "ScheduledProcedureStepSequence": [step]}
    return dataset.encode_item(dataset.to_tree(said))


def _python(column) -> type:
    """JSON columns of SQLite are reflected as such, those of PostgreSQL too."""
    return dict if "JSON" in str(column.type).upper() else column.type.python_type


def rows(table) -> list:
    return db.read(lambda session: list(session.exec(select(table).order_by(table.pk)).all()))


def at(hour: float) -> dt.datetime:
    return T0 + dt.timedelta(hours=hour)


def order(accession: str) -> ImagingOrder:
    return next(one for one in rows(ImagingOrder) if one.accession_number == accession)


def steps(accession: str) -> list[ScheduledStep]:
    return [step for step in rows(ScheduledStep) if step.accession_number == accession]


def say(control: str, accession: str, hour: float, *, start: str | None = None, sps: str = "S0", **more) -> None:
    place = list(ORDERS).index(accession) + 1
    step = StepCommand(sps, "CT" if start else None, None, start and "20260710", start)
    procedure = ProcedureCommand(f"R{place}", f"2.25.{place}", steps=(step,))
    told = OrderCommand(control, accession, procedures=(procedure,) if start else (), at=at(hour), **more)
    db.run(orders.apply, told, now=clock.now(), actor="test", site=Site())


def test_the_schema_is_the_one_of_the_models_and_no_row_points_nowhere(upgraded):
    schema.prepare()
    with db.engine().connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
        if db.is_sqlite():
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []


def test_an_order_knows_under_which_number_it_was_placed_where_anything_says_so(upgraded):
    assert [(one.accession_number, one.identifier_pk) for one in rows(ImagingOrder)] == [
        ("A1", 1), ("A2", 1), ("A3", 1), ("B1", 2), ("B2", 3), ("B3", None), ("B4", None),
        ("B5", None),
    ]  # fmt: skip


def test_a_move_takes_the_orders_of_its_number_along_and_asks_about_those_of_which_nobody_knows(upgraded):
    person = PersonCommand((Identifier("C", "HOSP"),), "SUZUKI^KEN", "19600101", "M")
    moved = PatientCommand("move", person, Identifier("B2", "HOSP"), at(30), "ADT^A43")
    patient = db.run(patients.apply, moved, now=clock.now(), actor="test")
    owners = {one.accession_number: one.patient_pk for one in rows(ImagingOrder)}
    assert owners == {"A1": 1, "A2": 1, "A3": 1, "B1": 2, "B2": patient.pk, "B3": 2, "B4": 2, "B5": 2}
    (case,) = rows(ReconciliationCase)
    assert (case.kind, case.subject, case.level) == ("merge_undone", "patient:2", "amber")
    unknown = ", ".join(str(order(accession).key) for accession in ("B3", "B4", "B5"))
    assert case.reasons == [
        f"one of its identifiers is patient {patient.pk}'s now, and nobody knows under which one it was that orders "
        f"{unknown} were placed; they stay whose they were"
    ]


def test_what_is_older_than_the_last_message_before_the_upgrade_changes_nothing(upgraded):
    say("XO", "A1", 11, start="080000")
    say("HD", "A1", 11.5)
    assert [(step.status, step.start_time) for step in steps("A1")] == [("SCHEDULED", "150000")] * 2
    say("XO", "A1", 13, attributes={"RequestingService": "SUR"})
    say("XO", "A1", 11, start="080000", attributes={"RequestingService": "OLD"}, priority="STAT")
    assert [step.start_time for step in steps("A1")] == ["150000"] * 2
    assert (order("A1").attributes, order("A1").priority) == ({"RequestingService": "SUR"}, "ROUTINE")


def test_what_is_newer_counts_as_ever(upgraded):
    say("XO", "A1", 13, start="080000")
    say("HD", "A1", 14)
    assert [(step.status, step.start_time) for step in steps("A1")] == [
        ("ON_HOLD", "080000"), ("ON_HOLD", "150000"),
    ]  # fmt: skip


def test_what_was_held_or_has_come_stays_so_against_older_messages(upgraded):
    words = [sorted(step.said.keys() & {"hold", "release", "arrive"}) for step in steps("A3")]
    assert words == [["hold"], ["arrive", "release"]]
    say("RL", "A3", 11)
    assert [step.status for step in steps("A3")] == ["ON_HOLD", "ARRIVED"]
    say("RL", "A3", 13)
    assert [step.status for step in steps("A3")] == ["SCHEDULED", "ARRIVED"]


def test_an_order_that_was_cancelled_stays_so_also_for_a_step_that_only_an_older_message_names(upgraded):
    say("XO", "A2", 11, start="080000", sps="S9")
    assert [(step.sps_id, step.status) for step in steps("A2")] == [("S0", "CANCELED"), ("S9", "CANCELED")]


def test_a_cancel_that_nobody_had_heard_of_reaches_what_was_there_when_it_was_said(upgraded):
    say("CA", "A1", 8)
    assert [step.status for step in steps("A1")] == ["SCHEDULED"] * 2
    say("CA", "A1", 10)
    assert [step.status for step in steps("A1")] == ["CANCELED"] * 2


def test_a_new_order_that_comes_once_more_changes_nothing(upgraded):
    person = PersonCommand((Identifier("A", "HOSP"),), "YAMADA^TARO", "19700101", "M")
    before = [(step.pk, step.status, step.start_time) for step in rows(ScheduledStep)]
    say("NW", "A1", 9, start="093000", patient=person)
    say("NW", "A2", 9, start="093000", patient=person)
    assert [(step.pk, step.status, step.start_time) for step in rows(ScheduledStep)] == before
    assert len(rows(RequestedProcedure)) == len(ORDERS)


def test_a_name_that_adt_changed_is_not_changed_back_by_what_is_plainly_older(upgraded):
    def rename(name: str, number: str, hour: float) -> None:
        one = PersonCommand((Identifier(number, "HOSP"),), name)
        told = PatientCommand("update", one, at=at(hour), cause="ADT^A08")
        db.run(patients.apply, told, now=clock.now(), actor="test")

    rename("YAMADA^JIRO", "A", 18)
    assert rows(Patient)[0].name == "YAMADA^TARO"
    rename("YAMADA^SABURO", "A", 19.5)  # by a clock that is half an hour slow
    rename("KATO^HANAKO", "B", 1)  # an order had changed it, and ADT counts more
    assert [one.name for one in rows(Patient)] == ["YAMADA^SABURO", "KATO^HANAKO"]


def test_the_journal_finds_what_came_to_an_order_before_the_upgrade(upgraded):
    def found(**wanted: str) -> list[str]:
        messages, _ = db.read(journal.find, journal.Wanted(**wanted), limit=10, looked_at=1_000)
        return [one.control_id for one in messages]

    assert (found(accession="B2"), found(patient="B2"), found(placer="P2")) == (["B2"], ["B2"], ["A2"])
    assert (found(study="2.25.1"), found(number="A")) == (["A1"], ["A3", "A2", "A1"])
    assert len(rows(MessageKey)) == len({(one.message_pk, one.kind, one.value) for one in rows(MessageKey)})


# The worklist


def found(step: dict[int, str], name: str = "", looked_at_max: int = 10) -> list[str]:
    """Accession numbers that CT1 gets."""
    step_keys: Tree = {tag: (vr_of(tag), value) for tag, value in step.items()}
    asked: Tree = {plan.PATIENT_NAME: ("PN", name), dataset.STEP_SEQUENCE: ("SQ", [step_keys])}
    what = replace(view.of(None, "CT1", Settings(), clock.now()), looked_at_max=looked_at_max)
    items = worklist.search(asked, what, habits.directory({}))
    by_pk = {step.pk: step.accession_number for step in rows(ScheduledStep)}
    return sorted(by_pk[item.step_pk] for item in items)


def test_what_waited_is_found_by_its_station_and_its_day(upgraded):
    waiting = ["A1", "A1", "A3", "B1", "B2", "B3", "B4", "B5"]
    assert found({plan.STATION: "CT1", matching.START_DATE: "20260710"}) == waiting
    assert found({plan.STATION: "CT1", matching.START_DATE: "20260711"}) == []
    assert found({plan.STATION: "CT2"}) == []


def test_stations_know_the_day_of_their_step_and_whether_it_has_ended(upgraded):
    told = {row.step_pk: (row.start_date, row.is_open) for row in rows(ScheduledStation)}
    assert told == {
        step.pk: ("20260710", step.status not in ("CANCELED", "ON_HOLD")) for step in rows(ScheduledStep)
    }  # fmt: skip


def test_what_waited_is_found_by_the_name_of_its_patient(upgraded):
    assert [step.name_key for step in rows(ScheduledStep)] == [
        *["yamada^taro"] * 2, "", *["yamada^taro"] * 2, *["sato^hanako"] * 5,
    ], "what has ended goes without"  # fmt: skip
    assert found({}, name="Sato*") == ["B1", "B2", "B3", "B4", "B5"]
    assert found({}, name="Yamada^*") == ["A1", "A1", "A3"]


def _fill_many(connection: Connection) -> None:
    _fill(connection)
    old = MetaData()
    old.reflect(connection, only=["scheduled_step"])
    table = old.tables["scheduled_step"]
    one = connection.execute(table.select().where(table.c.pk == 1)).one()._asdict()
    del one["pk"]
    connection.execute(insert(table), [{**one, "sps_id": f"M{n}"} for n in range(1200)])


@pytest.fixture(params=["sqlite", "postgresql"])
def crowded(request, tmp_path):
    """The same with more steps than are looked at together."""
    with _upgraded(request, tmp_path, _fill_many):
        yield


def test_a_name_is_found_among_all_that_waited_without_a_look_at_each(crowded):
    assert {step.name_key for step in rows(ScheduledStep) if step.sps_id[0] == "M"} == {"yamada^taro"}
    assert found({}, name="Sato*", looked_at_max=1000) == ["B1", "B2", "B3", "B4", "B5"]
