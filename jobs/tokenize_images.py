"""rdpm tokenize: images to a token store."""

from contextlib import closing

from rdpm.jobs.arguments import parse, settings_of
from rdpm.pipeline.exports.exports import read_card
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin, read_record
from rdpm.pipeline.images.sources.source import open_source
from rdpm.pipeline.images.worklist import Worklist
from rdpm.pipeline.tokenizing.stage import EncodeConfig, encode
from rdpm.storage_schemas.manifest import MANIFEST

JOB = "tokenize"
Config = EncodeConfig
_HOW = ("out", "images", "tokenizer", "threads", "resources", "max_rejects")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    config = parse(Config, JOB, arguments)
    tokenizer = read_card(config.tokenizer, "tokenizer").digest

    def record_for(source: str):
        return begin(
            JOB, config.out, settings_of(config, *_HOW, tokenizer_digest=tokenizer, source=source), (MANIFEST,)
        )

    known = _known_digest(config)
    if known and record_for(known).finished:
        say(f"tokenize: {config.out} is already there")
        return
    with closing(Worklist(config.images, config.out)) as worklist:
        record = record_for(worklist.summary.digest)
        if record.finished:
            say(f"tokenize: {config.out} is already there")
            return
        manifest = encode(config, worklist)
    result = {"store_id": manifest.store_id, "rows": manifest.plan.rows, "rejected": len(manifest.rejected)}
    record.finish({**result, "containers": worklist.source.fingerprint})
    counts = f"{manifest.plan.rows} rows, {len(manifest.rejected)} rejects"
    say(f"tokenize: {config.out} is store {manifest.store_id[:12]}, {counts}")


def _known_digest(config: EncodeConfig) -> str:
    """The digest of a source whose containers are those of the finished record, so that they need no listing."""
    record = read_record(config.out)
    fingerprint = open_source(config.images).fingerprint
    if record and fingerprint and record["result"].get("containers") == fingerprint:
        return record["settings"]["source"]
    return ""
