"""rdpm tokenize: images to a token store."""

from jobs.arguments import parse, settings_of
from pipeline.encoding import EncodeConfig, encode
from pipeline.exports import read_card
from pipeline.images.sources import open_folder
from pipeline.progress import say
from pipeline.records import begin
from storage_schemas.manifest import MANIFEST

JOB = "tokenize"
Config = EncodeConfig
_HOW = ("out", "images", "tokenizer", "threads", "resources", "max_rejects")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    config = parse(Config, JOB, arguments)
    digests = {
        "tokenizer_digest": read_card(config.tokenizer, "tokenizer").digest,
        "source": open_folder(config.images).digest,
    }
    record = begin(JOB, config.out, settings_of(config, *_HOW, **digests), (MANIFEST,))
    if record.finished:
        say(f"tokenize: {config.out} is already there")
        return
    manifest = encode(config)
    result = {"store_id": manifest.store_id, "rows": manifest.plan.rows, "rejected": len(manifest.rejected)}
    record.finish(result)
    counts = f"{manifest.plan.rows} rows, {len(manifest.rejected)} rejects"
    say(f"tokenize: {config.out} is store {manifest.store_id[:12]}, {counts}")
