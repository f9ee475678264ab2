"""The parts of `make gpu`: each is one process with a time limit, and one row of a table in docs/benchmarks.md."""

import fnmatch
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

LIMIT = 600  # seconds that any part may take

MODELS = ("jaxtyping", "fsspec", "pydantic", "rich", "safetensors", "tenacity", "yaml")  # to load and run models
STORES = (*MODELS, "zarr", "numcodecs", "google_crc32c", "pyarrow")  # and to read and write stores
_PYTEST = ("-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib", "-o")


@dataclass(frozen=True)
class Part:
    """One process."""

    name: str
    """TABLE/ROW: which table its result belongs to, and the first cell of its row there."""
    arguments: tuple[str, ...]
    """What follows `python`. It prints a JSON object as a line of its own, or it is pytest."""
    seconds: int = 240
    """It is killed after so many."""
    needs: tuple[str, ...] = ()
    """Modules without which it cannot run, beside torch."""

    def __post_init__(self) -> None:
        assert 0 < self.seconds <= LIMIT

    @property
    def missing(self) -> list[str]:
        """The needed modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def _tests(row: str, path: str, *needs: str, seconds: int = 240) -> Part:
    """The tests of a file that are marked gpu. Those of models/ load no conftest of other rooms, so torch is enough."""
    alone = ("--confcutdir=tests/models",) if path.startswith("tests/models") else ()
    needs = ("jaxtyping", *needs) if alone else (*needs, *STORES, "PIL", "sklearn")
    return Part(f"tests/{row}", (*_PYTEST, "addopts=", *alone, path), seconds, ("pytest", *needs))


_ENGINE = ("deepspeed", "tensorboard")
_TRAINING = "tests/pipeline/training/test_gpu_training.py"
_RESUME = f"{_TRAINING}::test_a_deterministic_training_continues_to_the_bit"
TESTS = (
    _tests("noise, compiled and eager, has the CPU's bits", "tests/models/test_noise.py", "triton"),
    _tests("flash-attn equals SDPA in value and gradient", "tests/models/test_attention.py", "flash_attn"),
    _tests("flash-attn's products count as SDPA's", "tests/benchmarks/test_products.py", "flash_attn"),
    _tests(
        "the sampler's CUDA graph draws the eager sampler's codes",
        "tests/models/test_compiled_steps.py",
        "triton",
        seconds=540,
    ),
    _tests("the compiled loss equals the eager one", "tests/models/test_gpu_compiled.py", "triton"),
    _tests("no TF32 in phi, quantizer, encoder and decoder", "tests/pipeline/inference/test_gpu_precision.py"),
    _tests(
        "two processes draw the same samples", "tests/pipeline/inference/test_gpu_samples.py", "triton", seconds=540
    ),
    _tests("the stream fills pinned memory", "tests/pipeline/stream/test_gpu_pinned.py"),
    _tests("images to train the tokenizer on come in pinned memory", "tests/pipeline/images/test_image_stream.py"),
    _tests("the tokenizer trains channels-last", "tests/models/test_tokenizer_model.py"),
    _tests(
        "a micro-batch never waits for the device",
        f"{_TRAINING}::test_a_micro_batch_never_waits_for_the_device",
        "tensorboard",
    ),
    _tests("every ZeRO stage", f"{_TRAINING}::test_every_zero_stage_trains_saves_and_loads", *_ENGINE, seconds=540),
    _tests("previews", f"{_TRAINING}::test_previews_are_drawn_with_every_kernel", *_ENGINE),
    _tests("a deterministic training continues to the bit", _RESUME, *_ENGINE, seconds=540),
)

KERNELS = (("sdpa", True), ("sdpa", False), ("flash_attn", True), ("flash_attn", False), ("math", False))
"""Each attention kernel, compiled or not. The plain one is there to compare with."""
_COMPILE = {True: ("--compile",), False: ()}


def _grid(table: str, arguments: tuple[str, ...], seconds: int, batches: dict[int, tuple[int, ...]]) -> list[Part]:
    """A part for each depth, batch and kernel."""
    parts = []
    for depth, batch in [(depth, batch) for depth, each in batches.items() for batch in each]:
        for kernel, compiled in KERNELS:
            row = f"{table}/d{depth}, {kernel}, {'compiled' if compiled else 'eager'}, batch {batch}"
            options = (f"--depth={depth}", f"--batch={batch}", f"--attention={kernel}", *_COMPILE[compiled])
            needs = (*STORES, *(["flash_attn"] if kernel == "flash_attn" else []), *(["triton"] if compiled else []))
            parts.append(Part(row, ("-m", *arguments, *options), seconds, needs))
    return parts


TRAIN = _grid("train", ("benchmarks.train", "--steps=20"), 300, {12: (64, 256, 512), 16: (64, 256), 20: (64, 128)})
SAMPLE = _grid(
    "sample",
    ("benchmarks.sample", "--limits", "--precision=bf16"),
    540,
    {12: (8, 32, 64), 16: (8, 32, 64), 20: (8, 32)},
)
TOKENIZER = tuple(
    Part(
        f"tokenizer/{'compiled' if compiled else 'eager'}, batch {batch}",
        ("-m", "benchmarks.tokenizer", f"--batch={batch}", "--parts", *_COMPILE[compiled]),
        400,
        (*MODELS, "lpips", "torchvision", *(["triton"] if compiled else [])),
    )
    for batch in (16, 32)
    for compiled in (True, False)
)
DETERMINISM = _grid("determinism", ("benchmarks.determinism",), 400, {12: (64,)})
PARTS = (*TESTS, *DETERMINISM, *SAMPLE, *TOKENIZER, *TRAIN)


def chosen(parts: Sequence[Part], names: Sequence[str], piece: str | None) -> list[Part]:
    """The parts that are asked for. names: patterns of names or of what they begin with. piece: N/M, every M-th part
    from the N-th.

    Raises ValueError for a pattern that fits no part, and for a piece that is none.
    """
    found = list(parts)
    if names:
        for name in names:
            if not any(_fits(part, name) for part in parts):
                raise ValueError(f"no part is called {name!r}; --list shows their names")
        found = [part for part in parts if any(_fits(part, name) for name in names)]
    if piece is None:
        return found
    number, _, count = piece.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--part is {piece!r}; use N/M with N from 1 to M")
    return found[int(number) - 1 :: int(count)]


def _fits(part: Part, name: str) -> bool:
    return part.name.startswith(name) or fnmatch.fnmatchcase(part.name, name)
