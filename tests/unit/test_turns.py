"""Messages about one patient or order wait for each other, in the order in which they came; others do not."""

import threading

import pytest

from broker.errors import NoRoom
from broker.ris_bridge.turns import Turns

A, B = ("patient", "1"), ("patient", "2")


def test_a_message_waits_for_an_earlier_one_about_the_same_patient():
    turns, order, begun = Turns(), [], threading.Event()
    first, second = turns.draw(), turns.draw()

    def go_second():
        begun.set()
        second.wait({A, B}, 10)
        order.append("second")
        second.done()

    thread = threading.Thread(target=go_second)
    thread.start()
    begun.wait(10)
    first.wait({A}, 10)
    order.append("first")
    first.done()
    thread.join(10)
    assert order == ["first", "second"]


def test_a_message_about_somebody_else_does_not_wait():
    turns = Turns()
    first, second = turns.draw(), turns.draw()
    first.wait({A}, 0)
    second.wait({B}, 0)
    third = turns.draw()
    with pytest.raises(NoRoom):  # it waits for whom it must
        third.wait({A}, 0)


def test_a_message_waits_until_it_is_known_what_the_earlier_one_is_about():
    turns = Turns()
    first, second = turns.draw(), turns.draw()
    with pytest.raises(NoRoom):
        second.wait({B}, 0)
    first.wait({A}, 0)
    second.wait({B}, 0)


def test_one_that_came_earlier_never_waits_for_a_later_one():
    turns = Turns()
    first, second = turns.draw(), turns.draw()
    first.wait({A}, 0)
    with pytest.raises(NoRoom):
        second.wait({A}, 0)
    first.wait({A}, 0)
    first.done()
    second.wait({A}, 0)
