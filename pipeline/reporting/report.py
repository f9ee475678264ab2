"""One self-contained HTML page about a run: its metrics, pictures, curves, settings and digests."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rdpm.models.fields import EXECUTION
from rdpm.models.flops import generator_parameters
from rdpm.pipeline.evaluation.splits import SampleSet, Split, check_classes, load_samples, load_split
from rdpm.pipeline.exports.card import generator_config, generator_origin, read_card
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.foundation.measured import read_measured
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.reporting import page
from rdpm.pipeline.reporting.curves import bar_chart, read_lines, training_charts
from rdpm.pipeline.reporting.diagnosis import diagnosis_section
from rdpm.pipeline.reporting.pictures import (
    PER_CLASS,
    nearest_grids,
    reconstruction_grids,
    sample_grid,
    sample_sheet,
    step_grid,
)
from rdpm.pipeline.reporting.tables import numbers_section, paper_section, sweep_table
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.manifest import to_json
from rdpm.storage_schemas.sweep import SWEEP, SweepRow
from rdpm.storage_schemas.tokens import KIND

_BATCH = 64


@dataclass(frozen=True)
class ReportConfig:
    """A page about the results of a run."""

    metrics: str
    """metrics.json of the run."""
    tokenizer: str
    """Export of the tokenizer."""
    generator: str
    """Export of the generator."""
    store: str
    """Token store that the generator was trained on."""
    samples: str
    """Sample store."""
    images: str
    """Held-out images."""
    train_images: str
    """Images that were trained on."""
    out: str = field(metadata=EXECUTION)
    """The page to write."""
    calibrated: str = ""
    """The generator's export with matched latents, if the samples were drawn with that; else empty."""
    sweep: str = ""
    """Folder of a finished sweep over the generator's sampler settings; empty for none."""
    diagnosis: str = ""
    """diagnosis.json of the generator; empty for none."""
    also_png: str = ""
    """File to which the grid of samples is written as a picture too; empty for none."""


@dataclass(frozen=True)
class Run:
    """Everything that the page shows, read and checked."""

    config: ReportConfig
    """Where it was read from."""
    metrics: dict[str, Any]
    """Content of metrics.json."""
    codec: Codec
    """The tokenizer, ready to run."""
    tokenizer_card: ModelCard
    """Card of the tokenizer."""
    generator_card: ModelCard
    """Card of the generator."""
    store: Store
    """Token store that the generator was trained on."""
    samples: SampleSet
    """The samples, in memory."""
    held_out: Split
    """Held-out images."""
    train: Split
    """Images that were trained on."""


def input_digests(config: ReportConfig) -> dict[str, str]:
    """Digests of the inputs, for the job's record. Raises ValueError when one is missing."""
    if not files.exists(config.metrics):
        raise ValueError(f"metrics {config.metrics!r} does not exist; run rdpm evaluate first")
    if config.diagnosis and not files.exists(config.diagnosis):
        raise ValueError(f"diagnosis {config.diagnosis!r} does not exist; run rdpm diagnose first")
    paths = {"sweep": _sweep_rows(config) if config.sweep else "", "diagnosis": config.diagnosis}
    return {
        **{f"{name}_digest": files.digest_file(path).sha256 for name, path in paths.items() if path},
        "metrics_digest": files.digest_file(config.metrics).sha256,
        "tokenizer_digest": read_card(config.tokenizer, "tokenizer").digest,
        "generator_digest": read_card(config.generator, "generator").digest,
        "store_id": open_store(config.store, KIND).id,
    }


def _sweep_rows(config: ReportConfig) -> str:
    path = files.join(config.sweep, SWEEP)
    if not files.exists(path):
        raise ValueError(f"sweep {config.sweep!r} has no {SWEEP}; let rdpm sweep finish first")
    return path


def write_report(config: ReportConfig, lease: Lease) -> int:
    """Write the page, and the picture if the config names one. Returns the size of the page in bytes.

    Raises ValueError when an input is missing or the inputs are not from one run, and LeaseLost.
    """
    run = open_run(config)
    data = render(run).encode()
    lease.check()
    files.write_bytes(config.out, data)
    if config.also_png:
        files.write_bytes(config.also_png, sample_sheet(run.samples))
    return len(data)


def open_run(config: ReportConfig) -> Run:
    """Read all inputs. Raises ValueError when one is missing or does not belong to the others."""
    tokenizer, tokenizer_card = load_tokenizer(config.tokenizer)
    run = Run(
        config,
        read_measured(config.metrics, "evaluate"),
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
    _check_one_run(run)
    return run


def _check_one_run(run: Run) -> None:
    """Raises ValueError unless all inputs are from one run."""
    config, protocol = run.config, run.metrics["protocol"]
    for name, split in (("held_out", run.held_out), ("train", run.train)):
        _check_digest("metrics", config.metrics, f"{name} images", protocol[name]["digest"], split.source_digest)
    _check_digest("metrics", config.metrics, "samples", protocol["samples"]["digest"], run.samples.store.id)
    drawn_by = read_card(config.calibrated, "generator") if config.calibrated else run.generator_card
    sampled_by = run.samples.store.manifest.plan.samples.generator_digest
    _check_digest("samples", config.samples, "generator", sampled_by, drawn_by.digest)
    if config.calibrated:
        source = drawn_by.training.get("calibrate", {}).get("generator_digest", "none")
        _check_digest("export", config.calibrated, "generator", source, run.generator_card.digest)
    if run.store.id not in generator_origin(run.generator_card).stores:
        raise ValueError(
            f"generator {config.generator!r} was not trained on store {config.store!r} ({run.store.id[:12]}); give a "
            "store that it was trained on"
        )
    if config.diagnosis:
        diagnosed = read_measured(config.diagnosis, "diagnose")["protocol"]["generator"]["digest"]
        _check_digest("diagnosis", config.diagnosis, "generator", diagnosed, run.generator_card.digest)
    if config.sweep:
        record = read_record(config.sweep)
        swept = {digest for pair in record.inputs["digests"] for digest in pair} if record else set()
        if run.generator_card.digest not in swept:
            raise ValueError(
                f"sweep {config.sweep!r} does not contain generator {config.generator!r}; give a sweep of this run"
            )


def _check_digest(kind: str, path: str, part: str, digest: str, expected: str) -> None:
    if digest != expected:
        raise ValueError(
            f"{kind} {path!r} belongs to {part} {digest[:12]}, not {expected[:12]}; give the files of one run"
        )


def render(run: Run) -> str:
    """The page as HTML."""
    images, generator = run.codec.tokenizer.config, generator_config(run.generator_card)
    T, K, grid = images.schedule.num_steps, images.quantizer.codebook_size, images.grid
    lead = (
        f"The tokenizer turns images of {images.image_size} x {images.image_size} pixels into {T} maps of {grid} x "
        f"{grid} codes, out of {K}. The generator has depth {generator.depth} and predicts such codes. It drew "
        f"{len(run.samples.labels)} samples of {len(run.samples.classes)} classes, which this page compares with "
        f"{len(run.held_out.labels)} held-out images and {len(run.train.labels)} training images."
    )
    return page.page(
        "RDPM: report of a run",
        lead,
        [*_results(run), *_sweep(run.config), *_diagnosis(run.config), *_curves(run), *_provenance(run)],
    )


def _results(run: Run) -> list[str]:
    seed = run.metrics["protocol"]["settings"]["seed"]
    config = generator_config(run.generator_card)
    name = f"this run (depth={config.depth})"
    unmatched = " Its latents are not matched here, as those of the samples above are." if run.config.calibrated else ""
    return [
        numbers_section(run.metrics),
        paper_section(run.metrics, name, generator_parameters(config), config.num_steps),
        page.section(
            "Samples",
            f"The first {PER_CLASS} samples of each class, in the order of the store. None were picked by hand.",
            sample_grid(run.samples),
        ),
        page.section(
            "Step by step",
            f"The first sample of each class, decoded after each step t from the codes predicted so far.{unmatched}",
            step_grid(run.codec, run.samples),
        ),
        page.section(
            "Reconstructions",
            "Held-out images, and what the tokenizer decodes from their codes.",
            reconstruction_grids(run.codec, run.held_out, seed),
        ),
        page.section(
            "Nearest training images",
            "Each sample beside the three training images that are nearest to it in pixels. The number below an image "
            "is its distance to the sample: the root mean square difference in grey levels.",
            nearest_grids(run.samples, run.train),
        ),
    ]


def _sweep(config: ReportConfig) -> list[str]:
    if not config.sweep:
        return []
    rows = [SweepRow.from_json(row) for row in files.read_json(_sweep_rows(config))]
    plot = page.image(files.read_bytes(files.join(config.sweep, "pareto.png")), "Chart: metrics against each other")
    return [
        page.section(
            "Sampler settings",
            "Samples with different sampler settings, as in the paper's Table 3. Compare these rows only with each "
            "other, because a set of a different size than above has different distances. In the chart, a line joins "
            "the settings that no other setting beats in both metrics.",
            sweep_table(rows),
            page.full_width(plot),
        )
    ]


def _diagnosis(config: ReportConfig) -> list[str]:
    return [diagnosis_section(files.read_json(config.diagnosis))] if config.diagnosis else []


def _curves(run: Run) -> list[str]:
    config = run.config
    perplexity = bar_chart("Code perplexity of held-out images", run.metrics["tokenizer"]["perplexity_by_step"])
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
        blocks.append(page.facts(title, page.flatten(dataclasses.asdict(card))))
    for title, store in (("Token store", run.store), ("Sample store", run.samples.store)):
        blocks.append(page.facts(title, [("store_id", store.id), *page.flatten(_plan(store))]))
    outs = (config.tokenizer, config.store, config.generator, config.calibrated, config.samples, config.metrics)
    for out in filter(None, outs):
        record = read_record(out)
        if record is not None:
            blocks.append(page.facts(f"Job {record.job}", page.flatten(record.to_json())))
    return [
        page.section("Settings and digests", "What each part was made from, and with which settings.", *blocks),
        page.section(
            "Protocol",
            "How the metrics were measured. Compare metrics of two runs only where their protocols agree.",
            page.facts("Protocol", page.flatten(run.metrics["protocol"])),
        ),
    ]


def _plan(store: Store) -> dict[str, Any]:
    """A store's plan for people: one line per array, without the tokenizer's config, which is in its card."""
    plan = to_json(store.manifest)["plan"]
    plan["arrays"] = {spec.name: f"{spec.dtype} {list(spec.row_shape)}" for spec in store.manifest.plan.arrays}
    plan["identity"].pop("tokenizer_config", None)
    return plan
