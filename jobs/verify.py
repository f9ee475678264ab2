"""rdpm verify: check every byte of a store against its digests, and what its parts say against each other; mend it."""

from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.verification import Verification, tokenizer_of, verify_store

JOB = "verify"
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
    tokenizer = tokenizer_of(store, folder) if folder else None
    found = verify_store(store, tokenizer, quiet=False)
    if config and found.findings:
        _mend(store, found, *config)
        found = verify_store(store, tokenizer, quiet=False)
    if found.findings:
        first = "; ".join(finding.sentence for finding in found.findings[:5])
        raise ValueError(f"{len(found.findings)} problems in {store.url}: {first}")
    _tell(store, tokenizer, found)


def _mend(store: Store, found: Verification, path: str, overrides: list[str]) -> None:
    from rdpm.pipeline.stores.repair import repair
    from rdpm.pipeline.tokenizing.stage import EncodeConfig  # with Ray, which checking does not need

    config = load_config(EncodeConfig, "tokenize", path, overrides)
    again = repair(store, found.findings, config)
    say(f"verify: records restored; shards encoded again: {', '.join(map(str, again)) or 'none'}")


def _tell(store: Store, tokenizer: Tokenizer | None, found: Verification) -> None:
    plan = store.manifest.plan
    say(f"verify: {store.url} is whole: store {store.id[:12]}, {len(store)} rows, {plan.num_shards} shards")
    say(f"verify: {_labels(found, plan.identity.get('classes', []))}; {len(store.manifest.rejected)} rejects")
    if any(spec.name == "accumulated" for spec in plan.arrays):
        compared = f"accumulated is what the codes give in {found.accumulated} rows"
        left_out = "left out: whether accumulated is what the codes give; tokenizer=FOLDER checks it"
        say(f"verify: {compared if tokenizer else left_out}")


def _labels(found: Verification, classes: list[str]) -> str:
    """Rows by class: each where they are few, else the range."""
    counts = found.labels
    if len(counts) > _SHOWN:
        return f"{len(counts)} classes of {min(counts.values())} to {max(counts.values())} rows"
    names = {label: classes[label] if label < len(classes) else str(label) for label in counts}
    return "rows by class: " + ", ".join(f"{names[label]} {count}" for label, count in counts.items())
