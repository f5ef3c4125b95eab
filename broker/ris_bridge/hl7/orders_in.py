"""ORM^O01, OMG^O19 and OMI^O23 to order commands (conformance.md 5.3, 5.4). Pure.

Which segments make an order, a procedure and a step stands here; which field says what, in the mapping profile."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from broker import log
from broker.config import Site
from broker.errors import InvalidValue, MissingField
from broker.mwl.commands import PRIORITIES, OrderCommand, PersonCommand, ProcedureCommand, StepCommand
from broker.ris_bridge import alike
from broker.ris_bridge.alike import COMMENTS, TEXTS
from broker.ris_bridge.hl7 import values
from broker.ris_bridge.hl7.message import Message, Segment, groups
from broker.ris_bridge.hl7.patients_in import only_pid, patient_of
from broker.ris_bridge.mapping import profile as profiles
from broker.ris_bridge.mapping.profile import Group, Missing, Profile
from broker.ris_bridge.mapping.targets import joined

# Table 0119 -> what the command says. RP, RU, RO, PA and CH: see `_Reading`.
CONTROLS = {
    "NW": "NW", "RO": "NW", "PA": "NW", "XO": "XO", "CA": "CA", "OC": "CA", "CR": "CA", "RP": "CA", "RU": "CA",
    "DC": "DC", "OD": "DC", "HD": "HD", "RL": "RL", "SC": "SC", "SN": "SN", "NA": "NA", "SS": "SS",
    **dict.fromkeys(("OK", "UA", "UC", "UX", "RQ"), "note"),
}  # fmt: skip
DETAILED = ("NW", "RO", "PA", "CH", "XO", "SN")  # ORM_O01: the detail is optional, and a cancel needs none
NEW = ("NW", "RO", "PA")
PLACING = ("NW", "SN")  # what the command says of them
STATUSES = ("A", "CA", "CM", "DC", "ER", "HD", "IP", "RP", "SC")  # table 0038
WHAT = {
    "accession_number": ("order", "accession number"),
    "requested_procedure_id": ("procedure", "Requested Procedure ID"),
    "sps_id": ("step", "Scheduled Procedure Step ID"),
    "study_instance_uid": ("procedure", "Study Instance UID"),
}


def to_commands(msg: Message, site: Site, profile: Profile | None = None) -> list[OrderCommand]:
    """One command per accession number of the message, with all its procedures and steps, in the message's order.

    profile: None = the shipped one for its type. Raises what the acknowledgement says: 100 for a missing or misplaced
    segment, 101, 102, 103 for a field."""
    profile = profile or profiles.for_type(msg.header.type) or profiles.shipped("ihe-rad4-2.3.1")
    return _Reading(msg, profile.source_site(site), profile).commands()


@dataclass(frozen=True)
class _Part:
    """One ORC and what follows it. meaning: of its ORC-1 with ORC-5. status: empty where ORC-5 is none of the table."""

    scope: Group
    meaning: str
    status: str

    @property
    def orc(self) -> Segment:
        return self.scope["ORC"]

    @property
    def new(self) -> bool:
        return self.meaning in NEW

    def all(self, name: str) -> list[Segment]:
        return [segment for segment in self.scope.segments if segment.name == name]


class _Reading:
    """One message on its way to commands."""

    def __init__(self, msg: Message, site: Site, profile: Profile) -> None:
        self.msg, self.site, self.profile = msg, site, profile
        self.imaging = msg.header.type.startswith("OMI")
        self.policies = profile.policies(site)

    @cached_property
    def header(self) -> Group:
        """What stands before the first order: MSH, the patient, the visit. Notes count from PID on."""
        before: list[Segment] = []
        for segment in self.msg.segments:
            if segment.name == "ORC":
                break
            if segment.name != "NTE" or any(one.name == "PID" for one in before):
                before.append(segment)
        return Group.of(before)

    @cached_property
    def above(self) -> dict[str, Segment]:
        """What an order group sees of it: a note is about what it follows."""
        return {name: segment for name, segment in self.header.items() if name != "NTE"}

    @cached_property
    def sent(self) -> values.Span | None:
        return values.span(self.msg["MSH-7"], self.site)

    @cached_property
    def visit(self) -> dict[str, Any]:
        return self.profile.said("visit", self.header, self.site, new=True)[1]

    def commands(self) -> list[OrderCommand]:
        parts = [self._part(segments) for segments in groups(self.msg.segments, "ORC")]
        self._check_order_of_segments(parts)
        self.patient = self._patient()
        made: list[OrderCommand] = []
        said: dict[tuple[object, ...], _Saying] = {}
        old: list[OrderCommand] = []  # RP and RU, which wait for their RO
        before, steps_due = "", []
        for part in parts:
            if old and part.meaning not in ("RP", "RU", "RO"):
                raise _no_replacement(old)
            if part.meaning == "CH":
                at = _parent(made, part)
                places = [self._place_of_step(scope) for scope in self._step_scopes(part)]
                made[at] = _with_child(made[at], self._procedure(part, part.scope), places)
            elif part.meaning in ("RP", "RU"):
                old.append(self._command(part))
            else:
                if part.meaning == "RO" and not old and before != "RO":
                    raise InvalidValue(part.orc.place(1), "an RO follows the RP or RU that it replaces", err="100")
                command = replace(self._command(part), replaces=tuple(old))
                old = []
                for saying in self._sayings(part, command):
                    said[saying.key] = _alike(said.get(saying.key), saying)
                at = _add(made, command)
                if part.meaning == "PA":
                    steps_due.append((at, part))
            before = part.meaning
        if old:
            raise _no_replacement(old)
        for at, part in steps_due:
            if any(not step.sps_id for procedure in made[at].procedures for step in procedure.steps):
                self._need("sps_id", "", part.scope, "reject")
        return [
            replace(one, procedures=tuple(replace(it, steps=alike.once(it.steps)) for it in one.procedures))
            for one in made
        ]

    def _part(self, segments: Sequence[Segment]) -> _Part:
        orc = segments[0]
        control, status = orc.get(1).strip(), orc.get(5).strip().upper()
        meaning = self.profile.meaning(control, status)
        if status and status not in STATUSES:
            log.get().info("hl7.status_unlisted", place=orc.place(5))
            status = ""
        return _Part(Group.of(segments, self.above), meaning or "", status)

    def _check_order_of_segments(self, parts: Sequence[_Part]) -> None:
        names = [segment.name for segment in self.msg.segments]
        if not parts:
            raise MissingField("ORC", "an order message holds at least one ORC", err="100")
        if "PID" not in names or names.index("PID") > names.index("ORC"):
            raise MissingField("PID", "a PID must stand before the first ORC", err="100")
        for part in parts:
            if part.meaning and part.meaning not in DETAILED:
                continue
            inside = [segment.name for segment in part.scope.segments]
            if "OBR" not in inside:
                raise MissingField(f"ORC^{part.orc.position}", "an order group holds an OBR", err="100")
            if self.imaging and ("IPC" not in inside or inside.index("IPC") < inside.index("OBR")):
                raise MissingField("IPC", "an IPC follows the OBR of each order group", err="100")
        if self.imaging and "IPC" in names[: names.index("ORC")]:
            raise InvalidValue("IPC^1", "stands before its order", err="100")
        for part in parts:
            if not part.meaning:
                enabled = ", ".join(one for one in profiles.MEANINGS if one in self.profile.enabled)
                raise InvalidValue(part.orc.place(1), f"order control is one of {enabled}", err="103")

    def _patient(self) -> PersonCommand:
        person = patient_of(only_pid(self.msg), self.msg, self.site)
        if not self.profile.levels["patient"]:
            return person
        fields, attributes = self.profile.said("patient", self.header, self.site, new=True)
        said = {name: value for name, value in fields.items() if value is not None and name in ("birth_date", "sex")}
        attributes = {name: value for name, value in attributes.items() if value is not None}
        return replace(person, **said, attributes=person.attributes | attributes)

    # One order group

    def _command(self, part: _Part) -> OrderCommand:
        scope, profile, new = part.scope, self.profile, part.new
        order, attributes = profile.said("order", scope, self.site, new=new)
        if new:
            self._need("accession_number", order.get("accession_number", ""), scope, "reject")
            attributes |= self.visit  # PID and PV1 of a change or cancel are not the order's (RAD-13)
        targets = ("procedure.placer_number", "procedure.filler_number")
        values.refuse_two_orders([list(profile.sources_of(one, scope)) for one in targets])
        order["is_issuer_assumed"] = not order.get("accession_issuer")
        order["accession_issuer"] = order.get("accession_issuer") or self.site.accession_issuer
        order["at"] = order.get("at") and values.happened(order["at"], self.sent)
        procedure = self._procedure(part, scope)
        return OrderCommand(
            control=CONTROLS[part.meaning],  # type: ignore[arg-type]
            status=part.status,
            patient=self.patient,
            procedures=(procedure,) if procedure else (),
            begun=part.status == "IP",
            attributes=attributes,
            place=f"ORC^{part.orc.position}^2",
            known=profile.identity.known or "refuse",
            unknown=profile.identity.unknown or "refuse",
            policies=self.policies,
            **order,
        )

    def _procedure(self, part: _Part, scope: Group) -> ProcedureCommand | None:
        """One group is one requested procedure, each IPC one step of it; all agree in IPC-1, 2 and 3. Without IPC the
        group is one step, and pairs with one Requested Procedure ID are one procedure. None: it names none."""
        ipcs = self._ipcs(part)
        for ipc in ipcs[1:]:
            for number in (1, 2, 3):
                if ipc.get(number) != ipcs[0].get(number):
                    raise InvalidValue(ipc.place(number), "differs from the first IPC of its order group", err="102")
        said, attributes = self.profile.said("procedure", scope, self.site, new=part.new)
        if part.new:
            strict: Missing = "reject" if ipcs or "ZDS" in scope else "derive"
            self._need("study_instance_uid", said.get("study_instance_uid", ""), scope, strict)
            self._need("requested_procedure_id", said.get("requested_procedure_id", ""), scope, "reject")
        steps = tuple(self._step(part, one, said, by_ipc=bool(ipcs)) for one in self._step_scopes(part))
        names = ("requested_procedure_id", "study_instance_uid", "placer_number", "filler_number")
        if not (ipcs or part.new or steps[0].sps_id or any(said.get(name) for name in names)):
            return None if part.meaning != "CH" else ProcedureCommand(**said, attributes=attributes, steps=steps)
        return ProcedureCommand(**said, attributes=attributes, steps=steps)

    def _ipcs(self, part: _Part) -> list[Segment]:
        return part.all("IPC") if "IPC" in self.profile.steps_by else []

    def _step_scopes(self, part: _Part) -> list[Group]:
        return [part.scope.with_segment(ipc) for ipc in self._ipcs(part)] or [part.scope]

    def _place_of_step(self, scope: Group) -> str:
        found = self.profile.source_of("step.sps_id", scope)
        return found[0].place(found[1]) if found else f"ORC^{scope['ORC'].position}"

    def _sayings(self, part: _Part, command: OrderCommand) -> "Iterator[_Saying]":
        for procedure in command.procedures:
            for scope, step in zip(self._step_scopes(part), procedure.steps, strict=True):
                yield _Saying(self._place_of_step(scope), command, procedure, step)

    def _step(self, part: _Part, scope: Group, procedure: dict[str, Any], *, by_ipc: bool) -> StepCommand:
        said, attributes = self.profile.said("step", scope, self.site, new=part.new)
        if by_ipc or (part.new and part.meaning != "PA"):
            self._need("sps_id", said.get("sps_id", ""), scope, "reject")
        if said.get("modality") is None:
            said["modality"] = values.modality_of(attributes.get("ScheduledProtocolCodeSequence"))
            self.profile.tell("step.modality", "first digit of the JJ1017 code", said["modality"])
        if self.profile.stations and (part.new or said.get("station_ae_titles")):
            self.profile.set_station(said, attributes, scope, procedure)
        numbers = {name: procedure.get(name, "") for name in NUMBERS}
        return StepCommand(**said, attributes=attributes, **numbers)

    def _need(self, identifier: str, value: str, scope: Group, default: Missing) -> None:
        """Only a new order must say everything; the others may name it by any of its numbers (5.3)."""
        if value or self.profile.missing(identifier, self.site, default) != "reject":
            return
        level, what = WHAT[identifier]
        found = self.profile.source_of(f"{level}.{identifier}", scope)
        place = found[0].place(found[1]) if found else f"ORC^{scope['ORC'].position}"
        raise MissingField(place, f"{what} is required")


NUMBERS = ("placer_number", "placer_issuer", "filler_number", "filler_issuer")


def _no_replacement(old: Sequence[OrderCommand]) -> MissingField:
    return MissingField(old[-1].place.rpartition("^")[0], "an RO follows the RP or RU that it replaces", err="100")


# Parent and child (JAHIS)


def _parent(made: Sequence[OrderCommand], part: _Part) -> int:
    """The order that a CH tells more of: ORC-8 names it, else it is the group before."""
    stated = {
        name: part.orc.get(8, component).strip() for name, component in (("placer_number", 1), ("filler_number", 2))
    }
    stated = {name: number for name, number in stated.items() if number}
    for at in range(len(made) - 1, -1, -1):
        if not stated or any(
            getattr(procedure, name) == number for procedure in made[at].procedures for name, number in stated.items()
        ):
            return at
    raise MissingField(part.orc.place(8), "the parent of a CH stands before it in the same message", err="100")


def _with_child(parent: OrderCommand, child: ProcedureCommand | None, places: Sequence[str]) -> OrderCommand:
    """A child with an SPS ID of its own is a step; of one without, or with that of a step that is there, the codes go
    to that step. places: of the child's steps."""
    if child is None or not parent.procedures:
        return parent
    *others, whole = parent.procedures
    if any(step.sps_id for step in child.steps):
        steps = {step.sps_id: step for step in whole.steps if step.sps_id}  # the whole is no step beside its parts
        for step, place in zip(child.steps, places, strict=True):
            known = steps.get(step.sps_id)
            if known and alike.child_contradicts(known, step):
                raise InvalidValue(
                    place, "another group says something else of this step; give it its own ID", err="102"
                )
            steps[step.sps_id] = alike.with_codes(known, step) if known else step
        whole = replace(whole, steps=tuple(steps.values()))
    elif whole.steps and parent.control != "CA":
        *rest, last = whole.steps
        whole = replace(whole, steps=(*rest, alike.with_codes(last, child.steps[0])))
    whole = replace(whole, attributes=_with_comments(whole.attributes, whole.attributes, child.attributes))
    return replace(parent, procedures=(*others, whole))


# What is said twice of one step


@dataclass(frozen=True)
class _Saying:
    """What one order group, or one IPC of it, says of a step. place: of the step's ID."""

    place: str
    command: OrderCommand
    procedure: ProcedureCommand
    step: StepCommand

    @property
    def key(self) -> tuple[object, ...]:
        """Who differ in it do not mean the same step, or not at the same time: the order by its accession number, else
        its other numbers; the procedure by its ID, its Study UID, else its numbers; the step by its ID. A step without
        one is known by its numbers; of a new order it is one more."""
        command, procedure, step = self.command, self.procedure, self.step
        numbers = tuple(getattr(step, name) for name in NUMBERS)
        named = step.sps_id or (self.place if command.control in PLACING or not any(numbers) else numbers)
        order = (command.accession_number, command.accession_issuer) if command.accession_number else numbers
        return (
            command.control, command.at, order,
            procedure.requested_procedure_id or procedure.study_instance_uid or numbers, named,
        )  # fmt: skip


def _alike(known: _Saying | None, more: _Saying) -> _Saying:
    """What both say. Raises InvalidValue where they contradict each other: the last of them would win, and nobody would
    know."""
    if known is None:
        return more
    if _contradict(known, more):
        what = f"says something else of the step than {known.place}; give each step its own ID, or say one thing of it"
        raise InvalidValue(more.place, what, err="102")
    procedure = alike.both_procedures(known.procedure, more.procedure)
    command = known.command if known.command.status else more.command
    return replace(known, command=command, procedure=procedure, step=alike.both(known.step, more.step))


def _contradict(a: _Saying, b: _Saying) -> bool:
    if a.command is b.command:
        return alike.contradict(a.step, b.step, in_station=False)
    statuses = {a.command.status, b.command.status} - {""}
    return (
        len(statuses) > 1 or alike.contradict(a.step, b.step) or alike.procedures_contradict(a.procedure, b.procedure)
    )


# Several groups of one order


def _add(made: list[OrderCommand], command: OrderCommand) -> int:
    """Where it stands among the commands: by itself, or joined to one of the same order that says the same of other
    parts of it."""
    same_order = [at for at, known in enumerate(made) if _same_order(known, command)]
    for at in same_order:
        if _is_said_alike(made[at], command):
            made[at] = _joined(made[at], command)
            return at
    if command.control in PLACING:
        for at in same_order:
            made[at], command = _beside(made[at], command)
    made.append(command)
    return len(made) - 1


def _same_order(a: OrderCommand, b: OrderCommand) -> bool:
    if not a.accession_number:
        return False
    return (a.accession_number, a.accession_issuer, a.control) == (b.accession_number, b.accession_issuer, b.control)


def _is_said_alike(known: OrderCommand, more: OrderCommand) -> bool:
    """At one time, and to one end: else a part would get what is said of another (5.3). What replaces an order is one
    new order in any case, and what names no part of it reaches all of it, beside whatever names one."""
    if known.control in PLACING:
        return bool(known.replaces) or (known.at, known.begun) == (more.at, more.begun)
    said = ((one.at, one.status, bool(one.procedures)) for one in (known, more))
    return len(set(said)) == 1


def _beside(known: OrderCommand, more: OrderCommand) -> tuple[OrderCommand, OrderCommand]:
    """Two groups of a new order that were made at two times, or of which one has begun. They came in one message and do
    not contradict each other: what one says of the order, or of a procedure that they share, the next leaves out."""
    procedures, own = list(known.procedures), []
    for one in more.procedures:
        at = _shared(procedures, one)
        if at is not None:
            first = procedures[at]
            joint = _one_procedure(first, one, more.place)
            comments = {COMMENTS: joint.attributes[COMMENTS]}
            first = replace(
                first, study_instance_uid=joint.study_instance_uid, attributes={**first.attributes, **comments}
            )
            said: dict[str, Any] = {name: None for name in TEXTS if getattr(first, name) is not None}
            procedures[at] = first
            one = replace(one, **said, attributes=_left_out(one.attributes, first.attributes))
        own.append(one)
    return (
        replace(known, procedures=tuple(procedures), priority=_most_urgent(known, more)),
        replace(
            more, procedures=tuple(own), priority=None, attributes=_left_out(more.attributes, known.attributes)
        ),
    )  # fmt: skip


def _left_out(attributes: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    return {name: None if said.get(name) is not None else value for name, value in attributes.items()}


def _most_urgent(*orders: OrderCommand) -> str | None:
    return max((one.priority for one in orders if one.priority), key=PRIORITIES.index, default=None)


def _shared(procedures: Sequence[ProcedureCommand], one: ProcedureCommand) -> int | None:
    """Pairs that share the Requested Procedure ID, or without one the Study UID, are steps of one procedure."""
    for at, known in enumerate(procedures):
        ids = known.requested_procedure_id, one.requested_procedure_id
        if ids[0] == ids[1] and (
            ids[0] or (one.study_instance_uid and one.study_instance_uid == known.study_instance_uid)
        ):
            return at
    return None


def _joined(known: OrderCommand, more: OrderCommand) -> OrderCommand:
    procedures = list(known.procedures)
    for one in more.procedures:
        at = _shared(procedures, one)
        if at is None:
            procedures.append(one)
        else:
            procedures[at] = _one_procedure(procedures[at], one, more.place)
    return replace(
        known,
        procedures=tuple(procedures),
        begun=known.begun and more.begun,
        priority=_most_urgent(known, more),
        attributes=_both(known.attributes, more.attributes),
        replaces=known.replaces + more.replaces,
    )


def _one_procedure(known: ProcedureCommand, more: ProcedureCommand, place: str) -> ProcedureCommand:
    """Its numbers are the first pair's; each step keeps those of its own pair."""
    uids = {known.study_instance_uid, more.study_instance_uid} - {""}
    if len(uids) > 1:
        raise InvalidValue(place, "the Study Instance UID differs between steps of one requested procedure", err="102")
    return replace(
        known,
        study_instance_uid=next(iter(uids), ""),
        attributes=_with_comments(_both(known.attributes, more.attributes), known.attributes, more.attributes),
        steps=known.steps + more.steps,
    )


def _with_comments(attributes: dict[str, Any], *said: dict[str, Any]) -> dict[str, Any]:
    """With what all of them remark, once."""
    comments = list(dict.fromkeys(filter(None, (one.get(COMMENTS) for one in said))))
    return {**attributes, COMMENTS: joined(comments, COMMENTS)}


def _both(known: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {**more, **{name: value for name, value in known.items() if value is not None}}
