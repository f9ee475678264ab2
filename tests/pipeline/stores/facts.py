"""What a writer of a store in another process needs, as files."""

from pathlib import Path

import numpy as np

from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import Plan, plan_to_json


def put_facts(folder: Path, plan: Plan, stores) -> None:
    """The plan and the columns of every shard. stores: the fixture that makes them."""
    folder.mkdir()
    (folder / "plan.json").write_bytes(canonical_json(plan_to_json(plan)))
    for shard in range(plan.num_shards):
        columns = {f"columns.{name}": values for name, values in stores.columns(plan, shard).items()}
        index = {f"index.{name}": values for name, values in stores.index(plan, shard).items()}
        np.savez(folder / f"{shard}.npz", **columns, **index)
