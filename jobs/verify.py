"""rdpm verify: check every byte of a store against its digests."""

from pipeline import files
from pipeline.progress import say
from pipeline.tokens.reader import open_store, verify
from storage_schemas.manifest import MANIFEST
from storage_schemas.tokens import KIND

JOB = "verify"


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. Raises ValueError that names what is damaged."""
    if len(arguments) != 1:
        raise ValueError(f"arguments {' '.join(arguments)!r} are not one STORE")
    (url,) = arguments
    path = files.join(url, MANIFEST)
    kind = files.read_json(path).get("plan", {}).get("kind", KIND) if files.exists(path) else KIND
    store = open_store(url, kind)
    problems = verify(store)
    if problems:
        raise ValueError(f"{len(problems)} problems in {url}: {'; '.join(problems[:5])}")
    say(f"verify: {url} is whole: store {store.id[:12]}, {len(store)} rows, {store.manifest.plan.num_shards} shards")
