"""Any stream of order messages ends alike, in whatever order and however often they come.

Legal lives of one to three orders are invented; they arrive once in the order of their times, and once shuffled with
repetitions, and the rows must mean the same. What is refused because its order is not known yet (204) is sent again,
as its sender does. `make safety CASES=n` for the long form."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from sqlmodel import col, select

from broker import clock, db
from broker.archive import status
from broker.config import Site
from broker.errors import DuplicateKey, UnknownKey
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStation, ScheduledStep
from broker.model.patients import PatientIdentifier
from broker.model.status import OrderStatus
from broker.mwl import items, orders
from broker.mwl.commands import (
    PRIORITIES,
    Identifier,
    OrderCommand,
    PersonCommand,
    ProcedureCommand,
    StepCommand,
)
from tests.service.test_order_control import minute

CASES_PER_STREAM = 300  # it costs as much as so many studies of the other safety test
WORLDS = itertools.count(1)
PEOPLE = (("1", "YAMADA^TARO", "M"), ("2", "SATO^HANAKO", "F"))
TIMES = st.sampled_from(("080000", "093000", "110000", "153000"))
MAYBE = st.booleans()


class Life:
    """One order: its numbers, and its messages so far, each a minute after the last. gone: its steps that were
    cancelled, of which no legal message speaks again."""

    def __init__(self, draw: Any, clock_: Any, number: int, placer: str) -> None:
        self.draw, self.clock, self.number, self.placer = draw, clock_, number, placer
        self.person = draw(st.sampled_from(PEOPLE)) if placer != "P" else PEOPLE[0]
        self.states_uids = draw(MAYBE)
        self.steps: list[tuple[str, str]] = []
        self.gone: set[tuple[str, str]] = set()
        self.messages: list[OrderCommand] = []
        self.held = self.ended = False

    def say(self, control: str, *steps: tuple[str, str], detail: bool = False, **more: Any) -> OrderCommand:
        """Of these steps, or of the whole order. detail: with fields."""
        names = dict.fromkeys(procedure for procedure, _ in steps)
        procedures = tuple(
            self._procedure(name, [step for procedure, step in steps if procedure == name], detail) for name in names
        )
        value, name, sex = self.person
        made = OrderCommand(
            control, f"A{self.number}", "RIS", patient=PersonCommand((Identifier(value, "HOSP"),), name, None, sex),
            procedures=procedures, at=minute(next(self.clock)), place="ORC^1^2", **more,
        )  # fmt: skip
        self.messages.append(made)
        return made

    def _procedure(self, name: str, steps: Sequence[str], detail: bool) -> ProcedureCommand:
        made = tuple(self._step(step, detail) for step in steps)
        uid = f"{self.number}.{name[-1]}" if self.states_uids else ""
        procedure = ProcedureCommand(name, uid, self.placer, "HIS", f"F{self.number}{name}", "RIS", steps=made)
        return replace(procedure, **self._some(description=st.text("xy", max_size=1), code_value=st.just("C1"))) if (
            detail
        ) else procedure  # fmt: skip

    def _step(self, name: str, detail: bool) -> StepCommand:
        if not detail:
            return StepCommand(name)
        fields = self._some(
            start_time=TIMES, start_date=st.sampled_from(("20350705", "20350706")), modality=st.just("CT"),
            description=st.text("xy", max_size=1), station_ae_titles=st.sampled_from((("CT1",), ("CT2", "CT1"), ())),
            attributes=st.fixed_dictionaries({"ScheduledStationName": st.sampled_from((None, "", "one", "two"))}),
        )  # fmt: skip
        return StepCommand(name, **fields)

    def _some(self, **fields: Any) -> dict[str, Any]:
        return {name: self.draw(values) for name, values in fields.items() if self.draw(MAYBE)}

    def _more(self) -> dict[str, Any]:
        return self._some(
            priority=st.sampled_from(PRIORITIES),
            attributes=st.fixed_dictionaries({"RequestingService": st.sampled_from((None, "", "a", "b"))}),
        )

    def new(self, **more: Any) -> None:
        """In one or two groups, each its own message."""
        for group in range(self.draw(st.integers(1, 2))):
            steps = [(f"RP{group}", f"S{n}") for n in range(self.draw(st.integers(1, 2)))]
            self.steps += steps
            self.say("NW", *steps, detail=True, begun=self.draw(MAYBE), **self._more(), **more)

    def some_steps(self) -> list[tuple[str, str]]:
        """A part of it; none is the whole order."""
        left = [step for step in self.steps if step not in self.gone]
        return self.draw(st.lists(st.sampled_from(left), unique=True, max_size=3))

    def go_on(self) -> None:
        kind = self.draw(st.sampled_from(("XO", "XO", "add", "HD", "RL", "SC", "CA", "note")))
        steps = self.some_steps()
        if kind == "XO":
            status_code = self.draw(st.sampled_from(("", "SC", "IP")))
            self.say("XO", *steps, detail=True, status=status_code, **self._more())
        elif kind == "add":
            step = self.draw(st.sampled_from((("RP0", "S8"), ("RP8", "S0"), ("RP8", "S1"))))
            self.steps = list(dict.fromkeys((*self.steps, step)))
            if step not in self.gone:
                self.say("XO", step, detail=True)
        elif kind == "HD":
            self.say("HD", *steps)
            self.held = True
        elif kind == "RL" and self.held:
            self.say("RL")
            self.held = False
        elif kind == "SC":
            self.say("SC", *steps, status=self.draw(st.sampled_from(("IP", "HD", "A", ""))))
            self.held |= self.messages[-1].status == "HD"
        elif kind == "CA" and steps and len(self.gone | set(steps)) < len(self.steps):
            self.say(self.draw(st.sampled_from(("CA", "DC"))), *steps)
            self.gone |= set(steps)
        elif kind == "note":
            self.say("note")

    def end(self) -> None:
        ends = (("CA",), ("DC",), ("no_show",), ("no_show", "CA"), ("CM",), ())
        for control in self.draw(st.sampled_from(ends)):
            if control == "CM":
                self.say("SC", *(step for step in self.steps if step not in self.gone), status="CM")
            else:
                self.say(control)
            self.ended = True


@st.composite
def streams(draw: Any) -> list[OrderCommand]:
    """In the order of their times."""
    times = itertools.count()
    shared = draw(MAYBE)  # one request, split into several orders of one patient
    lives = [Life(draw, times, n, "P" if shared else f"P{n}") for n in range(draw(st.integers(1, 2)))]
    for life in lives:
        life.new()
    for _ in range(draw(st.integers(1, 6))):
        draw(st.sampled_from(lives)).go_on()
    if draw(MAYBE):
        old, number = lives[0], len(lives)
        heir = Life(draw, times, number, "P" if shared else f"P{number}")
        heir.person = old.person
        named = OrderCommand("CA", f"A{old.number}", "RIS")
        heir.new(replaces=(named,))
        old.ended = True
        lives.append(heir)
        heir.go_on()
    for life in lives:
        if not life.ended:
            life.end()
    return sorted((one for life in lives for one in life.messages), key=lambda one: one.at)


@st.composite
def deliveries(draw: Any) -> tuple[list[OrderCommand], list[OrderCommand]]:
    """A stream in order, and as it comes."""
    stream = draw(streams())
    again = draw(st.lists(st.sampled_from(stream), max_size=4))
    return stream, draw(st.permutations([*stream, *again]))


# The world


def in_world(one: OrderCommand, world: int) -> OrderCommand:
    """The same with numbers of its own: so that one database serves all."""

    def procedure(known: ProcedureCommand) -> ProcedureCommand:
        uid = f"1.2.{world}.{known.study_instance_uid}" if known.study_instance_uid else ""
        placer, filler = f"{world}-{known.placer_number}", f"{world}-{known.filler_number}"
        return replace(known, study_instance_uid=uid, placer_number=placer, filler_number=filler)

    person = one.patient and replace(
        one.patient, identifiers=tuple(Identifier(f"{world}-{i.value}", i.issuer) for i in one.patient.identifiers)
    )
    return replace(
        one, accession_number=f"{world}-{one.accession_number}", patient=person,
        procedures=tuple(map(procedure, one.procedures)),
        replaces=tuple(in_world(old, world) for old in one.replaces),
    )  # fmt: skip


def deliver(stream: Sequence[OrderCommand], world: int) -> dict[str, Any]:
    """What it comes to. A message that is refused with 204 is sent again when the others are through."""
    left = [in_world(one, world) for one in stream]
    shared = any(procedure.placer_number == "P" for one in stream for procedure in one.procedures)
    too_early = (UnknownKey, DuplicateKey) if shared else UnknownKey  # its placer number names the other order
    while left:
        refused = []
        for one in left:
            try:
                db.run(orders.carry_out, one, now=clock.now(), actor="test", site=Site())
            except too_early:
                refused.append(one)
        assert len(refused) < len(left), f"refused for ever: {refused[0]}"
        left = refused
    return db.read(meaning, world)


def meaning(session: Any, world: int) -> dict[str, Any]:
    """All that the rows of a world say: no keys, no versions, no times of arrival."""
    prefix = f"{world}-"
    found = session.exec(select(ImagingOrder).where(col(ImagingOrder.accession_number).startswith(prefix))).all()
    names = {order.key: order.accession_number.removeprefix(prefix) for order in found}
    return {names[order.key]: _order(session, order, names, prefix) for order in found}


def _order(session: Any, order: ImagingOrder, names: dict[int, str], prefix: str) -> dict[str, Any]:
    person = session.get_one(PatientIdentifier, order.identifier_pk)
    state = session.exec(select(OrderStatus.state).where(OrderStatus.order_pk == order.pk)).one()
    parts = session.exec(
        select(RequestedProcedure, ScheduledStep)
        .where(RequestedProcedure.pk == ScheduledStep.requested_procedure_pk, ScheduledStep.order_pk == order.pk)
        .order_by(col(RequestedProcedure.requested_procedure_id), col(ScheduledStep.sps_id))
    ).all()
    return {
        "patient": (order.patient_pk == person.patient_pk, person.value.removeprefix(prefix)), "state": state,
        "priority": order.priority, "attributes": order.attributes, "withheld": order.withheld,
        "replaces": names.get(order.replaces_pk), "last": order.last_event_at,
        "steps": [(_fields(procedure, prefix), _fields(step, prefix), _stations(session, step),
                   _item(step)) for procedure, step in parts],
    }  # fmt: skip


def _stations(session: Any, step: ScheduledStep) -> list[str]:
    query = select(ScheduledStation.ae_title).where(ScheduledStation.step_pk == step.pk)
    return list(session.exec(query.order_by(col(ScheduledStation.pk))))


def _item(step: ScheduledStep) -> bool | None:
    """Whether a device is offered it; what it holds is in the fields."""
    return step.offerable if step.status in items.LIVE else None


FIELDS = (
    "requested_procedure_id", "placer_number", "filler_number", "description", "code_value", "attributes", "sps_id",
    "status", "modality", "start_date", "start_time",
)  # fmt: skip


def _fields(row: Any, prefix: str) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in FIELDS if hasattr(row, name)}
    return {name: value.removeprefix(prefix) if isinstance(value, str) else value for name, value in values.items()}


@pytest.mark.timeout(3_600)  # as many as are asked for
@pytest.mark.parametrize("premises", ["sqlite"], indirect=True, scope="session")  # the rows are what it is about
def test_a_stream_ends_alike_in_whatever_order_and_however_often_it_comes(request, database):
    db.on_finish(status.publish)
    cases, seed = request.config.getoption("--cases"), request.config.getoption("--seed")

    @hypothesis.given(deliveries())
    @hypothesis.settings(
        max_examples=max(10, cases // CASES_PER_STREAM), deadline=None, database=None,
        phases=[hypothesis.Phase.generate],  # to shrink one takes minutes
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    def ends_alike(delivery: tuple[list[OrderCommand], list[OrderCommand]]) -> None:
        stream, shuffled = delivery
        expected = deliver(stream, next(WORLDS))
        assert deliver(shuffled, next(WORLDS)) == expected

    (hypothesis.seed(seed)(ends_alike) if seed else ends_alike)()
