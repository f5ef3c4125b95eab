"""The state of an order: the first that fits, and AVAILABLE never too early (contract.md 4)."""

import itertools

import pytest

from broker.archive.status import Facts, state_of

TWO, ONE = frozenset({"1.1", "1.2"}), frozenset({"1.1"})
DONE = {"expected": TWO, "received": TWO, "available": TWO}
STEPS = "SCHEDULED ARRIVED READY ON_HOLD STARTED COMPLETED DISCONTINUED CANCELED NO_SHOW EXPIRED".split()


@pytest.mark.parametrize(
    ("state", "steps", "facts"),
    [
        ("SCHEDULED", [], {}),
        ("SCHEDULED", ["SCHEDULED"], {}),
        ("SCHEDULED", ["SCHEDULED", "CANCELED"], {}),
        ("ARRIVED", ["SCHEDULED", "ARRIVED"], {}),
        ("ARRIVED", ["READY"], {}),
        ("ON_HOLD", ["ON_HOLD"], {}),
        ("ON_HOLD", ["ON_HOLD", "ARRIVED"], {}),
        ("IN_PROGRESS", ["STARTED"], {}),
        ("IN_PROGRESS", ["STARTED", "COMPLETED"], DONE),
        ("IN_PROGRESS", ["COMPLETED", "SCHEDULED"], {}),
        ("IN_PROGRESS", ["COMPLETED", "ON_HOLD"], DONE),
        ("IN_PROGRESS", ["DISCONTINUED", "SCHEDULED"], {}),
        ("IN_PROGRESS", ["SCHEDULED"], DONE),
        ("ACQUIRED", ["COMPLETED"], {}),
        ("ACQUIRED", ["COMPLETED", "CANCELED"], {}),
        ("ACQUIRED", ["COMPLETED"], {"expected": TWO, "received": TWO, "available": ONE}),
        ("ACQUIRED", ["COMPLETED"], {"expected": TWO, "received": ONE, "available": ONE, "reported": True}),
        ("AVAILABLE", ["COMPLETED"], DONE),
        ("AVAILABLE", ["COMPLETED", "CANCELED"], DONE),
        ("AVAILABLE", ["DISCONTINUED"], DONE),
        ("AVAILABLE", ["COMPLETED"], {"expected": ONE, "received": TWO, "available": TWO}),
        ("REPORTED", ["COMPLETED"], DONE | {"reported": True}),
        ("CANCELLED", ["CANCELED"], {}),
        ("CANCELLED", ["CANCELED", "EXPIRED"], {}),
        ("DISCONTINUED", ["DISCONTINUED", "CANCELED"], {}),
        ("DISCONTINUED", ["DISCONTINUED"], {"expected": TWO, "received": TWO}),
        ("NO_SHOW", ["NO_SHOW", "EXPIRED"], {}),
        ("EXPIRED", ["EXPIRED"], {}),
        ("HELD", ["SCHEDULED"], {"held": ["differs"]}),
        ("HELD", ["CANCELED"], {"held": ["differs"]}),
        ("HELD", ["STARTED"], {"held": ["differs"]}),
        ("HELD", ["COMPLETED"], DONE | {"held": ["differs"], "reported": True}),
    ],
)
def test_the_first_state_that_fits_wins(state, steps, facts):
    assert state_of(Facts(steps, **facts)) == state


@pytest.mark.parametrize("steps", [list(pair) for pair in itertools.combinations_with_replacement(STEPS, 2)])
def test_nothing_is_available_before_the_last_expected_image_is(steps):
    for available in (frozenset(), ONE, frozenset({"9.9"})):
        facts = Facts(steps, expected=TWO, received=TWO, available=available, reported=True)
        assert state_of(facts) not in {"AVAILABLE", "REPORTED"}
    assert state_of(Facts(steps)) not in {"AVAILABLE", "REPORTED"}


@pytest.mark.parametrize("steps", [list(pair) for pair in itertools.combinations_with_replacement(STEPS, 2)])
def test_as_long_as_its_images_are_there_an_order_goes_back_only_to_held_in_progress_or_acquired(steps):
    allowed = {"HELD", "IN_PROGRESS", "ACQUIRED", "AVAILABLE", "REPORTED"}
    for expected, held, reported in itertools.product((TWO, TWO | {"1.3"}), ((), ("differs",)), (False, True)):
        facts = Facts(steps, expected=expected, received=TWO, available=TWO, held=held, reported=reported)
        assert state_of(facts) in allowed
