"""Several attempts at one shard, with the same bytes or with others, stopped or killed anywhere: one of them counts."""

import contextlib
import inspect
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.staging import sweep
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import committed_rejects, missing_shards, publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays

CALLS = {
    name
    for name, function in inspect.getmembers(files, inspect.isfunction)
    if function.__module__ == files.__name__ and not name.startswith("_")
} - {"join", "is_local", "local_path", "absolute", "remote_errors", "in_parallel"}
"""Every function through which the writer touches storage."""


@pytest.fixture
def plan(stores) -> Plan:
    """Two short shards whose labels have the same bytes."""
    arrays = token_arrays(1, (2, 1, 1), with_accumulated=False, with_latents=True)
    return Plan("tokens", 4, 2, 2, arrays, stores.IDENTITY)


@pytest.fixture
def attempt(stores, plan) -> Callable[[str, int, str], None]:
    """attempt(url, shard, device): write a shard as that device would, with codes, latents and a reject of its own."""

    def write(url: str, shard: int, device: str) -> None:
        columns = {name: values.copy() for name, values in stores.columns(plan, shard).items()}
        rejected: tuple[int, ...] = ()
        if device != "this":
            columns["codes"] = (columns["codes"] + len(device)) % 16
            columns["latents"] = columns["latents"][::-1].copy()
            rejected = (plan.shard_range(shard).start,)
        write_shard(url, plan, shard, columns, stores.index(plan, shard, rejected), rejected)

    return write


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.long)])
def url(request, tmp_path) -> Iterator[str]:
    """Where a store may lie."""
    root = {"local": str(tmp_path), "memory": "memory://attempts"}.get(request.param) or request.getfixturevalue("s3")
    place = f"{root}/store"
    yield place
    files.remove(place)


everywhere = pytest.mark.parametrize(
    "url",
    [
        pytest.param("memory", marks=pytest.mark.slow),
        *(pytest.param(at, marks=pytest.mark.long) for at in ("local", "s3")),
    ],
    indirect=True,
)


@pytest.fixture
def clean(tmp_path, plan, attempt, tree) -> dict[tuple[str, str], dict[str, bytes]]:
    """The files of the store whose shards 0 and 1 were written by these devices, one attempt each."""
    found = {}
    for pair in itertools.product(("this", "other"), repeat=2):
        folder = str(tmp_path / "-".join(pair))
        start_store(folder, plan)
        for shard, device in enumerate(pair):
            attempt(folder, shard, device)
        publish(folder, plan)
        found[pair] = tree(folder)
    assert len({str(sorted(files.items())) for files in found.values()}) == 4
    return found


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


@pytest.mark.parametrize("published", [False, True])
def test_an_attempt_with_other_bytes_that_comes_late_changes_nothing(url, plan, attempt, clean, tree, published):
    start_store(url, plan)
    for shard in (0, 1):
        attempt(url, shard, "this")
    if published:
        publish(url, plan)
    attempt(url, 0, "other")
    assert publish(url, plan) == open_store(url).manifest
    assert tree(url) == clean["this", "this"]
    assert verify_store(open_store(url)).findings == ()


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


def test_nothing_in_a_published_store_is_replaced_even_if_it_is_damaged(url, plan, attempt, tree):
    """Only `rdpm verify --repair` does that: it knows from the manifest what was published."""
    start_store(url, plan)
    for shard in (0, 1):
        attempt(url, shard, "this")
    publish(url, plan)
    codes, label, commit = plan.objects(0)["codes"], plan.objects(0)["label"], "commits/00000.json"
    files.write_bytes(files.join(url, codes), b"damage")
    files.remove(files.join(url, label))
    damaged = tree(url)
    attempt(url, 0, "other")
    assert tree(url) == damaged
    files.remove(files.join(url, commit))
    attempt(url, 0, "other")
    assert {name: data for name, data in tree(url).items() if name != commit} == {
        name: data for name, data in damaged.items() if name != commit
    }
    assert {finding.name for finding in verify_store(open_store(url)).findings} == {commit}


@pytest.mark.slow
@pytest.mark.parametrize("turns", [4, pytest.param(100, marks=pytest.mark.long)])
def test_many_attempts_at_once_with_other_bytes_leave_each_shard_as_one_of_them_wrote_it(
    tmp_path, plan, attempt, clean, tree, turns
):
    def run(url: str, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(3):
            attempt(url, draw.randrange(2), draw.choice(["this", "other"]))

    for turn in range(turns):
        url = str(tmp_path / f"turn{turn}")
        start_store(url, plan)
        with ThreadPoolExecutor(4) as pool:
            for running in [pool.submit(run, url, 4 * turn + number) for number in range(4)]:
                running.result()
        for shard in missing_shards(url, plan):
            attempt(url, shard, "this")
        publish(url, plan)
        assert tree(Path(url)) in clean.values()
