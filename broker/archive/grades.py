"""How well an object's patient agrees with a person that we know: G0 to GX (reconciliation.md 3.3). Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker.archive.facts import Person, Seen
from broker.mwl import names, normalise

# Best first: the order in which `worst` looks. A grade further on is never more automatic.
GRADES = ("G0", "G1", "GM", "G2", "G3", "G4", "G5", "GX")
WHAT = ("patient ID", "name", "birth date", "sex")
SAME_NAME = ("N0", "N1", "N2")


@dataclass(frozen=True)
class Grade:
    """differs: which of `name`, `birth date`, `sex`, `patient ID` differ. missing: those that one side does not have.
    name_near: the name differs by one edit, one kanji, or the family name alone (N3)."""

    code: str
    differs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    name_near: bool = False


def grade(seen: Seen, person: Person) -> Grade:
    if not normalise.plain(seen.patient_id):
        return Grade("GX", missing=("patient ID",))
    name = grade_name(seen.name, person)
    said = {"name": _agree_name(name), **_demographics(seen, person)}
    differs = tuple(what for what, agrees in said.items() if agrees is False)
    missing = tuple(what for what, agrees in said.items() if agrees is None)
    near = name == "N3"
    if seen.patients != (person.pk,):
        code = "G4" if not differs and not missing else "G5"
        return Grade(code, ("patient ID", *differs), missing, near)
    return Grade(_same_id(said, differs, near), differs, missing, near)


def grade_name(name: str, person: Person) -> str:
    """N0 to N4, `missing` without a name, or without a given name on one side. A name of the patient's ADT history
    counts as its own."""
    if names.lacks_given(name, person.name):
        return "missing" if names.grade(name, person.name) in SAME_NAME else names.grade(name, person.name)
    found = names.grade(name, person.name)
    if found in ("N3", "N4") and any(names.grade(name, known) in SAME_NAME for known in person.names_before):
        return "N2"
    return found


def worst(grades: Sequence[Grade]) -> Grade:
    """The one that decides for all; of several that are as bad, what any of them says."""
    code = max((one.code for one in grades), key=GRADES.index)
    as_bad = [one for one in grades if one.code == code]
    return Grade(
        code, _in_any(one.differs for one in as_bad), _in_any(one.missing for one in as_bad),
        any(one.name_near for one in as_bad),
    )  # fmt: skip


def _in_any(said: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    found = {what for one in said for what in one}
    return tuple(what for what in WHAT if what in found)


def is_worse(code: str, than: str) -> bool:
    return GRADES.index(code) > GRADES.index(than)


def _agree_name(name: str) -> bool | None:
    return None if name == "missing" else name in SAME_NAME


def _demographics(seen: Seen, person: Person) -> dict[str, bool | None]:
    pairs = {
        "birth date": (normalise.birth_date(seen.birth_date), normalise.birth_date(person.birth_date)),
        "sex": (normalise.sex(seen.sex), normalise.sex(person.sex)),
    }
    return {what: (a == b if a and b else None) for what, (a, b) in pairs.items()}


def _same_id(said: dict[str, bool | None], differs: tuple[str, ...], near: bool) -> str:
    if len(differs) > 1 or ("name" in differs and not near):
        return "G3"
    if differs:
        return "G2"
    if all(said.values()):
        return "G0"
    return "G1" if said["name"] or said["birth date"] else "GM"
