"""Streams over two small stores."""

import pytest

from rdpm.pipeline.stream.token_stream import StreamConfig, TokenStream
from tests.pipeline.stream.token_stream.runs import REJECTED


@pytest.fixture(scope="module")
def two(tmp_path_factory, stores):
    """A store of 20 rows with 4 rejects and one of 13 with none, in shards of 4: 29 rows together."""
    root = tmp_path_factory.mktemp("stream")
    first = stores.build(str(root / "first"), stores.plan(shard_rows=4), rejected=REJECTED)
    second = stores.build(str(root / "second"), stores.plan(rows=13, shard_rows=4, views=("flip",)))
    return [first, second]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def make(two, cache):
    """Streams of codes over the two stores: make(**settings of TokenStream, **fields of StreamConfig)."""

    def build(stores=two, seed=4, latents=False, weights=(), **config) -> TokenStream:
        return TokenStream(
            stores, seed=seed, latents=latents, weights=weights, config=StreamConfig(**{"cache": cache, **config})
        )

    return build


@pytest.fixture(scope="module")
def stream(make) -> TokenStream:
    return make()
