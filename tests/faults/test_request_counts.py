"""How many requests of an object store a shard costs: docs/running.md states it."""

import re
from dataclasses import replace

import pytest

from rdpm.pipeline.stores.writer import publish, start_store
from rdpm.storage_schemas.tokens import token_arrays


def requests(faulty_s3, stores, shards: int) -> tuple[int, int]:
    """Requests to write so many shards, and to publish them."""
    url, proxy = faulty_s3()
    plan = replace(stores.plan(rows=8 * shards), arrays=token_arrays(3, (4, 4, 4), True, False))  # as by default
    start_store(f"{url}/store", plan)
    started = proxy.requests.total()
    for shard in range(shards):
        stores.write(f"{url}/store", plan, shard)
    written = proxy.requests.total()
    publish(f"{url}/store", plan)
    return written - started, proxy.requests.total() - written


@pytest.mark.slow
def test_the_page_states_the_requests_of_a_shard(faulty_s3, stores, repository) -> None:
    few, many = (requests(faulty_s3, stores, shards) for shards in (2, 6))
    writing, publishing = ((b - a) / 4 for a, b in zip(few, many, strict=True))
    page = (repository / "docs" / "running.md").read_text()
    stated = re.search(r"(\d+) requests per shard to write it .* and (\d+) to publish it", page)
    assert stated, (writing, publishing)
    assert (writing, publishing) == (int(stated[1]), int(stated[2]))
