import json
import shutil
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.images.worklist import ListingGone, Worklist, read_worklist, remove_worklists


@pytest.fixture
def shards() -> dict[int, range]:
    """Shards of five or six images; successive ones share an image, and shard 2 is missing."""
    return {0: range(0, 5), 1: range(4, 10), 3: range(14, 20), 4: range(19, 24)}


def test_shards_together_are_the_listing(digit_folder, tmp_path, shards, monkeypatch):
    monkeypatch.setattr("rdpm.pipeline.images.listing._BATCH", 3)
    whole = list_images(digit_folder).table
    with closing(Worklist(digit_folder, str(tmp_path))) as worklist:
        assert worklist.summary.images == len(whole) == 24
        worklist.write(shards)
    for shard, rows in shards.items():
        assert read_worklist(worklist.folder, shard).equals(whole.slice(rows.start, len(rows)))
    with pytest.raises(ListingGone, match="00002"):
        read_worklist(worklist.folder, 2)
    remove_worklists(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def tar_of(folder: str, path: Path) -> str:
    return shutil.make_archive(str(path), "tar", folder)


def test_a_restart_reuses_a_complete_listing_of_the_same_containers(digit_folder, tmp_path, shards, monkeypatch):
    source, store = tar_of(digit_folder, tmp_path / "images"), str(tmp_path / "store")
    with closing(Worklist(source, store)) as first:
        first.write(shards)
    monkeypatch.setattr("rdpm.pipeline.images.worklist.Catalog", lambda source: pytest.fail("listed again"))
    with closing(Worklist(source, store)) as again:
        assert again.summary == first.summary
        again.write({shard: shards[shard] for shard in (1, 4)})
        with pytest.raises(pytest.fail.Exception):  # a shard that has no file needs the listing
            again.write({2: range(10, 14)})
    with pytest.raises(pytest.fail.Exception):
        Worklist(tar_of(digit_folder, tmp_path / "other"), store)


def test_an_incomplete_listing_is_not_reused(digit_folder, tmp_path, shards):
    source, store = tar_of(digit_folder, tmp_path / "images"), str(tmp_path / "store")
    with closing(Worklist(source, store)) as first:
        first.write(shards)
    files.remove(f"{first.folder}/summary.json")
    with closing(Worklist(source, store)) as again:
        again.write(shards)
    assert files.exists(f"{first.folder}/summary.json")


def test_class_folders_are_listed_again(digit_folder, tmp_path, shards):
    folder, store = shutil.copytree(digit_folder, tmp_path / "images"), str(tmp_path / "store")
    with closing(Worklist(str(folder), store)) as first:
        first.write(shards)
    shutil.copy(next(folder.glob("0/*.png")), folder / "0" / "new.png")
    with closing(Worklist(str(folder), store)) as again:
        assert again.summary.images == 25
        assert again.folder != first.folder


def test_containers_that_changed_under_the_same_names_are_refused_when_listed_again(digit_folder, tmp_path, shards):
    source, store = tar_of(digit_folder, tmp_path / "images"), str(tmp_path / "store")
    with closing(Worklist(source, store)) as first:
        first.write(shards)
    summary = files.read_json(f"{first.folder}/summary.json")
    files.write_json(f"{first.folder}/summary.json", {**summary, "digest": "that of other images"})
    with closing(Worklist(source, store)) as again, pytest.raises(ValueError, match="have changed since"):
        again.write({2: range(10, 14)})


def test_at_least_64_files_are_written_at_a_time(digit_folder, tmp_path, monkeypatch):
    """Each waits for 63 others."""
    write, together = files.write_bytes, threading.Barrier(64)

    def wait_for_others(url: str, data: bytes) -> None:
        together.wait(30)
        write(url, data)

    shards = {shard: range(shard % 24, shard % 24 + 1) for shard in sorted(range(64), key=lambda shard: shard % 24)}
    with closing(Worklist(digit_folder, str(tmp_path))) as worklist, monkeypatch.context() as slow:
        slow.setattr("rdpm.pipeline.images.worklist.files.write_bytes", wait_for_others)
        slow.setattr("rdpm.pipeline.images.worklist.files.write_json", lambda *given: None)
        worklist.write(shards)
    assert all(read_worklist(worklist.folder, shard).num_rows == 1 for shard in shards)


PLANNING = """
import json, resource, sys, tempfile
from contextlib import closing
import rdpm.pipeline.tokenizing.stage
from rdpm.pipeline.images import worklist
from rdpm.pipeline.images.sources.entry import Entry
from rdpm.pipeline.images.sources.source import Source

def entries():
    for i in range(images):
        name = f"n{i * 7919 % 1000:08d}"
        yield Entry(name, f"{name}_{i}.JPEG", 110_000, f"/data/imagenet/train/{name}/{name}_{i}.JPEG")

worklist.open_source = lambda images: Source("/data/imagenet/train", (), True, entries)
peaks = []
for images in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as store, closing(worklist.Worklist("", store)) as planned:
        planned.write({s: range(s * 4096, min(images, (s + 1) * 4096)) for s in range(-(-images // 4096))})
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(peaks))
"""


@pytest.mark.long
def test_the_memory_of_planning_does_not_grow_with_the_number_of_images(python, repository):
    """A measurement with a million images is in `docs/benchmarks.md`."""
    done = subprocess.run(
        [*python, "-c", PLANNING, "[10000, 100000]"], cwd=repository, capture_output=True, text=True, check=True
    )
    small, large = json.loads(done.stdout)
    assert large < 1.1 * small
    table = pa.table({"key": [f"n00000000/n00000000_{i}.JPEG" for i in range(100_000)]})
    assert table.nbytes > 2_000_000  # the keys alone would take this much
