"""The pictures of docs/method.md, from the demo's models and held-out digits: python docs/method_pictures.py [RUN]."""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from rdpm import RDPM
from rdpm.models.quantizer import Quantization
from rdpm.models.tokenizer import Tokenizer, from_pixels

FOLDER = Path(__file__).parent / "pictures"
SEED = 7
GUIDANCE = 0.2


def first_digits(run: str, tokenizer: Tokenizer) -> np.ndarray:
    """The first held-out image of each class, (10, S, S, 1) uint8."""
    folders = sorted(Path(run, "data", "val").iterdir())
    pixels = [np.asarray(Image.open(sorted(folder.iterdir())[0])) for folder in folders]
    size = tokenizer.config.image_size
    return np.stack(pixels).reshape(-1, size, size, 1)


def colours(values: torch.Tensor, axes: torch.Tensor, scale: float) -> np.ndarray:
    """Latents (n, d, h, w) as RGB (n, h, w, 3): three principal components, of which 0 is grey."""
    parts = torch.einsum("ndhw,dk->nhwk", values, axes) / scale
    return (0.5 + parts.clamp(-1, 1) / 2).numpy()


def principal(vectors: torch.Tensor) -> torch.Tensor:
    """The first three principal components of vectors (n, d), as (d, 3)."""
    return torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False).Vh[:3].T


def rows_of(
    tokenizer: Tokenizer, pixels: np.ndarray, latents: torch.Tensor, result: Quantization
) -> list[tuple[str, np.ndarray]]:
    """What happens to one image, by row of the picture: a title and T small pictures, then what they approach."""
    quantizer, codebook = tokenizer.quantizer, tokenizer.quantizer.codebook
    T = quantizer.schedule.num_steps
    steps = torch.arange(1, T + 1)
    after = codebook.accumulated(result.codes.expand(T, -1, -1, -1), steps)
    before, noise = result.before[0], result.noise[0]
    alpha, beta = (values.view(-1, 1, 1, 1) for values in (quantizer.alpha, quantizer.beta))
    residual = latents - before
    axes = principal(latents[0].flatten(1).T)
    scale = float(torch.einsum("ndhw,dk->nhwk", latents, axes).abs().max())
    decoded = tokenizer.decode(torch.cat([torch.zeros_like(after[:1]), after])).clamp(-1, 1)[:, 0].numpy()
    return [
        ("what is left, z", colours(residual, axes, scale)),
        ("noise, ε", colours(noise, axes, scale)),
        ("mixed: α z + β ε", colours(alpha * residual + beta * noise, axes, scale)),  # noqa: RUF001
        ("codes: nearest vectors", colours(codebook.look_up(result.codes[0]), axes, scale)),
        ("sum so far, z'", colours(torch.cat([after, latents]), axes, scale)),
        ("decoded", np.concatenate([(decoded[1:] + 1) / 2, pixels[..., 0] / 255])),
        ("what the step adds", np.diff(decoded, axis=0)),
    ]


def write_codes(axis: Axes, codes: torch.Tensor) -> None:
    """The number of each code in its cell."""
    for (row, column), code in np.ndenumerate(codes.numpy()):
        axis.text(column, row, str(code), ha="center", va="center", fontsize=5)


def encoding(tokenizer: Tokenizer, pixels: np.ndarray) -> Figure:
    """Algorithm 1 on one image (1, S, S, 1): a column per step."""
    images = from_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    seeds = torch.tensor([SEED])
    latents = tokenizer.encoder(images).float()
    result = tokenizer.quantize(latents, seeds)
    T = tokenizer.config.schedule.num_steps
    rows = rows_of(tokenizer, pixels, latents, result)
    figure = Figure(figsize=(11, 7), layout="constrained")
    grid = figure.subplots(len(rows), T + 2)
    for line, (title, pictures) in enumerate(rows):
        grid[line, 0].text(1, 0.5, title, ha="right", va="center", fontsize=9)
        signed = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
        options = signed if title == "what the step adds" else {"cmap": "gray", "vmin": 0, "vmax": 1}
        for t, picture in enumerate(pictures, start=1):
            grid[line, t].imshow(picture, interpolation="nearest", **options)
            if title.startswith("codes"):
                write_codes(grid[line, t], result.codes[0, t - 1])
    for t in range(1, T + 1):
        alpha, beta = float(tokenizer.quantizer.alpha[t - 1]), float(tokenizer.quantizer.beta[t - 1])
        grid[0, t].set_title(f"t = {t}\nα {alpha:.2f}  β {beta:.2f}", fontsize=7)  # noqa: RUF001
    grid[4, T + 1].set_title("latents, v", fontsize=7)
    grid[5, T + 1].set_title("the image", fontsize=7)
    return bare(figure)


def sheet(rows: list[tuple[str, np.ndarray]], columns: list[str]) -> Figure:
    """Rows of pictures (n, S, S) or (n, S, S, 3) uint8 with a title each, below the titles of the columns."""
    figure = Figure(figsize=(11, 0.95 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), len(columns) + 1, squeeze=False)
    for line, (title, pictures) in enumerate(rows):
        grid[line, 0].text(1, 0.5, title, ha="right", va="center", fontsize=9)
        for column, picture in enumerate(pictures, start=1):
            grid[line, column].imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if line == 0:
                grid[line, column].set_title(columns[column - 1], fontsize=8)
    return bare(figure)


def bare(figure: Figure) -> Figure:
    """The figure without frames and ticks."""
    for axis in figure.axes:
        axis.set_axis_off()
    return figure


def drawing(model: RDPM, labels: list[int], names: tuple[str, ...]) -> Figure:
    """Algorithm 2: one row per image, one column per step."""
    seen: list[np.ndarray] = []
    model.sample(labels, seed=SEED, guidance=GUIDANCE, callback=lambda t, rows, images: seen.append(images))
    rows = [(f"a drawn {names[label]}", np.stack([step[n] for step in seen])) for n, label in enumerate(labels)]
    return sheet(rows, [f"t = {t}" for t in range(1, len(seen) + 1)])


def keeping(model: RDPM, pixels: np.ndarray, labels: list[int], names: tuple[str, ...]) -> Figure:
    """Real images that keep the codes of their first steps, the other ones drawn: one column per number of steps."""
    T = model.generator.config.num_steps
    kept = [model.vary(pixels, labels, step=step, seed=SEED, guidance=GUIDANCE) for step in range(T + 1)]
    shown = [np.broadcast_to(pixels, (*pixels.shape[:3], 3)), *reversed(kept)]
    rows = [(f"a real {names[label]}", np.stack([images[n] for images in shown])) for n, label in enumerate(labels)]
    return sheet(rows, ["original", *(f"{step} kept" for step in range(T, -1, -1))])


def save(figure: Figure, name: str) -> None:
    """One PNG. It does not name matplotlib's version."""
    FigureCanvasAgg(figure)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=110, metadata={"Software": None}, facecolor="white")
    FOLDER.mkdir(exist_ok=True)
    Image.open(sink).convert("RGB").save(FOLDER / name, optimize=True)
    print(FOLDER / name, (FOLDER / name).stat().st_size, "bytes")


def main(run: str = "runs/demo") -> None:
    """Make all pictures from the demo's folder."""
    torch.set_grad_enabled(False)
    model = RDPM.from_pretrained(f"{run}/generator", f"{run}/tokenizer", device="cpu")
    names = tuple("0123456789")
    digits = first_digits(run, model.tokenizer)
    save(encoding(model.tokenizer, digits[2:3]), "encoding.png")
    save(drawing(model, [2, 3, 5, 8], names), "drawing.png")
    save(keeping(model, digits[[2, 3, 5, 8]], [2, 3, 5, 8], names), "keeping.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
