"""What PatientMerge rows say: what was moved, who had an identifier when, and which of two events holds."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlmodel import Session, col, select

from broker import clock
from broker.errors import UnknownKey
from broker.model.patients import PatientIdentifier, PatientMerge
from broker.mwl import identity
from broker.mwl.commands import Identifier, PatientCommand

COLUMNS = ("patient_pk", "value", "issuer", "type", "retired")  # of an identifier


@dataclass
class Moved:
    """PatientMerge.moved. prior, current: [value, issuer], as the event names them. named: keys of these two rows.
    identifiers: rows as they were before. made: [key, key of the one it stands beside, or None] of identifiers that
    nobody had before. orders, studies: keys of what was the prior's. own: keys of the survivor's studies that no order
    ties to it. cases: keys of those that it answered. whole: the prior leads to the survivor now. of: whose record the
    event told something new (the survivor's, or of who had the number when it happened). record: column of that ->
    [before, after]."""

    prior: list[str]
    current: list[str]
    named: list[int] = field(default_factory=list)
    identifiers: list[dict[str, Any]] = field(default_factory=list)
    made: list[list[int | None]] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)
    studies: list[int] = field(default_factory=list)
    own: list[int] = field(default_factory=list)
    cases: list[int] = field(default_factory=list)
    whole: bool = False
    of: int | None = None
    record: dict[str, list[Any]] = field(default_factory=dict)

    def keep(self, row: PatientIdentifier) -> None:
        if row.key not in self.touched:
            self.identifiers.append({"pk": row.key, **{name: getattr(row, name) for name in COLUMNS}})

    @property
    def touched(self) -> set[int | None]:
        """Identifiers that are not what they were."""
        return {one["pk"] for one in self.identifiers} | {made for made, _ in self.made}


def touched(merge: PatientMerge) -> set[int]:
    return {one["pk"] for one in merge.moved["identifiers"]} | {made for made, _ in merge.moved["made"]}


# Which event holds


def events(session: Session, patient_pk: int) -> Sequence[PatientMerge]:
    """That brought something to this patient and were not taken back, the newest first."""
    return session.exec(
        select(PatientMerge)
        .where(PatientMerge.patient_pk == patient_pk, col(PatientMerge.undone_at).is_(None))
        .order_by(col(PatientMerge.pk).desc())
    ).all()


def is_settled(session: Session, row: PatientIdentifier, at: dt.datetime | None) -> bool:
    """Whether a newer event than that has said already what becomes of it."""
    return at is not None and any(
        one.happened_at and one.happened_at > at and row.key in {*one.moved["named"], *touched(one)}
        for one in events(session, row.patient_pk)
    )


def was_taken_back(session: Session, command: PatientCommand) -> bool:
    """By a person, and this is the same event once more, or an older one: it does not come back silently."""
    if command.at is None or command.prior is None:
        return False
    undone = session.exec(
        select(PatientMerge.moved)
        .where(PatientMerge.event == command.event, col(PatientMerge.happened_at) >= command.at)
        .where(col(PatientMerge.undone_at).is_not(None))
    ).all()
    pair = [[one.value, one.issuer] for one in (command.prior, command.patient.identifiers[0])]
    return any([moved["prior"], moved["current"]] == pair for moved in undone)


def owner_at(session: Session, row: PatientIdentifier, at: dt.datetime) -> int | None:
    """Who had the identifier then: what was said of the prior before the merge is not about the survivor. None:
    nobody."""
    owner, before = row.patient_pk, None
    while True:
        found = next(
            (one for one in events(session, owner)
             if row.key in touched(one) and (before is None or one.key < before)), None,
        )  # fmt: skip
        if found is None or found.happened_at is None or at >= found.happened_at:
            return owner
        images = {one["pk"]: one["patient_pk"] for one in found.moved["identifiers"]}
        if row.key not in images and dict(found.moved["made"]).get(row.key) is None:
            return None
        owner, before = images.get(row.key, owner), found.key


def owner_then(session: Session, named: Identifier, at: dt.datetime | None) -> int | None:
    """Of whom a message of that time speaks; None: of somebody nobody knew, or it says no time."""
    row = identity.row(session, named.value, named.issuer)
    return owner_at(session, row, at) if row is not None and at is not None else None


# Reads


def listing(session: Session, limit: int = 100, before: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
    """The newest first, and the key to go on from."""
    query = select(PatientMerge).order_by(col(PatientMerge.pk).desc())
    if before is not None:
        query = query.where(col(PatientMerge.pk) < before)
    rows = session.exec(query.limit(limit + 1)).all()
    return [_document(row) for row in rows[:limit]], rows[limit - 1].key if len(rows) > limit else None


def get(session: Session, merge_pk: int) -> dict[str, Any]:
    row = session.get(PatientMerge, merge_pk)
    if row is None:
        raise UnknownKey("merge", "no such merge")
    return _document(row)


def _document(merge: PatientMerge) -> dict[str, Any]:
    """Keys and identifiers; no name and no birth date."""
    prior, current = (dict(zip(("id", "issuer"), merge.moved[name], strict=True)) for name in ("prior", "current"))
    return {
        "id": merge.key,
        "event": merge.event,
        "cause": merge.cause,
        "prior": prior,
        "current": current,
        "orders": merge.moved["orders"],
        "studies": len(merge.moved["studies"]),
        "happened_at": clock.iso(merge.happened_at) if merge.happened_at else None,
        "undone_at": clock.iso(merge.undone_at) if merge.undone_at else None,
        "undone_by": merge.undone_by or None,
    }
