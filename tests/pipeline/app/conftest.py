"""A small model, and its page on a server."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from rdpm.models.generator import Generator
from rdpm.pipeline.app.server import Page, started
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.storage_schemas.cards import GeneratorOrigin


@dataclass(frozen=True)
class Served:
    """A page at work."""

    url: str
    page: Page
    loop: asyncio.AbstractEventLoop


@pytest.fixture(scope="session")
def run(tmp_path_factory, exports) -> str:
    """A folder with a generator and its tokenizer: 3 steps of 4 x 4 codes, 8 x 8 grey images of 2 classes.

    Every weight is random, also those that start at zero, so that class and guidance have an effect.
    """
    folder, config = tmp_path_factory.mktemp("run"), exports.generator_config
    tokenizer = exports.tokenizer(f"{folder}/tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        weights = {
            name: value + 0.3 * torch.randn_like(value) for name, value in Generator(config).state_dict().items()
        }
    made_from = GeneratorOrigin(tokenizer.digest, (), ("zero", "one"))
    save_export(f"{folder}/generator", "generator", config, weights, made_from, {}, 1)
    return str(folder)


@pytest.fixture(scope="session")
def model(run) -> RDPM:
    """Both models, 4 pictures per call."""
    return RDPM.from_pretrained(run, batch=4, device="cpu")


@pytest.fixture
def digit(digits) -> np.ndarray:
    """A real digit, (8, 8, 3)."""
    return np.repeat(digits[0][3][..., None], 3, axis=2)


@pytest.fixture
def served(model, run) -> Iterator[Served]:
    """The model's page on a free port of loopback, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    async def start() -> tuple:
        page = Page(model, "the run", repr(run))
        return page, *await started(page, 0)

    page, runner, port = wait(start())
    yield Served(f"http://127.0.0.1:{port}", page, loop)
    wait(page.line.close())
    wait(runner.cleanup())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
    loop.close()
