"""Who a patient is: identifiers, the merge chain, what was known before."""

from sqlmodel import Session, col, select

from broker.model.patients import Patient, PatientIdentifier, PatientVersion


def find(session: Session, value: str, issuer: str) -> Patient | None:
    """The patient with that identifier, or the survivor of its merges."""
    row = session.exec(
        select(PatientIdentifier).where(PatientIdentifier.value == value, PatientIdentifier.issuer == issuer)
    ).first()
    return survivor(session, row.patient_pk) if row else None


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
