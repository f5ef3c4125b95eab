"""What a profile would make of messages, without storing anything: one message with the source of each value, or the
last ones of the journal before and after."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from pydicom.datadict import tag_for_keyword
from sqlmodel import Session, col, select

from broker.config import Settings, Site
from broker.errors import BrokerError, UnknownKey
from broker.model.messages import Message as Journalled
from broker.model.site import Intake, Sender
from broker.mwl.commands import Command, OrderCommand
from broker.ris_bridge.hl7 import message, road
from broker.ris_bridge.hl7.message import Message, Segment
from broker.ris_bridge.mapping import store
from broker.ris_bridge.mapping.paths import Path
from broker.ris_bridge.mapping.profile import Group, Profile, for_sender
from broker.ris_bridge.mapping.targets import Target

# Fields of the commands -> what a device sees.
KEYWORDS = {
    "patient.name": "PatientName", "patient.birth_date": "PatientBirthDate", "patient.sex": "PatientSex",
    "order.accession_number": "AccessionNumber", "order.priority": "RequestedProcedurePriority",
    "procedure.requested_procedure_id": "RequestedProcedureID", "procedure.study_instance_uid": "StudyInstanceUID",
    "procedure.description": "RequestedProcedureDescription",
    "procedure.placer_number": "PlacerOrderNumberImagingServiceRequest",
    "procedure.filler_number": "FillerOrderNumberImagingServiceRequest",
    "procedure.code_value": "RequestedProcedureCodeSequence",
    "step.sps_id": "ScheduledProcedureStepID", "step.modality": "Modality",
    "step.station_ae_titles": "ScheduledStationAETitle", "step.start_date": "ScheduledProcedureStepStartDate",
    "step.start_time": "ScheduledProcedureStepStartTime", "step.description": "ScheduledProcedureStepDescription",
}  # fmt: skip
PATIENT_SOURCES = {"patient.name": "PID-5", "patient.birth_date": "PID-7", "patient.sex": "PID-8"}
MADE = {
    "order.accession_number": "accession_number", "procedure.requested_procedure_id": "requested_procedure_id",
    "procedure.study_instance_uid": "study_instance_uid", "step.sps_id": "sps_id",
}  # fmt: skip
REFUSED = "refused"
OF_OURS = ("place", "at", "policies", "begun", "known", "unknown", "is_issuer_assumed", "romanised")  # no sender's word
OURS = {"the program"}  # what no profile has a say in: the patient, the order control
NUMBERING = {(name, 1) for name in ("PID", "PV1", "OBR", "NTE", "TQ1", "AL1", "OBX", "DG1", "IN1", "GT1", "NK1", "RGS",
                                    "AIS", "AIG", "AIL", "AIP", "MSH")}  # fmt: skip


@dataclass
class Watched(Segment):
    """Tells which of its fields are looked at."""

    seen: set[tuple[str, int, int]] = field(default_factory=set)

    def field(self, number: int) -> str:
        self.seen.add((self.name, self.position, number))
        return super().field(number)


def watched(msg: Message) -> tuple[Message, set[tuple[str, int, int]]]:
    """The message, and the fields (segment, its how-manieth, number) that have been looked at since."""
    seen: set[tuple[str, int, int]] = set()
    segments: list[Segment] = [Watched(one.name, one.fields, one.delimiters, seen=seen) for one in msg.segments]
    return replace(msg, segments=segments, _index={}), seen


@dataclass(frozen=True)
class Value:
    """One attribute of a worklist item. source: the path that said it, or who made it."""

    keyword: str
    value: str
    source: str


@dataclass(frozen=True)
class Trial:
    """items: one for each step. used, passed, dropped: fields of the message with a value, as `OBR-18` (`OBR(2)-18` in
    the second OBR). used: (field, targets). passed: said, and another source went first: (field, target, which).
    dropped: read by nobody. error: what the sender would be told."""

    profile: str
    items: list[tuple[str, list[Value]]]
    used: list[tuple[str, str]]
    passed: list[tuple[str, str, str]]
    dropped: list[str]
    error: str = ""


@dataclass
class _Traced:
    target: Target
    path: Path | None
    segment: Segment | None
    value: Any

    @property
    def source(self) -> str:
        return self.path.text if self.path else "default"


def message_of(session: Session, pk: int, settings: Settings) -> Message:
    """Of the journal, read as its sender's entry says."""
    row = session.get(Journalled, pk)
    if row is None or row.protocol != road.PROTOCOL:
        raise UnknownKey(f"message {pk}", "is no HL7 message of the journal")
    return _parsed(session, row, settings)


def read_message(raw: bytes, settings: Settings) -> Message:
    """One that stands in a file, in its MLLP frame or without."""
    return message.parse(raw.strip(b"\x0b\x1c\r\n"), settings.limits, settings.hl7.character_set)


def lines(tried: Trial) -> Iterator[str]:
    """For people."""
    yield f"profile {tried.profile}"
    if tried.error:
        yield f"refused: {tried.error}"
    for title, values in tried.items:
        yield f"\nworklist item: {title}"
        for one in values:
            tag = tag_for_keyword(one.keyword) or 0
            yield f"  ({tag >> 16:04X},{tag & 0xFFFF:04X}) {one.keyword}: {one.value}  <- {one.source}"
    yield "\nfields of the message:"
    yield from (f"  {name}: mapped to {targets}" for name, targets in tried.used)
    yield from (f"  {name}: passed over for {target}: {winner} goes first" for name, target, winner in tried.passed)
    yield from (f"  {name}: dropped" for name in tried.dropped)


def try_message(msg: Message, profile: Profile, site: Site) -> Trial:
    told: list[_Traced] = []
    msg, seen = watched(msg)
    traced = replace(profile, trace=lambda *one: told.append(_Traced(*one)))
    commands: Sequence[Command] = ()
    error = ""
    try:
        commands = asked(msg, traced, site)
    except BrokerError as refusal:
        error = f"{refusal.err} {refusal}"
    used: dict[tuple[str, int, int], set[str]] = {}
    for one in told:
        if one.segment is not None and one.path is not None:
            used.setdefault((one.segment.name, one.segment.position, one.path.number), set()).add(one.target.text)
    passed = dict(_passed(msg, profile, told, set(used)))
    said = [
        (segment.name, segment.position, number)
        for segment in msg.segments
        for number in range(1, len(segment.fields))
        if segment.fields[number] and segment.name != "MSH" and (segment.name, number) not in NUMBERING
    ]
    return Trial(
        profile=profile.label or profile.name,
        items=list(_items(commands, told)),
        used=[(_name(at), ", ".join(sorted(used.get(at, OURS)))) for at in said if at in seen and at not in passed],
        passed=[(_name(at), *passed[at]) for at in said if at in passed],
        dropped=[_name(at) for at in said if at not in seen and at not in passed],
        error=error,
    )


def asked(msg: Message, profile: Profile | None, site: Site) -> Sequence[Command]:
    """What a message asks for, by that profile; None: as it is read without one. Nothing is asked of what no profile
    reads."""
    if profile and profile.means(msg.header.type, Group.of(msg.segments)) == "ignore":
        return ()
    reader = road.READERS.get(msg.header.type)
    return reader(msg, site, profile) if reader in road.MAPPED else ()


def _passed(
    msg: Message, profile: Profile, told: Sequence[_Traced], used: set[tuple[str, int, int]]
) -> Iterator[tuple[tuple[str, int, int], tuple[str, str]]]:
    """Sources that say something, where another went first."""
    winners: dict[str, str] = {}
    for one in told:
        winners.setdefault(one.target.text, one.source)
    for level in profile.levels.values():
        for filled in level:
            winner = winners.get(filled.target.text)
            for rule in filled.rules if winner else ():
                for path, _ in rule.sources:
                    for segment in msg.all(path.segment):
                        at = (segment.name, segment.position, path.number)
                        said = path.number < len(segment.fields) and segment.fields[path.number]
                        if said and path.text != winner and at not in used:
                            yield at, (filled.target.text, str(winner))


def _name(at: tuple[str, int, int]) -> str:
    name, position, number = at
    return f"{name}({position})-{number}" if position > 1 else f"{name}-{number}"


def _items(commands: Sequence[Command], told: Sequence[_Traced]) -> Iterator[tuple[str, list[Value]]]:
    for command in commands:
        if not isinstance(command, OrderCommand):
            continue
        for procedure in command.procedures:
            for step in procedure.steps:
                title = " ".join(filter(None, (command.control, command.accession_number, step.sps_id)))
                values = list(_patient_values(command)) if command.patient else []
                for level, part in (("order", command), ("procedure", procedure), ("step", step)):
                    values += _values(level, part, command, told)
                yield title, values


def _patient_values(command: OrderCommand) -> Iterator[Value]:
    person = command.patient
    assert person is not None
    leading = person.identifiers[0]
    yield Value("PatientID", leading.value, "PID-3")
    if leading.issuer:
        yield Value("IssuerOfPatientID", leading.issuer, "PID-3.4, or the site's")
    for name, source in PATIENT_SOURCES.items():
        if value := getattr(person, name.partition(".")[2]):
            yield Value(KEYWORDS[name], value, source)
    for name, value in person.attributes.items():
        yield Value(name, _written(value), "PID, AL1, OBX")


def _values(level: str, part: Any, command: OrderCommand, told: Sequence[_Traced]) -> Iterator[Value]:
    sources: dict[str, list[_Traced]] = {}
    for one in told:
        for name in one.target.kind.parts or (one.target.name,):
            sources.setdefault(name, []).append(one)

    def source(name: str, value: Any) -> str:
        known = sources.get(name, [])
        exact = [one for one in known if value == one.value or (one.target.kind.parts and value in one.value)]
        return ", ".join(dict.fromkeys(one.source for one in exact or known))

    for name, keyword in KEYWORDS.items():
        own = name.partition(".")[2]
        if not name.startswith(f"{level}."):
            continue
        value = getattr(part, own)
        if value:
            yield Value(keyword, _written(value), source(own, value))
        elif name in MADE and command.control == "NW":
            yield Value(keyword, "", f"made here ({getattr(command.policies, MADE[name])})")
    for name, value in part.attributes.items():
        if value not in (None, "", []):
            yield Value(name, _written(value), source(name, value))


def _written(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return "^".join(_written(one) for one in value.values())
    return "\\".join(map(_written, value)) if isinstance(value, list | tuple) else str(value)


# The last messages, before and after


@dataclass(frozen=True)
class Difference:
    """Of one message. lines: what differs, as `name: before -> after`."""

    message_pk: int
    type: str
    outcome: str
    lines: list[str]


@dataclass(frozen=True)
class Diff:
    """counts: of `same`, `changed`, `newly refused`, `newly taken`, `refused alike`, `newly read`, `no longer read`,
    `unreadable`."""

    looked_at: int
    counts: dict[str, int]
    differences: list[Difference]


def diff(session: Session, profile: Profile, last: int, settings: Settings, *, sender: str = "") -> Diff:
    """The last messages that the profile reads, by the profile in use for each and by this one, as if their senders
    named it. sender: of that one alone, by the name of its entry or as MSH-3|MSH-4; empty: of those that name it, or of
    all where nobody does. Raises UnknownKey where nobody is called so."""
    counts: Counter[str] = Counter()
    differences = []
    rows = list(_last(session, profile, last, settings, sender))
    for row, own in rows:
        try:
            msg = _parsed(session, row, settings)
        except BrokerError:
            counts["unreadable"] += 1
            continue
        site = own.source_site(settings.site) if own else settings.site
        before = _outcome(msg, for_sender(own, row.type), site)
        after = _outcome(msg, profile, settings.site)
        outcome = _compared(before, after)
        counts[outcome] += 1
        if lines := list(_lines(before, after)):
            differences.append(Difference(row.key, row.type, outcome, lines))
    return Diff(len(rows), dict(counts), differences)


def _last(
    session: Session, profile: Profile, last: int, settings: Settings, sender: str
) -> Iterator[tuple[Journalled, Profile | None]]:
    """The newest first, each with its sender's profile at present. Ten times as many are looked through."""
    types = [kind for kind, reader in road.READERS.items() if reader in road.MAPPED and profile.reads(kind)]
    query = select(Journalled).where(Journalled.protocol == road.PROTOCOL, col(Journalled.type).in_(types))
    is_registered = bool(sender) and _is_registered(session, sender)
    if sender and not is_registered:
        query = query.where(Journalled.sender == sender)
        if session.exec(select(Journalled.pk).where(Journalled.sender == sender).limit(1)).first() is None:
            raise UnknownKey(
                f"sender {sender}",
                "is no name of a sender or intake (broker sender list), and no MSH-3|MSH-4 of the journal",
            )
    is_named = not sender and bool(store.users(session, profile.name))
    looked_at = max(last * 10, settings.limits.journal_rows_max if sender else 0)
    names, count = (sender, f"folder:{sender}", f"poll:{sender}"), 0
    for row in session.exec(query.order_by(col(Journalled.pk).desc()).limit(looked_at)):
        entry = road.sender_of(session, row, settings)
        if is_registered and (entry is None or entry.name not in names):
            continue
        try:
            own = store.load(session, entry.mapping) if entry and entry.mapping else None
        except BrokerError:
            own = None
        if is_named and (own is None or profile.name not in (own.name, *own.chain)):
            continue
        yield row, own
        count += 1
        if count == last:
            return


def _is_registered(session: Session, name: str) -> bool:
    return any(session.exec(select(table.pk).where(table.name == name)).first() for table in (Sender, Intake))


def _parsed(session: Session, row: Journalled, settings: Settings) -> Message:
    override = road.character_set(session, row, settings)
    return message.parse(row.raw, settings.limits, settings.hl7.character_set, override)


def _outcome(msg: Message, profile: Profile | None, site: Site) -> dict[str, Any]:
    """What it says, by where it stands; `refused`: with what."""
    try:
        said = flat(asked(msg, profile, site))
    except BrokerError as error:
        return {REFUSED: f"{error.err} {error}"}
    return {name: value for name, value in said.items() if value is not None}


def _compared(before: dict[str, Any], after: dict[str, Any]) -> str:
    match REFUSED in before, REFUSED in after:
        case True, True:
            return "refused alike" if before == after else "changed"
        case True, False:
            return "newly taken"
        case False, True:
            return "newly refused"
    if bool(before) != bool(after):
        return "newly read" if after else "no longer read"
    return "same" if before == after else "changed"


def _lines(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """What differs; a command that there was not, or is no more, in one line."""
    if REFUSED in {*before, *after} and before.get(REFUSED) != after.get(REFUSED):
        yield f"{REFUSED}: {before.get(REFUSED, 'no')} -> {after.get(REFUSED, 'no')}"
    was, now = ({name: value for name, value in one.items() if name != REFUSED} for one in (before, after))
    if was and now:
        for name in dict.fromkeys((*was, *now)):
            if was.get(name) != now.get(name):
                yield f"{name}: {_shown(was.get(name))} -> {_shown(now.get(name))}"
    else:
        yield from (f"read newly: {line}" for line in _compact(now))
        if REFUSED not in after:
            yield from (f"read no longer: {line}" for line in _compact(was))


def _compact(said: dict[str, Any]) -> Iterator[str]:
    """A line for each command: `order 1: control NW, accession_number ACC1`."""
    commands: dict[str, list[str]] = {}
    for name, value in said.items():
        word, number, rest = name.split(" ", 2)
        commands.setdefault(f"{word} {number}", []).append(f"{rest} {_shown(value)}")
    yield from (f"{command}: {', '.join(values)}" for command, values in commands.items())


def flat(commands: Sequence[Any], name: str = "order") -> dict[str, Any]:
    """Every value that commands say, by where it stands: `order 1 procedure 1 step 2 modality`."""
    found: dict[str, Any] = {}
    for number, one in enumerate(commands, 1):
        values = _flat(one, f"{name} {number}")
        if isinstance(one, OrderCommand) and one.control == "NW":
            made = {
                key: part for key in values if (part := key.rpartition(" ")[2]) in MADE.values() and not values[key]
            }
            values |= {key: f"made here ({getattr(one.policies, part)})" for key, part in made.items()}
        found |= values
    return found


def _flat(part: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for own in fields(part):
        value = getattr(part, own.name)
        if own.name in OF_OURS or value is None:
            continue
        if value == own.default and not value:  # not said; asked for once more where it will be made
            found[f"{name} {own.name}"] = None
            continue
        if isinstance(value, tuple) and value and is_dataclass(value[0]):
            for key, one in flat(value, own.name.removesuffix("s")).items():
                found[f"{name} {key}"] = one
        elif is_dataclass(value):
            found |= _flat(value, f"{name} {own.name}")
        elif own.name == "attributes":
            found |= {f"{name} {keyword}": one for keyword, one in value.items() if one is not None}
        else:
            found[f"{name} {own.name}"] = value
    return found


def _shown(value: Any) -> str:
    return "not said" if value is None else '""' if value in ("", [], ()) else _written(value)
