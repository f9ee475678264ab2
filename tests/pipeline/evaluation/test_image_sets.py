"""Every kind of set gives the same chunks, and a damaged or wrong one is refused."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.evaluation import image_sets
from rdpm.pipeline.evaluation.image_sets import ArchiveImages, FolderImages, PictureImages, StoreImages, open_samples
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.samples import SampleIdentity, sample_arrays


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(image_sets, "CHUNK", 4)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, size=(11, 8, 8, 3)).astype(np.uint8)


LABELS = np.arange(11) % 3


IDENTITY = SampleIdentity("g0", "t0", 1, {}, (0, 1, 2), 4, 0, 11, "fp32", compile=False, classes=("a", "b", "c"))


def _store(url, pixels, shard_rows, published=True):
    plan = Plan("samples", len(pixels), shard_rows, shard_rows, sample_arrays(2, 2, 8), IDENTITY)
    start_store(url, plan)
    for shard in range(plan.num_shards):
        rows = plan.shard_range(shard)
        part = slice(rows.start, rows.stop)
        columns = {"images": pixels[part], "label": LABELS[part].astype(np.int32)}
        columns |= {"seed": np.zeros(len(rows), np.uint64), "codes": np.zeros((len(rows), 2, 2, 2), np.uint16)}
        write_shard(url, plan, shard, columns, {"label": columns["label"]})
    if published:
        publish(url, plan)
    return url


def _pictures(folder, pixels):
    """Pictures in the order of their file names, which is not the order of their paths."""
    for i, image in enumerate(pixels):
        path = folder / str(9 - i % 3) / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(folder)


def _npz(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def test_one_set_of_samples_is_the_same_in_every_form(tmp_path, pixels, small_chunks):
    forms = [
        (_store(f"{tmp_path}/store", pixels, 3), StoreImages, True),
        (_store(f"{tmp_path}/other", pixels, 11), StoreImages, True),
        (_npz(tmp_path / "a.npz", arr_0=pixels, arr_1=LABELS), ArchiveImages, True),
        (_npz(tmp_path / "b.npz", arr_0=pixels), ArchiveImages, False),
        (_pictures(tmp_path / "pictures", pixels), PictureImages, False),
    ]
    np.savez_compressed(tmp_path / "c.npz", arr_0=pixels, arr_1=LABELS)
    forms.append((f"{tmp_path}/c.npz", ArchiveImages, True))
    for url, kind, labelled in forms:
        for channels in (3, 1):
            images = open_samples(url, channels, threads=2)
            assert type(images) is kind
            assert (len(images), images.size, images.channels) == (11, 8, channels)
            for _ in range(2):  # a set can be read again
                chunks = list(images.chunks())
                assert [len(chunk.labels) for chunk in chunks] == [4, 4, 3]
                assert np.array_equal(np.concatenate([c.pixels for c in chunks]), pixels[..., :channels])
                labels = np.concatenate([chunk.labels for chunk in chunks])
                assert np.array_equal(labels, LABELS if labelled else np.full(11, -1))
    digests = [open_samples(url, 3).digest for url, _, _ in forms]
    assert len(set(digests)) == len(forms)
    assert digests == [open_samples(url, 3).digest for url, _, _ in forms]


def test_an_archive_is_never_completely_in_memory(tmp_path, small_chunks, monkeypatch):
    """No read takes more bytes than a chunk."""
    path = _npz(tmp_path / "a.npz", arr_0=np.zeros((40, 8, 8, 3), np.uint8))
    images = ArchiveImages(path, 3)
    asked = []
    read = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: asked.append(n) or read(self, n))
    assert len(list(images.chunks())) == 10
    assert 0 < max(asked) <= 4 * 8 * 8 * 3
    assert min(asked) >= 0


def test_a_folder_leaves_out_what_it_cannot_decode(tmp_path, pixels, small_chunks):
    for i, image in enumerate(pixels):
        path = tmp_path / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "a" / "04.png").write_bytes(b"no picture")
    images = FolderImages(str(tmp_path), 8, 3, threads=2)
    order = [*range(0, 11, 2), *range(1, 11, 2)]
    order.remove(4)
    chunks = list(images.chunks())
    assert np.array_equal(np.concatenate([c.pixels for c in chunks]), pixels[order])
    assert np.array_equal(np.concatenate([c.labels for c in chunks]), [i % 2 for i in order])
    assert images.classes == ("a", "b")
    assert len(FolderImages(str(tmp_path), 8, 3, limit=5)) == 5


def test_archives_with_other_arrays_are_refused(tmp_path, pixels):
    for arrays, message in (
        ({"images": pixels}, "has no arr_0"),
        ({"arr_0": pixels.astype(np.float32)}, r"is float32 of shape \(11, 8, 8, 3\); it must be uint8"),
        ({"arr_0": pixels[..., 0]}, r"is uint8 of shape \(11, 8, 8\); it must be"),
        ({"arr_0": pixels[:, :, :4]}, "it must be uint8"),
        ({"arr_0": pixels.transpose(0, 3, 1, 2)}, "it must be uint8"),
        ({"arr_0": pixels[:0]}, "it must be uint8"),
        ({"arr_0": np.asfortranarray(pixels)}, "are in Fortran order"),
    ):
        path = _npz(tmp_path / "bad.npz", **arrays)
        with pytest.raises(ValueError, match=message):
            open_samples(path, 3)
    with pytest.raises(ValueError, match="does not exist"):
        open_samples(f"{tmp_path}/nowhere.npz", 3)


def test_incomplete_samples_are_refused(tmp_path, pixels):
    half = _store(f"{tmp_path}/half", pixels, 4, published=False)
    with pytest.raises(ValueError, match=r"has no manifest.json, so it is no finished store"):
        open_samples(half, 3)
    path = tmp_path / "cut.npz"
    _npz(path, arr_0=pixels)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"cut.npz' is not a complete .npz"):
        open_samples(str(path), 3)
    _npz(path, arr_0=pixels)
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"is not a complete .npz .*Bad CRC-32.*; write it again"):
        list(open_samples(str(path), 3).chunks())
    folder = _pictures(tmp_path / "pictures", pixels)
    (tmp_path / "pictures" / "9" / "000003.png").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"sample 9/000003.png of .* is unusable"):
        list(open_samples(folder, 3).chunks())
    Image.fromarray(pixels[0, :4]).save(tmp_path / "pictures" / "9" / "000003.png")
    with pytest.raises(ValueError, match="is 8 x 4; give square samples that all have one size"):
        list(open_samples(folder, 3).chunks())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"is not a sample store, .npz or folder of pictures"):
        open_samples(f"{tmp_path}/empty", 3)
    with pytest.raises(ValueError, match="nowhere' does not exist"):
        open_samples(f"{tmp_path}/nowhere", 3)
