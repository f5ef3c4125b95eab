"""What one message says twice of one step: once where it says it alike, refused where it contradicts itself. Pure.

Between two messages the newer counts; inside one nobody could know which was meant. What one of them leaves out
contradicts nothing, and what differs in the station alone is a step with several stations (PS3.3 C.4.10)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from broker.mwl.commands import ProcedureCommand, StepCommand

CODES, STATION_NAME = "ScheduledProtocolCodeSequence", "ScheduledStationName"
COMMENTS = "RequestedProcedureComments"  # all of them stand there, one below the other
SCHEDULED = ("modality", "start_date", "start_time", "label")
TEXTS = ("description", "code_value", "code_scheme", "code_meaning")  # of a procedure
NUMBERS = (("placer_number", "placer_issuer"), ("filler_number", "filler_issuer"))
SLOT = (("appointment_number", "appointment_issuer"),)


def same_number(a: Any, b: Any) -> bool | None:
    """Placer and filler number, those that both state. None: there is none."""
    pairs = [(_values(a, pair), _values(b, pair)) for pair in NUMBERS if getattr(a, pair[0]) and getattr(b, pair[0])]
    return all(one == other for one, other in pairs) if pairs else None


def contradict(a: StepCommand, b: StepCommand, *, in_station: bool = True) -> bool:
    """in_station: whether another station is a contradiction, too."""
    if same_number(a, b) is False or _differ(a, b, (*SCHEDULED, "description")):
        return True
    if any(getattr(a, pair[0]) and getattr(b, pair[0]) and _values(a, pair) != _values(b, pair) for pair in SLOT):
        return True
    if in_station and _differ(a, b, ("station_ae_titles",)):
        return True
    return _attributes_differ(a.attributes, b.attributes, () if in_station else (STATION_NAME,))


def child_contradicts(step: StepCommand, child: StepCommand) -> bool:
    """A part of an examination (JAHIS) adds its codes to the step, and has a number and a description of its own."""
    return _differ(step, child, (*SCHEDULED, "station_ae_titles"))


def procedures_contradict(a: ProcedureCommand, b: ProcedureCommand) -> bool:
    return _differ(a, b, TEXTS) or _attributes_differ(a.attributes, b.attributes, (COMMENTS,))


def contradiction(procedures: Sequence[ProcedureCommand]) -> tuple[int, int | None] | None:
    """Of one order: the place of the first procedure (and step in it; None: the procedure itself) of which another
    before it, with the same ID, says something else."""
    known: dict[object, ProcedureCommand] = {}
    steps: dict[tuple[object, str], StepCommand] = {}
    for at, one in enumerate(procedures):
        named = one.requested_procedure_id or one.study_instance_uid or at
        if named in known and procedures_contradict(known[named], one):
            return at, None
        known[named] = both_procedures(known[named], one) if named in known else one
        for n, step in enumerate(one.steps):
            key = named, step.sps_id
            if not step.sps_id:
                continue
            if key in steps and contradict(steps[key], step, in_station=False):
                return at, n
            steps[key] = both(steps[key], step) if key in steps else step
    return None


def once(steps: Iterable[StepCommand]) -> tuple[StepCommand, ...]:
    """Each step ID once: what its first mention leaves out the others say, and the stations are those of all."""
    made: dict[object, StepCommand] = {}
    for number, step in enumerate(steps):
        key = step.sps_id or number
        made[key] = both(made[key], step) if key in made else step
    return tuple(made.values())


def both_procedures(a: ProcedureCommand, b: ProcedureCommand) -> ProcedureCommand:
    """Without the steps of the second."""
    said: dict[str, Any] = {name: getattr(b, name) for name in TEXTS if getattr(a, name) is None}
    return replace(a, **said, attributes=_filled(a.attributes, b.attributes))


def with_codes(step: StepCommand, detail: StepCommand) -> StepCommand:
    """The step with the codes of a part of its examination."""
    more = detail.attributes.get(CODES)
    known = step.attributes.get(CODES) or []
    codes = [*known, *(one for one in more if one not in known)] if more else step.attributes.get(CODES)
    said = {name: getattr(detail, name) for name in ("modality", "description") if getattr(step, name) is None}
    return replace(step, **said, attributes={**step.attributes, CODES: codes})


def both(a: StepCommand, b: StepCommand) -> StepCommand:
    """Of one that does not contradict the other: what the first leaves out, and the stations of both."""
    said: dict[str, Any] = {name: getattr(b, name) for name in (*SCHEDULED, "description") if getattr(a, name) is None}
    for number, issuer in (*NUMBERS, *SLOT):
        if not getattr(a, number):
            said |= {number: getattr(b, number), issuer: getattr(b, issuer)}
    titles = [one for one in (a.station_ae_titles, b.station_ae_titles) if one is not None]
    if titles:
        said["station_ae_titles"] = tuple(dict.fromkeys(title for one in titles for title in one))
    attributes = _filled(a.attributes, b.attributes)
    names = [one.attributes.get(STATION_NAME) for one in (a, b)]
    if all(isinstance(one, list) for one in names):
        attributes[STATION_NAME] = list(dict.fromkeys(name for one in names for name in one or ()))
    return replace(a, **said, attributes=attributes)


def _filled(known: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {**more, **{name: value for name, value in known.items() if value is not None}}


def _values(one: Any, names: Iterable[str]) -> list[str]:
    return [getattr(one, name) for name in names]


def _differ(a: Any, b: Any, names: Iterable[str]) -> bool:
    pairs = ((getattr(a, name), getattr(b, name)) for name in names)
    return any(one is not None and other is not None and one != other for one, other in pairs)


def _attributes_differ(a: Mapping[str, Any], b: Mapping[str, Any], but: tuple[str, ...]) -> bool:
    return any(
        value is not None and b.get(name) is not None and value != b[name]
        for name, value in a.items()
        if name not in but
    )
