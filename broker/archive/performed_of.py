"""Which performed steps (MPPS) are about a study: one answer for the gate, the settling and the recall."""

from collections.abc import Iterable

from sqlalchemy import ColumnElement, exists, or_
from sqlmodel import Session, col, select

from broker.model.images import Series, Study, StudyPerformed
from broker.model.performed import PerformedSeries, PerformedStep


def is_about() -> ColumnElement[bool]:
    """A condition on PerformedStep and Study: the MPPS names the study or one of its series, or objects of the study
    name it. A device that makes the Study UID itself has only the last (conformance.md 2.6).

    Correlated by name: inside a further EXISTS, SQLAlchemy would look for any study at all."""
    return or_(
        col(PerformedStep.study_instance_uid) == col(Study.study_instance_uid),
        exists()
        .where(
            col(StudyPerformed.study_pk) == col(Study.pk),
            col(StudyPerformed.performed_uid) == col(PerformedStep.sop_instance_uid),
        )
        .correlate(Study, PerformedStep),
        exists()
        .where(
            col(PerformedSeries.performed_pk) == col(PerformedStep.pk),
            col(PerformedSeries.series_instance_uid) == col(Series.series_instance_uid),
            col(Series.study_pk) == col(Study.pk),
        )
        .correlate(Study, PerformedStep),
    )


def note(session: Session, study_pk: int, uids: Iterable[str]) -> None:
    """Remember which MPPS the objects of a study name."""
    wanted = set(uids) - {""}
    if not wanted:
        return
    known = session.exec(select(StudyPerformed.performed_uid).where(StudyPerformed.study_pk == study_pk)).all()
    for uid in sorted(wanted - set(known)):
        session.add(StudyPerformed(study_pk=study_pk, performed_uid=uid))
