"""What is known when it is asked why an exam is not on a device's list (mwl/why.py), and what is told. Pure."""

import datetime as dt
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

from broker import ids
from broker.config import Settings
from broker.dicom.habits import NO_HABITS, Directory, Habits
from broker.errors import InvalidValue
from broker.mwl.history import Run
from broker.mwl.replay import Item
from broker.mwl.view import View


@dataclass(frozen=True)
class Asked:
    """issuer: None = any. sps_id: empty = every step. ae_title: as it was typed."""

    accession_number: str
    ae_title: str
    issuer: str | None = None
    sps_id: str = ""


def check_title(place: str, text: str) -> None:
    """Raises InvalidValue for what no AE title can be."""
    if not re.fullmatch(ids.AE_TITLE, text):
        raise InvalidValue(place, "must be an AE title: 1 to 16 ASCII characters, without a blank at either end")


@dataclass(frozen=True)
class Cause:
    """says: what and where. mend: what to do, empty = nothing. blocks: it stands in the way, else it is worth
    knowing."""

    code: str
    says: str
    mend: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    blocks: bool = True


@dataclass(frozen=True)
class Told:
    """A message that names the order and was not applied."""

    pk: int
    state: str
    type: str
    sender: str
    error: str
    received_at: dt.datetime


@dataclass(frozen=True)
class Near:
    """Another order that may be meant. how: accession, placer or filler number."""

    order_pk: int
    issuer: str
    how: str


@dataclass(frozen=True)
class Refusal:
    address: str
    called: str
    reason: str
    times: int
    last_at: dt.datetime


@dataclass(frozen=True)
class Device:
    """ae_title: its own. changed_at: its node. refusals, runs: the newest first. crowded: its questions (keys)
    that find more than it takes."""

    ae_title: str
    view: View
    directory: Directory
    configured: bool = True
    habits: Habits = NO_HABITS
    host: str = ""
    rights: frozenset[str] = frozenset({"worklist"})
    changed_at: dt.datetime | None = None
    refusals: Sequence[Refusal] = ()
    runs: Sequence[Run] = ()
    crowded: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Order:
    pk: int
    accession_number: str
    issuer: str
    withheld: str = ""
    case_pk: int | None = None


@dataclass(frozen=True)
class Moved:
    """The last change of a step's status."""

    event: str
    actor: str
    at: dt.datetime
    reason: str = ""


@dataclass(frozen=True)
class Offered:
    """A version that the device was shown."""

    version: int
    first_at: dt.datetime
    last_at: dt.datetime
    times: int


@dataclass(frozen=True)
class Step:
    """missing: keywords of type 1. withheld, lost, drops: what becomes of the item on this device (mwl/answers.py, its
    `requires`). offered: the oldest first. found_by: the device's questions (keys) that find it now; None = that is
    not known."""

    pk: int
    sps_id: str
    version: int
    made_at: dt.datetime
    item: Item
    moved: Moved | None = None
    missing: Sequence[str] = ()
    withheld: str = ""
    lost: frozenset[str] = frozenset()
    drops: Sequence[str] = ()
    offered: Sequence[Offered] = ()
    found_by: frozenset[int] | None = None


@dataclass(frozen=True)
class Facts:
    """order, step: None where there is none. steps: SPS IDs that the order has."""

    asked: Asked
    now: dt.datetime
    settings: Settings
    device: Device
    messages: Sequence[Told] = ()
    near: Sequence[Near] = ()
    order: Order | None = None
    steps: Sequence[str] = ()
    step: Step | None = None

    @property
    def title(self) -> str:
        return self.device.ae_title

    def at(self, moment: dt.datetime) -> str:
        """As people read it, in the site's zone."""
        return f"{moment.astimezone(ZoneInfo(self.settings.site.timezone)):%Y-%m-%d %H:%M:%S}"


Causes = Iterator[Cause]


def of_order(facts: Facts, what: str) -> str:
    """How a step of it is changed."""
    order = facts.order.pk if facts.order else "{id}"
    return f"PATCH /api/v1/orders/{order} (requested_procedures.steps.{what}), or a change (XO) of the RIS"


def command(*words: str) -> str:
    """`broker …`, to be pasted into a shell: what others have sent is quoted (an AE title may hold `;` and `$`)."""
    return shlex.join(("broker", *words))


def listed(words: Sequence[str]) -> str:
    return " and ".join(words) or "no station"
