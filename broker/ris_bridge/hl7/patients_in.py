"""ADT to patient commands (conformance.md 5.1). Pure."""

from broker.config import Site
from broker.errors import MissingField
from broker.mwl.commands import Identifier, PatientCommand
from broker.ris_bridge.hl7.message import Message
from broker.ris_bridge.hl7.orders_in import identifier, moment, patient_of

UPDATES = ("A01", "A04", "A05", "A08", "A28", "A31")
MERGES = ("A40",)


def to_commands(msg: Message, site: Site) -> list[PatientCommand]:
    event = msg.header.type.split("^")[-1]
    at = moment(msg["EVN-6"] or msg["EVN-2"] or msg["MSH-7"], site)
    patient = patient_of(msg, site)
    cause = f"ADT^{event}"
    if event in UPDATES:
        return [PatientCommand("update", patient, at=at, cause=cause)]
    merges = msg.all("MRG")
    if not merges:
        raise MissingField("MRG", "a merge names the prior identifier", err="100")
    return [
        PatientCommand("merge", patient, _prior(mrg, n + 1, site), at, cause)
        for mrg in merges
        for n in range(max(1, len(mrg.repetitions(1))))
    ]


def _prior(mrg, repetition: int, site: Site) -> Identifier:  # type: ignore[no-untyped-def]
    value = identifier(mrg, 1, repetition)
    if not value:
        raise MissingField(mrg.place(1), "prior patient identifier is required")
    return Identifier(value, mrg.get(1, 4, repetition=repetition) or site.patient_id_issuer)
