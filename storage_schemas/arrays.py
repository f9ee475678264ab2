"""The arrays of a store."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array of a store."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012, pydantic reads a plain dict

    name: str
    """Name under the store."""
    dtype: str
    """NumPy's name of the type, such as uint16."""
    row_shape: tuple[int, ...]
    """Shape of one row."""
    dims: tuple[str, ...]
    """Names of the axes after the first; the first is called "row"."""
    compressed: bool = True
    """Whether chunks are compressed."""
