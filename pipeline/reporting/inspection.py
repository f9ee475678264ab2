"""One HTML page about a token store: what it is, what made it, how its codes are used, and pictures decoded from it."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rdpm.pipeline.evaluation.fidelity import code_counts, perplexity
from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.reporting import page
from rdpm.pipeline.reporting.curves import bar_chart, rank_chart
from rdpm.pipeline.reporting.pictures import MOST_CLASSES, PER_CLASS
from rdpm.pipeline.reporting.report import flatten
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.manifest import plan_to_json
from rdpm.storage_schemas.tokens import OK

_MOST_REASONS = 20


@dataclass
class Contents:
    """What a store holds, rejects left out of all but `reasons`.

    counts: uses of each code by step (T, K). labels: rows by label. shown: by label, the first rows of the first
    classes, each as (key and view, codes (T, h, w)).
    """

    counts: np.ndarray
    labels: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    shown: dict[int, list[tuple[str, np.ndarray]]] = field(default_factory=dict)

    @property
    def usage(self) -> np.ndarray:
        """Share of the codebook that each step uses, (T,)."""
        return (self.counts > 0).mean(axis=1)

    @property
    def perplexity(self) -> np.ndarray:
        """How many codes each step uses, in effect, (T,)."""
        return perplexity(self.counts)


def read_contents(store: Store, quiet: bool = True) -> Contents:
    """Go through a token store, holding one shard at a time. Raises DamagedStore."""
    plan, K = store.manifest.plan, store.manifest.plan.tokens.codebook_size
    contents = Contents(np.zeros((store.specs["codes"].row_shape[0], K), np.int64))
    with ProgressLine("inspect", plan.num_shards, "shards", quiet=quiet) as progress:
        for shard in range(plan.num_shards):
            codes, index = store.shard(shard, ("codes",))["codes"], store.shard_index(shard)
            good = index["status"].to_numpy() == OK
            labels = index["label"].to_numpy()
            contents.counts += code_counts(codes[good], K)
            contents.labels.update(labels[good].tolist())
            contents.reasons.update(reason for reason in index["reason"].to_pylist() if reason)
            for row in np.flatnonzero(good & (labels < MOST_CLASSES)):
                found = contents.shown.setdefault(int(labels[row]), [])
                if len(found) < PER_CLASS:
                    found.append((f"{index['key'][row]} {index['view'][row]}", codes[row]))
            progress.update(shard + 1)
    return contents


def render(store: Store, contents: Contents, codec: Codec | None) -> str:
    """The page as HTML; with decoded pictures where a codec is given."""
    plan = store.manifest.plan
    T, height, width = store.specs["codes"].row_shape
    lead = (
        f"Store {store.id[:12]}: {plan.rows} rows in {plan.num_shards} shards. A row is {T} maps of {height} x {width} "
        f"codes out of {plan.tokens.codebook_size}. "
        f"{len(contents.labels)} classes, {len(store.manifest.rejected)} rejects."
    )
    sections = [_pictures(store, contents, codec)] if codec else []
    sections += [_codes(contents), _rows(store, contents), _origin(store)]
    return page.page("RDPM: a token store", lead, sections)


def _class_name(store: Store, label: int) -> str:
    return store.manifest.plan.tokens.classes[label]


def _pictures(store: Store, contents: Contents, codec: Codec) -> str:
    rows = []
    for label, found in sorted(contents.shown.items()):
        codes = np.stack([codes for _, codes in found])
        images = codec.decode(codes)
        pictures = [page.Picture(pixels, key) for (key, _), pixels in zip(found, images, strict=True)]
        rows.append((_class_name(store, label), pictures))
    lead = "What the tokenizer decodes from the stored codes: the first rows of the first classes, none picked."
    return page.section("Pictures", lead, page.grid((), rows))


def _codes(contents: Contents) -> str:
    lead = (
        "How often the codes are chosen at each step t. Usage counts codes chosen at least once; perplexity says how "
        f"many codes are in use in effect, at most {contents.counts.shape[1]}."
    )
    charts = [
        bar_chart("Share of codes used by step t", contents.usage.tolist()),
        bar_chart("Code perplexity by step t", contents.perplexity.tolist()),
        rank_chart("Use of each code by step t, over even use", contents.counts),
    ]
    return page.section("Codes", lead, page.charts(charts))


def _rows(store: Store, contents: Contents) -> str:
    labels = sorted(contents.labels.items())
    parts = [page.charts([bar_chart("Rows by label", [count for _, count in labels], [y for y, _ in labels], "label")])]
    parts.append(page.facts("Rows by class", [(_class_name(store, label), str(count)) for label, count in labels]))
    if contents.reasons:
        reasons = [(reason, "", (str(count),)) for reason, count in contents.reasons.most_common(_MOST_REASONS)]
        parts += [page.heading("Rejects"), page.numbers(("Reason", "rows"), reasons)]
    return page.section("Rows", "Rows that hold an image, by class; why the others were rejected.", *parts)


def _origin(store: Store) -> str:
    plan: dict[str, Any] = {**plan_to_json(store.manifest.plan)}
    identity = {name: value for name, value in plan.pop("identity").items() if name != "classes"}
    plan["arrays"] = {spec.name: f"{spec.dtype} {list(spec.row_shape)}" for spec in store.manifest.plan.arrays}
    blocks = [
        page.facts("What it is", [("store_id", store.id), *flatten(plan)]),
        page.facts("What made it", flatten(identity)),
    ]
    record = read_record(store.url)
    if record is not None:
        blocks.append(page.facts(f"Job {record.job}", flatten(record.to_json())))
    lead = "All that the rows depend on; two stores of one identity hold the same bytes."
    return page.section("Identity", lead, *blocks)
