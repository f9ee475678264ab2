"""The sample store: images drawn by a generator, one row an index."""

from rdpm.storage_schemas.manifest import ArraySpec

KIND = "samples"
INDEX_COLUMNS = ("index", "label", "seed")


def sample_arrays(num_steps: int, grid: int, image_size: int) -> tuple[ArraySpec, ...]:
    """images (H, W, 3) uint8, label int32, seed uint64 and the drawn codes (T, h, w) uint16."""
    return (
        ArraySpec("images", "uint8", (image_size, image_size, 3), ("y", "x", "rgb")),
        ArraySpec("label", "int32", (), ()),
        ArraySpec("seed", "uint64", (), ()),
        ArraySpec("codes", "uint16", (num_steps, grid, grid), ("step", "height", "width")),
    )
