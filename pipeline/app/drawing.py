"""What a page asks for: a call of one of RDPM's methods for several pictures, and the Python that makes it again."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.app.uploads import picture_of
from rdpm.pipeline.inference.rdpm import RDPM, Callback

MOST_PICTURES = 16
WEIGHTS = tuple(number / 10 for number in range(11))
"""Of the second class, in the pictures between two classes."""
_LARGEST_SEED = 2**53 - 2 * MOST_PICTURES  # browsers have no larger whole numbers
_STACKED = ("images", "mask")


@dataclass(frozen=True)
class Asked:
    """What a page sends."""

    method: Literal["sample", "inpaint", "vary", "blend"]
    """The method of RDPM."""
    labels: tuple[int, ...]
    """The class of each picture; for blend the first and the second class."""
    seed: int = 0
    """Seed of the first picture; the others have the next ones. All pictures of blend have the same."""
    guidance: float = SamplerConfig.guidance
    """lambda."""
    temperature: float = SamplerConfig.temperature
    """Divides the logits."""
    picture: str = ""
    """inpaint, vary: what is changed, an image file in base64."""
    cells: tuple[str, ...] = ()
    """inpaint: the rows of the grid, with 1 for a cell that is drawn anew and 0 for one that is kept."""
    step: int = 0
    """vary: the codes of steps 1 ... `step` are kept."""


@dataclass(frozen=True)
class Drawing:
    """A call of a method of RDPM for N pictures."""

    method: str
    """Its name."""
    columns: dict[str, list[Any]]
    """The arguments that have one value per picture: N values for each."""
    shared: dict[str, int]
    """The arguments that have one value for all."""

    def __len__(self) -> int:
        return len(self.columns["seed"])

    def draw(self, model: RDPM, callback: Callback) -> None:
        """Make the call; the callback gets all that is drawn."""
        columns = {name: np.stack(values) if name in _STACKED else values for name, values in self.columns.items()}
        getattr(model, self.method)(**columns, **self.shared, callback=callback)

    def joins(self, other: "Drawing") -> bool:
        """Whether both can be one call."""
        return (self.method, self.shared) == (other.method, other.shared)


def joined(drawings: Sequence[Drawing]) -> Drawing:
    """One call for the pictures of all, in order. Each joins the first."""
    first = drawings[0]
    if len(drawings) == 1:
        return first
    columns = {name: [value for each in drawings for value in each.columns[name]] for name in first.columns}
    return Drawing(first.method, columns, first.shared)


def drawing_of(asked: Asked, model: RDPM) -> Drawing:
    """The call that a page asks for. Raises ValueError, in one sentence, for what the model cannot draw."""
    SamplerConfig(guidance=asked.guidance, temperature=asked.temperature)
    blend = asked.method == "blend"
    wanted = "2" if blend else f"1 to {MOST_PICTURES}"
    if not 1 <= len(asked.labels) <= MOST_PICTURES or (blend and len(asked.labels) != 2):
        raise ValueError(f"there are {len(asked.labels)} classes for {asked.method}; give {wanted}")
    for label in asked.labels:
        if not 0 <= label < len(model.classes):
            raise ValueError(f"class {label} is none of this model; use 0 to {len(model.classes) - 1}")
    if not 0 <= asked.seed <= _LARGEST_SEED:
        raise ValueError(f"seed is {asked.seed}; use 0 to {_LARGEST_SEED}")
    count = len(WEIGHTS) if blend else len(asked.labels)
    columns: dict[str, list[Any]] = {}
    shared: dict[str, int] = {}
    if blend:
        first, second = asked.labels
        columns |= {"first": [first] * count, "second": [second] * count, "weight": list(WEIGHTS)}
        columns["seed"] = [asked.seed] * count
    else:
        columns |= {"labels": list(asked.labels), "seed": [asked.seed + number for number in range(count)]}
    if asked.method in ("inpaint", "vary"):
        columns["images"] = [_picture(asked, model)] * count
    if asked.method == "inpaint":
        columns["mask"] = [_mask(asked.cells, model)] * count
    if asked.method == "vary":
        T = model.generator.config.num_steps
        if not 0 <= asked.step <= T:
            raise ValueError(f"step is {asked.step}; use 0 to {T}")
        shared["step"] = asked.step
    columns |= {"guidance": [asked.guidance] * count, "temperature": [asked.temperature] * count}
    return Drawing(asked.method, columns, shared)


def _picture(asked: Asked, model: RDPM) -> np.ndarray:
    """(H, W, 3) uint8."""
    try:
        data = base64.b64decode(asked.picture, validate=True)
    except ValueError:
        raise ValueError("the picture is not in base64; send an image file so") from None
    config = model.tokenizer.config
    return picture_of(data, config.image_size, config.autoencoder.in_channels)


def _mask(cells: tuple[str, ...], model: RDPM) -> np.ndarray:
    """(H, W) bool."""
    grid, size = model.tokenizer.config.grid, model.tokenizer.config.image_size
    if len(cells) != grid or any(len(row) != grid or set(row) - {"0", "1"} for row in cells):
        raise ValueError(f"the mask is not {grid} rows of {grid} cells, each 0 or 1")
    if not any("1" in row for row in cells):
        raise ValueError("no cell is painted; paint what is to be drawn anew")
    drawn_anew = np.array([list(row) for row in cells]) == "1"
    return drawn_anew.repeat(size // grid, axis=0).repeat(size // grid, axis=1)


def python_of(drawing: Drawing, asked: Asked, model: RDPM, loading: str) -> str:
    """The program that draws the same pictures into image-0.png and so on.

    loading: the arguments of `RDPM.from_pretrained` that name the exports. What is changed is read from picture.png.
    """
    arguments = {name: _literal(values) for name, values in drawing.columns.items() if name not in _STACKED}
    for name in ("guidance", "temperature"):
        arguments[name] = repr(drawing.columns[name][0])
    arguments |= {name: repr(value) for name, value in drawing.shared.items()}
    before: list[str] = []
    stacked: dict[str, str] = {}
    if "images" in drawing.columns:
        before.append('picture = np.asarray(Image.open("picture.png").convert("RGB"))')
        stacked = {"images": f"np.stack([picture] * {len(drawing)})"}
    if "mask" in drawing.columns:
        side = model.tokenizer.config.image_size // model.tokenizer.config.grid
        rows = ",\n".join(f'    "{row}"' for row in asked.cells)
        before.append(f"cells = [  # 1: drawn anew\n{rows},\n]")
        before.append(
            f'mask = (np.array([list(row) for row in cells]) == "1").repeat({side}, axis=0).repeat({side}, axis=1)'
        )
        stacked["mask"] = f"np.stack([mask] * {len(drawing)})"
    call = "".join(f"    {name}={value},\n" for name, value in (stacked | arguments).items())
    lines = [
        *(["import numpy as np"] if before else []),
        "from PIL import Image",
        "",
        "from rdpm import RDPM",
        "",
        f'model = RDPM.from_pretrained({loading}, batch={model.batch}, device="{model.device}")',
        *before,
        f"images = model.{drawing.method}(\n{call})",
        "for number, image in enumerate(images):",
        '    Image.fromarray(image).save(f"image-{number}.png")',
    ]
    return "\n".join(lines) + "\n"


def _literal(values: list[Any]) -> str:
    """A list as Python, briefly."""
    return f"[{values[0]!r}] * {len(values)}" if len(values) > 1 and len(set(values)) == 1 else repr(values)
