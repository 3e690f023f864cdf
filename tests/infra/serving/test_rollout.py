"""From one set of versions to the next, without Ray."""

import pytest

from infra.serving.rollout import Rollout
from tests.infra.local import served_model


class World:
    """What is running, what is told, and in which order things happened."""

    def __init__(self, broken=(), keep=0):
        self.up, self.broken, self.events = set(), set(broken), []
        self.rollout = Rollout(self.start, self.stop, lambda: set(self.up), self.announce, grace=0, keep=keep)

    def start(self, model):
        self.events.append(("start", model.version))
        self.up.add(model.key)
        if model.version in self.broken:
            raise RuntimeError("no memory")

    def stop(self, key):
        self.events.append(("stop", key.split("-")[2]))
        self.up.discard(key)

    def announce(self, served):
        self.events.append(("serve", *(model.version for model in served)))


@pytest.fixture(scope="module")
def versions(folder):
    return {number: served_model(folder, number) for number in "12345"}


def test_the_next_is_up_before_requests_are_turned_over_and_the_last_ends_after(versions):
    world = World()
    world.rollout.step((versions["1"],))
    world.rollout.step((versions["2"],))
    assert world.events == [("start", "1"), ("serve", "1"), ("start", "2"), ("serve", "2"), ("stop", "1")]


def test_nothing_happens_while_nothing_changes(versions):
    world = World()
    for _ in range(3):
        world.rollout.step((versions["1"], versions["2"]))
    assert world.events == [("start", "1"), ("serve", "1"), ("start", "2"), ("serve", "1", "2")]


def test_a_champion_that_cannot_start_leaves_the_one_before(versions):
    world = World(broken="2")
    world.rollout.step((versions["1"],))
    for _ in range(2):
        world.rollout.step((versions["2"],))
    assert world.events == [("start", "1"), ("serve", "1"), ("start", "2"), ("stop", "2")]  # and is not tried again
    world.rollout.step((versions["3"],))
    world.broken.clear()
    world.rollout.step((versions["2"],))  # unless it was not wanted in between
    assert world.events[-2:] == [("serve", "2"), ("stop", "3")]


def test_a_version_beside_that_cannot_start_is_left_out(versions):
    world = World(broken="2")
    world.rollout.step((versions["1"], versions["2"], versions["3"]))
    assert world.events[-1] == ("serve", "1", "3")


def test_without_any_champion_it_says_so(versions):
    world = World(broken="1")
    with pytest.raises(RuntimeError, match="latent-foundry@1 could not be started"):
        world.rollout.step((versions["1"],))


def test_the_champion_steps_aside_and_stays_served(versions):
    """Version 1 goes on beside its successor: it is neither started again nor ended."""
    world = World()
    world.rollout.step((versions["1"],))
    world.rollout.step((versions["2"], versions["1"]))
    assert world.events[2:] == [("start", "2"), ("serve", "2", "1")]


def test_what_is_left_has_its_grace(versions):
    world = World()
    world.rollout.grace = 1000
    world.rollout.step((versions["1"],))
    for _ in range(2):
        world.rollout.step((versions["2"],))
    assert ("stop", "1") not in world.events
    world.rollout.step((versions["1"],))  # back again: it never ended
    assert world.events[-1] == ("serve", "1")


def test_the_former_champion_can_be_asked_for_until_a_further_version_starts(versions):
    world = World(keep=1000)
    world.rollout.step((versions["1"],))
    for _ in range(2):
        world.rollout.step((versions["2"],))
    assert world.events[2:] == [("start", "2"), ("serve", "2", "1")]
    world.rollout.step((versions["3"],))
    assert world.events[4:] == [("serve", "2"), ("stop", "1"), ("start", "3"), ("serve", "3", "2")]
    world.rollout.step((versions["2"],))  # back: it never ended
    assert world.events[8:] == [("serve", "2", "3")]
    world.rollout.keep = 0
    world.rollout._former = None
    world.rollout.step((versions["2"],))
    assert world.events[9:] == [("serve", "2"), ("stop", "3")]
