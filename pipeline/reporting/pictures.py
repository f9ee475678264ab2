"""The report's pictures: samples, reconstructions, samples step by step, and nearest training images.

Nothing is picked by eye. Pictures show the first images of each class, in the order of the store or of the keys.
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
    """(label, its first rows) for the first classes, at most MOST_CLASSES of them."""
    return [(int(y), np.flatnonzero(labels == y)[:per_class]) for y in np.unique(labels)[:MOST_CLASSES]]


def sample_grid(samples: SampleSet) -> str:
    """One row of samples per class."""
    grid_rows = []
    for label, rows in first_of_class(samples.labels, PER_CLASS):
        name = samples.classes[label]
        grid_rows.append((name, [Picture(samples.pixels[i], f"sample {i} of class {name}") for i in rows]))
    return grid((), grid_rows)


def step_grid(codec: Codec, samples: SampleSet) -> str:
    """One sample per class: its accumulated latent z'_t, decoded after each step t = 1 ... T."""
    chosen = [(label, rows[0]) for label, rows in first_of_class(samples.labels, 1)]
    codes = samples.codes[[row for _, row in chosen]]
    steps = range(1, codes.shape[1] + 1)
    decoded = [codec.decode(codes, t) for t in steps]
    grid_rows = []
    for position, (label, row) in enumerate(chosen):
        name = samples.classes[label]
        pictures = [
            Picture(images[position], f"sample {row} of class {name} after t = {t}")
            for t, images in zip(steps, decoded, strict=True)
        ]
        grid_rows.append((name, pictures))
    return grid([f"t={t}" if t == 1 else str(t) for t in steps], grid_rows)


def reconstruction_grids(codec: Codec, held_out: Split, seed: int) -> str:
    """Held-out images above their reconstructions, the first two of each class."""
    chosen = first_of_class(held_out.labels, 2)
    parts = []
    for number in range(2):
        rows = [of_class[number] for _, of_class in chosen if len(of_class) > number]
        if not rows:
            continue
        originals = held_out.pixels[rows]
        decoded = reconstruct(codec, originals, seed).pixels
        names = [held_out.classes[held_out.labels[row]] for row in rows]
        grid_rows = [
            (title, [Picture(x, f"{title} of class {name}") for x, name in zip(pixels, names, strict=True)])
            for title, pixels in (("original", originals), ("decoded", decoded))
        ]
        parts.append(heading(f"Image {number + 1} of each class") + grid(names, grid_rows))
    return "".join(parts)


def nearest_grids(samples: SampleSet, train: Split) -> str:
    """Samples beside their three nearest training images: the first of each class, and the nearest of all."""
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
        neighbours = nearest(queries[chosen], references, count)
        distances = np.sqrt(neighbours.squared / references.shape[1])
        grid_rows = []
        for sample, indices, its_distances in zip(chosen, neighbours.indices, distances, strict=True):
            name = samples.classes[samples.labels[sample]]
            pictures = [Picture(samples.pixels[sample], f"sample {sample} of class {name}", "sample")]
            for index, distance in zip(indices, its_distances, strict=True):
                alt = f"training image {index} of class {train.classes[train.labels[index]]}"
                pictures.append(Picture(train.pixels[index], alt, f"{distance:.1f}"))
            grid_rows.append((name, pictures))
        parts.append((title, grid((), grid_rows, cell=64)))
    return side_by_side(parts)


def sample_sheet(samples: SampleSet) -> bytes:
    """The sample grid as one PNG. Small images are enlarged by an integer factor, without smoothing."""
    rows_of_classes = [rows for _, rows in first_of_class(samples.labels, PER_CLASS)]
    size, channels = samples.pixels.shape[1], samples.pixels.shape[-1]
    scale = max(1, 48 // size)
    pitch = size * scale + _GAP
    columns = max(len(rows) for rows in rows_of_classes)
    sheet = np.full((len(rows_of_classes) * pitch + _GAP, columns * pitch + _GAP, channels), 255, np.uint8)
    for line, rows in enumerate(rows_of_classes):
        for column, row in enumerate(rows):
            enlarged = samples.pixels[row].repeat(scale, axis=0).repeat(scale, axis=1)
            top, left = line * pitch + _GAP, column * pitch + _GAP
            sheet[top : top + size * scale, left : left + size * scale] = enlarged
    return png(sheet)
