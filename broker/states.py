"""All state machines as tables. `advance` is the only way to a new state (architecture.md 6)."""

from broker.errors import WrongState

Machine = dict[tuple[str, str], str]


def _table(*rows: tuple[str, str, str]) -> Machine:
    """Each row: states that may (`A|B`), event, new state; `=` keeps the state."""
    return {
        (state, event): (state if new == "=" else new) for states, event, new in rows for state in states.split("|")
    }


# (0040,0020) PS3.3 C.4.10 plus terminal words of our own, which no worklist answer carries.
STEP = _table(
    ("SCHEDULED", "arrive", "ARRIVED"),
    ("ARRIVED", "ready", "READY"),
    ("ARRIVED|READY", "unarrive", "SCHEDULED"),
    # DISCONTINUED, EXPIRED, NO_SHOW: the patient is on the table after all; the scanner knows better than the plan.
    ("SCHEDULED|ARRIVED|READY|DISCONTINUED|EXPIRED|NO_SHOW", "start", "STARTED"),
    ("STARTED", "start", "="),  # split case: a second MPPS for one step
    ("COMPLETED", "start", "="),  # append case: the step stays completed
    ("STARTED", "complete", "COMPLETED"),
    ("COMPLETED", "complete", "="),
    ("STARTED", "discontinue", "DISCONTINUED"),
    ("COMPLETED", "discontinue", "="),  # an abandoned append does not undo the exam
    ("STARTED|DISCONTINUED|COMPLETED", "wrong_entry", "SCHEDULED"),  # MPPS discontinued with (110514, DCM)
    # EXPIRED, NO_SHOW: the patient did not come, and now it is said that the exam is not wanted any more.
    ("SCHEDULED|ARRIVED|READY|ON_HOLD|EXPIRED|NO_SHOW", "cancel", "CANCELED"),
    ("SCHEDULED|ARRIVED|READY", "no_show", "NO_SHOW"),
    ("SCHEDULED|ARRIVED|READY", "expire", "EXPIRED"),
    ("SCHEDULED|ARRIVED|READY", "hold", "ON_HOLD"),
    ("ON_HOLD", "release", "SCHEDULED"),
    ("CANCELED|EXPIRED|NO_SHOW", "reinstate", "SCHEDULED"),  # by a person or an explicit message, never a late one
)
# PS3.4 Tables F.1-3 and F.1-4.
PERFORMED = _table(
    ("", "create", "IN PROGRESS"),
    ("IN PROGRESS", "update", "="),
    ("IN PROGRESS", "complete", "COMPLETED"),
    ("IN PROGRESS", "discontinue", "DISCONTINUED"),
)
STUDY = _table(
    ("RECEIVING", "settle", "RECONCILING"),
    ("RECONCILING", "match", "ACCEPTED"),
    ("ACCEPTED", "store", "ARCHIVED"),
    ("RECONCILING", "doubt", "IN_REVIEW"),
    ("IN_REVIEW", "resolve", "ACCEPTED"),
    ("IN_REVIEW", "reject", "REJECTED"),
    ("IN_REVIEW", "redecide", "RECONCILING"),
    ("RECEIVING|RECONCILING|ACCEPTED|ARCHIVED", "receive", "RECEIVING"),  # every later object is decided too
    ("IN_REVIEW|REJECTED", "receive", "="),  # the object joins the case
    ("ARCHIVED|ACCEPTED|REJECTED", "recall", "IN_REVIEW"),  # a machine's reason, such as MPPS 110514
    ("ARCHIVED|ACCEPTED|REJECTED", "undo", "IN_REVIEW"),  # a person's
)
INSTANCE = _table(
    ("STAGED", "hold", "HELD"),
    ("HELD", "release", "STAGED"),
    ("STAGED", "store", "STORED"),
    ("STORED", "purge", "PURGED"),
    ("STAGED|HELD|HIDDEN", "reject", "REJECTED"),
    ("REJECTED", "restore", "HELD"),  # a person takes the rejection back
    ("REJECTED", "restore_hidden", "HIDDEN"),  # of what is in the archive already
    ("STORED", "hide", "HIDDEN"),
    ("HIDDEN", "show", "STORED"),
)
CASE = _table(
    ("OPEN", "take", "TAKEN"),
    ("TAKEN", "release", "OPEN"),  # what it is about has changed: nobody has decided that yet
    ("OPEN|TAKEN", "resolve", "RESOLVED"),
    ("RESOLVED", "reopen", "OPEN"),
)
MESSAGE = _table(
    ("RECEIVED", "apply", "APPLIED"),
    ("RECEIVED", "reject", "REJECTED"),
    ("REJECTED|DISMISSED", "replay", "RECEIVED"),  # the same bytes again, where not they were at fault but we
    ("REJECTED", "dismiss", "DISMISSED"),  # a person says that nothing more is needed
)
OUTBOX = _table(
    ("DUE", "claim", "LEASED"),
    ("LEASED", "ok", "DELIVERED"),
    ("LEASED", "retry", "DUE"),
    ("LEASED", "fail", "DEAD"),
    ("DEAD", "requeue", "DUE"),
    ("DEAD", "discard", "DISCARDED"),
)
COMMITMENT = _table(("PENDING", "resolve", "RESOLVED"), ("RESOLVED", "report", "CLOSED"))

MACHINES = {
    "STEP": STEP, "PERFORMED": PERFORMED, "STUDY": STUDY, "INSTANCE": INSTANCE,
    "CASE": CASE, "MESSAGE": MESSAGE, "OUTBOX": OUTBOX, "COMMITMENT": COMMITMENT,
}  # fmt: skip


def advance(machine: Machine, state: str, event: str) -> str:
    """The state after `event`; WrongState where the table has no such arrow."""
    try:
        return machine[state, event]
    except KeyError:
        raise WrongState("state", f"{event} is not possible while {state or 'new'}") from None


def can(machine: Machine, state: str, event: str) -> bool:
    return (state, event) in machine


def states_of(machine: Machine) -> set[str]:
    return {state for state, _ in machine} | set(machine.values())
