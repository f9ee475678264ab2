"""rdpm sample: a generator and its tokenizer to a set of images."""

from rdpm.jobs.arguments import parse, settings_of
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.inference.rdpm import open_cards
from rdpm.pipeline.sampling.formats import NAMES
from rdpm.pipeline.sampling.stage import SampleConfig, make_plan, sample_sets
from rdpm.storage_schemas.manifest import MANIFEST

JOB = "sample"
Config = SampleConfig
_HOW = ("out", "generator", "tokenizer", "formats", "threads", "resources")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    run([parse(Config, JOB, arguments)])


def run(configs: list[SampleConfig]) -> None:
    """Draw the sets that their records do not say are there, in one start of Ray."""
    records = []
    for config in configs:
        cards = open_cards(config.generator, config.tokenizer)
        make_plan(config, *cards)  # refuses a label that is no class before anything is written
        digests = dict(zip(("generator_digest", "tokenizer_digest"), (card.digest for card in cards), strict=True))
        makes = (MANIFEST, *(NAMES[name] for name in config.formats))
        records.append(begin(JOB, config.out, settings_of(config, *_HOW, **digests), makes))
        if records[-1].finished:
            say(f"sample: {config.out} is already there")
    left = [(config, record) for config, record in zip(configs, records, strict=True) if not record.finished]
    if left:
        for (config, record), manifest in zip(left, sample_sets([config for config, _ in left]), strict=True):
            record.finish({"store_id": manifest.store_id, "rows": manifest.plan.rows})
            say(f"sample: {config.out} is sample set {manifest.store_id[:12]}, {manifest.plan.rows} images")
