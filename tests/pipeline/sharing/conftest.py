"""Servers on this machine that publications go to and are read from."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fsspec
import pytest
from aiohttp import web

from rdpm.pipeline.foundation import files
from tests.pipeline.sharing.hub_server import HubServer
from tests.pipeline.sharing.publications import protocol_of

TOKEN = "a-token-of-the-hub"


@pytest.fixture
def trained(tmp_path, exports) -> Path:
    """A run's folder: a tokenizer, a generator, metrics.json."""
    folder = tmp_path / "run"
    tokenizer = exports.tokenizer(str(folder / "tokenizer"))
    generator = exports.generator(str(folder / "generator"), tokenizer)
    inputs = {
        name: {"digest": digest, "images": 7, "name": "classifier"}
        for name, digest in {"generator": generator.digest, "tokenizer": tokenizer.digest}.items()
    }
    inputs |= {name: {"digest": name * 8, "images": 9} for name in ("samples", "reference", "held_out")}
    inputs["extractor"] = {"digest": "e" * 64, "name": "classifier"}
    parts = {
        "generator": {"frechet_distance": 1.25, "frechet_distance_real": 0.5, "spread": 0.75},
        "tokenizer": {"psnr": 20.0},
    }
    files.write_json(str(folder / "metrics.json"), protocol_of(parts, inputs))
    return folder


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    """A stand-in for the Hugging Face hub, which the hub's own client finds by fsspec's configuration."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # HF_HUB_DISABLE_XET=1, read when it is imported
    server = HubServer(TOKEN)
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.url, "token": TOKEN})
    yield server
    server.stop()


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The URL of a web server (aiohttp's) that lists and sends what is in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def start() -> None:
        app = web.Application()
        app.router.add_static("/", folder, show_index=True)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        ready.set()

    def work() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """From a folder to the URL of a web server for it."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(_served(folder))
