"""Who a patient is: identifiers, the merge chain, what was known before."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from broker import db
from broker.config import Site
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.mwl import normalise
from broker.mwl.commands import Identifier

FIELDS = ("name", "birth_date", "sex")  # by which a person is told from another
ROW = db.Entities(
    select(PatientIdentifier).where(
        PatientIdentifier.value == bindparam("value"), PatientIdentifier.issuer == bindparam("issuer")
    )
)
OWNER = db.Prepared(
    db.columns(PatientIdentifier.pk, PatientIdentifier.patient_pk, Patient.merged_into)
    .join(Patient, col(Patient.pk) == PatientIdentifier.patient_pk)
    .where(PatientIdentifier.value == bindparam("value"), PatientIdentifier.issuer == bindparam("issuer"))
)
MERGED_INTO = db.Prepared(db.columns(Patient.merged_into).where(Patient.pk == bindparam("pk")))
OF_PATIENT = db.Entities(
    select(PatientIdentifier)
    .where(PatientIdentifier.patient_pk == bindparam("patient_pk"))
    .order_by(col(PatientIdentifier.retired), col(PatientIdentifier.pk))
)


def row(session: Session, value: str, issuer: str) -> PatientIdentifier | None:
    """As it is now, not as this session met it before it waited for a lock."""
    return ROW.first(session, value=value, issuer=issuer)


def find(session: Session, value: str, issuer: str) -> Patient | None:
    """The patient with that identifier, or the survivor of its merges."""
    pk = owner_pk(session, value, issuer)
    return None if pk is None else db.get(session, Patient, pk)


def owner_pk(session: Session, value: str, issuer: str) -> int | None:
    found = OWNER.first(session, value=value, issuer=issuer)
    if found is None or found.merged_into is None:
        return found and found.patient_pk
    return living_pk(session, found.merged_into)


def locked(
    session: Session, *wanted: Identifier, also: Callable[[], int | None] = lambda: None
) -> list[Patient | None]:
    """The living patients whom these identifiers name, locked in the order of their keys (architecture.md 7), and with
    them the one of that key.

    A merge or a move may have been committed between the look and the lock: then it is whom they name now."""
    held: set[int] = set()
    while True:
        living = [owner_pk(session, one.value, one.issuer) for one in wanted]
        missing = {pk for pk in (also(), *living) if pk is not None} - held
        if not missing:
            return [None if pk is None else db.get(session, Patient, pk) for pk in living]
        for pk in sorted(missing):
            db.lock(session, Patient, pk)
        held |= missing


@dataclass(frozen=True)
class Named:
    """patients: keys of the living patients that an identifier may mean; several where its issuer is not known.
    via: `equal`, `rule` where the site's rule on zeros, width and spaces led there, `merge` where a merge did."""

    patients: tuple[int, ...] = ()
    via: str = ""


def named(session: Session, value: str, issuer: str, site: Site, node_issuer: str = "") -> Named:
    """Whom an identifier means that a device wrote. Without an issuer that of its node counts, else the site's, else
    the only one under which that value exists (reconciliation.md 3.3). An empty value names nobody."""
    canonical = normalise.patient_id(value, site.patient_id_pad_to)
    if not canonical:
        return Named()
    query = select(PatientIdentifier).where(col(PatientIdentifier.value).in_({value.strip(), canonical}))
    if issuer := issuer.strip() or node_issuer or site.patient_id_issuer:
        query = query.where(PatientIdentifier.issuer == issuer)
    rows = session.exec(query.order_by(col(PatientIdentifier.pk))).all()
    living = tuple(dict.fromkeys(survivor(session, row.patient_pk).key for row in rows))
    if any(row.retired for row in rows):
        return Named(living, "merge")
    return Named(living, ("equal" if all(row.value == value.strip() for row in rows) else "rule") if rows else "")


def survivor(session: Session, patient_pk: int) -> Patient:
    return db.get(session, Patient, living_pk(session, patient_pk))


def living_pk(session: Session, patient_pk: int) -> int:
    """The end of the merge chain. A merge always points to a living patient, so the chain has no ring."""
    while (into := MERGED_INTO.first(session, pk=patient_pk).merged_into) is not None:
        patient_pk = into
    return patient_pk


def identifiers(session: Session, patient_pk: int) -> list[PatientIdentifier]:
    """The leading identifier first, those retired by a merge last."""
    return OF_PATIENT.all(session, patient_pk=patient_pk)


def leading(session: Session, patient_pk: int) -> Identifier | None:
    """What devices and status documents call the patient."""
    known = identifiers(session, patient_pk)
    return Identifier(known[0].value, known[0].issuer, known[0].type) if known else None


def history(session: Session, patient_pk: int) -> list[PatientVersion]:
    """Demographics before each change, oldest first."""
    return list(
        session.exec(
            select(PatientVersion).where(PatientVersion.patient_pk == patient_pk).order_by(col(PatientVersion.pk))
        ).all()
    )
