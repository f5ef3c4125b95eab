"""What a performed step does to rows: its own, its scheduled steps, its order's status, the questions it raises."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlmodel import Session, SQLModel, select

from broker import clock, db, ids
from broker.archive import status
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.tree import EXPLICIT_LE, Tree
from broker.errors import (
    BrokerError,
    DuplicateKey,
    EmptyField,
    InvalidInstance,
    InvalidValue,
    NotAllowed,
    UnknownKey,
    WrongState,
)
from broker.model.images import ReconciliationCase
from broker.model.orders import ScheduledStep
from broker.model.performed import PerformedSeries, PerformedStep, PerformedStepLink
from broker.model.site import Node
from broker.model.status import OrderStatus
from broker.model.work import AuditEvent
from broker.mpps import rules, service
from broker.mwl import orders, patients
from broker.mwl.commands import Identifier, OrderCommand, PatientCommand, PersonCommand, ProcedureCommand, StepCommand
from tests.performed import DESCRIPTION, PROTOCOL_NAME, created, final, gave_up, scheduled, series

pytestmark = pytest.mark.usefixtures("database")
YAMADA = PersonCommand((Identifier("0012345", "HOSP"),), "YAMADA^TARO=山田^太郎", "19700101", "M")
SATO = PersonCommand((Identifier("0023456", "HOSP"),), "SATO^HANAKO=佐藤^花子", "19850315", "F")
COMPLETED = rules.COMPLETED


@pytest.fixture(autouse=True)
def _published(database: None) -> None:
    db.on_finish(status.publish)


class Room:
    """One CT that reports to a broker."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.strict = False

    def place(
        self, accession: str = "ACC1", person: PersonCommand = YAMADA, *, steps: tuple[str, ...] = ("CT",),
        control: str = "NW",
    ):  # fmt: skip
        """steps: the modality of each."""
        procedure = ProcedureCommand(
            requested_procedure_id=f"R{accession}", study_instance_uid=self.study(accession),
            steps=tuple(
                StepCommand(f"S{n + 1}{accession}", modality, ("CT1",), "20351201", "093000", "plain")
                for n, modality in enumerate(steps)
            ),
        )  # fmt: skip
        command = OrderCommand(control, accession, "RIS", "ROUTINE", person, (procedure,), at=clock.now())
        return db.run(orders.apply, command, now=clock.now(), actor="test", site=self.settings.site)

    def study(self, accession: str = "ACC1") -> str:
        return ids.derived_uid("2.25", accession)

    def item(self, accession: str = "ACC1", step: int = 1) -> Tree:
        """All keys of a step, as a scanner copies them."""
        return scheduled(
            self.study(accession), accession=accession, procedure_id=f"R{accession}", sps_id=f"S{step}{accession}"
        )

    def start(self, *items: Tree, uid: str = "1.2.7", person: str = "0012345", issuer: str = "HOSP", **changes: Any):
        said = created(
            t00400270=("SQ", list(items)), t00100020=("LO", person), t00100021=("LO", issuer) if issuer else None,
            **changes,
        )  # fmt: skip
        return db.run(
            service.start, uid, said, source_ae="CT1", strict=self.strict, settings=self.settings, now=clock.now()
        )

    def set(self, said: Tree, uid: str = "1.2.7", digest: str = "d1", ae: str = "CT1") -> tuple[int, ...]:
        return db.run(
            service.update, uid, said, digest=digest, source_ae=ae, strict=self.strict, settings=self.settings,
            now=clock.now(),
        )  # fmt: skip

    def get(self, *tags: int, uid: str = "1.2.7") -> Tree:
        return db.read(service.get, uid, tags, settings=self.settings)[0]

    def steps(self) -> list[str]:
        return [step.status for step in rows(ScheduledStep)]

    def cases(self) -> list[tuple[str, str]]:
        return [(case.kind, case.level) for case in rows(ReconciliationCase)]

    def links(self) -> list[tuple[int, bool]]:
        return [(link.rule, link.propagated) for link in rows(PerformedStepLink)]


@pytest.fixture
def room() -> Room:
    return Room()


def rows(table: type[SQLModel]) -> list[Any]:
    return db.read(lambda session: list(session.exec(select(table).order_by(table.pk)).all()))  # type: ignore[attr-defined]


def test_a_first_report_starts_the_step_and_the_order_shows_it(room):
    """MPP-01"""
    room.place()
    assert room.start(room.item()) == "1.2.7"
    (performed,) = rows(PerformedStep)
    assert (performed.status, performed.station_ae, performed.modality) == ("IN PROGRESS", "CT1", "CT")
    assert performed.study_instance_uid == room.study()
    assert (room.steps(), room.links(), room.cases()) == (["STARTED"], [(1, True)], [])
    assert rows(OrderStatus)[0].state == "IN_PROGRESS"
    change = next(event for event in rows(AuditEvent) if event.action == "step.change")
    assert (change.actor, change.detail["before"], change.detail["after"]) == ("CT1", "SCHEDULED", "STARTED")


def test_a_completed_report_completes_the_step_and_says_what_will_come(room):
    """MPP-02"""
    room.place()
    room.start(room.item())
    assert room.set(final(images=("1.2.9.1", "1.2.9.2"))) == ()
    (performed,) = rows(PerformedStep)
    assert (performed.status, performed.flags) == ("COMPLETED", [])
    assert performed.ended_at is not None
    assert [(one.series_instance_uid, one.instance_uids) for one in rows(PerformedSeries)] == [
        ("1.2.9", ["1.2.9.1", "1.2.9.2"])
    ]
    assert room.steps() == ["COMPLETED"]
    assert rows(OrderStatus)[0].state == "ACQUIRED"


def test_a_second_n_create_with_the_same_uid_is_refused_and_changes_nothing(room):
    room.place()
    room.start(room.item())
    with pytest.raises(DuplicateKey) as refused:
        room.start(room.item(), t00400253=("SH", "OTHER"))
    assert refused.value.wire.dimse_n == 0x0111
    assert room.get(0x00400253) == {0x00400253: ("SH", "PPS1")}


def test_two_that_send_the_same_uid_at_once_make_one_performed_step(room):
    room.place()
    gate = threading.Barrier(2)

    def send() -> str:
        gate.wait()
        try:
            return room.start(room.item())
        except BrokerError as error:
            return type(error).__name__

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(one.result() for one in [pool.submit(send), pool.submit(send)])
    assert answers == ["1.2.7", "DuplicateKey"]
    assert (len(rows(PerformedStep)), len(rows(PerformedStepLink))) == (1, 1)


def test_a_uid_that_is_none_is_refused_and_an_absent_one_is_made(room):
    room.place()
    with pytest.raises(InvalidInstance) as refused:
        room.start(room.item(), uid="1.2.03")
    assert refused.value.wire.dimse_n == 0x0117
    assert ids.valid_uid(room.start(room.item(), uid=""))


def test_a_refused_n_create_leaves_nothing(room):
    """MPP-04"""
    room.place()
    with pytest.raises(BrokerError):
        room.start(room.item(), t00400252=("CS", COMPLETED))
    assert (rows(PerformedStep), room.steps()) == ([], ["SCHEDULED"])


def test_a_final_state_without_an_end_is_refused_by_a_strict_site_and_nothing_changes(room):
    """MPP-09"""
    room.place()
    room.start(room.item())
    room.strict = True
    with pytest.raises(EmptyField):
        room.set({tag: element for tag, element in final().items() if tag != rules.END_DATE})
    assert (rows(PerformedStep)[0].status, room.steps(), rows(PerformedSeries)) == ("IN PROGRESS", ["STARTED"], [])


def test_a_final_state_without_an_end_ends_at_its_receipt_and_is_marked_elsewhere(room):
    """MPP-09"""
    room.place()
    room.start(room.item())
    room.set({rules.STATUS: ("CS", COMPLETED)})
    (performed,) = rows(PerformedStep)
    assert performed.flags == ["incomplete_final", "no_instances"]
    assert abs((clock.now() - performed.ended_at).total_seconds()) < 60
    assert room.steps() == ["COMPLETED"]


@pytest.mark.parametrize("half", [rules.END_DATE, rules.END_TIME])
def test_half_an_end_is_none(room, half):
    """Put together with the receipt it would be a third moment, often before the start."""
    room.place()
    room.start(room.item())
    room.set({tag: element for tag, element in final().items() if tag != half})
    (performed,) = rows(PerformedStep)
    assert (performed.status, performed.flags, performed.ended_at) == ("COMPLETED", ["incomplete_final"], None)
    assert room.get(half)[half][1] == ""
    assert room.steps() == ["COMPLETED"]


def test_an_exam_of_a_clock_that_is_ahead_does_not_end_before_it_began(room):
    room.place()
    room.start(room.item(), t00400244=("DA", "20991201"))
    room.set({rules.STATUS: ("CS", COMPLETED)})
    (performed,) = rows(PerformedStep)
    assert performed.ended_at == performed.started_at


def test_an_end_date_alone_is_no_end_while_the_exam_goes_on(room):
    room.place()
    room.start(room.item(), t00400250=("DA", "20251201"))
    assert rows(PerformedStep)[0].ended_at is None


def test_a_series_without_images_is_taken_and_marked(room):
    """MPP-11"""
    room.place()
    room.start(room.item())
    room.set(final(images=()))
    assert rows(PerformedStep)[0].flags == ["no_instances"]


def test_a_later_list_of_series_replaces_the_one_before(room):
    """MPP-12"""
    room.place()
    room.start(room.item())
    room.set({rules.PERFORMED_SERIES: ("SQ", [series("1.1", "1.1.1")])})
    room.set({rules.PERFORMED_SERIES: ("SQ", [series("1.2", "1.2.1")])}, digest="d2")
    assert list(rules.announced(room.get())) == ["1.2"]
    assert [one.series_instance_uid for one in rows(PerformedSeries)] == ["1.2"]


def test_an_update_that_lists_no_series_keeps_them(room):
    room.place()
    room.start(room.item(), t00400340=("SQ", [series("1.1", "1.1.1")]))
    room.set({DESCRIPTION: ("LO", "頭部")})
    assert [one.series_instance_uid for one in rows(PerformedSeries)] == ["1.1"]
    assert room.get(DESCRIPTION) == {DESCRIPTION: ("LO", "頭部")}


def test_a_given_up_exam_keeps_its_reason_and_discontinues_its_step(room):
    room.place()
    room.start(room.item())
    room.set(gave_up("110501"))
    (performed,) = rows(PerformedStep)
    assert (performed.status, performed.discontinuation_code, performed.discontinuation_scheme) == (
        "DISCONTINUED", "110501", "DCM",
    )  # fmt: skip
    assert room.steps() == ["DISCONTINUED"]


def test_a_wrong_worklist_entry_puts_the_step_back_where_it_was_and_can_be_found(room):
    """MPP-14"""
    room.place()
    room.start(room.item())
    room.set(gave_up("110514"))
    assert room.steps() == ["SCHEDULED"]
    assert rows(OrderStatus)[0].state == "SCHEDULED"
    assert service.is_wrong_entry(rows(PerformedStep)[0])
    room.start(room.item(), uid="1.2.8")
    assert room.steps() == ["STARTED"]


def test_an_exam_without_an_order_is_taken_and_asks_a_person(room):
    """MPP-16"""
    room.place()
    room.start(scheduled("1.2.3.99"), person="", issuer="")
    assert (room.links(), room.steps(), room.cases()) == ([], ["SCHEDULED"], [("mpps_unscheduled", "amber")])
    room.set(final())
    assert rows(PerformedStep)[0].status == "COMPLETED"


def test_one_report_for_two_orders_moves_both_under_a_study_of_its_own(room):
    """MPP-17"""
    room.place("ACC1")
    room.place("ACC2")
    group = [
        scheduled("1.2.3.77", accession=one, procedure_id=f"R{one}", sps_id=f"S1{one}", original=room.study(one))
        for one in ("ACC1", "ACC2")
    ]
    room.start(*group)
    assert (room.steps(), room.links()) == (["STARTED", "STARTED"], [(1, True), (1, True)])
    assert rows(PerformedStep)[0].study_instance_uid == "1.2.3.77"
    room.set(final())
    assert room.steps() == ["COMPLETED", "COMPLETED"]


def test_a_report_for_more_items_than_any_exam_has_is_refused(room):
    room.settings.limits.list_items_max = 2
    with pytest.raises(InvalidValue) as refused:
        room.start(*[room.item()] * 3)
    assert (refused.value.wire.dimse_n, refused.value.tags) == (0x0106, (rules.SCHEDULED_STEPS,))


def test_a_step_of_two_reports_is_complete_with_the_last_of_them(room):
    room.place()
    room.start(room.item(), uid="1.2.7")
    room.start(room.item(), uid="1.2.8")
    room.set(final(), uid="1.2.7")
    assert room.steps() == ["STARTED"]
    room.set(gave_up("110501"), uid="1.2.8")
    assert room.steps() == ["COMPLETED"]


def test_an_appended_report_leaves_the_step_complete(room):
    room.place()
    room.start(room.item(), uid="1.2.7")
    room.set(final(), uid="1.2.7")
    room.start(room.item(), uid="1.2.8")
    assert (room.steps(), room.links()) == (["COMPLETED"], [(1, True), (1, True)])
    room.set(gave_up("110514"), uid="1.2.8")
    assert room.steps() == ["COMPLETED"]


def test_a_report_about_another_patient_starts_nothing_and_is_a_red_case(room):
    """MPP-21"""
    room.place()
    room.place("ACC2", SATO)
    room.start(room.item("ACC1"), person="0023456")
    assert (room.steps(), room.links()) == (["SCHEDULED", "SCHEDULED"], [(1, False)])
    assert room.cases() == [("mpps_patient_mismatch", "red")]
    room.set(final())
    assert room.steps() == ["SCHEDULED", "SCHEDULED"]


@pytest.mark.parametrize(
    ("person", "issuer", "agrees"),
    [("0012345", "HOSP", True), ("0012345", "", True), ("0012345", "CLINIC", False), ("", "", False),
     ("12345", "HOSP", False)],
)  # fmt: skip
def test_the_patient_is_his_number_with_its_issuer(room, person, issuer, agrees):
    room.place()
    room.start(room.item(), person=person, issuer=issuer)
    assert room.steps() == (["STARTED"] if agrees else ["SCHEDULED"])


def test_a_number_without_issuer_that_two_issuers_know_names_nobody(room):
    room.place()
    room.place("ACC2", PersonCommand((Identifier("0012345", "CLINIC"),), "SATO^HANAKO", "19850315", "F"))
    room.start(room.item("ACC1"), issuer="")
    assert room.cases() == [("mpps_patient_mismatch", "red")]


def test_a_device_may_have_an_issuer_of_its_own_and_the_site_a_width(room):
    room.place()
    room.settings.site.patient_id_issuer = "CLINIC"
    room.settings.site.patient_id_pad_to = 7
    db.run(lambda session: session.add(Node(ae_title="CT1", patient_id_issuer="HOSP")))
    room.start(room.item(), person="12345", issuer="")
    assert room.steps() == ["STARTED"]


def test_a_number_counts_as_it_is_registered_and_as_the_site_pads_it(room):
    room.settings.site.patient_id_pad_to = 10
    short = PersonCommand((Identifier("12345", "HOSP"),), "YAMADA^TARO", "19700101", "M")
    room.place("ACC1", short)
    room.start(room.item("ACC1"), person="12345")
    assert room.steps() == ["STARTED"]
    room.place("ACC2", PersonCommand((Identifier("0000012345", "HOSP"),), "SATO^HANAKO", "19850315", "F"))
    room.start(room.item("ACC2"), uid="1.2.8", person="12345")  # now it means two
    assert room.steps() == ["STARTED", "SCHEDULED"]


def test_a_merged_patient_is_known_by_either_number(room):
    room.place()
    merge = PatientCommand("merge", SATO, Identifier("0012345", "HOSP"), cause="ADT^A40")
    db.run(patients.apply, merge, now=clock.now(), actor="test")
    room.start(room.item(), uid="1.2.7", person="0012345")
    room.start(room.item(), uid="1.2.8", person="0023456")
    assert room.links() == [(1, True), (1, True)]


@pytest.mark.parametrize(
    ("rule", "keys"),
    [
        (1, {"study_uid": "own", "procedure_id": "RACC1", "sps_id": "S1ACC1"}),
        (2, {"study_uid": "1.2.3.66", "procedure_id": "RACC1", "sps_id": "S1ACC1", "accession": "ACC1"}),
        (2, {"study_uid": "1.2.3.66", "procedure_id": "RACC1", "sps_id": "S1ACC1"}),
        (3, {"study_uid": "own", "accession": "ACC1"}),
        (4, {"study_uid": "own"}),
        (4, {"study_uid": "own", "accession": "TYPED"}),
        (5, {"study_uid": "1.2.3.66", "accession": "ACC1"}),
    ],
)
def test_the_first_rule_whose_keys_agree_makes_the_link(room, rule, keys):
    room.place()
    room.start(scheduled(**{**keys, "study_uid": room.study() if keys["study_uid"] == "own" else keys["study_uid"]}))
    assert (room.links(), room.steps()) == ([(rule, True)], ["STARTED"])


@pytest.mark.parametrize(
    "keys",
    [
        {"procedure_id": "RACC1", "sps_id": "S1ACC1", "accession": "OTHER"},
        {"procedure_id": "RACC1"},
        {"sps_id": "S1ACC1"},
        {"accession": "OTHER"},
    ],
)
def test_keys_that_contradict_or_are_too_few_make_no_link(room, keys):
    room.place()
    room.start(scheduled("1.2.3.66", **keys))
    assert (room.links(), room.cases()) == ([], [("mpps_unscheduled", "amber")])


@pytest.mark.parametrize(
    ("rule", "keys", "steps"),
    [
        (3, {"study_uid": "own", "accession": "ACC1", "sps_id": "S2ACC1"}, ["SCHEDULED", "STARTED"]),
        (4, {"study_uid": "own", "sps_id": "S1ACC1"}, ["STARTED", "SCHEDULED"]),
        (4, {"study_uid": "own", "accession": "TYPED", "sps_id": "S1ACC1"}, ["STARTED", "SCHEDULED"]),
        (4, {"study_uid": "own", "procedure_id": "RACC1"}, ["STARTED", "STARTED"]),
        (5, {"study_uid": "1.2.3.66", "accession": "ACC1", "sps_id": "S2ACC1"}, ["SCHEDULED", "STARTED"]),
    ],
)
def test_an_id_that_stands_alone_narrows_the_rules_without_it(room, rule, keys, steps):
    room.place(steps=("CT", "CT"))
    room.start(own(room, keys))
    assert ({rule for rule, _ in room.links()}, room.steps(), room.cases()) == ({rule}, steps, [])


@pytest.mark.parametrize(
    "keys",
    [
        {"study_uid": "own", "sps_id": "AUTO1"},
        {"study_uid": "own", "procedure_id": "OTHER"},
        {"study_uid": "own", "procedure_id": "OTHER", "sps_id": "S1ACC1"},
        {"study_uid": "own", "accession": "ACC1", "procedure_id": "RACC1", "sps_id": "AUTO1"},
        {"study_uid": "own", "accession": "ACC2"},
        {"study_uid": "own", "accession": "ACC2", "procedure_id": "RACC1", "sps_id": "S1ACC1"},
        {"study_uid": "own", "procedure_id": "RACC2", "sps_id": "S1ACC2"},
        {"study_uid": "own", "accession": "ACC2", "sps_id": "S1ACC2"},
        {"study_uid": "1.2.3.66", "accession": "ACC1", "sps_id": "AUTO1"},
        {"study_uid": "1.2.3.66", "accession": "ACC1", "procedure_id": "OTHER"},
    ],
)
def test_what_the_device_states_holds_for_the_step_or_there_is_none(room, keys):
    room.place(steps=("CT", "CT"))
    room.place("ACC2")
    room.start(own(room, keys))
    assert (room.links(), room.steps()) == ([], ["SCHEDULED"] * 3)
    assert room.cases() == [("mpps_unscheduled", "amber")]


def own(room: Room, keys: dict[str, str]) -> Tree:
    return scheduled(**{**keys, "study_uid": room.study() if keys["study_uid"] == "own" else keys["study_uid"]})


@pytest.mark.parametrize("keys", [{"procedure_id": "RACC2", "sps_id": "S1ACC2"}, {"accession": "ACC2"}])
def test_the_items_of_a_group_may_share_the_study_of_the_first(room, keys):
    room.place("ACC1")
    room.place("ACC2")
    room.start(room.item("ACC1"), scheduled(room.study("ACC1"), **keys))
    assert (room.steps(), room.cases()) == (["STARTED", "STARTED"], [])


def test_an_id_that_two_steps_have_names_neither(room):
    room.place("ACC1")
    both = ProcedureCommand(
        requested_procedure_id="R2", study_instance_uid="1.2.3.88",
        steps=(StepCommand("S1ACC1", "CT", ("CT1",), "20351201", "093000", "plain"),),
    )  # fmt: skip
    db.run(
        orders.apply, OrderCommand("NW", "ACC1", "RIS", "ROUTINE", YAMADA, (both,), at=clock.now()), now=clock.now(),
        actor="test", site=room.settings.site,
    )  # fmt: skip
    room.start(scheduled("1.2.3.66", accession="ACC1", sps_id="S1ACC1"))
    assert (room.links(), room.steps()) == ([], ["SCHEDULED", "SCHEDULED"])


@pytest.mark.parametrize(
    ("steps", "modality", "started"),
    [
        (("CT", "MR"), "CT", ["STARTED", "SCHEDULED"]),
        (("CT", "MR"), "US", ["SCHEDULED", "SCHEDULED"]),
        (("CR", "CR"), "DX", ["STARTED", "STARTED"]),
        (("CR",), "DX", ["STARTED"]),
    ],
)
def test_a_study_without_an_sps_id_means_what_its_kind_of_machine_makes(room, steps, modality, started):
    room.place(steps=steps)
    room.start(scheduled(room.study()), t00080060=("CS", modality))
    assert room.steps() == started


def test_an_accession_number_alone_is_no_link_for_another_patient(room):
    room.place()
    room.place("ACC2", SATO)
    room.start(scheduled("1.2.3.66", accession="ACC1"), person="0023456")
    assert room.links() == []


def test_a_report_for_a_cancelled_step_starts_nothing_and_asks_a_person(room):
    room.place()
    room.place(control="CA")
    room.start(room.item())
    assert (room.steps(), room.links(), room.cases()) == (["CANCELED"], [(1, False)], [("mpps_closed_step", "amber")])


def test_a_repeated_final_report_is_refused_and_moves_nothing_twice(room):
    """MPP-26"""
    room.place()
    room.start(room.item())
    room.set(final())
    with pytest.raises(WrongState):
        room.set(final())
    assert [e.detail["event"] for e in rows(AuditEvent) if e.action == "step.change"] == ["start", "complete"]


def test_a_site_may_take_a_repeated_final_report_for_success(room):
    """MPP-26"""
    room.settings.mpps.final_retry_ok = True
    room.place()
    room.start(room.item())
    room.set(final())
    before = len(rows(AuditEvent))
    assert room.set(final()) == ()
    assert len(rows(AuditEvent)) == before
    with pytest.raises(WrongState):
        room.set(final(), digest="d2")


def test_a_report_about_nothing_known_is_refused(room):
    with pytest.raises(UnknownKey) as refused:
        room.set(final())
    assert refused.value.wire.dimse_n == 0x0112
    with pytest.raises(UnknownKey):
        room.get()


def test_parts_of_one_step_that_end_at_once_complete_it(room):
    room.place()
    uids = [f"1.2.7.{n}" for n in range(4)]
    for uid in uids:
        room.start(room.item(), uid=uid)
    gate = threading.Barrier(len(uids))

    def end(uid: str) -> None:
        gate.wait()
        room.set(final(), uid=uid)

    with ThreadPoolExecutor(len(uids)) as pool:
        for one in [pool.submit(end, uid) for uid in uids]:
            one.result()
    assert room.steps() == ["COMPLETED"]


def test_of_two_last_words_at_once_one_counts(room):
    room.place()
    room.start(room.item())
    gate = threading.Barrier(2)

    def end(said: Tree, digest: str) -> str:
        gate.wait()
        try:
            room.set(said, digest=digest)
        except WrongState as error:
            return type(error).__name__
        return "done"

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(end, final(), "d1"), pool.submit(end, gave_up(), "d2")]
    assert sorted(one.result() for one in answers) == ["WrongState", "done"]
    assert room.steps() == [rows(PerformedStep)[0].status]
    assert [e.detail["event"] for e in rows(AuditEvent) if e.action == "step.change"][1:] == [
        "complete" if room.steps() == ["COMPLETED"] else "discontinue"
    ]


@pytest.mark.parametrize("_turn", range(5))
def test_a_cancel_that_comes_with_the_first_report_is_before_it_or_after_it(room, _turn):
    room.place(steps=("CT", "CT"))
    gate = threading.Barrier(2)

    def begin() -> None:
        gate.wait()
        room.start(room.item("ACC1", 1), room.item("ACC1", 2))

    def cancel() -> None:
        gate.wait()
        room.place(steps=("CT", "CT"), control="CA")

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(begin), pool.submit(cancel)]:
            one.result()
    began = room.cases() == [("late_cancel", "amber")]
    assert room.steps() == (["STARTED"] * 2 if began else ["CANCELED"] * 2)
    assert room.links() == [(1, began)] * 2
    assert began or room.cases() == [("mpps_closed_step", "amber")]


@pytest.mark.parametrize("_turn", range(3))
@pytest.mark.parametrize("keys", [{"study_uid": "own"}, {"study_uid": "1.2.3.66", "accession": "ACC1"}])
def test_a_merge_that_comes_with_the_first_report_takes_nothing_from_it(room, keys, _turn):
    room.place()
    room.place("ACC2", SATO)
    gate = threading.Barrier(2)

    def begin() -> None:
        gate.wait()
        room.start(own(room, keys))

    def merge() -> None:
        gate.wait()
        command = PatientCommand("merge", SATO, Identifier("0012345", "HOSP"), cause="ADT^A40")
        db.run(patients.apply, command, now=clock.now(), actor="test")

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(begin), pool.submit(merge)]:
            one.result()
    room.set(final())
    assert (room.steps(), room.cases()) == (["COMPLETED", "SCHEDULED"], [])


def test_a_report_of_another_machine_changes_nothing(room):
    """Only the modality moves its performed step (conformance.md 2.2)."""
    room.place()
    room.start(room.item())
    with pytest.raises(NotAllowed) as refused:
        room.set(final(), ae="CT2")
    assert refused.value.wire.dimse_n == 0x0124
    assert (rows(PerformedStep)[0].status, room.steps()) == ("IN PROGRESS", ["STARTED"])


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"device": "room 1"}, {"device": "room 1", "host": "10.0.0.2"}, True),
        ({"device": "room 1"}, {"device": "room 2"}, False),
        ({}, {}, True),
        ({}, {"host": "10.0.0.2"}, False),
        ({"station_names": ["CTA", "CTB"]}, {"host": "10.0.0.2", "station_names": ["CTB"]}, True),
        ({"host": ""}, {"host": ""}, False),
    ],
)
def test_ae_titles_that_the_site_groups_are_one_machine(room, first, second, same):
    """Named as one device; else by host or station name (reconciliation.md 3.3)."""

    def known(session: Session) -> None:
        session.add(Node(ae_title="CT1", **{"host": "10.0.0.1", **first}))
        session.add(Node(ae_title="CT1B", **{"host": "10.0.0.1", **second}))

    db.run(known)
    room.place()
    room.start(room.item())
    if same:
        room.set(final(), ae="CT1B")
    else:
        with pytest.raises(NotAllowed):
            room.set(final(), ae="CT1B")
    assert room.steps() == ["COMPLETED" if same else "STARTED"]


def test_a_step_that_comes_back_to_the_worklist_shows_what_is_known_now(room):
    room.place()

    def expire(session: Session) -> None:
        step = session.exec(select(ScheduledStep)).one()
        orders.move_step(session, step, "expire", now=clock.now(), actor="test", cause="test")

    db.run(expire)
    renamed = PersonCommand((Identifier("0012345", "HOSP"),), "SUZUKI^TARO", "19700101", "M")
    db.run(patients.apply, PatientCommand("update", renamed, cause="ADT^A08"), now=clock.now(), actor="test")
    room.start(room.item())
    room.set(gave_up("110514"))
    (step,) = rows(ScheduledStep)
    assert step.status == "SCHEDULED"
    assert b"SUZUKI^TARO" in step.dataset


def test_what_was_taken_can_be_read_again_though_it_has_grown(room):
    """An absent type 2 attribute is stored as an empty one: more elements than the device may send."""
    room.place()
    room.settings.limits.mpps_elements_max = 10
    room.start(room.item())
    room.set(final())
    assert room.steps() == ["COMPLETED"]


def test_items_with_a_character_set_of_their_own_are_stored_together(room):
    """MPP-19"""
    kanji = "頭".encode("iso2022_jp")
    data = tree.write(
        {tree.CHARSET: ("CS", "ISO_IR 100"), DESCRIPTION: ("LO", "Schädel"),
         rules.PERFORMED_SERIES: ("SQ", [{tree.CHARSET: ("CS", "\\ISO 2022 IR 87")} | series()])},
        EXPLICIT_LE, ("ISO_IR 100",),
    ).replace(b"ROUTINE ", kanji)  # fmt: skip
    room.place()
    room.start(room.item())
    room.set(service.read(data, EXPLICIT_LE, room.settings))
    (one,) = rules.items(room.get(), rules.PERFORMED_SERIES)
    assert (room.get(DESCRIPTION)[DESCRIPTION][1], one[PROTOCOL_NAME][1]) == ("Schädel", "頭")
    assert tree.CHARSET not in one


def test_attributes_that_no_table_knows_are_kept_from_both_reports(room):
    room.place()
    room.start(room.item(), t00091001=("LO", "private"))
    room.set({0x00181130: ("DS", "123"), 0x00400340: ("SQ", [series() | {0x0040A494: ("CS", "YES")}])})
    found = room.get()
    assert (found[0x00091001], found[0x00181130]) == (("LO", "private"), ("DS", "123"))
    assert rules.items(found, rules.PERFORMED_SERIES)[0][0x0040A494] == ("CS", "YES")
