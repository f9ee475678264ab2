"""A small generator with its tokenizer, and sets of samples that are drawn in this process."""

from collections.abc import Callable

import pytest

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.sampling.plan import SampleConfig, sample_plan
from rdpm.pipeline.sampling.worker import SetToDraw, ShardSampler
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store


@pytest.fixture(scope="session")
def run(tmp_path_factory, exports) -> str:
    """A folder with a generator of two classes and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("run"))
    exports.generator(f"{folder}/generator", exports.tokenizer(f"{folder}/tokenizer"))
    return folder


def _config_of(run: str, out: str, **settings) -> SampleConfig:
    defaults = {"sampler": SamplerConfig(guidance=1.5), "per_class": 15, "seed": 3, "shard_rows": 8, "batch": 4}
    return SampleConfig(f"{run}/generator", f"{run}/tokenizer", out, device="cpu", **{**defaults, **settings})


@pytest.fixture(scope="session")
def config_of() -> Callable[..., SampleConfig]:
    """Maker of the config of a small set: (run, out, **settings)."""
    return _config_of


def _draw_here(config: SampleConfig, order: int = 1, device: str = "cpu") -> Store:
    plan = sample_plan(config, *read_pair(config.generator, config.tokenizer), device)
    start_store(config.out, plan)
    sampler = ShardSampler([SetToDraw(config.generator, config.tokenizer, config.out, plan)], threads=1)
    for shard in range(plan.num_shards)[::order]:
        sampler(shard)
    return Store(config.out, publish(config.out, plan))


@pytest.fixture(scope="session")
def draw_here() -> Callable[..., Store]:
    """Draws the set of a config in this process, its shards backwards when order is -1."""
    return _draw_here


@pytest.fixture(scope="session")
def store(run, tmp_path_factory) -> Store:
    """30 images in 4 shards, the last one short."""
    return _draw_here(_config_of(run, str(tmp_path_factory.mktemp("samples") / "out")))
