"""No study changes its patient unseen, and every merge can be taken back: random ADT while orders and studies exist.

`make safety CASES=n` for the long form (durability.md, F5)."""

import datetime as dt
import random

import pytest
from sqlalchemy import func
from sqlmodel import Session, select

from broker import clock, db
from broker.errors import BrokerError
from broker.model.images import ReconciliationCase, Study, StudyOrder
from broker.model.orders import ImagingOrder, ScheduledStep
from broker.model.patients import Patient, PatientIdentifier, PatientMerge
from broker.model.work import AuditEvent
from broker.mwl import merges, patients
from broker.mwl.commands import PatientCommand, PersonCommand
from tests.service.test_merges import DUMPED, T0, _link, _order, _study, hosp

CASES_EACH = 1_000  # of --cases, for one sequence
STEPS = 30
NUMBERS = "ABCDEF"
NAMES = ("YAMADA^TARO", "SATO^HANAKO", "", None)
EVENTS = ("update", "merge", "merge", "move", "change_id")
WEIGHTS = {"adt": 6, "order": 3, "study": 3, "group": 1, "undo": 3}


class Enough(Exception):
    """Nothing of a sequence is kept."""


class Sequence:
    """One random life of a few patients, in a transaction that is rolled back."""

    def __init__(self, session: Session, chance: random.Random) -> None:
        self.session, self.chance, self.done = session, chance, []
        self.orders = self.undone = 0

    def run(self) -> None:
        for _ in range(STEPS):
            (what,) = self.chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
            before, audited = self.owners(), self.audited()
            try:
                with self.session.begin_nested():
                    getattr(self, what)()
            except BrokerError as error:
                self.done.append(f"  refused: {error}")
                assert self.owners() == before, self.done
            self.check(before, audited)
        self.take_all_back()

    # what happens

    def adt(self) -> None:
        command = self.command()
        said, at = command.patient, command.at and (command.at - T0) // dt.timedelta(hours=1)
        self.say(
            command.event, [one.value for one in said.identifiers], command.prior and command.prior.value, "at", at,
            said.name, said.birth_date, said.sex,
        )  # fmt: skip
        made, before = self.merges(), self.dump()
        patients.apply(self.session, command, now=clock.now(), actor="test")
        new = [pk for pk in self.merges() if pk not in made]
        if new and self.chance.random() < 0.5:
            self.undo(new[0])
            self.same_rows(before)
            again = PatientCommand(command.event, command.patient, command.prior, None, command.cause)
            patients.apply(self.session, again, now=clock.now(), actor="test")

    def command(self) -> PatientCommand:
        event = self.chance.choice(EVENTS)
        numbers = self.chance.sample(NUMBERS, 3)
        own = numbers[: self.chance.choice((1, 1, 2))]
        at = T0 + dt.timedelta(hours=self.chance.randrange(50)) if self.chance.random() < 0.7 else None
        person = PersonCommand(
            tuple(hosp(one) for one in own), self.chance.choice(NAMES),
            self.chance.choice(("19700101", "", None)), self.chance.choice(("M", "F", None)),
        )  # fmt: skip
        return PatientCommand(event, person, hosp(numbers[-1]) if event != "update" else None, at, "ADT^A99")

    def order(self) -> None:
        self.orders += 1
        number = self.chance.choice(NUMBERS)
        self.say("order", number, _order(self.session, hosp(number), f"ACC{self.orders}"))

    def study(self) -> None:
        known = self.session.exec(select(ImagingOrder.pk)).all()
        numbers = self.session.exec(select(PatientIdentifier.value)).all()
        if known and self.chance.random() < 0.7:
            order_pk = self.chance.choice(known)
            self.say("study of order", order_pk, _study(self.session, order_pk, hosp("?"), ""))
        elif numbers:
            number = self.chance.choice(numbers)
            self.say("study", number, _study(self.session, None, hosp(number), self.chance.choice(("", "HOSP"))))

    def group(self) -> None:
        """A study that answers a second order of the same patient."""
        linked = self.session.exec(select(StudyOrder.study_pk, StudyOrder.order_pk)).all()
        if not linked:
            return
        study_pk, order_pk = self.chance.choice(linked)
        patient_pk = self.session.get_one(ImagingOrder, order_pk).patient_pk
        others = self.session.exec(select(ImagingOrder.pk).where(ImagingOrder.patient_pk == patient_pk)).all()
        other = self.chance.choice(others)
        if (study_pk, other) not in linked and self.session.get_one(Study, study_pk).patient_pk == patient_pk:
            self.say("study", study_pk, "of order", other, "too")
            _link(self.session, study_pk, other)

    def undo(self, pk: int | None = None) -> None:
        known = self.merges()
        if pk is None and known:
            pk = self.chance.choice(known)
        if pk is not None:
            self.say("undo", pk)
            merges.undo(self.session, pk, now=clock.now(), actor="qc", reason="a mistake")
            self.undone += 1

    def say(self, *what: object) -> None:
        self.done.append(" ".join(map(str, what)))

    # what holds

    def check(self, before: dict[int, int], audited: int) -> None:
        living = set(self.session.exec(select(Patient.pk).where(Patient.merged_into.is_(None))).all())
        owners = {table: self.owners(table) for table in (PatientIdentifier, ImagingOrder, Study)}
        for table, rows in owners.items():
            assert set(rows.values()) <= living, (table.__tablename__, self.done)
        moves = [
            (subject, detail["before"], detail["after"])
            for subject, detail in self.session.exec(
                select(AuditEvent.subject, AuditEvent.detail)
                .where(AuditEvent.pk > audited, AuditEvent.action == "study.move")
                .order_by(AuditEvent.pk)
            )
        ]
        for pk, owner in owners[Study].items():
            at = before.get(pk, owner)
            for subject, old, new in moves:
                if subject == f"study:{pk}":
                    assert at == old, ("a move from elsewhere", pk, self.done)
                    at = new
            assert at == owner, ("a study moved unseen", pk, self.done)
        asked = set(self.session.exec(select(ReconciliationCase.subject)).all())
        for study_pk, order_pk in self.session.exec(select(StudyOrder.study_pk, StudyOrder.order_pk)):
            same = owners[Study][study_pk] == owners[ImagingOrder][order_pk]
            assert same or f"study:{study_pk}" in asked, ("a study of two patients", study_pk, self.done)
        for order_pk, number_pk in self.session.exec(select(ImagingOrder.pk, ImagingOrder.identifier_pk)):
            same = owners[PatientIdentifier][number_pk] == owners[ImagingOrder][order_pk]
            assert same, ("an order without its number", order_pk, self.done)

    def take_all_back(self) -> None:
        """Newest first nothing stands in the way, and then every order is where its number first was."""
        for pk in reversed(self.merges()):
            before, audited = self.owners(), self.audited()
            merges.undo(self.session, pk, now=clock.now(), actor="qc")
            self.say("undo", pk)
            self.check(before, audited)
        assert set(self.session.exec(select(Patient.merged_into)).all()) <= {None}, self.done
        assert not any(self.session.exec(select(PatientIdentifier.retired)).all()), self.done

    def same_rows(self, before: dict[str, dict[int, tuple]]) -> None:
        """Every row that was there before is what it was; of what the message made new, nothing lives under an old key."""
        self.session.flush()
        after = self.dump()
        for table, rows in before.items():
            kept = {pk: row for pk, row in after[table].items() if pk in rows}
            assert kept == rows, (table, self.done)

    # reading

    def dump(self) -> dict[str, dict[int, tuple]]:
        self.session.flush()
        return {
            table.__tablename__: {
                row[0]: tuple(row[1:])
                for row in self.session.execute(select(table.pk, *(getattr(table, name) for name in names)))
            }
            for table, names in DUMPED.items()
            if table is not ScheduledStep
        }

    def owners(self, table=Study) -> dict[int, int]:
        self.session.flush()
        return dict(self.session.exec(select(table.pk, table.patient_pk)).all())

    def audited(self) -> int:
        return self.session.exec(select(func.max(AuditEvent.pk))).one() or 0

    def merges(self) -> list[int]:
        query = select(PatientMerge.pk).where(PatientMerge.undone_at.is_(None)).order_by(PatientMerge.pk)
        return list(self.session.exec(query).all())


@pytest.mark.timeout(0)
def test_random_adt_moves_no_study_unseen_and_every_merge_can_be_taken_back(database, request):
    seed = request.config.getoption("--seed") or random.randrange(2**32)
    undone = 0
    for number in range(max(1, request.config.getoption("--cases") // CASES_EACH)):
        with pytest.raises(Enough) as done, db.unhurried():
            db.run(live, seed + number)
        undone += done.value.args[0]
    assert undone, "something was taken back"


def live(session: Session, seed: int) -> None:
    life = Sequence(session, random.Random(seed))
    try:
        life.run()
    except Exception as error:
        raise AssertionError(f"--seed {seed}: {error!r}\n" + "\n".join(life.done)) from error
    raise Enough(life.undone)
