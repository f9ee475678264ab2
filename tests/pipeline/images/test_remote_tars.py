"""Tars on S3 are listed by their headers: a proxy before the server counts bytes and requests."""

import io
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator

import fsspec
import numpy as np
import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import Listing, list_images
from rdpm.pipeline.images.sources.ranges import Ranges
from tests.faults.proxy import Proxy

Measure = Callable[[str], tuple[Listing, int, int]]


@pytest.fixture
def proxy(s3_server, s3, monkeypatch) -> Iterator[Proxy]:
    """Between this process and the S3 server, without faults."""
    proxy = Proxy(s3_server["AWS_ENDPOINT_URL"], 0, {})
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    fsspec.filesystem("s3").clear_instance_cache()
    yield proxy
    fsspec.filesystem("s3").clear_instance_cache()
    proxy.close()


@pytest.fixture
def measured(proxy) -> Measure:
    """Lists a source: the listing, the bytes that came from the server, and the number of GETs."""

    def measure(url: str) -> tuple[Listing, int, int]:
        sent, gets = proxy.sent, proxy.requests["GET"]
        listing = list_images(url)
        return listing, proxy.sent - sent, proxy.requests["GET"] - gets

    return measure


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples(numbers: range, size: int) -> dict[str, bytes]:
    """WebDataset: class, image and facts of each number. No two images are alike."""
    members = {}
    for n in numbers:
        members |= {f"{n:05d}.cls": f"class {n % 3}".encode(), f"{n:05d}.json": b"{}"}
        members[f"{n:05d}.png"] = np.random.default_rng(n).bytes(size + n % 7)
    return members


def test_of_large_images_only_the_headers_are_read(s3, measured, tmp_path):
    """In shards, and in a tar of class tars. The listing is that of the same files here."""
    for number in range(4):
        files.write_bytes(f"{s3}/set/{number}.tar", tar_of(samples(range(number * 10, number * 10 + 10), 300_000)))
        files.write_bytes(f"{tmp_path}/set/{number}.tar", files.read_bytes(f"{s3}/set/{number}.tar"))
    inner = {f"class {c}": {f"{n}.png": bytes([n]) * 300_000 for n in range(10)} for c in range(4)}
    nested = tar_of({f"{name}.tar": tar_of(members) for name, members in inner.items()})
    for folder in (s3, str(tmp_path)):
        files.write_bytes(f"{folder}/train.tar", nested)
    for name, at_most in (("set", 40 * 5_000), ("train.tar", 50 * 5_000)):
        listing, read, gets = measured(f"{s3}/{name}")
        here = list_images(f"{tmp_path}/{name}")
        assert len(listing) == 40
        assert listing.digest == here.digest
        assert listing.table.drop("url").equals(here.table.drop("url"))
        assert listing.read(7) == here.read(7)
        assert read < at_most
        assert gets < 70


def test_small_images_do_not_take_a_request_each(s3, measured):
    data = tar_of(samples(range(2000), 200))
    files.write_bytes(f"{s3}/x.tar", data)
    listing, read, gets = measured(f"{s3}/x.tar")
    assert len(listing) == 2000
    assert read < 1.2 * len(data)
    assert gets < 25


def test_64_tars_are_listed_at_a_time(monkeypatch):
    """The first read of each waits for those of the 63 others."""
    url, read, together = f"memory://{uuid.uuid4().hex}", files.read_parts, threading.Barrier(64)
    for number in range(64):
        files.write_bytes(f"{url}/{number:02d}.tar", tar_of(samples(range(number * 2, number * 2 + 2), 100)))

    def wait_for_others(parts: list[tuple[str, int, int]]) -> list[bytes | FileNotFoundError]:
        if parts[0][1] == 0:
            together.wait(30)
        return read(parts)

    monkeypatch.setattr("rdpm.pipeline.images.sources.ranges.files.read_parts", wait_for_others)
    assert len(list_images(url)) == 128
    files.remove(url)


def test_a_remote_tar_that_is_cut_is_refused(s3, proxy):
    data = tar_of(samples(range(3), 20_000))
    end = 3 * (512 + 512 + 512 + 512 + 512 + 20_480)
    for length in (end, end - 1, end - 512, 700, 512):
        files.write_bytes(f"{s3}/x.tar", data[:length])
        with pytest.raises(ValueError, match=r"x\.tar' is no complete, plain tar"):
            list_images(f"{s3}/x.tar")


def test_any_reads_of_ranges_are_those_of_the_file(tmp_path):
    data = np.random.default_rng(0).bytes(200_000)
    url = str(tmp_path / "x")
    files.write_bytes(url, data)
    draw = np.random.default_rng(1)
    ranges, file = Ranges(url, len(data), 0), io.BytesIO(data)
    for _ in range(2000):
        if draw.random() < 0.5:
            to = (
                int(draw.integers(0, len(data) + 600))
                if draw.random() < 0.2
                else file.tell() + int(draw.integers(3000))
            )
            ranges.seek(to)
            file.seek(to)
        count = int(draw.integers(0, 1500))
        assert ranges.read(count) == file.read(count)
        assert ranges.tell() == file.tell()
