"""A proxy before an S3 server that throws faults from a seeded schedule, and counts them by kind.

Which fault request number n gets is a function of the seed and n alone. A fault that a request cannot have (a conflict
is an answer to a conditional PUT only) leaves that request undisturbed.
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping

import aiohttp
from aiohttp import web

KINDS = ("throttle", "conflict", "reset", "lost reply", "cut reply")
_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{}</Code><Message>{}</Message></Error>'
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect"}


class Proxy:
    """`url` speaks S3 to the server behind it. `counts` are the faults thrown so far; "latency" counts delays.

    shares: kind -> probability per request; may be replaced at any time. latency: seconds before every request.
    """

    def __init__(self, server: str, seed: int, shares: Mapping[str, float], latency: float = 0.0) -> None:
        self.server, self.seed, self.shares, self.latency = server, seed, dict(shares), latency
        self.counts: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.commits = 0
        """Requests that put a commit of a shard."""
        self.sent = 0  # bytes of the contents of complete replies
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the proxy did not start"

    def close(self) -> None:
        """Stop serving."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.run_until_complete(self._client.close())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        unlimited = aiohttp.TCPConnector(limit=0)
        self._client = aiohttp.ClientSession(connector=unlimited, auto_decompress=False, raise_for_status=False)
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return runner

    def _drawn(self, request: web.Request) -> str:
        """The fault of this request, "" for none."""
        self.requests[request.method] += 1
        self.commits += request.method == "PUT" and "/commits/" in request.path
        number = self.requests.total()
        draw = random.Random(f"{self.seed} {number}").random()
        for kind, share in self.shares.items():
            if draw < share:
                return kind if kind != "conflict" or "If-None-Match" in request.headers else ""
            draw -= share
        return ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        kind = self._drawn(request)
        body = await request.read()
        if self.latency:
            self.counts["latency"] += 1
            await asyncio.sleep(self.latency)
        if kind == "throttle":
            self.counts[kind] += 1
            return _error(503, "SlowDown", "Please reduce your request rate.")
        if kind == "conflict":
            self.counts[kind] += 1
            return _error(409, "ConditionalRequestConflict", "A conflicting operation is in progress.")
        if kind == "reset":
            self.counts[kind] += 1
            return _reset(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        url = aiohttp.client.URL(self.server + request.raw_path, encoded=True)
        async with self._client.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            content = await answer.read()
        if kind == "lost reply":
            self.counts[kind] += 1
            return _reset(request)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP}
        if request.method != "HEAD":
            kept["Content-Length"] = str(len(content))
        reply = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
        await reply.prepare(request)
        if kind == "cut reply" and len(content) > 1:
            self.counts[kind] += 1
            await reply.write(content[: len(content) // 2])
            return _reset(request, reply)
        if request.method != "HEAD":
            self.sent += len(content)
            await reply.write(content)
        await reply.write_eof()
        return reply


def _error(status: int, code: str, message: str) -> web.Response:
    return web.Response(status=status, text=_ERROR.format(code, message), content_type="application/xml")


def _reset(request: web.Request, reply: web.StreamResponse | None = None) -> web.StreamResponse:
    """Close the client's connection with a RST."""
    assert request.transport is not None
    request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return reply or web.Response()
