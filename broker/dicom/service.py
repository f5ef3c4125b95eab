"""What a DICOM service sees of an association: no socket, no PDU.

A service registers by SOP class (`Registry.add`). It gets a Request and gives Responses; C-STORE also gives a Sink
that takes the data set as it comes. A BrokerError becomes the status of its table, anything else "internal error": it
costs one answer, never the port."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.dicom.habits import NO_HABITS, Habits
from broker.errors import BrokerError


@dataclass(frozen=True)
class Peer:
    """Who is asking. node: key facts of the configured node, None for an unknown AE on an open test bench."""

    ae_title: str
    called: str
    address: str
    association: str
    node: "NodeInfo | None" = None


@dataclass(frozen=True)
class NodeInfo:
    """A snapshot of the Node row (model/site.py), safe to hold without a session."""

    pk: int
    ae_title: str
    host: str
    any_address: bool
    device: str
    rights: frozenset[str]
    character_set: str
    mpps_strict: bool | None
    modality: str = ""
    habits: Habits = NO_HABITS


@dataclass(frozen=True)
class Command:
    """A DIMSE request command set. Names are the keywords of PS3.7 E.1; absent ones are empty."""

    field: int
    message_id: int
    sop_class: str = ""
    sop_instance: str = ""
    priority: int = 0
    action_type: int = 0
    attributes: tuple[int, ...] = ()  # Attribute Identifier List (0000,1005) of an N-GET
    has_dataset: bool = False


@dataclass
class Request:
    """dataset: the bytes as they came, in transfer_syntax; for C-STORE empty (the sink has them). cancelled: ask before
    each response and at least every 100 ms of work (C-CANCEL-RQ). cancelled_at_the_end: ask once when all answers are
    made: those that are not on the wire are then not sent. sent: how many responses are on the wire, or on their way.
    extended: SOP class extended negotiation bytes."""

    peer: Peer
    command: Command
    transfer_syntax: str
    dataset: bytes = b""
    sink: "Sink | None" = None
    extended: bytes = b""
    cancelled: Callable[[], bool] = lambda: False
    cancelled_at_the_end: Callable[[], bool] = lambda: False
    sent: Callable[[], int] = lambda: 0


@dataclass
class Response:
    """dataset: bytes in the request's transfer syntax. comment: Error Comment, cut to 64 ASCII characters. offending,
    attributes: tags for (0000,0901) and (0000,1005). sop_instance: Affected SOP Instance UID where it differs."""

    status: int
    dataset: bytes = b""
    comment: str = ""
    error_id: int | None = None
    offending: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()
    sop_instance: str = ""
    after: Callable[[], None] | None = None  # called when the answer is on the wire


class Sink(Protocol):
    """Takes one C-STORE data set. write and finish raise BrokerError (NoRoom, Unreadable …): the rest of the object is
    then drained and the error's status is the answer. abort: the object ended before it was finished, or could not be;
    nothing of it stays. After a write or finish that failed it may come as well, and finds nothing to do."""

    def write(self, data: memoryview) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


class Service(Protocol):
    right: str  # what a node needs in its rights; empty: every known node

    def handle(self, request: Request) -> Iterable[Response]: ...


class StoreService(Service, Protocol):
    def open(self, peer: Peer, command: Command, transfer_syntax: str) -> Sink: ...


@dataclass(frozen=True)
class Offer:
    """What is registered for one SOP class. transfer_syntaxes: in our order of preference. commands: DIMSE command
    fields that this SOP class has. extended: answers SOP class extended negotiation bytes, None = not supported.
    scp_role, scu_role: which roles we accept for the *requestor* (role selection)."""

    service: Any
    transfer_syntaxes: tuple[str, ...]
    commands: frozenset[int]
    is_storage: bool = False
    extended: Callable[[bytes], bytes] | None = None
    requestor_may_be_scp: bool = False


@dataclass
class Registry:
    offers: dict[str, Offer] = field(default_factory=dict)
    any_storage: Offer | None = None  # for storage classes that no table knows (private SOP classes)

    def add(self, sop_class: str, offer: Offer) -> None:
        self.offers[sop_class] = offer


def refusal(error: BrokerError, *, dimse_n: bool) -> Response:
    """The response that says `error`; comments never hold patient data because BrokerErrors do not."""
    status = error.wire.dimse_n if dimse_n else error.wire.dimse_c
    # PS3.7 C.5: the attribute list belongs to 0106, 0107, 0120 and 0121; Offending Element to Axxx and Cxxx.
    return Response(
        status,
        comment=str(error),
        attributes=error.tags if dimse_n else (),
        offending=() if dimse_n else error.tags,
    )


C_STORE_RQ, C_FIND_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0020, 0x0030, 0x0FFF
C_GET_RQ, C_MOVE_RQ = 0x0010, 0x0021
N_EVENT_REPORT_RQ, N_GET_RQ, N_SET_RQ, N_ACTION_RQ, N_CREATE_RQ, N_DELETE_RQ = (
    0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150,
)  # fmt: skip
