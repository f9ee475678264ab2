"""rdpm sample: a generator and its tokenizer to a set of images."""

from jobs.arguments import parse, settings_of
from pipeline.progress import say
from pipeline.records import begin
from pipeline.sampling import SampleConfig, open_cards, sample_set
from storage_schemas.manifest import MANIFEST

JOB = "sample"
Config = SampleConfig
_HOW = ("out", "generator", "tokenizer", "threads", "resources")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    config = parse(Config, JOB, arguments)
    generator, tokenizer = open_cards(config)
    digests = {"generator_digest": generator.digest, "tokenizer_digest": tokenizer.digest}
    record = begin(
        JOB, config.out, settings_of(config, *_HOW, **digests), (MANIFEST, *(("samples.npz",) if config.npz else ()))
    )
    if record.finished:
        say(f"sample: {config.out} is already there")
        return
    manifest = sample_set(config)
    record.finish({"store_id": manifest.store_id, "rows": manifest.plan.rows})
    say(f"sample: {config.out} is sample set {manifest.store_id[:12]}, {manifest.plan.rows} images")
