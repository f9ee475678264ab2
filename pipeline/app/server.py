"""The server of the page, on this machine's loopback only. It loads nothing from outside, and its page neither."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from typing import Any, Literal

from aiohttp import web

from rdpm.models.fields import EXECUTION
from rdpm.pipeline.app.drawing import MOST_PICTURES, WEIGHTS, Asked, drawing_of, python_of
from rdpm.pipeline.app.line import Full, Line, png
from rdpm.pipeline.app.uploads import MOST_BYTES, picture_of
from rdpm.pipeline.foundation.config import from_dict
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.inference.batches import own_device
from rdpm.pipeline.inference.rdpm import RDPM

LOOPBACK = "127.0.0.1"
_NAMES = (LOOPBACK, "localhost", "::1")
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/pictures.js": ("pictures.js", "text/javascript"),
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'",
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
)
_HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class ServeConfig:
    """What `rdpm serve` serves, and where."""

    run: str
    """Folder or URL that holds generator/ and tokenizer/, or the export of a generator."""
    tokenizer: str = ""
    """Export of the tokenizer, if `run` is the export of a generator."""
    port: int = field(default=7860, metadata=EXECUTION)
    """Port of this machine's loopback; 0 for any that is free."""
    batch: int = 16
    """Pictures per call of the models. Requests that wait share a call."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=EXECUTION)
    """Where the models run; auto is the GPU if there is one."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port is {self.port}; use 1 to 65535, or 0 for any that is free")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; use 1 or more")


def serve(config: ServeConfig) -> None:
    """Load the models and serve the page until SIGINT or SIGTERM. Raises ValueError for a port that is taken."""
    tokenizer = config.tokenizer or None
    model = RDPM.from_pretrained(config.run, tokenizer, batch=config.batch, device=own_device(config.device))
    loading = json.dumps(config.run) + (f", tokenizer={json.dumps(tokenizer)}" if tokenizer else "")
    asyncio.run(_until_stopped(Page(model, config.run, loading), config.port))


async def _until_stopped(page: "Page", port: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner, port = await started(page, port)
    say(f"serve: http://{LOOPBACK}:{port} shows {page.name}; Ctrl+C ends it")
    await stopped.wait()
    await page.line.close()
    await runner.cleanup()


async def started(page: "Page", port: int) -> tuple[web.AppRunner, int]:
    """Start to serve a page. Returns what `cleanup` ends, and the port. Raises ValueError for a port that is taken."""
    # A client that goes away cancels its handler, which takes its drawing out of the line.
    runner = web.AppRunner(page.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port).start()
    except OSError as error:
        await runner.cleanup()
        raise ValueError(f"port {port} cannot be used ({error.strerror}); give another, or port=0 for any") from None
    return runner, runner.addresses[0][1]


class Page:
    """The page about one model. It keeps nothing of what its visitors do."""

    def __init__(self, model: RDPM, name: str, loading: str) -> None:
        """name: what the page calls the model. loading: arguments of `RDPM.from_pretrained` that load it, as Python."""
        self.model, self.name, self.loading, self.line = model, name, loading, Line(model)
        self._one_upload = asyncio.Semaphore(1)  # so that memory holds one large picture

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application(middlewares=[_refusals], client_max_size=MOST_BYTES)
        app.on_response_prepare.append(_add_headers)
        app.add_routes([web.get(path, _file) for path in _FILES])
        app.add_routes(
            [web.get("/model", self._facts), web.post("/picture", self._picture), web.post("/draw", self._draw)]
        )
        return app

    async def _facts(self, _: web.Request) -> web.Response:
        tokenizer = self.model.tokenizer.config
        facts = {
            "name": self.name,
            "classes": self.model.classes,
            "size": tokenizer.image_size,
            "grid": tokenizer.grid,
            "grey": tokenizer.autoencoder.in_channels == 1,
            "steps": self.model.generator.config.num_steps,
            "most": MOST_PICTURES,
            "weights": WEIGHTS,
        }
        return web.json_response(facts)

    async def _picture(self, request: web.Request) -> web.Response:
        """An uploaded file as a picture that the model takes."""
        config = self.model.tokenizer.config
        async with self._one_upload:
            data = await request.read()
            pixels = await asyncio.to_thread(picture_of, data, config.image_size, config.autoencoder.in_channels)
        return web.json_response({"picture": png(pixels)})

    async def _draw(self, request: web.Request) -> web.StreamResponse:
        """Draw what is asked for. The answer is one JSON object per line: the line's events, then the Python."""
        try:
            tree = json.loads(await request.read())
        except ValueError:
            raise ValueError("the request is not JSON; send an object") from None
        asked = from_dict(Asked, tree)
        drawing = await asyncio.to_thread(drawing_of, asked, self.model)
        async with aclosing(self.line.draw(drawing)) as events:
            first = await anext(events)  # or it is refused
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            with suppress(ConnectionError):  # the client has gone
                await response.prepare(request)
                await _send(response, first)
                try:
                    async for event in events:
                        await _send(response, event)
                    picture = png(drawing.columns["images"][0]) if "images" in drawing.columns else ""
                    python = python_of(drawing, asked, self.model, self.loading)
                    await _send(response, {"python": python, "picture": picture})
                except ConnectionError:
                    raise
                except Exception as error:
                    await _send(response, {"error": f"drawing failed: {error}"})
        return response


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(json.dumps(event).encode() + b"\n")


async def _file(request: web.Request) -> web.Response:
    name, kind = _FILES[request.path]
    text = (package_files("rdpm.pipeline.app") / name).read_text(encoding="utf-8")
    return web.Response(text=text, content_type=kind)


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse other sites' pages, which a browser lets reach loopback, and answer refusals with one sentence."""
    origin = request.headers.get("Origin")
    if request.url.host not in _NAMES or origin not in (None, f"http://{request.host}"):
        return _refusal(403, "only a page of this server, on this machine, may ask; open it at its own address")
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        return _refusal(413, f"the file is too large; give one of at most {MOST_BYTES} bytes")
    except web.HTTPException as error:
        return _refusal(error.status, f"{request.method} {request.path}: {error.reason}")
    except Full as error:
        return _refusal(503, str(error))
    except ValueError as error:
        return _refusal(400, str(error))


def _refusal(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
