"""What is known of an order, a device and what lies between them: the facts on which mwl/why.py decides."""

import contextlib
import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlmodel import Session, col, select

from broker import access, clock, db
from broker.config import Settings
from broker.dicom import tree
from broker.dicom.habits import NO_HABITS
from broker.dicom.service import NodeInfo
from broker.dicom.tree import Tree
from broker.errors import BrokerError
from broker.model.images import ReconciliationCase
from broker.model.messages import Message, MessageKey
from broker.model.orders import (
    ImagingOrder,
    OfferedItem,
    RequestedProcedure,
    ScheduledStep,
    StepVersion,
)
from broker.model.patients import Patient
from broker.model.site import Node, UnknownPeer
from broker.model.work import AuditEvent
from broker.mwl import (
    answers,
    as_shown,
    funnel,
    history,
    identity,
    items,
    keys,
    listed,
    matching,
    plan,
    view,
    why,
    worklist,
)
from broker.mwl import why_keys as queries
from broker.mwl.dataset import STEP_SEQUENCE
from broker.mwl.plan import Condition, Plan
from broker.mwl.replay import Item
from broker.mwl.why_facts import Asked, Cause, Device, Facts, Moved, Near, Offered, Order, Refusal, Step, Told
from broker.mwl.worklist import Found

MESSAGES_MAX, REFUSALS_MAX, OFFERS_MAX = 5, 10, 50
WAITING_MESSAGES = ("RECEIVED", "REJECTED", "DISMISSED")
OF_EXPIRY = "expire"  # the one event whose cause is our own sentence; others may be a person's


def explain(session: Session, asked: Asked, settings: Settings, *, now: dt.datetime) -> dict[str, Any]:
    """Step by step, of every order with that number. Raises InvalidValue for a title of several devices."""
    ae_title = listed.device(asked.ae_title)
    node = access.find_node(ae_title)
    device = _device(session, node, ae_title, settings, now)
    orders = _orders(session, asked, settings.limits.list_items_max)
    found = [one for order in orders for one in _of_order(session, asked, order, device, node, settings, now)]
    finding = {pk for one in found if one.step for pk in one.step.found_by or ()}
    device = replace(device, crowded=_crowded(session, device, settings, finding))
    found = [replace(one, device=device) for one in found]
    if not orders:
        messages = _messages(session, asked.accession_number)
        found = [Facts(asked, now, settings, device, messages, _near(session, asked))]
    limit = settings.limits.list_items_max
    return {
        "accession_number": asked.accession_number,
        "ae_title": device.ae_title,
        "at": clock.iso(now),
        "items": [_told(facts) for facts in found[:limit]],
    }


def _told(facts: Facts) -> dict[str, Any]:
    order, step = facts.order, facts.step
    return {
        "order_id": order.pk if order else None,
        "accession_issuer": order.issuer if order else None,
        "step_id": step.pk if step else None,
        "sps_id": step.sps_id if step else None,
        "state": step.item.status if step else None,
        "causes": [_cause(one) for one in why.explain(facts)],
    }


def _cause(one: Cause) -> dict[str, Any]:
    return {"code": one.code, "says": one.says, "mend": one.mend, "in_the_way": one.blocks,
            "evidence": dict(one.evidence)}  # fmt: skip


# The order


def _orders(session: Session, asked: Asked, limit: int) -> Sequence[ImagingOrder]:
    query = select(ImagingOrder).where(ImagingOrder.accession_number == asked.accession_number)
    if asked.issuer is not None:
        query = query.where(ImagingOrder.accession_issuer == asked.issuer)
    return session.exec(query.order_by(col(ImagingOrder.pk)).limit(limit)).all()


def _messages(session: Session, accession_number: str) -> list[Told]:
    """That name the number and have done nothing, the newest first."""
    named = select(MessageKey.message_pk).where(
        MessageKey.value == accession_number, col(MessageKey.kind).in_(("accession", "placer", "filler"))
    )
    wanted = (
        Message.pk, Message.state, Message.type, Message.sender, Message.error_code, Message.error_place,
        Message.error_text, Message.received_at,
    )  # fmt: skip
    query = db.columns(*wanted).where(col(Message.pk).in_(named), col(Message.state).in_(WAITING_MESSAGES))
    rows = session.execute(query.order_by(col(Message.pk).desc()).limit(MESSAGES_MAX))
    return [
        Told(
            row.pk, row.state, row.type or "of no type", row.sender or "nobody that it names",
            " ".join(filter(None, (row.error_code, row.error_place, row.error_text))), row.received_at,
        )
        for row in rows
    ]  # fmt: skip


def _near(session: Session, asked: Asked) -> list[Near]:
    number = asked.accession_number
    of_others = select(ImagingOrder).where(ImagingOrder.accession_number == number).limit(MESSAGES_MAX)
    near = [Near(order.key, order.accession_issuer, "accession") for order in session.exec(of_others)]
    for how, column in (("placer", RequestedProcedure.placer_number), ("filler", RequestedProcedure.filler_number)):
        found = select(RequestedProcedure.order_pk).where(column == number).distinct().limit(MESSAGES_MAX)
        near += [Near(order_pk, "", how) for order_pk in session.exec(found)]
    return near


def _of_order(
    session: Session, asked: Asked, row: ImagingOrder, device: Device, node: NodeInfo | None, settings: Settings,
    now: dt.datetime,
) -> list[Facts]:  # fmt: skip
    case = select(ReconciliationCase.pk).where(
        ReconciliationCase.order_pk == row.key, ReconciliationCase.kind == row.withheld,
        ReconciliationCase.state != "RESOLVED",
    )  # fmt: skip
    case_pk = session.exec(case.limit(1)).first() if row.withheld else None
    order = Order(row.key, row.accession_number, row.accession_issuer, row.withheld, case_pk)
    messages = [one for one in _messages(session, row.accession_number) if one.state != "DISMISSED"]
    parts = session.exec(
        select(ScheduledStep, RequestedProcedure)
        .where(RequestedProcedure.pk == ScheduledStep.requested_procedure_pk, ScheduledStep.order_pk == row.key)
        .order_by(col(ScheduledStep.pk))
        .limit(settings.limits.list_items_max)
    ).all()
    wanted = [one for one in parts if asked.sps_id in ("", one[0].sps_id)]
    sps_ids = [step.sps_id for step, _ in parts]
    if not wanted:
        return [Facts(asked, now, settings, device, messages, (), order, sps_ids)]
    return [
        Facts(
            asked, now, settings, device, messages, (), order, sps_ids, _step(session, row, one, device, node, settings)
        )
        for one in wanted
    ]


# The step


def _step(
    session: Session, order: ImagingOrder, part: tuple[ScheduledStep, RequestedProcedure], device: Device,
    node: NodeInfo | None, settings: Settings,
) -> Step:  # fmt: skip
    step, procedure = part
    stations = tuple(items.stations(session, step.key))
    item = _item(step, procedure, stations)
    look = _looked(device, node, settings, step, item)
    return Step(
        pk=step.key, sps_id=step.sps_id, version=step.version, made_at=_made_at(session, step), item=item,
        moved=_moved(session, step.key), missing=_missing(session, order, part, stations), withheld=look.withheld,
        lost=look.lost, drops=look.drops, offered=_offered(session, step.key, device.ae_title),
        found_by=_found_by(session, device, item, settings),
    )  # fmt: skip


def _item(step: ScheduledStep, procedure: RequestedProcedure, stations: tuple[str, ...]) -> Item:
    shown_as = view.SHOWN_AS.get(step.status, step.status)
    return Item(
        status=step.status, status_at=step.status_at, start_date=step.start_date, label=step.label, stations=stations,
        named={
            "modality": step.modality, "sps_id": step.sps_id, "patient_id": step.patient_id,
            "accession_number": step.accession_number, "requested_procedure_id": procedure.requested_procedure_id,
            "study_instance_uid": procedure.study_instance_uid,
        },
        tree=answers.item_of(step.dataset, shown_as) if step.dataset else {},
    )  # fmt: skip


def _made_at(session: Session, step: ScheduledStep) -> dt.datetime:
    """When it could first be shown."""
    first = select(StepVersion.created_at).where(StepVersion.step_pk == step.key).order_by(col(StepVersion.version))
    return session.exec(first.limit(1)).first() or step.created_at


def _moved(session: Session, step_pk: int) -> Moved | None:
    last = select(AuditEvent).where(AuditEvent.subject == f"step:{step_pk}", AuditEvent.action == "step.change")
    row = session.exec(last.order_by(col(AuditEvent.pk).desc()).limit(1)).first()
    if row is None:
        return None
    event = str(row.detail.get("event", ""))
    reason = str(row.detail.get("cause", "")) if event == OF_EXPIRY else ""
    return Moved(event, row.actor, row.at, reason)


def _missing(
    session: Session, order: ImagingOrder, part: tuple[ScheduledStep, RequestedProcedure], stations: tuple[str, ...]
) -> list[str]:
    step, procedure = part
    if step.dataset:
        return []
    patient = session.get_one(Patient, order.patient_pk)
    return items.missing_of(patient, identity.identifiers(session, patient.key), procedure, step, stations)


def _offered(session: Session, step_pk: int, ae_title: str) -> list[Offered]:
    query = select(OfferedItem).where(OfferedItem.step_pk == step_pk, OfferedItem.ae_title == ae_title)
    rows = session.exec(query.order_by(col(OfferedItem.version).desc()).limit(OFFERS_MAX)).all()
    return [Offered(row.version, row.first_at, row.last_at, row.times) for row in reversed(rows)]


class Looked(NamedTuple):
    """What becomes of the item on the device."""

    withheld: str = ""
    lost: frozenset[str] = frozenset()
    drops: tuple[str, ...] = ()


def _looked(device: Device, node: NodeInfo | None, settings: Settings, step: ScheduledStep, item: Item) -> Looked:
    """By the keys of its last question, and by what it requires."""
    if not step.dataset:
        return Looked()
    query = next(iter(_questions(device).values()))
    look = answers.look_of(node, settings, query)
    shown_as = view.SHOWN_AS.get(step.status, step.status)
    made = answers.answer(step.dataset, shown_as, keys.shape(query), tree.EXPLICIT_LE, look)
    if made.withheld:
        return Looked(made.withheld, made.lost)
    shown = tree.read(made.dataset, tree.EXPLICIT_LE, answers.LIMITS)
    drops = [keyword for keyword in device.habits.requires if as_shown.missing(_full(shown, item), (keyword,))]
    return Looked("", made.lost, tuple(drops))


def _full(shown: Tree, item: Item) -> Tree:
    """What it shows, and what it did not ask for as the record has it: nothing is dropped for want of a question."""
    step = {**keys.step_keys(item.tree), **keys.step_keys(shown)}
    return {**item.tree, **shown, STEP_SEQUENCE: ("SQ", [step])}


# The device


def _device(session: Session, node: NodeInfo | None, ae_title: str, settings: Settings, now: dt.datetime) -> Device:
    row = session.exec(select(Node).where(Node.ae_title == ae_title)).first()
    return Device(
        ae_title=ae_title, view=view.of(node, ae_title, settings, now), directory=access.directory(),
        configured=node is not None, habits=node.habits if node else NO_HABITS, host=node.host if node else "",
        rights=node.rights if node else frozenset({"worklist"}), changed_at=row.updated_at if row else None,
        refusals=_refusals(session, ae_title), runs=history.last_runs(session, ae_title),
    )  # fmt: skip


def _refusals(session: Session, ae_title: str) -> list[Refusal]:
    query = select(UnknownPeer).where(UnknownPeer.ae_title == ae_title)
    rows = session.exec(query.order_by(col(UnknownPeer.last_at).desc()).limit(REFUSALS_MAX)).all()
    return [Refusal(row.address, row.called, row.reason, row.times, row.last_at) for row in rows]


def _questions(device: Device) -> dict[int, Tree]:
    """By the key of their keys, the newest first. Who asked nothing yet will ask for its own title, as most do."""
    if asked := queries.questions(device.runs):
        return {run.keys_pk: queries.taken(device, run) for run in asked}
    step: Tree = {tag: (tree.vr_of(tag), "") for tag in as_shown.STEP_KEYS if tree.vr_of(tag) != "SQ"}
    step[plan.STATION] = ("AE", "" if device.view.sees else device.ae_title)
    query: Tree = {tag: (tree.vr_of(tag), "") for tag in as_shown.KEYS if tree.vr_of(tag) != "SQ"}
    return {0: {**query, STEP_SEQUENCE: ("SQ", [step])}}


def _plans(device: Device, settings: Settings) -> dict[int, Plan]:
    """Of its questions, but for those that are refused now, or name another zone: whether that was negotiated is not on
    record."""
    plans = {}
    for pk, query in _questions(device).items():
        with contextlib.suppress(BrokerError):
            keys.check(query)
            if not (settings.worklist.timezone_adjustment and matching.zone_of(query)):
                plans[pk] = plan.of(query, device.view, device.directory)
    return plans


def _crowded(session: Session, device: Device, settings: Settings, wanted: Collection[int]) -> frozenset[int]:
    """Of these questions. Where that takes a look at too many items one by one, how it ended last is what is known."""
    ended = {run.keys_pk: run.status for run in queries.questions(device.runs)}
    return frozenset(
        pk
        for pk, one in _plans(device, settings).items()
        if pk in wanted and _finds_too_many(session, device, one, ended.get(pk, queries.DONE))
    )


def _finds_too_many(session: Session, device: Device, wanted: Plan, ended: int) -> bool:
    asked = plan.statement(plan.shape(wanted.conditions), counts=True)
    number = int(asked.rows(session, **plan.bound(wanted.conditions))[0][0])
    if wanted.is_whole:
        return number > device.view.matches_max
    if number > funnel.ITEMS_MAX:
        return ended == queries.OUT_OF_RESOURCES
    looked_at_max = max(device.view.looked_at_max, worklist.PAGE_ROWS)
    return number > looked_at_max or len(_found(session, device, wanted, number)) > device.view.matches_max


def _found(session: Session, device: Device, wanted: Plan, most: int) -> list[Found]:
    """In the state of the database that all other facts are of. most: items that are looked at."""
    asked = plan.statement(plan.shape(wanted.conditions))
    rows = asked.rows(session, **plan.bound(wanted.conditions), most=most)
    return list(worklist.match_rows(rows, wanted, device.view, device.directory, False))


OF_ONE = ((plan.STUDY_UID, "study_instance_uid"), (plan.SPS_ID, "sps_id"))


def _found_by(session: Session, device: Device, item: Item, settings: Settings) -> frozenset[int] | None:
    """The database is asked for this one item, by its Study Instance UID and its SPS ID beside the keys."""
    plans = _plans(device, settings)
    own = [Condition(tag, clause, (item.named[clause],)) for tag, clause in OF_ONE]
    found = frozenset(
        pk
        for pk, wanted in plans.items()
        if _found(session, device, Plan((*wanted.conditions, *own), wanted.rest, wanted.by_item), 1)
    )
    sure = len(plans) == len(_questions(device)) and not settings.worklist.fuzzy_names
    return found if found or sure else None
