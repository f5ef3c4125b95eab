"""Who a patient is: identifiers, the merge chain, what was known before."""

from dataclasses import dataclass

from sqlmodel import Session, col, select

from broker.config import Site
from broker.model.patients import Patient, PatientIdentifier, PatientVersion
from broker.mwl import normalise


def find(session: Session, value: str, issuer: str) -> Patient | None:
    """The patient with that identifier, or the survivor of its merges."""
    row = session.exec(
        select(PatientIdentifier).where(PatientIdentifier.value == value, PatientIdentifier.issuer == issuer)
    ).first()
    return survivor(session, row.patient_pk) if row else None


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
    """The end of the merge chain. A merge always points to a living patient, so the chain has no ring."""
    patient = session.get_one(Patient, patient_pk)
    while patient.merged_into is not None:
        patient = session.get_one(Patient, patient.merged_into)
    return patient


def identifiers(session: Session, patient_pk: int) -> list[PatientIdentifier]:
    """The leading identifier first, those retired by a merge last."""
    return list(
        session.exec(
            select(PatientIdentifier)
            .where(PatientIdentifier.patient_pk == patient_pk)
            .order_by(col(PatientIdentifier.retired), col(PatientIdentifier.pk))
        ).all()
    )


def history(session: Session, patient_pk: int) -> list[PatientVersion]:
    """Demographics before each change, oldest first."""
    return list(
        session.exec(
            select(PatientVersion).where(PatientVersion.patient_pk == patient_pk).order_by(col(PatientVersion.pk))
        ).all()
    )
