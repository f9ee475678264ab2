"""rdpm verify: check every byte of a store and that its parts agree, and repair it."""

from dataclasses import replace

from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.repair import repair
from rdpm.pipeline.stores.verification import Accumulate, Verification, verify_store

JOB = "verify"
_BATCH = 64
_SHOWN = 10  # classes named one by one


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. Raises ValueError that names what is damaged."""
    match arguments:
        case [url, "--repair", path, *overrides] if all("=" in override for override in overrides):
            _verify(url, "", (path, overrides))
        case [url]:
            _verify(url, "", None)
        case [url, option] if option.startswith("tokenizer="):
            _verify(url, option.removeprefix("tokenizer="), None)
        case _:
            wanted = "STORE [tokenizer=FOLDER | --repair CONFIG.yaml [key=value ...]]"
            raise ValueError(f"arguments {' '.join(arguments)!r} are not {wanted}")


def _verify(url: str, folder: str, config: tuple[str, list[str]] | None) -> None:
    store = open_store(url)
    accumulate = _accumulate_of(store, folder) if folder else None
    found = verify_store(store, accumulate, quiet=False)
    if config and found.findings:
        _repair(store, found, *config)
        found = verify_store(store, accumulate, quiet=False)
    if found.findings:
        first = "; ".join(finding.sentence for finding in found.findings[:5])
        raise ValueError(f"{len(found.findings)} problems in {store.url}: {first}")
    _tell(store, bool(accumulate), found)


def _accumulate_of(store: Store, folder: str) -> Accumulate:
    """How the tokenizer in a folder turns codes into z'_T. Raises ValueError unless it wrote the store."""
    import torch

    from rdpm.pipeline.inference.codec import Codec  # with torch, which checking bytes does not need
    from rdpm.pipeline.tokenizing.plan import tokenizer_of

    return Codec(tokenizer_of(store, folder), _BATCH, torch.device("cpu")).accumulate


def _repair(store: Store, found: Verification, path: str, overrides: list[str]) -> None:
    from rdpm.pipeline.tokenizing.plan import TokenizeConfig
    from rdpm.pipeline.tokenizing.stage import tokenize_again  # with Ray, which checking does not need

    config = load_config(TokenizeConfig, "tokenize", path, overrides)

    def make_again(folder: str, shards: list[int]) -> None:
        tokenize_again(replace(config, out=folder), store.manifest.plan, shards)

    again = repair(store, found.findings, make_again)
    say(f"verify: records restored; shards made again: {', '.join(map(str, again)) or 'none'}")


def _tell(store: Store, compared: bool, found: Verification) -> None:
    plan = store.manifest.plan
    say(f"verify: {store.url} is undamaged: store {store.id[:12]}, {len(store)} rows, {plan.num_shards} shards")
    say(f"verify: {_labels(found, plan.identity.classes)}; {len(store.manifest.rejected)} rejects")
    if any(spec.name == "accumulated" for spec in plan.arrays):
        agreed = f"accumulated is what the codes give in {found.accumulated} rows"
        left_out = "not checked: whether accumulated is what the codes give; tokenizer=FOLDER checks it"
        say(f"verify: {agreed if compared else left_out}")


def _labels(found: Verification, classes: tuple[str, ...]) -> str:
    """Rows by class: each where they are few, else the range."""
    counts = found.labels
    if len(counts) > _SHOWN:
        return f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())} rows"
    names = {label: classes[label] if label < len(classes) else str(label) for label in counts}
    return "rows by class: " + ", ".join(f"{names[label]} {count}" for label, count in counts.items())
