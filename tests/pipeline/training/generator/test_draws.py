"""What the generator is trained on is what the tokenizer saw: tokenizer, store, stream, training and sampler agree."""

import numpy as np
import pytest
import torch

from rdpm.models.noise import Stream, child_seeds
from rdpm.models.sampler import Known, SamplerConfig, sample
from rdpm.models.tokenizer import from_pixels
from rdpm.pipeline.exports.weights import load_generator, load_tokenizer
from rdpm.pipeline.foundation.permutation import rows_at
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.pipeline.stream.token_stream import TokenStream
from rdpm.pipeline.training.generator.draws import Draws, drawn_steps, training_batch
from rdpm.storage_schemas.tokens import noise_seed

ROWS, BATCH = 24, 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def road(tmp_path_factory, exports, digits, stores):
    """Digits through a tokenizer into a store of two shards: (tokenizer, generator, store, pixels, seeds)."""
    folder = tmp_path_factory.mktemp("road")
    card = exports.tokenizer(str(folder / "tokenizer"))
    exports.generator(str(folder / "generator"), card)
    tokenizer = load_tokenizer(str(folder / "tokenizer"))[0]
    pixels = digits[0][:ROWS, :, :, None]
    seeds = np.array([noise_seed(7, f"k{row}", "center") for row in range(ROWS)], np.uint64)
    plan = stores.plan(rows=ROWS, shard_rows=16, chunk_rows=8, seed=7, **exports.identity(card))
    url, codec = str(folder / "store"), Codec(tokenizer, BATCH, CPU)
    start_store(url, plan)
    for shard in range(plan.num_shards):
        rows = plan.shard_range(shard)
        part = slice(rows.start, rows.stop)
        columns = vars(codec.encode(pixels[part], seeds[part]))
        columns |= {"noise_seed": seeds[part], "label": (np.arange(ROWS) % 2).astype(np.int32)[part]}
        write_shard(url, plan, shard, columns, stores.index(plan, shard))
    store = Store(url, publish(url, plan))
    return tokenizer, load_generator(str(folder / "generator"))[0], store, pixels, seeds


def draws(**settings) -> Draws:
    """One step per image on the store's own noise, unless the settings say otherwise."""
    return Draws(
        **{"noise": "stored", "steps_per_image": 1, "label_dropout": 0.0, "empty_label": 2, "seed": 0, **settings}
    )


def test_stored_codes_and_seeds_give_back_what_the_tokenizer_saw(road, exports) -> None:
    tokenizer, _, store, pixels, seeds = road
    stream = TokenStream([store], seed=3, latents=False)
    settings = draws()
    for start in range(0, 4 * ROWS, BATCH):
        positions = np.arange(start, start + BATCH)
        rows = rows_at(positions, ROWS, 3)
        images = from_pixels(torch.from_numpy(pixels[rows]).permute(0, 3, 1, 2))
        seen = tokenizer.encode(images, torch.from_numpy(seeds[rows].view(np.int64)))
        noise, labels, steps, before, codes = training_batch(
            tokenizer.quantizer, stream.batch(positions), settings, CPU
        ).arguments
        at = torch.arange(BATCH), steps - 1
        assert torch.equal(codes, seen.codes[at])
        assert torch.equal(noise, seen.noise[at])
        assert torch.equal(before, seen.before[at])
        assert labels.tolist() == (rows % 2).tolist()


def test_store_and_teacher_forced_sampler_reach_the_same_accumulated_latent(road) -> None:
    tokenizer, generator, store, _, _ = road
    codes = torch.from_numpy(store.read_all("codes").astype(np.int64))[:BATCH]
    seeds = torch.from_numpy(store.read_all("noise_seed").view(np.int64))[:BATCH]
    labels = torch.from_numpy(store.read_all("label").astype(np.int64))[:BATCH]
    book = tokenizer.quantizer.codebook
    known = Known(codes, torch.ones_like(codes, dtype=torch.bool))
    forced = sample(generator, book, labels, seeds, SamplerConfig(), known, noise_stream=Stream.TOKENIZER)
    assert torch.equal(forced.accumulated[:, -1], book.accumulated(codes, codes.shape[1]))
    assert torch.equal(forced.accumulated[:, -1].half(), torch.from_numpy(store.read_all("accumulated")[:BATCH]))


def test_fresh_noise_is_the_quantizer_run_again_on_the_stored_latents(road, exports) -> None:
    tokenizer, _, store, _, _ = road
    stream = TokenStream([store], seed=3, latents=True)
    settings = draws(noise="fresh", seed=5)
    positions = np.arange(ROWS, ROWS + BATCH)
    noise, _, steps, before, codes = training_batch(
        tokenizer.quantizer, stream.batch(positions), settings, CPU
    ).arguments
    latents = torch.from_numpy(store.read_all("latents")[rows_at(positions, ROWS, 3)]).float()
    again = tokenizer.quantize(latents, child_seeds(5, torch.from_numpy(positions)))
    at = torch.arange(BATCH), steps - 1
    assert torch.equal(noise, again.noise[at])
    assert torch.equal(before, again.before[at])
    assert torch.equal(codes, again.codes[at])
    stored = training_batch(
        tokenizer.quantizer, stream_without_latents(store).batch(positions), settings, CPU
    ).arguments
    assert not torch.equal(stored[0], noise)


def stream_without_latents(store: Store) -> TokenStream:
    """The same order, with the store's own noise."""
    return TokenStream([store], seed=3, latents=False)


def test_every_draw_belongs_to_its_position_whatever_the_batch(road, exports) -> None:
    tokenizer, _, store, _, _ = road
    settings = draws(label_dropout=0.5)
    stream = stream_without_latents(store)
    whole = training_batch(tokenizer.quantizer, stream.batch(np.arange(16)), settings, CPU).arguments
    parts = [
        training_batch(tokenizer.quantizer, stream.batch(np.arange(k, k + 4)), settings, CPU).arguments
        for k in range(0, 16, 4)
    ]
    for number in (0, 1, 2, 4):  # noise, labels, steps, codes: exact; accumulated rounds with the batch's shape
        assert torch.equal(whole[number], torch.cat([part[number] for part in parts]))
    assert torch.allclose(whole[3], torch.cat([part[3] for part in parts]), atol=1e-5)


def test_labels_are_dropped_and_steps_are_drawn_at_their_rates(road, exports) -> None:
    tokenizer, _, store, _, _ = road
    settings = draws(label_dropout=0.1)
    stream = stream_without_latents(store)
    _, labels, steps, _, _ = training_batch(tokenizer.quantizer, stream.batch(np.arange(9000)), settings, CPU).arguments
    dropped = (labels == exports.generator_config.num_classes).float().mean().item()
    assert abs(dropped - 0.1) < 5 * (0.1 * 0.9 / 9000) ** 0.5
    shares = torch.bincount(steps, minlength=4)[1:] / 9000
    assert (shares - 1 / 3).abs().max() < 5 * (2 / 9 / 9000) ** 0.5


def test_several_steps_of_an_image_are_different_and_each_is_what_it_would_be_alone(road) -> None:
    tokenizer, _, store, _, _ = road
    batch = stream_without_latents(store).batch(np.arange(BATCH))
    every = training_batch(tokenizer.quantizer, batch, draws(steps_per_image=3), CPU)
    assert every.steps.view(BATCH, 3).sort(1).values.tolist() == [[1, 2, 3]] * BATCH
    alone = training_batch(tokenizer.quantizer, batch, draws(), CPU)
    assert torch.equal(every.steps.view(BATCH, 3)[:, 0], alone.steps)
    for several, one in zip(every.arguments, alone.arguments, strict=True):
        assert torch.allclose(several.view(BATCH, 3, *one.shape[1:])[:, 0].double(), one.double(), atol=1e-5)


def test_every_choice_of_steps_is_as_likely() -> None:
    pairs = drawn_steps(child_seeds(0, torch.arange(30_000)), 3, 2)
    counts = torch.bincount(pairs[:, 0] * 4 + pairs[:, 1], minlength=16)
    seen = counts[counts > 0] / 30_000
    assert len(seen) == 6
    assert (seen - 1 / 6).abs().max() < 5 * (5 / 36 / 30_000) ** 0.5
