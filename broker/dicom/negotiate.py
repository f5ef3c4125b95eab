"""A-ASSOCIATE (PS3.8 9.3.2–9.3.4, PS3.7 D.3): who may come in, with which contexts. The items are pynetdicom's.

A device repeats its request byte for byte, so answers are cached by those bytes."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassExtendedNegotiation,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from broker.dicom.pdu import INVALID_PARAMETER, Violation
from broker.dicom.service import Offer, Registry

IMPLEMENTATION_CLASS_UID = "2.25.237118921713467109428671923716280461953"
IMPLEMENTATION_VERSION = "RIS_BROKER_01"
DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"}  # one PDU may inflate to gigabytes (security V6)
APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"


@dataclass(frozen=True)
class Asked:
    """What an A-ASSOCIATE-RQ wants. bytes_max: of the PDUs that the peer takes, 0 = no limit."""

    calling: str
    called: str
    bytes_max: int
    primitive: Any = field(repr=False)


@dataclass(frozen=True)
class Context:
    """An accepted presentation context."""

    id: int
    sop_class: str
    transfer_syntax: str
    offer: Offer
    extended: bytes = b""


@lru_cache(256)
def read(body: bytes, contexts_max: int) -> Asked:
    """Decode the request. Raises Violation for anything that is none: the codec's errors are many."""
    try:
        pdu = A_ASSOCIATE_RQ()
        pdu.decode(b"\x01\x00" + len(body).to_bytes(4, "big") + body)
        primitive = pdu.to_primitive()
        asked = Asked(
            calling=str(pdu.calling_ae_title).strip(),
            called=str(pdu.called_ae_title).strip(),
            bytes_max=primitive.maximum_length_received or 0,
            primitive=primitive,
        )
        contexts = primitive.presentation_context_definition_list
    except Exception:
        raise Violation(INVALID_PARAMETER, "A-ASSOCIATE-RQ cannot be decoded") from None
    if any(not context.abstract_syntax or not context.transfer_syntax for context in contexts or ()):
        raise Violation(INVALID_PARAMETER, "a presentation context without a syntax")
    if not contexts or len(contexts) > contexts_max:
        raise Violation(INVALID_PARAMETER, f"{len(contexts)} presentation contexts")
    if 0 < asked.bytes_max < 128:
        raise Violation(INVALID_PARAMETER, f"maximum PDU length {asked.bytes_max}")
    return asked


class Negotiator:
    """Answers requests for one registry; the answer to known bytes is remembered."""

    def __init__(self, registry: Registry, bytes_advertised: int, remembered_max: int = 256) -> None:
        self.registry, self.bytes_advertised = registry, bytes_advertised
        self.accept = lru_cache(remembered_max)(self._accept)

    def _accept(self, body: bytes, contexts_max: int) -> tuple[bytes, dict[int, Context]]:
        """The A-ASSOCIATE-AC for a request body, and the contexts it accepts. Raises Violation."""
        asked = read(body, contexts_max).primitive
        try:
            return self._negotiate(asked)
        except Exception as error:  # the codec's, once more: it looks at some items only now
            raise Violation(INVALID_PARAMETER, f"A-ASSOCIATE-RQ cannot be answered ({type(error).__name__})") from None

    def _negotiate(self, asked: Any) -> tuple[bytes, dict[int, Context]]:
        extended = {
            str(item.sop_class_uid): item.service_class_application_information
            for item in asked.user_information
            if isinstance(item, SOPClassExtendedNegotiation)
        }
        roles = {
            item.sop_class_uid: (item.scu_role, item.scp_role)
            for item in asked.user_information
            if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
        }
        wanted = asked.presentation_context_definition_list
        results, role_items = negotiate_as_acceptor(wanted, self._supported(wanted), roles)
        accepted: dict[int, Context] = {}
        answers = []
        for result in results:
            offer = self.offer(str(result.abstract_syntax))
            if result.result != 0 or offer is None:
                continue
            sop_class = str(result.abstract_syntax)
            reply = b""
            if sop_class in extended and offer.extended:
                reply = offer.extended(extended[sop_class])
                answers.append((sop_class, reply))
            accepted[result.context_id] = Context(
                result.context_id, sop_class, str(result.transfer_syntax[0]), offer, reply
            )
        return self._encode(asked, results, role_items, dict(answers)), accepted

    def offer(self, sop_class: str) -> Offer | None:
        """What is registered for it; any other class that is no service of DICOM's own may be a storage class."""
        known = self.registry.offers.get(sop_class)
        if known is None and not UID(sop_class).is_private:
            return None
        return known or self.registry.any_storage

    def _supported(self, wanted: list[PresentationContext]) -> list[PresentationContext]:
        supported = {}
        for context in wanted:
            sop_class = str(context.abstract_syntax)
            offer = self.offer(sop_class)
            if offer is None or sop_class in supported:
                continue
            ours = PresentationContext()
            ours.abstract_syntax = UID(sop_class)
            for syntax in offer.transfer_syntaxes:
                if syntax not in DEFLATED:
                    ours.add_transfer_syntax(syntax)
            if offer.requestor_may_be_scp:
                ours.scu_role, ours.scp_role = True, True
            supported[sop_class] = ours
        return list(supported.values())

    def _encode(
        self, asked: Any, results: list[PresentationContext], roles: list[Any], extended: dict[str, bytes]
    ) -> bytes:
        answer = A_ASSOCIATE()
        answer.application_context_name = UID(APPLICATION_CONTEXT)
        answer.calling_ae_title, answer.called_ae_title = asked.calling_ae_title, asked.called_ae_title
        answer.result, answer.result_source = 0, 1
        answer.presentation_context_definition_results_list = results
        length, implementation, version = (
            MaximumLengthNotification(),
            ImplementationClassUIDNotification(),
            ImplementationVersionNameNotification(),
        )
        length.maximum_length_received = self.bytes_advertised
        implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        version.implementation_version_name = IMPLEMENTATION_VERSION
        answer.user_information = [length, implementation, version, *roles]
        for sop_class, reply in extended.items():
            item = SOPClassExtendedNegotiation()
            item.sop_class_uid, item.service_class_application_information = UID(sop_class), reply
            answer.user_information.append(item)
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        encoded: bytes = pdu.encode()
        return encoded
