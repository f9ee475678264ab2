"""The line in which drawings of all clients wait: one call of the models at a time, which those that fit share."""

import asyncio
import base64
import io
import traceback
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from rdpm.pipeline.app.drawing import Drawing, joined
from rdpm.pipeline.inference.rdpm import RDPM

LONGEST = 32
Event = dict[str, Any]
"""`{"ahead": n}`, or `{"step": t, "first": i, "pictures": [...]}`: PNGs in base64 of pictures i, i + 1, ... at t."""


class Full(ValueError):
    """No more drawings can wait."""


class _Abandoned(Exception):
    """Nobody waits for a drawing any more."""


@dataclass(eq=False)
class _Place:
    """A drawing in the line."""

    drawing: Drawing
    events: asyncio.Queue[Event | Exception | None] = field(default_factory=asyncio.Queue)
    """What its client is to be told; None is the end."""
    left: bool = False
    """Whether the client has gone."""


class Line:
    """Draws what waits, first come first served, in one thread.

    The models take `batch` pictures per call whatever is asked for. So the first in the line shares its call with all
    behind it that call the same method and still fit. This changes no picture: each depends on nothing but its own
    seed, class and settings. A drawing whose clients have all gone stops after its current step.
    """

    def __init__(self, model: RDPM, longest: int = LONGEST) -> None:
        """longest: drawings that may wait; more are refused."""
        self._model, self._longest = model, longest
        self._waiting: list[_Place] = []
        self._drawing = self._closed = False
        self._worker: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "draw")

    async def draw(self, drawing: Drawing) -> AsyncGenerator[Event, None]:
        """What happens to a drawing until it is done. To leave, close the iterator.

        Raises Full when too many wait, and whatever error ends the drawing.
        """
        if len(self._waiting) >= self._longest:
            raise Full(f"{len(self._waiting)} drawings wait already; try again in a moment")
        place = _Place(drawing)
        self._waiting.append(place)
        self._tell()
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        try:
            while (event := await place.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            place.left = True
            if place in self._waiting:
                self._waiting.remove(place)
                self._tell()

    async def close(self) -> None:
        """Stop after the current step; all who wait are told that it is the end."""
        self._closed = True
        for place in self._waiting:
            place.events.put_nowait(None)
        self._waiting.clear()
        if self._worker:
            await self._worker
        self._thread.shutdown()

    def _tell(self) -> None:
        """Tell everyone in the line how many drawings are ahead."""
        for ahead, place in enumerate(self._waiting, start=int(self._drawing)):
            place.events.put_nowait({"ahead": ahead})

    async def _work(self) -> None:
        """Draw until nobody waits."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            together, end = self._next(), None
            self._drawing = True
            self._tell()
            try:
                await loop.run_in_executor(self._thread, self._draw, together, loop)
            except _Abandoned:
                pass
            except Exception as error:
                traceback.print_exc()
                end = error
            self._drawing = False
            for place in together:
                place.events.put_nowait(end)

    def _next(self) -> list[_Place]:
        """Take the first of the line, with those behind it that fit into the same call."""
        together = [self._waiting.pop(0)]
        free = self._model.batch - len(together[0].drawing)
        for place in list(self._waiting):
            if len(place.drawing) <= free and together[0].drawing.joins(place.drawing):
                self._waiting.remove(place)
                together.append(place)
                free -= len(place.drawing)
        return together

    def _draw(self, together: list[_Place], loop: asyncio.AbstractEventLoop) -> None:
        """One call for all; runs in the thread."""

        def show(t: int, rows: range, images: np.ndarray) -> None:
            if self._closed or all(place.left for place in together):
                raise _Abandoned
            start = 0
            for place in together:
                own = range(max(start, rows.start), min(start + len(place.drawing), rows.stop))
                if own and not place.left:
                    pictures = [png(images[row - rows.start]) for row in own]
                    event = {"step": t, "first": own.start - start, "pictures": pictures}
                    loop.call_soon_threadsafe(place.events.put_nowait, event)
                start += len(place.drawing)

        joined([place.drawing for place in together]).draw(self._model, show)


def png(pixels: np.ndarray) -> str:
    """Pixels (H, W, 3) uint8 as a PNG in base64."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return base64.b64encode(sink.getvalue()).decode()
