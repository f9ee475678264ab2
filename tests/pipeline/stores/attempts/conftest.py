"""Attempts at the shards of one store."""

import itertools
from collections.abc import Callable, Iterator

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays


@pytest.fixture
def plan(stores) -> Plan:
    """Two short shards whose labels have the same bytes."""
    arrays = token_arrays(1, (2, 1, 1), with_accumulated=False, with_latents=True)
    return Plan("tokens", 4, 2, 2, arrays, stores.IDENTITY)


@pytest.fixture
def attempt(stores, plan) -> Callable[[str, int, str], None]:
    """attempt(url, shard, device): write a shard as that device would, with codes, latents and a reject of its own."""

    def write(url: str, shard: int, device: str) -> None:
        columns = {name: values.copy() for name, values in stores.columns(plan, shard).items()}
        rejected: tuple[int, ...] = ()
        if device != "this":
            columns["codes"] = (columns["codes"] + len(device)) % 16
            columns["latents"] = columns["latents"][::-1].copy()
            rejected = (plan.shard_range(shard).start,)
        write_shard(url, plan, shard, columns, stores.index(plan, shard, rejected), rejected)

    return write


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.long)])
def url(request, tmp_path) -> Iterator[str]:
    """Where a store may lie."""
    root = {"local": str(tmp_path), "memory": "memory://attempts"}.get(request.param) or request.getfixturevalue("s3")
    place = f"{root}/store"
    yield place
    files.remove(place)


@pytest.fixture
def clean(tmp_path, plan, attempt, tree) -> dict[tuple[str, str], dict[str, bytes]]:
    """The files of the store whose shards 0 and 1 were written by these devices, one attempt each."""
    found = {}
    for pair in itertools.product(("this", "other"), repeat=2):
        folder = str(tmp_path / "-".join(pair))
        start_store(folder, plan)
        for shard, device in enumerate(pair):
            attempt(folder, shard, device)
        publish(folder, plan)
        found[pair] = tree(folder)
    assert len({str(sorted(files.items())) for files in found.values()}) == 4
    return found
