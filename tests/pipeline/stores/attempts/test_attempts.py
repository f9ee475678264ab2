"""Several attempts at one shard, with the same bytes or with others: one of them counts."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.verification import verify_store
from rdpm.pipeline.stores.writer import missing_shards, publish, start_store


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


def test_a_staged_name_that_another_attempt_replaces_just_then_is_linked_again(
    tmp_path, plan, attempt, clean, tree, monkeypatch
):
    """link(2) says that a file is not there when its last name went to another file meanwhile."""
    url, link, lost = str(tmp_path / "store"), files.link, []

    def lose_once(source: str, target: str, replace: bool = False) -> bool:
        if source not in lost:
            lost.append(source)
            raise FileNotFoundError(source)
        return link(source, target, replace)

    monkeypatch.setattr(files, "link", lose_once)
    start_store(url, plan)
    for shard in range(plan.num_shards):
        attempt(url, shard, "this")
    publish(url, plan)
    assert lost
    assert tree(Path(url)) in clean.values()


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
