"""The files beside a sample store."""

import tarfile
import tracemalloc
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import held
from rdpm.pipeline.foundation.names import safe_name
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.sampling.formats import Format, write_files
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.samples import sample_arrays


def write_held(store: Store, formats: tuple[Format, ...]) -> None:
    with held(store.url, "sample") as lease:
        write_files(store, formats, lease)


def test_every_format_holds_the_same_images_and_labels(store, tree):
    write_held(store, ("npz", "png", "tar"))
    images, labels = store.read_all("images"), store.read_all("label")
    with np.load(f"{store.url}/samples.npz") as archive:
        assert np.array_equal(archive["arr_0"], images)
        assert np.array_equal(archive["arr_1"], labels)
    source = list_images(f"{store.url}/png")
    assert source.classes == ("one", "zero")
    for number in range(len(source)):
        key = source.key(number)
        row = int(Path(key).stem)
        assert source.classes[source.label(number)] == ("zero", "one")[labels[row]]
        assert np.array_equal(Image.open(f"{store.url}/png/{key}"), images[row])
    members = {}
    for path in sorted(Path(store.url, "tar").iterdir()):
        with tarfile.open(path) as archive:
            members |= {member.name: archive.extractfile(member).read() for member in archive}
    assert len(members) == 60
    for row in range(30):
        assert int(members[f"{row:08d}.cls"]) == labels[row]
        assert np.array_equal(Image.open(BytesIO(members[f"{row:08d}.png"])), images[row])
    before = tree(store.url)
    write_held(store, ("npz", "png", "tar"))
    assert tree(store.url) == before


def test_a_folder_appears_complete_or_not_at_all_and_a_killed_writers_files_are_removed(store, tmp_path, monkeypatch):
    write, written = files.write_bytes, []

    def fail_at_the_tenth(url: str, data: bytes) -> None:
        written.append(url)
        if len(written) == 10:
            raise KeyboardInterrupt
        write(url, data)

    copy = Store(store.url, store.manifest)
    target = tmp_path / "png"
    join = "rdpm.pipeline.sampling.formats.files.join"
    monkeypatch.setattr(join, lambda root, *parts: "/".join([root, *parts]).replace(f"{store.url}/png", str(target)))
    with monkeypatch.context() as broken:
        broken.setattr(files, "write_bytes", fail_at_the_tenth)
        with pytest.raises(KeyboardInterrupt):
            write_held(copy, ("png",))
    assert not target.exists()
    write_held(copy, ("png",))
    assert len(list(target.rglob("*.png"))) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["png"]


HOSTILE = ("../../../escaped", "/etc/cron.d", "..", "", "a/b", "CON", "a::b", "x" * 300, "plain", "a\0b", ".hidden")


def test_no_class_name_leads_out_of_the_folder_and_every_class_has_a_folder_of_its_own(tmp_path, store, tree):
    """The names come from a card that somebody else wrote."""
    arrays, count = sample_arrays(1, 1, 16), len(HOSTILE)
    identity = replace(store.manifest.plan.samples, classes=HOSTILE, labels=tuple(range(count)), per_class=2)
    plan, url = Plan("samples", 2 * count, 8, 8, arrays, identity), f"{tmp_path}/deep/er/store"
    start_store(url, plan)
    for shard in range(plan.num_shards):
        rows = np.array(plan.shard_range(shard))
        columns = {spec.name: np.zeros((len(rows), *spec.row_shape), spec.dtype) for spec in arrays}
        write_shard(url, plan, shard, {**columns, "label": (rows % count).astype(np.int32)}, {"index": rows})
    written = Store(url, publish(url, plan))
    before = set(tree(tmp_path))
    write_held(written, ("png", "tar"))
    new = {name for name in set(tree(tmp_path)) - before if not name.startswith("deep/er/store.lease/")}
    pictures = {f"deep/er/store/png/{safe_name(HOSTILE[n % count])}/{n:08d}.png" for n in range(2 * count)}
    assert new == pictures | {f"deep/er/store/tar/{shard:05d}.tar" for shard in range(plan.num_shards)}
    assert written.manifest.plan.samples.classes == HOSTILE


@pytest.mark.long
def test_memory_does_not_grow_from_1_000_to_50_000_images(tmp_path, store):
    """The peak while samples.npz is written is that of one shard."""
    peaks = {}
    for rows in (1_000, 50_000):
        arrays = sample_arrays(1, 1, 16)
        identity = replace(store.manifest.plan.samples, classes=("only",), labels=(0,), per_class=rows)
        plan, url = Plan("samples", rows, 500, 500, arrays, identity), f"{tmp_path}/{rows}"
        start_store(url, plan)
        zeros = {spec.name: np.zeros((500, *spec.row_shape), spec.dtype) for spec in arrays}
        for shard in range(plan.num_shards):
            write_shard(url, plan, shard, zeros, {"index": np.arange(500)})
        written = Store(url, publish(url, plan))
        tracemalloc.start()
        write_held(written, ("npz",))
        peaks[rows] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[50_000] < 1.1 * peaks[1_000]
