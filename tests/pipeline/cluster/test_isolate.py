"""Images that kill their process are found by halving, and nobody else is accused."""

import os
from pathlib import Path

import pytest

from rdpm.pipeline.cluster.isolate import find_killers


@pytest.mark.slow
def test_the_images_that_kill_two_processes_alone_are_found_and_one_that_dies_once_is_not(running, tmp_path) -> None:
    """Of shard 7, image 2 kills, and image 4 is the victim of something else once. Of shard 8 nothing kills alone."""

    def rehearse(shard: int, images: range) -> None:
        with Path(tmp_path, "pids").open("a") as file:
            file.write(f"{os.getpid()} ")
        victim = Path(tmp_path, "victim")
        if shard == 7 and len(images) == 1 and 4 in images and not victim.exists():
            victim.touch()
            os._exit(1)
        if shard == 7 and 2 in images:
            os._exit(1)

    found = find_killers(rehearse, {7: 5, 8: 2}, {"CPU": 1.0}, 1.0)
    assert found == {7: (2,)}
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == len(set(pids))  # every part in a process of its own


@pytest.mark.slow
def test_a_refusal_of_the_work_is_raised(running) -> None:
    def rehearse(shard: int, images: range) -> None:
        raise ValueError(f"shard {shard} wants another tokenizer")

    with pytest.raises(ValueError, match=r"^shard 3 wants another tokenizer$"):
        find_killers(rehearse, {3: 4}, {"CPU": 1.0}, 0)
