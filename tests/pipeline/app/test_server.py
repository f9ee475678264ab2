"""The server: what it answers and refuses, who may ask, and clients that go away."""

import asyncio
import base64
import io
import json
import random
import socket
import urllib.error
import urllib.request

import aiohttp
import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.app.server import Page, started
from rdpm.pipeline.app.uploads import MOST_BYTES

ASKED = {"method": "sample", "labels": [0, 1], "seed": 5, "guidance": 0.5}


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of an answer."""
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def events_of(body: bytes) -> list[dict]:
    return [json.loads(line) for line in body.splitlines()]


def pixels(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def last_pictures(body: bytes) -> np.ndarray:
    """The pictures after the last step, of a drawing that fits one call."""
    return np.stack([pixels(text) for text in next(e for e in events_of(body) if e.get("step") == 3)["pictures"]])


def test_a_drawing_is_told_step_by_step_and_ends_with_its_python(served, model):
    status, body, _ = ask(f"{served.url}/draw", json.dumps(ASKED).encode())
    assert status == 200
    *events, end = events_of(body)
    assert [event["step"] for event in events if "step" in event] == [1, 2, 3]
    assert np.array_equal(last_pictures(body), model.sample([0, 1], seed=[5, 6], guidance=0.5))
    assert "seed=[5, 6],\n    guidance=0.5" in end["python"]
    assert end["picture"] == ""


def test_an_upload_comes_back_at_the_models_size_and_can_be_varied(served, model, digit):
    sink = io.BytesIO()
    Image.fromarray(digit.repeat(4, axis=0).repeat(4, axis=1)).save(sink, "PNG")
    status, body, _ = ask(f"{served.url}/picture", sink.getvalue())
    assert status == 200
    picture = json.loads(body)["picture"]
    assert np.array_equal(pixels(picture), digit)
    asked = {"method": "vary", "labels": [1], "step": 1, "picture": picture}
    _, body, _ = ask(f"{served.url}/draw", json.dumps(asked).encode())
    assert np.array_equal(last_pictures(body), model.vary(digit[None], [1], step=1, seed=[0]))
    assert np.array_equal(pixels(events_of(body)[-1]["picture"]), digit)


@pytest.mark.parametrize(
    ("path", "data", "status", "named"),
    [
        ("draw", b"{", 400, "not JSON"),
        ("draw", b"\xff", 400, "not JSON"),
        ("draw", b"[]", 400, ""),
        ("draw", b'{"method": "sample", "labels": [9]}', 400, "class 9"),
        ("draw", b'{"method": "sample", "labels": [0], "guidance": NaN}', 400, "guidance is nan"),
        ("picture", b"hello", 400, "no picture"),
        ("picture", bytes(MOST_BYTES + 1), 413, f"at most {MOST_BYTES} bytes"),
        ("nowhere", None, 404, "/nowhere"),
        ("draw", None, 405, "GET /draw"),
    ],
)
def test_refusals_are_one_sentence(served, path, data, status, named):
    code, body, _ = ask(f"{served.url}/{path}", data)
    assert code == status
    sentence = json.loads(body)["error"]
    assert named in sentence
    assert "\n" not in sentence


def test_the_page_may_load_nothing_from_outside_and_nothing_is_kept(served):
    for path in ("", "page.css", "page.js", "pictures.js", "model", "nowhere"):
        _, body, headers = ask(f"{served.url}/{path}")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"
        assert b"://" not in body


def test_pages_of_other_sites_are_refused(served):
    port = served.url.rsplit(":", 1)[1]
    data = json.dumps(ASKED).encode()
    assert ask(f"{served.url}/model", Host=f"localhost:{port}")[0] == 200
    assert ask(f"{served.url}/draw", data, Origin=served.url)[0] == 200
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "[x"}):
        assert ask(f"{served.url}/draw", data, **headers)[0] in (400, 403), headers
    assert ask(f"{served.url}/model", Host=f"evil.example:{port}")[0] == 403


def test_only_loopback_is_listened_on_and_a_taken_port_is_refused(served, model):
    port = int(served.url.rsplit(":", 1)[1])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; says which address this machine has towards others
        own = probe.getsockname()[0]
    if not own.startswith("127."):
        with pytest.raises(OSError), socket.create_connection((own, port), 5):
            pass
    with pytest.raises(ValueError, match=rf"port {port} cannot be used .*port=0"):
        asyncio.run(started(Page(model, "again", ""), port))


def test_ten_impatient_clients_get_their_own_pictures(served, model):
    """Each asks again and again and leaves most of the time, at some step; what it waits for is what it asked for."""
    order = random.Random(0)

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        for attempt in range(3):
            asked = {"method": "sample", "labels": [number % 2] * (1 + number % 3), "seed": 100 * number + attempt}
            patience = order.randrange(6) if attempt < 2 else 1000
            async with session.post(f"{served.url}/draw", json=asked) as answer:
                assert answer.status == 200
                lines = []
                async for line in answer.content:
                    lines.append(line)
                    if len(lines) > patience:
                        break
        expected = model.sample(asked["labels"], seed=[asked["seed"] + i for i in range(len(asked["labels"]))])
        assert np.array_equal(last_pictures(b"".join(lines)), expected)

    async def crowd() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.wait_for(asyncio.gather(*(client(session, number) for number in range(10))), 120)

    asyncio.run(crowd())
    assert ask(f"{served.url}/draw", json.dumps(ASKED).encode())[0] == 200


def test_a_line_that_is_full_says_so(served, monkeypatch):
    monkeypatch.setattr(served.page.line, "_longest", 0)
    code, body, _ = ask(f"{served.url}/draw", json.dumps(ASKED).encode())
    assert code == 503
    assert "try again" in json.loads(body)["error"]


def test_extreme_settings_spoil_nobody_elses_pictures(served, model):
    for name, extreme in (("guidance", 1e300), ("temperature", 1e-300)):
        ask(f"{served.url}/draw", json.dumps({**ASKED, name: extreme}).encode())
    status, body, _ = ask(f"{served.url}/draw", json.dumps(ASKED).encode())
    assert status == 200
    assert np.array_equal(last_pictures(body), model.sample([0, 1], seed=[5, 6], guidance=0.5))
