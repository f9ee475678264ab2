"""The line: order, shared calls, clients that leave, and drawings that fail."""

import asyncio
import base64
import io
from contextlib import aclosing

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.app.drawing import Asked, Drawing, drawing_of
from rdpm.pipeline.app.line import Full, Line


def sample(model, *labels: int, seed: int = 0) -> Drawing:
    return drawing_of(Asked("sample", labels, seed=seed), model)


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


async def told(line: Line, drawing: Drawing) -> list[dict]:
    """All events of a drawing."""
    async with aclosing(line.draw(drawing)) as events:
        return [event async for event in events]


def last(events: list[dict], count: int) -> np.ndarray:
    """The pictures of a drawing after its last step, (N, H, W, 3)."""
    found = {}
    for event in events:
        if event.get("step") == 3:
            found |= {event["first"] + i: decoded(text) for i, text in enumerate(event["pictures"])}
    return np.stack([found[i] for i in range(count)])


@pytest.fixture
def calls(model, monkeypatch) -> list[int]:
    """How many pictures each call of the models draws."""
    seen, draw = [], model.draw
    monkeypatch.setattr(
        model, "draw", lambda labels, *rest, **kw: seen.append(len(labels)) or draw(labels, *rest, **kw)
    )
    return seen


def test_drawings_that_fit_share_a_call_and_are_what_they_are_alone(model, calls):
    drawings = [sample(model, 0, 1, seed=10 * i) for i in range(5)]

    async def all_at_once() -> list[list[dict]]:
        line = Line(model)
        events = await asyncio.gather(*(told(line, drawing) for drawing in drawings))
        await line.close()
        return events

    events = asyncio.run(all_at_once())
    assert calls == [4, 4, 2]
    for i, own in enumerate(events):
        assert np.array_equal(last(own, 2), model.sample([0, 1], seed=[10 * i, 10 * i + 1]))
        assert [event["step"] for event in own if "step" in event] == [1, 2, 3]
        ahead = [event["ahead"] for event in own if "ahead" in event]
        assert ahead[0] == i
        assert ahead == sorted(ahead, reverse=True)


def test_a_drawing_of_more_than_a_call_and_one_of_another_method_have_calls_of_their_own(model, calls):
    drawings = [
        sample(model, *[1] * 6),
        drawing_of(Asked("blend", (0, 1)), model),
        sample(model, 0, seed=3),
        sample(model, 1, 1, 1, 1),
        sample(model, 1, seed=4),
    ]

    async def all_at_once() -> list[list[dict]]:
        line = Line(model)
        return await asyncio.gather(*(told(line, drawing) for drawing in drawings))

    events = asyncio.run(all_at_once())
    assert calls == [6, 2, 4]  # blend has a call of its own, which `calls` does not see
    assert [len(last(own, len(drawing))) for own, drawing in zip(events, drawings, strict=True)] == [6, 11, 1, 4, 1]
    assert np.array_equal(last(events[4], 1), model.sample([1], seed=[4]))


class Endless(Drawing):
    """A drawing that never ends by itself."""

    def draw(self, model, callback) -> None:
        while True:
            callback(1, range(1), np.zeros((1, 8, 8, 3), np.uint8))


def test_a_drawing_stops_when_its_client_leaves(model):
    async def leave() -> list[dict]:
        line = Line(model)
        async with aclosing(line.draw(Endless("sample", {"seed": [0]}, {}))) as events:
            async for event in events:
                if "step" in event:
                    break
            waiting = asyncio.create_task(told(line, sample(model, 1)))
        return await asyncio.wait_for(waiting, 30)

    assert np.array_equal(last(asyncio.run(leave()), 1), model.sample([1], seed=[0]))


def test_who_leaves_the_line_is_not_drawn_and_those_behind_move_up(model, calls):
    async def leave() -> list[dict]:
        line = Line(model)
        tasks = [asyncio.create_task(told(line, sample(model, *[0] * 4, seed=i))) for i in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.wait(tasks)
        return tasks[2].result()

    events = asyncio.run(leave())
    assert calls == [4, 4]
    assert list(dict.fromkeys(event["ahead"] for event in events if "ahead" in event)) == [2, 1]


def test_a_drawing_that_fails_tells_its_client_and_the_next_is_drawn(model, capsys):
    async def fail() -> list:
        line = Line(model)
        bad = Drawing("sample", {"labels": [7], "seed": [0]}, {})
        good = drawing_of(Asked("blend", (0, 1)), model)
        return await asyncio.gather(told(line, bad), told(line, good), return_exceptions=True)

    bad, good = asyncio.run(fail())
    assert isinstance(bad, ValueError)
    assert "label 7" in capsys.readouterr().err
    assert len(last(good, 11)) == 11


def test_a_line_that_is_too_long_refuses(model):
    async def crowd() -> list:
        line = Line(model, longest=2)
        tasks = (told(line, sample(model, *[0] * 4, seed=i)) for i in range(4))
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(crowd())
    assert [type(result) for result in results] == [list, list, Full, Full]


def test_closing_ends_what_is_drawn_and_what_waits(model):
    async def close() -> list:
        line = Line(model)
        endless = Endless("sample", {"seed": [0]}, {})
        tasks = [asyncio.create_task(told(line, drawing)) for drawing in (endless, sample(model, *[0] * 4))]
        await asyncio.sleep(0.05)
        await asyncio.wait_for(line.close(), 30)
        return await asyncio.wait_for(asyncio.gather(*tasks), 30)

    assert not any("step" in event for event in asyncio.run(close())[1])
