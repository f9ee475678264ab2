"""Trainings of rivals: from the same stores, through the same loop, to exports that go on from any checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rdpm.models.methods import RIVALS
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.exports.weights import load_generator, load_model, load_tokenizer, save_export
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stream.token_stream import TokenStream
from rdpm.pipeline.training.generator.draws import Draws, batch_maker
from rdpm.pipeline.training.generator.inputs import open_stores
from rdpm.storage_schemas.cards import TokenizerOrigin
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays
from tests.pipeline.training.trainings import config, resume_everywhere

CPU = torch.device("cpu")
STEPS = {"flow": 3, "maskgit": 1, "raster": 1, "scales": 3}


def options_for(method: str) -> list[str]:
    return [f"model.method={method}", f"model.num_steps={STEPS[method]}", "noise=fresh"]


@pytest.fixture(scope="module")
def inputs_for(tmp_path_factory, exports, stores) -> Callable[[str], Path]:
    """A folder with the tokenizer/ and the store/ that a rival needs."""
    maker = type(stores)()

    def columns(plan: Plan, shard: int) -> dict[str, np.ndarray]:
        """Those of the maker, with latents that flow matching can learn: any bytes may be NaN."""
        made = stores.columns(plan, shard)
        latents = np.random.default_rng(shard).standard_normal(made["latents"].shape)
        return made | {"latents": latents.astype(np.float16)}

    maker.columns = columns

    def make(method: str) -> Path:
        base: TokenizerConfig = exports.tokenizer_config
        schedule = Schedule("residual" if method == "scales" else "pow", STEPS[method])
        quantizer = replace(base.quantizer, growing=method == "scales")
        tokenizer = replace(base, schedule=schedule, quantizer=quantizer, continuous=method == "flow")
        folder = tmp_path_factory.mktemp(method)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = Tokenizer(tokenizer).state_dict()
        origin = TokenizerOrigin("s0", stores.CLASSES)
        card = save_export(str(folder / "tokenizer"), "tokenizer", tokenizer, weights, origin, {}, 1)
        identity = stores.plan(**exports.identity(card)).identity
        arrays = token_arrays(STEPS[method], (4, 4, 4), with_accumulated=False, with_latents=True)
        maker.build(str(folder / "store"), Plan("tokens", 20, 8, 4, arrays, identity))
        return folder

    return make


@pytest.mark.long
@pytest.mark.parametrize("method", RIVALS)
def test_a_rival_continues_from_every_checkpoint_to_the_same_bytes(method, inputs_for, two_ranks, tmp_path) -> None:
    inputs, out = inputs_for(method), tmp_path / "out"
    assert two_ranks.run(resume_everywhere, "generator", inputs, out, 4, *options_for(method)) == [[], []]
    model, card = load_model(str(out))
    assert type(model) is RIVALS[method]
    assert card.config["method"] == method
    with pytest.raises(ValueError, match=f"is a generator of method {method}, from which only rdpm sample draws"):
        load_generator(str(out))


@pytest.mark.parametrize("method", RIVALS)
def test_batches_do_not_depend_on_how_they_are_cut(method, inputs_for) -> None:
    inputs = inputs_for(method)
    settings = config("generator", inputs, inputs / "out", *options_for(method))
    stores = open_stores(settings)
    quantizer, draws = load_tokenizer(settings.tokenizer)[0].quantizer, Draws("fresh", 1, 0.5, 2, seed=0)
    stream = TokenStream(stores.train, seed=0, latents=True, config=settings.stream)
    make = batch_maker(method)
    whole = make(quantizer, stream.batch(np.arange(8)), draws, CPU)
    parts = [make(quantizer, stream.batch(np.arange(k, k + 4)), draws, CPU) for k in (0, 4)]
    for number, values in enumerate(whole.arguments):
        torch.testing.assert_close(torch.cat([part.arguments[number] for part in parts]), values)
    labels = whole.arguments[2 if method == "flow" else 1]
    assert set(labels.tolist()) <= {0, 1, 2}
    assert (labels == 2).any()  # some are dropped


def test_settings_that_a_rival_cannot_have_are_refused(inputs_for, inputs) -> None:
    def refused(*options: str, folder: Path = inputs) -> str:
        with pytest.raises(ValueError) as error:
            open_stores(config("generator", folder, Path("out"), *options))
        return str(error.value)

    assert "method flow learns latents; use noise=fresh" in refused("model.method=flow")
    assert "steps_per_image is 2; method flow needs 1" in refused(*options_for("flow"), "steps_per_image=2")
    assert "the maps of store" in refused("model.method=scales")
    assert "do not grow; method scales, and no other" in refused("model.method=scales")
    grown = inputs_for("scales")
    assert "grow; method scales, and no other" in refused("model.method=rdpm", folder=grown)
    assert open_store(str(grown / "store")).specs["codes"].row_shape == (3, 4, 4)
