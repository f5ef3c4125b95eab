"""What a system that is asked says of an order: how it is now (polling.py). As the body of POST /api/v1/orders, of one
that is known with other content too; with `"control": "CA"` it is wanted no more."""

from dataclasses import replace
from typing import Literal

from broker.config import Site
from broker.errors import MissingField
from broker.mwl.commands import Identifier, OrderCommand, PersonCommand
from broker.ris_bridge import rest_orders


class Stated(rest_orders.OrderBody):
    control: Literal["NW", "CA"] = "NW"


def command(text: str, site: Site) -> OrderCommand:
    """Raises as rest_orders does: MissingField, InvalidValue naming the field."""
    body = rest_orders.new(text, Stated)
    if body.control == "CA":
        return _cancel(body, site)
    return replace(rest_orders.placed(body, site), known="change")


def _cancel(body: Stated, site: Site) -> OrderCommand:
    """Whose order it is must be said: a number alone may be another system's."""
    patient = body.patient or rest_orders.PatientBody()
    for name, value in (("accession_number", body.accession_number), ("patient.id", patient.id)):
        if not value:
            raise MissingField(name, "is required to cancel an order")
    issuer = site.accession_issuer if body.accession_issuer is None else body.accession_issuer
    owner = site.patient_id_issuer if patient.issuer is None else patient.issuer
    return OrderCommand(
        "CA",
        accession_number=body.accession_number or "",
        accession_issuer=issuer,
        patient=PersonCommand((Identifier(patient.id or "", owner),)),
        place="order",
    )
