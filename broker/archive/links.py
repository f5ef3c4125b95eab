"""Which orders a study names, and how: links U, R, M and A (reconciliation.md 3.3). Pure."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from broker.archive.facts import Item, Seen, StudyFacts
from broker.mwl import normalise

# A person may have been wrong, a device may not continue: NO_SHOW and EXPIRED are open, ON_HOLD is not.
OPEN = frozenset({"SCHEDULED", "ARRIVED", "READY", "STARTED", "COMPLETED", "DISCONTINUED", "EXPIRED", "NO_SHOW"})


@dataclass(frozen=True)
class Statement:
    """What names orders. kind: U, R, M or A. items: those it names. orders: keys; never empty."""

    kind: str
    items: tuple[Item, ...]

    @property
    def orders(self) -> frozenset[int]:
        return frozenset(item.order_pk for item in self.items)


@dataclass(frozen=True)
class Links:
    """doubles: accession numbers that more than one order has, which are no link (row 31)."""

    statements: tuple[Statement, ...]
    doubles: tuple[Statement, ...]

    @cached_property
    def kinds(self) -> frozenset[str]:
        return frozenset(one.kind for one in self.statements)

    @cached_property
    def contradict(self) -> bool:
        """Two of them name different orders."""
        sets = [one.orders for one in self.statements]
        return any(not a & b for n, a in enumerate(sets) for b in sets[n + 1 :])

    @cached_property
    def orders(self) -> frozenset[int]:
        """The orders that the study answers: one, or in the group case all that R or M name. All named ones where they
        contradict each other."""
        everything = frozenset[int]().union(*(one.orders for one in self.statements))
        if self.contradict or not self.statements:
            return everything
        grouped = frozenset[int]().union(*(one.orders for one in self.statements if one.kind in "RM"))
        if len(grouped) > 1 and everything <= grouped:
            return grouped
        return frozenset.intersection(*(one.orders for one in self.statements))

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """Steps of these orders, the most closely named ones: by R or M, else by the Study UID, else all."""
        found: dict[int, Item] = {}
        for order_pk in sorted(self.orders):
            for kinds in ("RM", "U", "A"):
                named = {
                    item.step_pk: item
                    for one in self.statements if one.kind in kinds
                    for item in one.items if item.order_pk == order_pk
                }  # fmt: skip
                if named:
                    found |= named if kinds == "RM" else _not_cancelled(named)
                    break
        return tuple(found.values())


def _not_cancelled(items: dict[int, Item]) -> dict[int, Item]:
    """Of an order that is named as a whole: its steps but the cancelled ones, unless all are."""
    return {pk: item for pk, item in items.items() if item.status != "CANCELED"} or items


def find(facts: StudyFacts) -> Links:
    said = [statement for kind, named in FINDERS.items() for statement in _distinct(kind, named(facts))]
    return Links(tuple(said), tuple(_distinct("A", _doubles(facts))))


def _distinct(kind: str, named: Iterable[tuple[Item, ...]]) -> Iterator[Statement]:
    return (Statement(kind, items) for items in dict.fromkeys(named) if items)


def _by_study_uid(facts: StudyFacts) -> Iterator[tuple[Item, ...]]:
    yield tuple(item for item in facts.items if item.study_uid == facts.study_uid)


def _by_request(facts: StudyFacts) -> Iterator[tuple[Item, ...]]:
    """Requested Procedure ID and SPS ID together; all items of one object are one statement (group case). Where the
    pair stands in several orders, the accession number of the item tells which is meant."""
    for seen in facts.seen:
        pairs = [one for one in seen.requests if one.procedure_id and one.sps_id]
        named: dict[int, Item] = {}
        for one in pairs:
            both = [i for i in facts.items if (i.procedure_id, i.sps_id) == (one.procedure_id, one.sps_id)]
            same = [i for i in both if _has_accession(i, one.accession_number, one.accession_issuer)]
            named |= {item.step_pk: item for item in (same if one.accession_number and len(both) > 1 else both)}
        yield tuple(named.values())


def _by_performed(facts: StudyFacts) -> Iterator[tuple[Item, ...]]:
    for one in facts.performed:
        yield tuple(item for item in facts.items if item.step_pk in one.steps)


Number = tuple[str, str]  # accession number, issuer


def _by_accession(facts: StudyFacts) -> Iterator[tuple[Item, ...]]:
    """The number of an object is a statement; those of its Request Attributes items are one together (group case)."""
    for seen in facts.seen:
        for numbers in _numbers(seen):
            found = [items for number in numbers if len(_orders(items := _with_number(facts, number))) == 1]
            yield tuple({item.step_pk: item for items in found for item in items}.values())


def _doubles(facts: StudyFacts) -> Iterator[tuple[Item, ...]]:
    for seen in facts.seen:
        for number in (number for numbers in _numbers(seen) for number in numbers):
            if len(_orders(items := _with_number(facts, number))) > 1:
                yield items


def _numbers(seen: Seen) -> tuple[list[Number], list[Number]]:
    of_items = dict.fromkeys((one.accession_number, one.accession_issuer) for one in seen.requests)
    own = (seen.accession_number, seen.accession_issuer)
    return [own] if own[0] else [], [number for number in of_items if number[0]]


def _with_number(facts: StudyFacts, number: Number) -> tuple[Item, ...]:
    return tuple(item for item in facts.items if _has_accession(item, *number))


def _orders(items: Iterable[Item]) -> set[int]:
    return {item.order_pk for item in items}


def _has_accession(item: Item, number: str, issuer: str) -> bool:
    same = normalise.plain(number) == normalise.plain(item.accession_number) != ""
    return same and (not issuer or issuer == item.accession_issuer)


FINDERS: dict[str, Callable[[StudyFacts], Iterable[tuple[Item, ...]]]] = {
    "U": _by_study_uid,
    "R": _by_request,
    "M": _by_performed,
    "A": _by_accession,
}


def accession_agrees(seen: Seen, items: Iterable[Item]) -> bool:
    """Each accession number of the object, those of its Request Attributes items included, is that of one of the
    orders, under the issuer that the object names; or one of the two sides has none."""
    items = tuple(items)
    if {normalise.plain(item.accession_number) for item in items} == {""}:
        return True
    stated = [(seen.accession_number, seen.accession_issuer if seen.issuer_given else "")]
    stated += [(one.accession_number, one.accession_issuer if one.issuer_given else "") for one in seen.requests]
    return all(
        any(_has_accession(item, number, issuer) for item in items)
        for number, issuer in stated if normalise.plain(number)
    )  # fmt: skip
