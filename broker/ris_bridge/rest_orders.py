"""The order body of the contract (POST /api/v1/orders, `broker order place`) to the same command as HL7's."""

import datetime as dt
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlmodel import Session

from broker import ids
from broker.archive import status
from broker.config import Site
from broker.errors import InvalidValue, UnknownKey
from broker.model.orders import ImagingOrder
from broker.mwl import orders
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand, ProcedureCommand, StepCommand

PLAIN = r"^[^\\\x00-\x1f\x7f]*$"  # no backslash, which would make two values of one (PS3.5 6.2)
GROUP_TEXT = r"^[^\\=\x00-\x1f\x7f]*$"
SH = Field(default="", max_length=16, pattern=PLAIN)
LO = Field(default="", max_length=64, pattern=PLAIN)
GROUP = Field(default="", max_length=64, pattern=GROUP_TEXT)  # one component group of a name
AeTitle = Annotated[str, Field(pattern=ids.AE_TITLE)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Name(Body):
    alphabetic: str = GROUP
    ideographic: str = GROUP
    phonetic: str = GROUP


class PatientBody(Body):
    id: str = Field(min_length=1, max_length=64, pattern=PLAIN)
    issuer: str | None = None
    birth_date: dt.date | None = None
    sex: str = Field(default="", pattern="^[MFO]?$")
    name: Name


class Code(Body):
    value: str = SH
    scheme: str = SH
    meaning: str = LO


class StepBody(Body):
    sps_id: str = SH
    modality: str = Field(pattern="^[A-Z0-9_ ]{1,16}$")
    station_ae_titles: list[AeTitle] = Field(min_length=1)
    scheduled_start: dt.datetime
    description: str = LO
    protocol_codes: list[Code] = []


class ProcedureBody(Body):
    id: str = SH
    placer_order_number: str = LO
    filler_order_number: str = LO
    study_instance_uid: str | None = None
    description: str = LO
    code: Code | None = None
    reason: str | None = Field(default=None, max_length=64, pattern=PLAIN)
    referring_physician: str | None = Field(default=None, max_length=64, pattern=GROUP_TEXT)
    steps: list[StepBody] = Field(min_length=1)


class OrderBody(Body):
    accession_number: str = SH
    accession_issuer: str | None = None
    priority: str = Field(default="ROUTINE", pattern="^(STAT|HIGH|ROUTINE|MEDIUM|LOW)$")
    patient: PatientBody
    requested_procedures: list[ProcedureBody] = Field(min_length=1)


def read(text: str) -> OrderBody:
    """Raises InvalidValue naming the first field that is wrong; never its value."""
    try:
        return OrderBody.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidValue(".".join(map(str, first["loc"])) or "order", first["msg"]) from None


def to_command(body: OrderBody, site: Site) -> OrderCommand:
    patient = body.patient
    name = "=".join((patient.name.alphabetic, patient.name.ideographic, patient.name.phonetic)).rstrip("=")
    return OrderCommand(
        control="NW",
        accession_number=body.accession_number,
        accession_issuer=site.accession_issuer if body.accession_issuer is None else body.accession_issuer,
        priority=body.priority,
        patient=PersonCommand(
            identifiers=(Identifier(patient.id, site.patient_id_issuer if patient.issuer is None else patient.issuer),),
            name=name,
            birth_date=patient.birth_date.strftime("%Y%m%d") if patient.birth_date else None,
            sex=patient.sex or None,
        ),
        procedures=tuple(_procedure(one, site) for one in body.requested_procedures),
        place="order",
    )


def _procedure(body: ProcedureBody, site: Site) -> ProcedureCommand:
    if body.study_instance_uid and not ids.valid_uid(body.study_instance_uid):
        raise InvalidValue("study_instance_uid", "is no UID")
    code = body.code or Code()
    return ProcedureCommand(
        requested_procedure_id=body.id,
        study_instance_uid=body.study_instance_uid or "",
        placer_number=body.placer_order_number,
        filler_number=body.filler_order_number,
        description=body.description,
        code_value=code.value,
        code_scheme=code.scheme,
        code_meaning=code.meaning,
        attributes={
            "ReasonForTheRequestedProcedure": body.reason, "ReferringPhysicianName": body.referring_physician,
        },
        steps=tuple(_step(one, site) for one in body.steps),
    )  # fmt: skip


def _step(body: StepBody, site: Site) -> StepCommand:
    zone = ZoneInfo(site.timezone)
    start = body.scheduled_start
    here = start.astimezone(zone) if start.tzinfo else start
    return StepCommand(
        sps_id=body.sps_id,
        modality=body.modality,
        station_ae_titles=tuple(body.station_ae_titles),
        start_date=here.strftime("%Y%m%d"),
        start_time=here.strftime("%H%M%S"),
        description=body.description,
        attributes={
            "ScheduledProtocolCodeSequence": [
                {"CodeValue": code.value, "CodingSchemeDesignator": code.scheme, "CodeMeaning": code.meaning}
                for code in body.protocol_codes
            ]
        },
    )


def cancel(session: Session, order_id: int, *, now: dt.datetime, actor: str, site: Site) -> ImagingOrder:
    order = session.get(ImagingOrder, order_id)
    if order is None:
        raise UnknownKey("order_id", "no such order")
    command = OrderCommand("CA", order.accession_number, order.accession_issuer, place="order_id")
    return orders.apply(session, command, now=now, actor=actor, site=site)


def document(session: Session, order_id: int) -> str:
    return status.of_order(session, order_id)[0]
