"""rdpm ablate-tokenizer: the paper's Table 2 and its schedules on any source."""

from rdpm.jobs.arguments import parse, settings_of
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.studies.ablation import AblationConfig, ablate, plot, table

JOB = "ablate-tokenizer"
Config = AblationConfig
_HOW = ("out", "images", "validation", "parallel")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    config = parse(Config, JOB, arguments)
    sources = {name: list_images(getattr(config, name)).digest for name in ("images", "validation")}
    record = begin(JOB, config.out, settings_of(config, *_HOW, **{f"{n}_digest": d for n, d in sources.items()}))
    if not record.finished:
        results = ablate(config)
        files.write_bytes(files.join(config.out, "table2.md"), table(results).encode())
        files.write_bytes(files.join(config.out, "table2.png"), plot(results))
        record.finish(results)
    say(files.read_bytes(files.join(config.out, "table2.md")).decode())
    say(f"ablate-tokenizer: {config.out}/table2.md and table2.png")
