"""One HTML page about a token store: what it is, what it was made from, how it uses codes, and decoded pictures."""

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
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.manifest import plan_to_json
from rdpm.storage_schemas.tokens import OK

_MOST_REASONS = 20


@dataclass
class Contents:
    """What a store holds. Only `reasons` covers rejected rows."""

    counts: np.ndarray
    """How often each step uses each code, (T, K) int64."""
    labels: Counter[int] = field(default_factory=Counter)
    """Rows per label."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected rows per reason."""
    shown: dict[int, list[tuple[str, np.ndarray]]] = field(default_factory=dict)
    """The first rows of each of the first classes, by label: (key and view, codes (T, h, w))."""

    @property
    def usage(self) -> np.ndarray:
        """Share of the codebook that each step uses, (T,)."""
        return (self.counts > 0).mean(axis=1)

    @property
    def perplexity(self) -> np.ndarray:
        """Effective number of codes that each step uses, (T,)."""
        return perplexity(self.counts)


def read_contents(store: Store, quiet: bool = True) -> Contents:
    """Read a whole token store, one shard at a time. Raises DamagedStore. quiet: without a progress line."""
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
                of_class = contents.shown.setdefault(int(labels[row]), [])
                if len(of_class) < PER_CLASS:
                    of_class.append((f"{index['key'][row]} {index['view'][row]}", codes[row]))
            progress.update(shard + 1)
    return contents


def render(store: Store, contents: Contents, codec: Codec | None) -> str:
    """The page as HTML. With a codec, it has decoded pictures."""
    plan = store.manifest.plan
    T, height, width = store.specs["codes"].row_shape
    lead = (
        f"Store {store.id[:12]} has {plan.rows} rows in {plan.num_shards} shards, of {len(contents.labels)} classes; "
        f"{len(store.manifest.rejected)} rows are rejects. A row holds {T} maps of {height} x {width} codes, out of "
        f"{plan.tokens.codebook_size}."
    )
    sections = [_pictures(store, contents, codec)] if codec else []
    sections += [_codes(contents), _rows(store, contents), _origin(store)]
    return page.page("RDPM: a token store", lead, sections)


def _class_name(store: Store, label: int) -> str:
    return store.manifest.plan.tokens.classes[label]


def _pictures(store: Store, contents: Contents, codec: Codec) -> str:
    rows = []
    for label, of_class in sorted(contents.shown.items()):
        images = codec.decode(np.stack([codes for _, codes in of_class]))
        pictures = [page.Picture(pixels, key) for (key, _), pixels in zip(of_class, images, strict=True)]
        rows.append((_class_name(store, label), pictures))
    lead = (
        "What the tokenizer decodes from the stored codes. These are the first rows of the first classes; none were "
        "picked by hand."
    )
    return page.section("Pictures", lead, page.grid((), rows))


def _codes(contents: Contents) -> str:
    lead = (
        "How the steps t use the codebook. A code counts as used when it occurs at least once. Perplexity is the "
        f"effective number of codes, at most {contents.counts.shape[1]}. The last chart divides the uses of each code "
        "by their mean."
    )
    charts = [
        bar_chart("Share of codes used by step t", contents.usage.tolist()),
        bar_chart("Code perplexity by step t", contents.perplexity.tolist()),
        rank_chart("Use of each code by step t", contents.counts),
    ]
    return page.section("Codes", lead, page.charts(charts))


def _rows(store: Store, contents: Contents) -> str:
    labels = sorted(contents.labels.items())
    parts = [page.charts([bar_chart("Rows by label", [count for _, count in labels], [y for y, _ in labels], "label")])]
    parts.append(page.facts("Rows by class", [(_class_name(store, label), str(count)) for label, count in labels]))
    if contents.reasons:
        reasons = [(reason, "", (str(count),)) for reason, count in contents.reasons.most_common(_MOST_REASONS)]
        parts += [page.heading("Rejects"), page.numbers(("Reason", "rows"), reasons)]
    return page.section("Rows", "Rows with an image, by class, and why the other rows were rejected.", *parts)


def _origin(store: Store) -> str:
    plan: dict[str, Any] = {**plan_to_json(store.manifest.plan)}
    identity = {name: value for name, value in plan.pop("identity").items() if name != "classes"}
    plan["arrays"] = {spec.name: f"{spec.dtype} {list(spec.row_shape)}" for spec in store.manifest.plan.arrays}
    blocks = [
        page.facts("What it is", [("store_id", store.id), *page.flatten(plan)]),
        page.facts("What it was made from", page.flatten(identity)),
    ]
    record = read_record(store.url)
    if record is not None:
        blocks.append(page.facts(f"Job {record.job}", page.flatten(record.to_json())))
    lead = "Everything that the rows depend on. Two stores with the same identity hold the same rows."
    return page.section("Identity", lead, *blocks)
