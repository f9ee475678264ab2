"""Noise: known answers, and one value per (seed, stream, step, element) for every batch, device and compiler."""

import hashlib
import math
import shutil
from collections import Counter
from itertools import product

import pytest
import torch

from rdpm.models.noise import (
    NOISE_VERSION,
    Stream,
    child_seeds,
    gumbel,
    normal,
    philox,
    random_words,
    uniform,
)

SHAPE = (3, 5, 7)


BIG = (0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 0x9E3779B97F4A7C15)  # seeds above 2^63


FAMILIES = (normal, uniform, gumbel)


family = pytest.mark.parametrize("draw", FAMILIES, ids=lambda f: f.__name__)


def signed(value: int) -> int:
    """The int64 that has the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value


def reference_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's own integers, from the definition in the paper."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 % 2**32, p0 >> 32 ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    tensors = [tuple(torch.tensor(word) for word in part) for part in (counter, key)]
    assert tuple(word.item() for word in philox(*tensors)) == words
    assert reference_philox(counter, key) == words


@pytest.mark.parametrize("seed", [0, 7, 2**32, *BIG])
def test_every_word_has_its_documented_address(seed):
    key = seed % 2**32, seed >> 32
    for step, stream in product((0, 1, 10, 2**31 + 5), Stream):
        words = random_words(torch.tensor([signed(seed)]), step, stream, 11)[0].tolist()
        assert words == [reference_philox((e // 4, step, int(stream), 0), key)[e % 4] for e in range(11)]


@pytest.mark.parametrize("seed", [0, 7, *BIG])
def test_a_child_seed_is_two_words_at_its_index(seed):
    indices = [0, 1, 999, 2**32, 2**40 + 3]
    key = seed % 2**32, seed >> 32
    words = [reference_philox((i % 2**32, i >> 32, int(Stream.CHILD), 0), key) for i in indices]
    expected = [signed(low | high << 32) for low, high, *_ in words]
    assert child_seeds(seed, torch.tensor(indices)).tolist() == expected
    assert child_seeds(signed(seed), torch.tensor(indices)).tolist() == expected


def test_values_of_version_1_are_frozen():
    """A change here makes every store and sample of NOISE_VERSION 1 irreproducible: raise the version instead."""
    assert NOISE_VERSION == 1
    assert {stream.name: int(stream) for stream in Stream} == {
        "TOKENIZER": 0,
        "SAMPLER": 1,
        "GUMBEL": 2,
        "LABEL_DROPOUT": 3,
        "STEP": 4,
        "AUGMENTATION": 5,
        "CHILD": 6,
    }
    seeds = torch.tensor([0, 1, -1, 2**62 + 12345])
    assert [x.hex() for x in normal(seeds, 1, (2,), Stream.TOKENIZER).flatten().tolist()] == [
        "0x1.87340a0000000p-2",
        "0x1.8502b00000000p-1",
        "0x1.6004040000000p+0",
        "-0x1.4130580000000p-1",
        "-0x1.faa6f80000000p-2",
        "0x1.ac83480000000p-2",
        "-0x1.5446620000000p-1",
        "0x1.851be80000000p-1",
    ]
    assert child_seeds(7, torch.tensor([0, 1, 2, 2**40])).tolist() == [
        -5891436096203556348,
        -208580606261506752,
        -1667745906791564120,
        2415237699102267996,
    ]
    assert child_seeds(2**64 - 1, torch.tensor([0, 1])).tolist() == [4226448427592349803, -4084547088386550305]
    assert random_words(seeds, 3, Stream.STEP, 2).tolist() == [
        [2360409052, 3990785737],
        [2754363961, 970310802],
        [2343450928, 1333854575],
        [4097710375, 3033836911],
    ]
    assert (uniform(seeds, 3, (2,), Stream.AUGMENTATION) * 2**24).tolist() == [
        [11369007, 12462861],
        [11897779, 1352131],
        [4568443, 9618919],
        [4532659, 5424059],
    ]
    expected = torch.tensor([[-0.79476637, -0.52108026], [-0.91038001, 0.65543348]])
    torch.testing.assert_close(gumbel(seeds[:2], 3, (2,), Stream.GUMBEL), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("draw", "digest"),
    [
        (normal, "f2b00692eb8bdfdf50805ae17cd476a7c9a04fec3aa9506c84517f1f040335df"),
        (uniform, "d7f34ed6499dde8a5c71d920b81a179cf5629b50811e2ac5806cfdc2d264ec17"),
    ],
    ids=["normal", "uniform"],
)
def test_bytes_of_version_1_are_frozen(draw, digest):
    seeds = child_seeds(2024, torch.arange(4))
    values = [draw(seeds, t, (8, 16, 16), stream) for t, stream in product((1, 10), Stream)]
    assert hashlib.sha256(torch.stack(values).numpy().astype("<f4").tobytes()).hexdigest() == digest


@family
def test_a_draw_does_not_depend_on_its_batch(draw):
    seeds = child_seeds(1, torch.arange(12))
    whole = draw(seeds, 4, SHAPE, Stream.TOKENIZER)
    order = torch.randperm(12)
    assert torch.equal(draw(seeds[order], 4, SHAPE, Stream.TOKENIZER), whole[order])
    for size in (1, 5, 7):
        parts = [draw(part, 4, SHAPE, Stream.TOKENIZER) for part in seeds.split(size)]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(draw(seeds[::3], 4, SHAPE, Stream.TOKENIZER), whole[::3])
    assert torch.equal(draw(seeds, 4, SHAPE, Stream.TOKENIZER), whole)


@family
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 104])
def test_a_longer_shape_keeps_the_first_elements(draw, count):
    seeds = child_seeds(2, torch.arange(3))
    longer = draw(seeds, 1, SHAPE, Stream.SAMPLER).flatten(1)
    assert torch.equal(draw(seeds, 1, (count,), Stream.SAMPLER), longer[:, :count])


@pytest.mark.parametrize("first", [0, 1, 4, 6, 99])
def test_noise_from_an_element_on_is_a_part_of_the_whole(first):
    seeds, count = child_seeds(2, torch.arange(3)), math.prod(SHAPE)
    whole = gumbel(seeds, 1, (count,), Stream.GUMBEL)
    assert torch.equal(gumbel(seeds, 1, (count - first,), Stream.GUMBEL, first), whole[:, first:])
    assert torch.equal(gumbel(seeds, 1, (2, 3), Stream.GUMBEL, first).flatten(1), whole[:, first : first + 6])


@family
def test_a_tensor_of_steps_equals_one_call_per_step(draw):
    seeds = child_seeds(3, torch.arange(6))
    steps = torch.tensor([1, 4, 4, 2, 10, 1])
    together = draw(seeds, steps, SHAPE, Stream.TOKENIZER)
    for i, step in enumerate(steps.tolist()):
        assert torch.equal(together[i], draw(seeds[i : i + 1], step, SHAPE, Stream.TOKENIZER)[0])
    assert torch.equal(draw(seeds, torch.full((6,), 4), SHAPE, Stream.GUMBEL), draw(seeds, 4, SHAPE, Stream.GUMBEL))


@family
def test_draws_are_float32_in_the_requested_shape(draw):
    values = draw(torch.tensor([5, 6]), 1, SHAPE, Stream.TOKENIZER)
    assert values.shape == (2, *SHAPE)
    assert values.dtype == torch.float32


def test_no_two_addresses_share_their_words():
    seeds = torch.tensor([0, 1, 2, 3, -1, 2**32, 2**33])
    blocks = [random_words(seeds, step, stream, 32).view(-1, 4) for step, stream in product((0, 1, 2, 10), Stream)]
    counts = Counter(map(tuple, torch.cat(blocks).tolist()))
    assert len(counts) == len(seeds) * 8 * 4 * len(Stream)


def test_a_million_children_have_distinct_seeds():
    assert len(child_seeds(11, torch.arange(1_000_000)).unique()) == 1_000_000


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_noise_equals_eager_noise_bit_for_bit(unchecked, backend):
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    seeds = child_seeds(5, torch.arange(6))
    torch._dynamo.reset()
    compiled = torch.compile(normal, backend=backend)
    assert torch.equal(compiled(seeds, 3, (4, 9, 9), Stream.TOKENIZER), normal(seeds, 3, (4, 9, 9), Stream.TOKENIZER))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("draw", [normal, uniform], ids=["normal", "uniform"])
def test_compiled_cuda_noise_equals_cpu_noise_bit_for_bit(unchecked, draw):
    seeds, steps = child_seeds(5, torch.arange(64)), torch.arange(64) % 10
    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, dynamic=False)
    for shape in ((32, 16, 16), (16, 16, 4096)):  # latents and logits: index times multiplier needs 64 bits
        on_cuda = compiled(seeds.cuda(), steps.cuda(), shape, Stream.GUMBEL)
        assert torch.equal(on_cuda.cpu(), draw(seeds, steps, shape, Stream.GUMBEL))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("draw", [normal, uniform], ids=["normal", "uniform"])
def test_cuda_noise_equals_cpu_noise_bit_for_bit(draw):
    seeds = child_seeds(5, torch.arange(64))
    assert torch.equal(child_seeds(5, torch.arange(64, device="cuda")).cpu(), seeds)
    steps = torch.arange(64) % 10
    for stream in Stream:
        on_cuda = draw(seeds.cuda(), steps.cuda(), (32, 16, 16), stream)
        assert torch.equal(on_cuda.cpu(), draw(seeds, steps, (32, 16, 16), stream))
