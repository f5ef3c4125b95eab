"""Every pair of state and event, allowed or not: the negative space is a table, too."""

import pytest

from broker import states
from broker.errors import WrongState

EVENTS = {name: sorted({event for _, event in machine}) for name, machine in states.MACHINES.items()}
ALLOWED = [(name, *pair, new) for name, machine in states.MACHINES.items() for pair, new in machine.items()]
FORBIDDEN = [
    (name, state, event)
    for name, machine in states.MACHINES.items()
    for state in sorted(states.states_of(machine))
    for event in EVENTS[name]
    if (state, event) not in machine
]
# Written out by hand from the standard and the design: a slip in the tables must disagree with something.
FINAL = {
    "PERFORMED": {"COMPLETED", "DISCONTINUED"},
    "INSTANCE": {"PURGED"},
    "MESSAGE": {"APPLIED"},
    "OUTBOX": {"DELIVERED", "DISCARDED"},
    "COMMITMENT": {"CLOSED"},
}
STEP_COUNTS = {
    "SCHEDULED": {"arrive", "start", "cancel", "no_show", "expire", "hold"},
    "ARRIVED": {"ready", "unarrive", "start", "cancel", "no_show", "expire", "hold"},
    "READY": {"unarrive", "start", "cancel", "no_show", "expire", "hold"},
    "STARTED": {"start", "complete", "discontinue", "wrong_entry"},
    "COMPLETED": {"start", "complete", "discontinue", "wrong_entry"},
    "DISCONTINUED": {"start", "wrong_entry"},
    "CANCELED": {"reinstate"},
    "EXPIRED": {"start", "reinstate", "cancel"},
    "NO_SHOW": {"start", "reinstate", "cancel"},
    "ON_HOLD": {"release", "cancel"},
}


@pytest.mark.parametrize(("machine", "state", "event", "new"), ALLOWED)
def test_an_allowed_event_leads_to_the_state_of_its_table(machine, state, event, new):
    assert states.advance(states.MACHINES[machine], state, event) == new


@pytest.mark.parametrize(("machine", "state", "event"), FORBIDDEN)
def test_any_other_event_is_refused_and_names_both(machine, state, event):
    with pytest.raises(WrongState) as refused:
        states.advance(states.MACHINES[machine], state, event)
    assert event in str(refused.value)
    assert (state or "new") in str(refused.value)


@pytest.mark.parametrize("machine", FINAL)
def test_a_final_state_has_no_way_out(machine):
    table = states.MACHINES[machine]
    assert {state for state in states.states_of(table) if not any(s == state for s, _ in table)} == FINAL[machine]


@pytest.mark.parametrize("state", STEP_COUNTS)
def test_a_scheduled_step_takes_just_these_events(state):
    assert {event for s, event in states.STEP if s == state} == STEP_COUNTS[state]


def test_a_finished_or_cancelled_step_never_comes_back_by_a_cancel_or_an_arrival():
    for state in ("COMPLETED", "CANCELED", "DISCONTINUED"):
        for event in ("arrive", "cancel", "ready", "hold"):
            assert not states.can(states.STEP, state, event)
