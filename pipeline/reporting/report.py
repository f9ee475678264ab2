"""One self-contained HTML page about a run: its numbers, pictures, curves, settings and digests."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from rdpm.models.fields import EXECUTION
from rdpm.models.flops import generator_parameters
from rdpm.pipeline.evaluation.splits import SampleSet, Split, check_classes, load_samples, load_split
from rdpm.pipeline.exports.card import generator_config, generator_origin, read_card
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.reporting import page
from rdpm.pipeline.reporting.curves import bar_chart, read_lines, training_charts
from rdpm.pipeline.reporting.pictures import (
    nearest_grids,
    reconstruction_grids,
    sample_grid,
    sample_sheet,
    step_grid,
)
from rdpm.pipeline.reporting.tables import numbers_section, paper_section
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.manifest import to_json
from rdpm.storage_schemas.sweep import SWEEP, SweepRow
from rdpm.storage_schemas.tokens import KIND

_BATCH = 64


@dataclass(frozen=True)
class ReportConfig:
    """A page about what a run left behind."""

    metrics: str
    """metrics.json of the run."""
    tokenizer: str
    """Export of the tokenizer."""
    generator: str
    """Export of the generator."""
    store: str
    """The token store that the generator was trained on."""
    samples: str
    """The sample store."""
    images: str
    """Held-out images."""
    train_images: str
    """Images that were trained on."""
    out: str = field(metadata=EXECUTION)
    """The page to write."""
    sweep: str = ""
    """Folder of a finished sweep over the generator's sampler settings; empty for none."""
    also_png: str = ""
    """Where the grid of samples is written as a picture of its own; empty for nowhere."""


@dataclass(frozen=True)
class Run:
    """Everything the page shows, read and checked."""

    config: ReportConfig
    metrics: dict[str, Any]
    codec: Codec
    tokenizer_card: ModelCard
    generator_card: ModelCard
    store: Store
    samples: SampleSet
    held_out: Split
    train: Split


def input_digests(config: ReportConfig) -> dict[str, str]:
    """Digests of the inputs, for the job's record. Raises ValueError when one is missing."""
    if not files.exists(config.metrics):
        raise ValueError(f"metrics {config.metrics!r} does not exist; run rdpm evaluate first")
    sweep = {"sweep_digest": files.digest_file(_sweep_rows(config)).sha256} if config.sweep else {}
    return {
        **sweep,
        "metrics_digest": files.digest_file(config.metrics).sha256,
        "tokenizer_digest": read_card(config.tokenizer, "tokenizer").digest,
        "generator_digest": read_card(config.generator, "generator").digest,
        "store_id": open_store(config.store, KIND).id,
    }


def _sweep_rows(config: ReportConfig) -> str:
    path = files.join(config.sweep, SWEEP)
    if not files.exists(path):
        raise ValueError(f"sweep {config.sweep!r} has no {SWEEP}; run rdpm sweep to its end first")
    return path


def write_report(config: ReportConfig) -> int:
    """Write the page, and the picture where one is asked for. Returns the page's size in bytes.

    Raises ValueError when an input is missing or the inputs are not of one run.
    """
    run = open_run(config)
    data = render(run).encode()
    files.write_bytes(config.out, data)
    if config.also_png:
        files.write_bytes(config.also_png, sample_sheet(run.samples))
    return len(data)


def open_run(config: ReportConfig) -> Run:
    """Read all inputs. Raises ValueError when one is missing or does not belong to the others."""
    tokenizer, tokenizer_card = load_tokenizer(config.tokenizer)
    run = Run(
        config,
        files.read_json(config.metrics),
        Codec(tokenizer, _BATCH),
        tokenizer_card,
        read_card(config.generator, "generator"),
        open_store(config.store, KIND),
        load_samples(config.samples, tokenizer_card, tokenizer.config.autoencoder.in_channels),
        load_split(config.images, tokenizer.config),
        load_split(config.train_images, tokenizer.config),
    )
    check_classes(f"folder {config.images!r}", run.held_out.classes, run.train.classes)
    check_classes(f"sample store {config.samples!r}", run.samples.classes, run.train.classes)
    protocol = run.metrics["protocol"]
    for name, split in (("held_out", run.held_out), ("train", run.train)):
        _same("metrics", config.metrics, f"{name} images", protocol[name]["digest"], split.source_digest)
    _same("metrics", config.metrics, "samples", protocol["samples"]["digest"], run.samples.store.id)
    drawn_by = run.samples.store.manifest.plan.samples.generator_digest
    _same("samples", config.samples, "generator", drawn_by, run.generator_card.digest)
    if run.store.id not in generator_origin(run.generator_card).stores:
        raise ValueError(
            f"generator {config.generator!r} was not trained on store {config.store!r} ({run.store.id[:12]})"
        )
    if config.sweep:
        record = read_record(config.sweep)
        swept = {digest for pair in record.inputs["digests"] for digest in pair} if record else set()
        if run.generator_card.digest not in swept:
            raise ValueError(f"sweep {config.sweep!r} is not of generator {config.generator!r}; give one of this run")
    return run


def _same(kind: str, path: str, other: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(
            f"{kind} {path!r} is of {other} {found[:12]}, not of {expected[:12]}; give the files of one run"
        )


def render(run: Run) -> str:
    """The page as HTML."""
    shape, space = run.codec.tokenizer.config, generator_config(run.generator_card)
    T, K, grid = shape.schedule.num_steps, shape.quantizer.codebook_size, shape.grid
    lead = (
        f"A tokenizer that turns {shape.image_size} x {shape.image_size} images into {T} maps of {grid} x {grid} codes "
        f"(K = {K}), a generator of depth {space.depth} that draws them, and {len(run.samples.labels)} samples of "
        f"{len(run.samples.classes)} classes, measured against {len(run.held_out.labels)} held-out and "
        f"{len(run.train.labels)} training images."
    )
    return page.page(
        "RDPM: report of a run", lead, [*_results(run), *_sweep(run.config), *_curves(run), *_provenance(run)]
    )


def _results(run: Run) -> list[str]:
    seed = run.metrics["protocol"]["settings"]["seed"]
    space = generator_config(run.generator_card)
    name = f"this run (depth={space.depth})"
    return [
        numbers_section(run.metrics),
        paper_section(run.metrics, name, generator_parameters(space), space.num_steps),
        page.section(
            "Samples",
            "The first ten samples of each class in the order of the store, none picked.",
            sample_grid(run.samples),
        ),
        page.section(
            "Step by step",
            "The sum of what was predicted so far, decoded after each step t.",
            step_grid(run.codec, run.samples),
        ),
        page.section(
            "Reconstructions",
            "Held-out images, and what the tokenizer makes of their codes.",
            reconstruction_grids(run.codec, run.held_out, seed),
        ),
        page.section(
            "Nearest training images",
            "Each sample with the three training images nearest to it in pixels, and "
            "their distances (root mean square, grey levels).",
            nearest_grids(run.samples, run.train),
        ),
    ]


def _sweep(config: ReportConfig) -> list[str]:
    if not config.sweep:
        return []
    rows = [SweepRow.from_json(row) for row in files.read_json(_sweep_rows(config))]
    names = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    numbers = [(row.name, "", [f"{row.metrics[name]:.4g}" for name in names]) for row in rows]
    plot = page.image(files.read_bytes(files.join(config.sweep, "pareto.png")), "metrics against each other")
    return [
        page.section(
            "Sampler settings",
            "In the form of the paper's Table 3, on fewer samples than the numbers above, so distances are larger.",
            page.numbers(["", *(name.replace("_", " ") for name in names)], numbers),
            page.charts([plot]),
        )
    ]


def _curves(run: Run) -> list[str]:
    config = run.config
    perplexity = bar_chart("Code perplexity by step t, real images", run.metrics["tokenizer"]["perplexity_by_step"])
    tokenizer, generator = (training_charts(read_lines(folder)) for folder in (config.tokenizer, config.generator))
    return [
        page.section(
            "Training the tokenizer",
            f"{run.tokenizer_card.steps} optimizer steps.",
            page.charts([*tokenizer, perplexity]),
        ),
        page.section("Training the generator", f"{run.generator_card.steps} optimizer steps.", page.charts(generator)),
    ]


def _provenance(run: Run) -> list[str]:
    config = run.config
    blocks = []
    for title, card in (("Tokenizer card", run.tokenizer_card), ("Generator card", run.generator_card)):
        blocks.append(page.facts(title, flatten(dataclasses.asdict(card))))
    for title, store in (("Token store", run.store), ("Sample store", run.samples.store)):
        blocks.append(page.facts(title, [("store_id", store.id), *flatten(_plan(store))]))
    for out in (config.tokenizer, config.store, config.generator, config.samples, config.metrics):
        record = read_record(out)
        if record is not None:
            blocks.append(page.facts(f"Job {record.job}", flatten(record.to_json())))
    return [
        page.section("Settings and digests", "What every part was made from, and by which settings.", *blocks),
        page.section(
            "Protocol",
            "How the numbers were measured; only numbers of equal protocols compare.",
            page.facts("Protocol", flatten(run.metrics["protocol"])),
        ),
    ]


def _plan(store: Store) -> dict[str, Any]:
    """A store's plan for reading: its arrays in one line each, and not the tokenizer's config, which the card has."""
    plan = to_json(store.manifest)["plan"]
    plan["arrays"] = {spec.name: f"{spec.dtype} {list(spec.row_shape)}" for spec in store.manifest.plan.arrays}
    plan["identity"].pop("tokenizer_config", None)
    return plan


def flatten(tree: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested dicts as (dotted name, value) rows; anything else is written as JSON."""
    if isinstance(tree, dict) and tree:
        return [row for key, value in tree.items() for row in flatten(value, f"{name}.{key}" if name else str(key))]
    return [(name, tree if isinstance(tree, str) else json.dumps(tree, ensure_ascii=False))]
