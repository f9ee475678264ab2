"""docs/running.md: the settings that it names have their defaults, and its sizes and its memory are computed."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.costs.describe import describe_generator
from rdpm.pipeline.stream.token_stream import StreamConfig
from rdpm.pipeline.training.run_config import RunConfig
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays
from tests.docs.pages import blocks, commands, config_of


@pytest.fixture(scope="module")
def page(repository) -> str:
    return (repository / "docs" / "running.md").read_text()


def test_the_sizes_are_those_of_plans_and_of_the_cache(page, stores) -> None:
    arrays = token_arrays(10, (32, 16, 16), with_accumulated=True, with_latents=False)
    rows = {spec.name: spec.row_shape for spec in arrays}
    cached = sum(
        np.dtype(spec.dtype).itemsize * math.prod(spec.row_shape) for spec in arrays if spec.name != "accumulated"
    )
    assert math.prod(rows["accumulated"]) * 2 == 16_384
    assert f"cache of a training: {cached:,} bytes per row" in page
    plans = [Plan("tokens", count, 4096, 256, arrays, stores.IDENTITY) for count in (2 * 1_281_167, 10**9)]
    objects = len(plans[0].objects(0)) + 1

    def line(what: str, numbers: list[float], unit: Callable[[float], str]) -> str:
        return f"| {what} | {' | '.join(unit(number) for number in numbers)} |"

    for what, numbers in {
        "rows": [plan.rows for plan in plans],
        "shards": [plan.num_shards for plan in plans],
        f"objects in the store, {objects} per shard": [objects * plan.num_shards for plan in plans],
    }.items():
        assert line(what, numbers, "{:,}".format) in page
    for what, numbers in {
        "codes, seeds, labels, index: 3,924 bytes per row": [3924 * plan.rows for plan in plans],
        "`accumulated`, at most 16,384 bytes per row": [16_384 * plan.rows for plan in plans],
        "manifest, 77 bytes per shard": [77 * plan.num_shards for plan in plans],
        f"cache of a training: {cached:,} bytes per row": [cached * plan.rows for plan in plans],
        "or of two windows of 64 shards": [2 * 64 * 4096 * cached] * 2,
    }.items():
        assert line(what, numbers, bytes_in_words) in page, line(what, numbers, bytes_in_words)
    assert f"of ImageNet are {20 * 1_281_167 * cached / 2**30:.1f} GiB" in page


def bytes_in_words(count: float) -> str:
    """As in 48 kB, 19 MB, 13.1 GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


@pytest.mark.slow
def test_the_memory_is_what_describe_says(page, repository, monkeypatch) -> None:
    (command,) = [c for block in blocks(page, "bash") for c in commands(block.text) if c.name == "describe"]
    monkeypatch.chdir(repository)
    config = config_of(command)
    facts = describe_generator(config)
    rank, image = facts["memory_bytes_per_rank"]["zero_2"] / 2**30, facts["peak_bytes_per_sample"] / 2**20
    assert (
        f"a rank needs {rank:.1f} GiB, and\n  {image:.0f} MiB for each of its {config.micro_batch_on(32)} images"
        in page
    )
    assert f"are {4 * 4 * facts['parameters'] / 1e9:.1f} GB each" in page


def test_the_limits_are_the_defaults(page) -> None:
    assert f"512 MiB: {(4096 * 256 * 256 * 3 >> 19) + 512:,} MiB at 256" in page
    assert f"`resources.shard_minutes` ({Resources().shard_minutes:g})" in page
    assert f"`keep_checkpoints` ({RunConfig.__dataclass_fields__['keep_checkpoints'].default})" in page
    assert f"`stream.cache_gib` ({StreamConfig().cache_gib:g})" in page
    assert f"`stream.window`\n  ({StreamConfig().window})" in page
