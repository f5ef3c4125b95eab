"""Which scheduled steps a performed step belongs to (conformance.md 2.6), and whether the patients agree."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select

from broker.config import Site
from broker.dicom.tree import Tree
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.patients import PatientIdentifier
from broker.model.site import Node
from broker.mpps import rules
from broker.mpps.rules import items, text
from broker.mwl import identity
from broker.mwl.items import LIVE


@dataclass(frozen=True)
class Defaults:
    """How identifiers of this device are read: their issuer where it names none (the node's, else the site's), and the
    digits to which the site's Patient IDs are padded."""

    patient_id_issuer: str
    accession_issuer: str
    patient_id_digits: int


@dataclass(frozen=True)
class Found:
    """steps: key of the scheduled step -> number of the rule that found it. unmatched: items that found none."""

    steps: dict[int, int]
    unmatched: int


def defaults(session: Session, source_ae: str, site: Site) -> Defaults:
    node = session.exec(select(Node).where(Node.ae_title == source_ae)).first() or Node(ae_title=source_ae)
    return Defaults(
        node.patient_id_issuer or site.patient_id_issuer,
        node.accession_issuer or site.accession_issuer,
        site.patient_id_pad_to,
    )


def find(session: Session, dataset: Tree, by_default: Defaults) -> Found:
    """Each item of the Scheduled Step Attributes Sequence by the first rule that finds a step for it."""
    steps: dict[int, int] = {}
    unmatched = 0
    for item in items(dataset, rules.SCHEDULED_STEPS):
        rule, found = _match(session, item, dataset, by_default)
        unmatched += not found
        for step in found:
            steps.setdefault(step.key, rule)
    return Found(steps, unmatched)


def same_patient(session: Session, dataset: Tree, order: ImagingOrder, by_default: Defaults) -> bool:
    """Whether the performed step names the order's patient, merges followed. Without any issuer an ID names a patient
    only if it exists under one issuer (reconciliation.md 3.3); without an ID nobody is named."""
    value = text(dataset, rules.PATIENT_ID)
    if value.isdecimal():
        value = value.zfill(by_default.patient_id_digits)
    issuer = text(dataset, rules.PATIENT_ID_ISSUER) or by_default.patient_id_issuer
    query = select(PatientIdentifier).where(PatientIdentifier.value == value)
    if issuer:
        query = query.where(PatientIdentifier.issuer == issuer)
    named = session.exec(query).all() if value else []
    return len(named) == 1 and identity.survivor(session, named[0].patient_pk).pk == order.patient_pk


def _match(session: Session, item: Tree, dataset: Tree, by_default: Defaults) -> tuple[int, Sequence[ScheduledStep]]:
    """(rule, steps). In the group case the Study UID may be new; the Referenced Study Sequence has the order's."""
    references = (text(one, rules.REFERENCED_INSTANCE) for one in items(item, rules.REFERENCED_STUDIES))
    studies = [uid for uid in (text(item, rules.STUDY_UID), *references) if uid]
    sps_id, procedure_id = text(item, rules.SPS_ID), text(item, rules.PROCEDURE_ID)
    accession = text(item, rules.ACCESSION)
    by_study = col(RequestedProcedure.study_instance_uid).in_(studies)
    by_accession = col(ImagingOrder.accession_number) == accession
    if sps_id and procedure_id:
        by_ids = (col(ScheduledStep.sps_id) == sps_id) & (
            col(RequestedProcedure.requested_procedure_id) == procedure_id
        )
        if found := _steps(session, by_ids, by_study):
            return 1, found
        # Neither id is unique in itself: they name a step where there is one only, and with the stated accession.
        if len(found := _steps(session, by_ids, *([by_accession] if accession else []))) == 1:
            return 2, found
    modality = text(dataset, rules.MODALITY)
    if accession and (found := _steps(session, by_study, by_accession)):
        return 3, _of_modality(found, modality)
    if found := _steps(session, by_study):
        return 4, _of_modality(found, modality)
    if accession:
        found = _of_accession(session, item, dataset, by_accession, by_default)
        return 5, _of_modality(found, modality)
    return 6, ()


def _steps(session: Session, *conditions: ColumnElement[bool]) -> Sequence[ScheduledStep]:
    return session.exec(
        select(ScheduledStep)
        .join(RequestedProcedure, col(ScheduledStep.requested_procedure_pk) == col(RequestedProcedure.pk))
        .join(ImagingOrder, col(ScheduledStep.order_pk) == col(ImagingOrder.pk))
        .where(*conditions)
        .order_by(col(ScheduledStep.pk))
    ).all()


def _of_accession(
    session: Session, item: Tree, dataset: Tree, by_accession: ColumnElement[bool], by_default: Defaults
) -> Sequence[ScheduledStep]:
    """Steps of the one order with that accession number whose patient is the one that was examined."""
    stated = [text(one, rules.LOCAL_ENTITY) for one in items(item, rules.ACCESSION_ISSUER)]
    issuer = next(filter(None, stated), by_default.accession_issuer)
    orders = session.exec(select(ImagingOrder).where(by_accession)).all()
    if issuer:
        orders = [order for order in orders if order.accession_issuer == issuer]
    own = [order for order in orders if same_patient(session, dataset, order, by_default)]
    return _steps(session, col(ScheduledStep.order_pk) == own[0].pk) if len(own) == 1 else ()


def _of_modality(steps: Sequence[ScheduledStep], modality: str) -> Sequence[ScheduledStep]:
    """Without an SPS ID the device means what of the study is made on its kind of machine, and not yet done."""
    steps = [step for step in steps if step.modality == modality] or steps
    return [step for step in steps if step.status in LIVE] or steps
