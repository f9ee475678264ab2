"""The report's pictures: samples, reconstructions, the way of a sample through the steps, nearest training images.

Nothing is picked by eye: pictures show the first images of each class in the order of the store or of the keys.
"""

import numpy as np

from rdpm.pipeline.evaluation.fidelity import reconstruct
from rdpm.pipeline.evaluation.novelty import nearest
from rdpm.pipeline.evaluation.splits import SampleSet, Split
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.reporting.page import Picture, grid, heading, png, side_by_side

MOST_CLASSES, PER_CLASS = 10, 10
_GAP = 4  # pixels between the images of a sheet


def first_of_class(labels: np.ndarray, per_class: int) -> list[tuple[int, np.ndarray]]:
    """(label, its first rows) of the first classes, at most MOST_CLASSES."""
    return [(int(y), np.flatnonzero(labels == y)[:per_class]) for y in np.unique(labels)[:MOST_CLASSES]]


def sample_grid(samples: SampleSet) -> str:
    """Classes down, samples across."""
    rows = []
    for label, found in first_of_class(samples.labels, PER_CLASS):
        name = samples.classes[label]
        rows.append((name, [Picture(samples.pixels[i], f"sample {i} of class {name}") for i in found]))
    return grid((), rows)


def step_grid(codec: Codec, samples: SampleSet) -> str:
    """The accumulated latent z'_t of one sample a class, decoded after every step t = 1 ... T."""
    chosen = [(label, rows[0]) for label, rows in first_of_class(samples.labels, 1)]
    codes = samples.codes[[row for _, row in chosen]]
    steps = range(1, codes.shape[1] + 1)
    decoded = [codec.decode(codes, t) for t in steps]
    rows = []
    for place, (label, row) in enumerate(chosen):
        name = samples.classes[label]
        shown = zip(steps, decoded, strict=True)
        rows.append((name, [Picture(at[place], f"sample {row} of class {name} after t = {t}") for t, at in shown]))
    return grid([f"t={t}" if t == 1 else str(t) for t in steps], rows)


def reconstruction_grids(codec: Codec, held_out: Split, seed: int) -> str:
    """Held-out images above what comes back, the first two of each class."""
    chosen = first_of_class(held_out.labels, 2)
    parts = []
    for turn in range(2):
        rows = [found[turn] for _, found in chosen if len(found) > turn]
        if not rows:
            continue
        real = held_out.pixels[rows]
        back = reconstruct(codec, real, seed).pixels
        names = [held_out.classes[held_out.labels[row]] for row in rows]
        shown = [
            (title, [Picture(x, f"{title} of class {name}") for x, name in zip(pixels, names, strict=True)])
            for title, pixels in (("original", real), ("back", back))
        ]
        parts.append(heading(f"Image {turn + 1} of each class") + grid(names, shown))
    return "".join(parts)


def nearest_grids(samples: SampleSet, train: Split) -> str:
    """Samples beside their three nearest training images: one a class, and those of all that are nearest."""
    references = train.pixels.reshape(len(train.pixels), -1)
    count = min(3, len(references))
    queries = samples.pixels.reshape(len(samples.pixels), -1)
    closest = np.argsort(nearest(queries, references, 1).squared[:, 0], kind="stable")[:MOST_CLASSES]
    first = np.array([rows[0] for _, rows in first_of_class(samples.labels, 1)])
    parts = []
    for title, chosen in (
        ("The first sample of each class", first),
        ("The samples nearest to training images", closest),
    ):
        found = nearest(queries[chosen], references, count)
        distances = np.sqrt(found.squared / references.shape[1])
        rows = []
        for sample, near, far in zip(chosen, found.indices, distances, strict=True):
            name = samples.classes[samples.labels[sample]]
            pictures = [Picture(samples.pixels[sample], f"sample {sample} of class {name}", "sample")]
            for index, distance in zip(near, far, strict=True):
                alt = f"training image {index} of class {train.classes[train.labels[index]]}"
                pictures.append(Picture(train.pixels[index], alt, f"{distance:.1f}"))
            rows.append((name, pictures))
        parts.append((title, grid((), rows, cell=64)))
    return side_by_side(parts)


def sample_sheet(samples: SampleSet) -> bytes:
    """The sample grid as one PNG, small images enlarged by whole factors without smoothing."""
    rows = [found for _, found in first_of_class(samples.labels, PER_CLASS)]
    size, channels = samples.pixels.shape[1], samples.pixels.shape[-1]
    scale = max(1, 48 // size)
    pitch = size * scale + _GAP
    across = max(len(found) for found in rows)
    sheet = np.full((len(rows) * pitch + _GAP, across * pitch + _GAP, channels), 255, np.uint8)
    for down, found in enumerate(rows):
        for right, index in enumerate(found):
            enlarged = samples.pixels[index].repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = down * pitch + _GAP, right * pitch + _GAP
            sheet[top : top + size * scale, left : left + size * scale] = enlarged
    return png(sheet)
