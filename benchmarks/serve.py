"""How long ten impatient clients of `rdpm serve` wait.

    python -m benchmarks.serve RUN [--clients 10] [--rounds 10] [--pictures 4] [--threads 1]

A server is started on RUN. One client asks alone, `rounds` times. Then all clients ask at the same time, each `rounds`
times without a pause; two of five requests are given up at a random moment of the time that one client needs alone.
Prints seconds from asking to the first step and to the last picture: the median and the largest, of one client alone
and of those among all clients that waited for the end. `lost` counts requests that neither ended nor were given up.
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import aiohttp


@dataclass(frozen=True)
class Asked:
    """One request."""

    first: float
    """Seconds to its first step."""
    last: float
    """Seconds to its last picture."""


async def ask(session: aiohttp.ClientSession, url: str, pictures: int, seed: int) -> Asked:
    """Ask for pictures of class 0 and wait for the end."""
    began, first = time.perf_counter(), 0.0
    asked = {"method": "sample", "labels": [0] * pictures, "seed": seed, "guidance": 0.5}
    async with session.post(f"{url}/draw", json=asked) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            event = json.loads(line)
            if "step" in event and not first:
                first = time.perf_counter() - began
    assert "python" in event, event
    return Asked(first, time.perf_counter() - began)


async def measure(url: str, options: argparse.Namespace) -> dict[str, object]:
    """One client alone, then all together."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await ask(session, url, options.pictures, 0)
        alone = [await ask(session, url, options.pictures, seed) for seed in range(options.rounds)]
        usual = statistics.median(each.last for each in alone)
        waited: list[Asked] = []
        left = lost = 0

        async def client(number: int) -> None:
            nonlocal left, lost
            order = random.Random(number)
            for seed in range(options.rounds):
                patience = order.random() * usual if order.random() < 0.4 else 600.0
                try:
                    waited.append(await asyncio.wait_for(ask(session, url, options.pictures, seed), patience))
                except TimeoutError:
                    left += 1
                except (aiohttp.ClientError, AssertionError):
                    lost += 1

        began = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(options.clients)))
        seconds = time.perf_counter() - began
    numbers = {"given_up": left, "lost": lost, "pictures_per_second": len(waited) * options.pictures / seconds}
    return {"alone": summary(alone), "together": {**summary(waited), **numbers}}


def summary(asked: list[Asked]) -> dict[str, float]:
    """The number of requests, and their medians and maxima."""
    first, last = [each.first for each in asked], [each.last for each in asked]
    medians = {"first_median": statistics.median(first), "last_median": statistics.median(last)}
    return {"requests": len(asked), **medians, "first_max": max(first), "last_max": max(last)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    for name, default in (("clients", 10), ("rounds", 10), ("pictures", 4), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    command = [sys.executable, "-u", "-m", "rdpm", "serve", options.run, "port=0"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout
        found = re.search(r"http://\S+:\d+", server.stdout.readline())
        assert found, "the server has not started"
        print(json.dumps(asyncio.run(measure(found[0], options))))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
