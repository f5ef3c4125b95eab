"""Which scheduled steps a performed step belongs to (conformance.md 2.6), and whether the patients agree."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select

from broker.config import Site
from broker.dicom.tree import Tree
from broker.model.orders import ImagingOrder, RequestedProcedure, ScheduledStep
from broker.model.site import Node
from broker.mpps import rules
from broker.mpps.rules import items, text
from broker.mwl import identity
from broker.mwl.items import LIVE


@dataclass(frozen=True)
class Defaults:
    """How identifiers of a device are read that name no issuer. patient_id_issuer: its node's, empty where the site's
    counts. accession_issuer: its node's, else the site's."""

    site: Site
    patient_id_issuer: str
    accession_issuer: str


@dataclass(frozen=True)
class Found:
    """steps: key of the scheduled step -> number of the rule that found it. unmatched: items that found none."""

    steps: dict[int, int]
    unmatched: int


def defaults(session: Session, source_ae: str, site: Site) -> Defaults:
    node = session.exec(select(Node).where(Node.ae_title == source_ae)).first() or Node(ae_title=source_ae)
    return Defaults(site, node.patient_id_issuer, node.accession_issuer or site.accession_issuer)


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
    """Whether the performed step names the order's patient, and nobody else."""
    value, issuer = text(dataset, rules.PATIENT_ID), text(dataset, rules.PATIENT_ID_ISSUER)
    whom = identity.named(session, value, issuer, by_default.site, by_default.patient_id_issuer)
    return whom.patients == (order.patient_pk,)


def _match(session: Session, item: Tree, dataset: Tree, by_default: Defaults) -> tuple[int, Sequence[ScheduledStep]]:
    """(rule, steps). Whatever the item states holds for its steps, or it has none: a case costs a look, a step that
    leaves the worklist undone costs the exam. SPS ID and Requested Procedure ID are type 2, so either may stand alone;
    an SPS ID names one step, and one that the device made up names none."""
    # In the group case the Study UID may be new; the Referenced Study Sequence has the order's.
    references = (text(one, rules.REFERENCED_INSTANCE) for one in items(item, rules.REFERENCED_STUDIES))
    by_study = col(RequestedProcedure.study_instance_uid).in_([text(item, rules.STUDY_UID), *references])
    sps_id, procedure_id, accession = (text(item, tag) for tag in (rules.SPS_ID, rules.PROCEDURE_ID, rules.ACCESSION))
    by_ids = [col(ScheduledStep.sps_id) == sps_id] if sps_id else []
    by_ids += [col(RequestedProcedure.requested_procedure_id) == procedure_id] if procedure_id else []
    by_accession = [col(ImagingOrder.accession_number) == accession] if accession else []
    # A number that no order has was mistyped, and the Study UID counts without it; another order's contradicts.
    is_known = bool(accession and _steps(session, *by_accession))
    # The items of a group may share the Study UID of the first; a single item that names another study contradicts.
    may_be_elsewhere = len(items(dataset, rules.SCHEDULED_STEPS)) > 1 or not _steps(session, by_study)

    rule, found = 6, _steps(session, by_study, *by_ids, *(by_accession if is_known else []))
    if found:
        rule = 1 if len(by_ids) == 2 else 3 if is_known else 4
    elif may_be_elsewhere and len(by_ids) == 2 and len(named := _steps(session, *by_ids, *by_accession)) == 1:
        rule, found = 2, named  # neither id is unique in itself
    elif may_be_elsewhere and is_known:
        rule, found = 5, _of_accession(session, item, dataset, [*by_ids, *by_accession], by_default)
    if sps_id:
        return rule, found if len(found) == 1 else ()
    return rule, _of_modality(found, text(dataset, rules.MODALITY))


def _steps(session: Session, *conditions: ColumnElement[bool]) -> Sequence[ScheduledStep]:
    return session.exec(
        select(ScheduledStep)
        .join(RequestedProcedure, col(ScheduledStep.requested_procedure_pk) == col(RequestedProcedure.pk))
        .join(ImagingOrder, col(ScheduledStep.order_pk) == col(ImagingOrder.pk))
        .where(*conditions)
        .order_by(col(ScheduledStep.pk))
    ).all()


def _of_accession(
    session: Session, item: Tree, dataset: Tree, stated: Sequence[ColumnElement[bool]], by_default: Defaults
) -> Sequence[ScheduledStep]:
    """Those of the one order with that accession number whose patient is the one that was examined."""
    issuers = [text(one, rules.LOCAL_ENTITY) for one in items(item, rules.ACCESSION_ISSUER)]
    issuer = next(filter(None, issuers), by_default.accession_issuer)
    steps = _steps(session, *stated, *([col(ImagingOrder.accession_issuer) == issuer] if issuer else []))
    orders = [session.get_one(ImagingOrder, pk) for pk in sorted({step.order_pk for step in steps})]
    own = [order.pk for order in orders if same_patient(session, dataset, order, by_default)]
    return [step for step in steps if step.order_pk in own] if len(own) == 1 else ()


def _of_modality(steps: Sequence[ScheduledStep], modality: str) -> Sequence[ScheduledStep]:
    """Without an SPS ID the device means what of the study is made on its kind of machine, and not yet done. Steps of
    several kinds of which none is its own: it may mean any."""
    if len({step.modality for step in steps}) > 1:
        steps = [step for step in steps if step.modality == modality]
    return [step for step in steps if step.status in LIVE] or steps
