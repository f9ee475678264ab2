"""One loop each way between pixels and codes: batches of one size, and every user of codes goes through it."""

from contextlib import closing

import numpy as np
import pytest
import torch

from rdpm.models.generator import Generator
from rdpm.models.noise import Stream, child_seeds
from rdpm.models.tokenizer import Tokenizer, from_pixels, to_pixels
from rdpm.pipeline.evaluation.fidelity import reconstruct
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.images.worklist import Worklist
from rdpm.pipeline.inference.batches import device_kind, device_of_kind, in_batches
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.plan import TokenizeConfig, token_plan
from rdpm.pipeline.tokenizing.rows import ShardReader, images_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, exports) -> str:
    """The folder of a small tokenizer of 8 x 8 grey images."""
    folder = str(tmp_path_factory.mktemp("models") / "tokenizer")
    exports.tokenizer(folder)
    return folder


@pytest.fixture
def codec(tokenizer) -> Codec:
    """That tokenizer, 4 images per call."""
    return Codec(load_tokenizer(tokenizer)[0], batch=4, device=CPU)


@pytest.fixture(scope="module")
def pixels(digits) -> np.ndarray:
    """Ten real digits, (10, 8, 8, 1)."""
    return digits[0][:10, :, :, None]


SEEDS = child_seeds(5, torch.arange(10)).numpy()


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9])
def test_the_result_of_a_row_does_not_depend_on_the_number_of_rows(rows):
    weights = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    shapes = []

    def function(batch_rows: range, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes.append((batch_rows, tuple(x.shape), tuple(y.shape)))
        return x @ weights, y * 2

    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(9, 7)).astype(np.float32), np.arange(9)
    products, doubles = in_batches(function, (x[:rows], y[:rows]), 4, CPU)
    everything = in_batches(function, (x, y), 4, CPU)
    assert np.array_equal(products, everything[0][:rows])
    assert np.array_equal(doubles, 2 * y[:rows])
    starts = range(0, rows, 4)
    assert shapes[: len(starts)] == [(range(i, min(i + 4, rows)), (4, 7), (4,)) for i in starts]


def test_codes_and_latents_of_an_image_do_not_depend_on_the_others(codec, pixels):
    together = codec.encode(pixels, SEEDS)
    for first, last in ((0, 1), (3, 10), (5, 9)):
        part = codec.encode(pixels[first:last], SEEDS[first:last])
        for name in ("codes", "accumulated", "latents"):
            assert np.array_equal(getattr(part, name), getattr(together, name)[first:last]), name
    assert np.array_equal(codec.encode(pixels, SEEDS.view(np.uint64)).codes, together.codes)
    assert np.array_equal(codec.decode(together.codes[3:4]), codec.decode(together.codes)[3:4])


def test_a_codec_is_the_tokenizers_own_encoding_and_decoding(codec, pixels):
    encoded, tokenizer = codec.encode(pixels, SEEDS), codec.tokenizer
    with torch.no_grad():
        images = from_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        result = tokenizer.encode(images, torch.from_numpy(SEEDS))
        pictures = to_pixels(tokenizer.decode(result.accumulated)).permute(0, 2, 3, 1).numpy()
    assert (encoded.codes == result.codes.numpy()).mean() > 0.99  # the batch has another shape
    assert np.abs(codec.accumulate(encoded.codes) - result.accumulated.numpy()).max() < 1e-4
    assert np.abs(codec.decode(encoded.codes).astype(int) - pictures).max() <= 1
    zeros = torch.zeros(1, *tokenizer.config.latent_shape)
    assert np.array_equal(codec.decode(encoded.codes, steps=0)[0], codec.pixels(zeros)[0].numpy())
    assert (encoded.codes.dtype, encoded.accumulated.dtype, encoded.latents.dtype) == ("uint16", "float16", "float16")


def test_encoding_the_pixels_of_a_store_gives_its_bytes(tmp_path, digit_folder, tokenizer, codec):
    config = TokenizeConfig(
        digit_folder, tokenizer, f"{tmp_path}/store", latents=True, shard_rows=8, chunk_rows=4, batch=4
    )
    parts = []
    with closing(Worklist(config.images, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, read_card(tokenizer, "tokenizer"), "cpu")
        start_store(config.out, plan)
        worklist.write({shard: images_of(plan, shard) for shard in range(plan.num_shards)})
    encoder = ShardEncoder(tokenizer, config.out, plan, threads=1)
    for shard in range(plan.num_shards):
        rows = ShardReader(plan, worklist.folder, 8, 1).read(shard, {})
        encoder(shard, rows)
        parts.append(rows.pixels)
    store = Store(config.out, publish(config.out, plan))
    encoded = codec.encode(np.concatenate(parts), store.read_all("noise_seed"))
    for name in ("codes", "accumulated", "latents"):
        assert getattr(encoded, name).tobytes() == store.read_all(name).tobytes(), name


def test_the_python_api_and_evaluation_encode_and_decode_with_a_codec(exports, codec, pixels):
    model = RDPM(Generator(exports.generator_config), codec.tokenizer, batch=4, device=CPU)
    codes = codec.encode(pixels, SEEDS, Stream.SAMPLER).codes
    assert np.array_equal(model.encode(pixels, seed=5), codes)
    assert np.array_equal(model.decode(codes), np.repeat(codec.decode(codes), 3, axis=3))
    codes = codec.encode(pixels, SEEDS).codes
    made = reconstruct(codec, pixels, seed=5)
    assert np.array_equal(made.codes, codes)
    assert np.array_equal(made.pixels, codec.decode(codes))
    rest = reconstruct(codec, pixels[4:], seed=5, first=4)
    assert np.array_equal(rest.pixels, made.pixels[4:])


def test_bf16_rounds_the_networks_but_not_the_quantizer(codec, pixels):
    tokenizer: Tokenizer = codec.tokenizer
    half = Codec(tokenizer, 4, CPU, precision="bf16")
    codes = codec.encode(pixels, SEEDS).codes
    assert np.array_equal(half.accumulate(codes), codec.accumulate(codes))
    assert not np.array_equal(half.encode(pixels, SEEDS).latents, codec.encode(pixels, SEEDS).latents)
    assert np.abs(half.decode(codes).astype(int) - codec.decode(codes)).mean() < 3


@pytest.mark.parametrize("gpu", [False, True], ids=["no GPU", "a GPU"])
def test_a_config_names_a_kind_of_device_and_a_plan_is_kept_to_it(monkeypatch, gpu):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    best = "cuda" if gpu else "cpu"
    assert [device_kind(wanted) for wanted in ("auto", "cpu", "cuda")] == [best, "cpu", "cuda"]
    assert device_of_kind("cpu") == CPU
    assert device_of_kind(None) == torch.device(best)  # a plan of version 1
    if gpu:
        assert device_of_kind("cuda") == torch.device("cuda")
    else:
        with pytest.raises(ValueError, match=r"the plan is for cuda, and .* has no GPU; run on machines with one"):
            device_of_kind("cuda")
