"""rdpm verify: check every byte of a store against its digests, and what its parts say against each other."""

from pipeline.progress import say
from pipeline.tokens.reader import open_store
from pipeline.verification import Verification, tokenizer_of, verify_store

JOB = "verify"
_SHOWN = 10  # classes named one by one


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. Raises ValueError that names what is damaged."""
    urls = [a for a in arguments if "=" not in a and not a.startswith("-")]
    options = dict(a.split("=", 1) for a in arguments if a not in urls)
    if len(urls) != 1 or not options.keys() <= {"tokenizer"}:
        raise ValueError(f"arguments {' '.join(arguments)!r} are not STORE [tokenizer=FOLDER]")
    store = open_store(urls[0])
    plan = store.manifest.plan
    tokenizer = tokenizer_of(store, options["tokenizer"]) if "tokenizer" in options else None
    found = verify_store(store, tokenizer, quiet=False)
    if found.findings:
        first = "; ".join(finding.sentence for finding in found.findings[:5])
        raise ValueError(f"{len(found.findings)} problems in {store.url}: {first}")
    say(f"verify: {store.url} is whole: store {store.id[:12]}, {len(store)} rows, {plan.num_shards} shards")
    say(f"verify: {_labels(found, plan.identity.get('classes', []))}, {len(store.manifest.rejected)} rejects")
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
