"""Attempts at a shard that are stopped or killed before any of their calls to storage, and what they leave."""

import contextlib
import inspect
import itertools
from collections.abc import Callable

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.staging import sweep
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import committed_rejects, missing_shards, publish, start_store

CALLS = {
    name
    for name, function in inspect.getmembers(files, inspect.isfunction)
    if function.__module__ == files.__name__ and not name.startswith("_")
} - {"join", "is_local", "local_path", "absolute", "remote_errors", "in_parallel"}
"""Every function through which the writer touches storage."""


everywhere = pytest.mark.parametrize(
    "url",
    [
        pytest.param("memory", marks=pytest.mark.slow),
        *(pytest.param(at, marks=pytest.mark.long) for at in ("local", "s3")),
    ],
    indirect=True,
)


class At:
    """Calls `act` before the call number `place` to storage, once, and counts the calls."""

    def __init__(self, monkeypatch, place: int, act: Callable[[], None]) -> None:
        self.count, self.place, self.act, self.reached = 0, place, act, False
        for name in CALLS:
            monkeypatch.setattr(files, name, self.counted(getattr(files, name)))

    def counted(self, function):
        def call(*args, **kwargs):
            self.count += 1
            if self.count - 1 == self.place and not self.reached:
                self.reached = True
                self.act()
            return function(*args, **kwargs)

        return call


def killed() -> None:
    raise KeyboardInterrupt


@everywhere
def test_an_attempt_that_is_stopped_anywhere_while_another_does_everything_changes_nothing(
    url, plan, attempt, clean, tree, monkeypatch
):
    """Stopped before its commit counts, it loses and leaves nothing; after that, the other one loses."""

    def others() -> None:
        attempt(url, 0, "other")
        publish(url, plan)
        assert tree(url) in clean.values()

    winners = set()
    for place in itertools.count():
        files.remove(url)
        start_store(url, plan)
        attempt(url, 1, "this")
        with monkeypatch.context() as patched:
            pause = At(patched, place, others)
            attempt(url, 0, "this")
        if not pause.reached:
            break
        publish(url, plan)
        (winner,) = [pair for pair, expected in clean.items() if tree(url) == expected]
        winners.add(winner)
        assert verify_store(open_store(url)).findings == ()
    assert place > 15
    assert winners == {("this", "this"), ("other", "this")}


@everywhere
@pytest.mark.parametrize("second", ["this", "other"])
def test_whatever_an_attempt_that_was_killed_anywhere_leaves_is_completed_or_replaced(
    url, plan, attempt, clean, tree, monkeypatch, second
):
    for place in itertools.count():
        files.remove(url)
        start_store(url, plan)
        with monkeypatch.context() as patched:
            kill = At(patched, place, killed)
            with contextlib.suppress(KeyboardInterrupt):
                attempt(url, 0, "this")
        if not kill.reached:
            break
        if place % 2:  # another job starts, or the same one goes on
            start_store(url, plan)
        first = "this" if 0 not in missing_shards(url, plan) else second
        for shard in missing_shards(url, plan):
            attempt(url, shard, second)
        assert committed_rejects(url, plan) == [
            (f"k{2 * s}", "bad") for s, d in enumerate((first, second)) if d == "other"
        ]
        publish(url, plan)
        assert tree(url) == clean[first, second]
    assert place > 15


@everywhere
def test_a_job_that_is_killed_anywhere_while_it_publishes_publishes_when_it_is_run_again(
    url, plan, attempt, clean, tree, monkeypatch
):
    for place in itertools.count():
        files.remove(url)
        start_store(url, plan)
        attempt(url, 0, "this")
        with monkeypatch.context() as patched:
            patched.setattr(files, "link", lambda *_, **__: killed())
            with pytest.raises(KeyboardInterrupt):
                attempt(url, 1, "other")
        assert files.list_names(files.join(url, "staged"))
        with monkeypatch.context() as patched:
            kill = At(patched, place, killed)
            with contextlib.suppress(KeyboardInterrupt):
                publish(url, plan)
        if not kill.reached:
            break
        publish(url, plan)
        assert tree(url) == clean["this", "other"]
    assert place > 15


@everywhere
def test_what_a_late_attempt_leaves_that_is_killed_harms_nothing_and_is_swept(
    url, plan, attempt, clean, tree, monkeypatch
):
    start_store(url, plan)
    for shard in (0, 1):
        attempt(url, shard, "this")
    publish(url, plan)
    left = set()
    for place in itertools.count():
        with monkeypatch.context() as patched:
            kill = At(patched, place, killed)
            with contextlib.suppress(KeyboardInterrupt):
                attempt(url, 0, "other")
        if not kill.reached:
            break
        found = tree(url)
        left |= found.keys() - clean["this", "this"].keys()
        assert {name: data for name, data in found.items() if not name.startswith("staged/")} == clean["this", "this"]
        assert verify_store(open_store(url)).findings == ()
        if place % 2:
            sweep(url)
        else:
            start_store(url, plan)
        assert tree(url) == clean["this", "this"]
    assert left


def test_two_shards_with_the_same_bytes_do_not_share_what_is_staged(url, plan, attempt, clean, tree, monkeypatch):
    """Their labels are equal. If they shared a name, the first to be settled would delete the object of the other."""
    start_store(url, plan)
    labels = plan.objects(0)["label"], plan.objects(1)["label"]
    with monkeypatch.context() as patched:
        patched.setattr(files, "link", lambda *_, **__: killed())
        with pytest.raises(KeyboardInterrupt):
            attempt(url, 0, "this")
    attempt(url, 1, "this")
    publish(url, plan)
    assert len({files.read_bytes(files.join(url, label)) for label in labels}) == 1
    assert tree(url) == clean["this", "this"]


@pytest.mark.parametrize("killed_before_linking", [False, True])
def test_objects_that_an_earlier_release_left_without_a_commit_are_replaced_even_if_their_sizes_are_right(
    url, plan, attempt, clean, tree, monkeypatch, killed_before_linking
):
    start_store(url, plan)
    for key in plan.objects(0).values():
        files.write_bytes(files.join(url, key), bytes(len(clean["this", "this"][key])))
    attempt(url, 1, "this")
    if killed_before_linking:
        with monkeypatch.context() as patched:
            patched.setattr(files, "link", lambda *_, **__: killed())
            with pytest.raises(KeyboardInterrupt):
                attempt(url, 0, "this")
    else:
        attempt(url, 0, "this")
    publish(url, plan)
    assert tree(url) == clean["this", "this"]
