"""rdpm inspect: what a token store is and what made it, in a few lines and on one HTML page."""

import json
from dataclasses import dataclass

from rdpm.jobs.arguments import parse
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.reporting.inspection import read_contents, render
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.tokenizing.plan import tokenizer_of
from rdpm.storage_schemas.tokens import KIND

JOB = "inspect"
_BATCH = 64


@dataclass(frozen=True)
class InspectConfig:
    """What is shown."""

    store: str
    """The token store: what stands first."""
    tokenizer: str = ""
    """Folder of the tokenizer that wrote the store, to show what codes decode to; empty for none."""
    out: str = ""
    """The page to write; empty for STORE.html."""


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    url, *rest = arguments or [""]
    if not url or not all("=" in option for option in rest):
        raise ValueError(f"arguments {' '.join(arguments)!r} are not STORE [tokenizer=FOLDER] [out=PAGE.html]")
    config = parse(InspectConfig, JOB, [f"store={json.dumps(url)}", *rest])
    if not config.out and config.store.startswith(("http://", "https://", "hf://")):
        raise ValueError(f"there is no place for a page beside {config.store}; give out=PAGE.html")
    store = open_store(config.store, KIND)
    plan = store.manifest.plan
    codec = Codec(tokenizer_of(store, config.tokenizer), _BATCH) if config.tokenizer else None
    say(f"inspect: {store.url} is store {store.id}")
    say(f"inspect: {plan.rows} rows, {len(store.manifest.rejected)} rejects, {plan.num_shards} shards")
    arrays = (f"{spec.name} {spec.dtype} {list(spec.row_shape)}" for spec in plan.arrays)
    say(f"inspect: arrays {', '.join(arrays)}")
    made = {name: value for name, value in vars(plan.tokens).items() if isinstance(value, str | int)}
    made |= {"views": ", ".join(plan.tokens.views), "classes": len(plan.tokens.classes)}
    say(f"inspect: made with {', '.join(f'{name} {value}' for name, value in made.items())}")
    contents = read_contents(store, quiet=False)
    say(f"inspect: codes used by step {', '.join(f'{share:.1%}' for share in contents.usage)}")
    say(f"inspect: perplexity by step {', '.join(f'{value:.0f}' for value in contents.perplexity)}")
    out = config.out or f"{store.url}.html"
    files.write_bytes(out, render(store, contents, codec).encode())
    say(f"inspect: wrote {out}")
