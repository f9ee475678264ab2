import io

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.images.stream import ImageStream

BATCHES = 7  # of 8 images out of 24: two epochs and a part of the third


def stream_of(folder: str, *, rank: int = 0, ranks: int = 1, seed: int = 5, flips: bool = True, size: int = 6):
    return ImageStream(
        list_images(folder), image_size=size, channels=1, flips=flips, batch=8, seed=seed, rank=rank, ranks=ranks
    )


def read(stream: ImageStream, start: int = 0, stop: int = BATCHES, workers: int = 0):
    return [(batch.pixels, batch.seeds) for batch in stream.batches(start, stop, workers)]


def same(one, other) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


@pytest.fixture(scope="module")
def uninterrupted(digit_folder):
    return read(stream_of(digit_folder))


def test_batches_are_pixels_and_seeds(uninterrupted):
    for pixels, seeds in uninterrupted:
        assert pixels.shape == (8, 1, 6, 6)
        assert pixels.dtype == torch.uint8
        assert seeds.shape == (8,)
        assert seeds.dtype == torch.int64
    assert len(uninterrupted) == BATCHES


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_stream(digit_folder, uninterrupted, workers):
    assert same(read(stream_of(digit_folder), workers=workers), uninterrupted)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_together_see_the_global_batch(digit_folder, uninterrupted, ranks):
    parts = [read(stream_of(digit_folder, rank=rank, ranks=ranks)) for rank in range(ranks)]
    together = [tuple(torch.cat(pieces) for pieces in zip(*batch, strict=True)) for batch in zip(*parts, strict=True)]
    assert same(together, uninterrupted)


def test_resuming_anywhere_gives_the_rest_of_the_stream(digit_folder, uninterrupted):
    for start in range(BATCHES + 1):
        assert same(read(stream_of(digit_folder), start), uninterrupted[start:])
    assert same(read(stream_of(digit_folder), 3, workers=2), uninterrupted[3:])


def test_without_crops_and_flips_every_image_occurs_exactly_once_per_epoch(digit_folder):
    source = list_images(digit_folder)
    stored = sorted(np.asarray(Image.open(io.BytesIO(source.read(i)))).tobytes() for i in range(len(source)))
    batches = read(stream_of(digit_folder, flips=False, size=8), stop=6)
    epochs = torch.cat([images for images, _ in batches]).view(2, 24, 8, 8)
    for epoch in epochs:
        assert sorted(image.numpy().tobytes() for image in epoch) == stored
    assert not torch.equal(epochs[0], epochs[1])


def test_no_two_positions_share_a_noise_seed(digit_folder):
    seeds = torch.cat([seeds for _, seeds in read(stream_of(digit_folder), stop=12)])
    assert len(seeds.unique()) == len(seeds) == 96


def test_with_flips_each_epoch_mirrors_different_images(digit_folder):
    epochs = torch.cat([images for images, _ in read(stream_of(digit_folder), stop=12)]).view(4, 24, -1)
    seen = [{image.numpy().tobytes() for image in epoch} for epoch in epochs]
    assert all(len(epoch) == 24 for epoch in seen)
    assert len(set.union(*seen)) in range(40, 49)  # nearly every image both ways in four epochs
    assert seen[0] != seen[1] != seen[2] != seen[3]


def test_another_seed_is_another_stream(digit_folder, uninterrupted):
    other = read(stream_of(digit_folder, seed=6))
    assert not any(torch.equal(a, b) for (a, _), (b, _) in zip(other, uninterrupted, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_a_usable_image_stops_with_one_sentence(tmp_path, workers):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "page.jpg").write_bytes(b"<html>")
    stream = ImageStream(
        list_images(str(tmp_path)), image_size=4, channels=1, flips=False, batch=2, seed=0, rank=0, ranks=1
    )
    with pytest.raises(ValueError, match="cannot be used") as stopped:
        read(stream, stop=1, workers=workers)
    assert "\n" not in str(stopped.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_truncated_image_is_reported_and_the_next_image_replaces_it(tmp_path, digits, workers, ranks):
    for number, pixels in enumerate(digits[0][:12]):
        path = tmp_path / "a" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "a" / "07.png").write_bytes((tmp_path / "a" / "07.png").read_bytes()[:60])
    streams = [stream_of(str(tmp_path), rank=rank, ranks=ranks, flips=False, size=8) for rank in range(ranks)]
    batches = [list(stream.batches(0, 3, workers)) for stream in streams]
    named = [set(batch.rejects) for part in batches for batch in part]
    assert set.union(*named) == {"a/07.png"}
    images = torch.cat([torch.cat([part[k].pixels for part in batches]) for k in range(3)])
    counts = [int((images.flatten(1) == image.flatten()).all(1).sum()) for image in images]
    assert sorted(counts) == [2] * 20 + [4] * 4  # twelve places, twice each; the next picture replaces one


def test_batches_know_their_position_in_the_stream(digit_folder):
    batches = list(stream_of(digit_folder, rank=1, ranks=2).batches(2, 5, 0))
    assert [batch.position for batch in batches] == [20, 28, 36]


def test_images_smaller_than_the_crop_are_named_with_their_size(digit_folder):
    (batch,) = stream_of(digit_folder, size=12).batches(0, 1, 0)
    assert len(batch.enlarged) == 8
    assert set(batch.enlarged.values()) == {"8 x 8"}
    (batch,) = stream_of(digit_folder, size=8).batches(0, 1, 0)
    assert batch.enlarged == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_lie_in_pinned_memory_and_arrive_whole(digit_folder, uninterrupted, workers):
    arrived = []
    for batch in stream_of(digit_folder).batches(0, BATCHES, workers):
        assert batch.pixels.is_pinned()
        assert batch.seeds.is_pinned()
        arrived.append(tuple(x.to("cuda", non_blocking=True) for x in (batch.pixels, batch.seeds)))
    torch.cuda.synchronize()
    assert same([tuple(x.cpu() for x in batch) for batch in arrived], uninterrupted)
