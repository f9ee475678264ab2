"""How many requests a store's shards cost, and how long publishing takes where every request takes 30 ms.

    python -m benchmarks.publish [--shards 100000] [--killed 1000] [--latency 0.03]

The store lies in the memory of this process, in a bucket that behaves like S3's: a flat set of keys, listings of 1,000
keys per request, and a pause for each request. It is laid out as its workers would leave it, all shards committed and
the last `killed` of them killed before their objects were in place. Prints JSON:

    write_requests_per_shard     by `write_shard`, of 20 shards that are written for it
    publish_requests_per_shard   by `publish`
    publish_s                    seconds of `publish`
    most_at_once                 requests that were under way at the same time
    requests                     those of `publish` by kind
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from benchmarks.untrained import token_identity
from rdpm.pipeline.stores.layout import encode_shard
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import INDEX, Commit, ObjectDigest, Plan, commit_name, shard_name, to_json
from rdpm.storage_schemas.tokens import token_arrays

_PAGE = 1000  # keys that one request lists or deletes


class Bucket(AbstractFileSystem):
    """All objects of this process by their key. Counts requests, and makes each of them last `latency` seconds."""

    protocol = "bucket"
    async_impl = True  # what it says of s3fs: there are no folders, and many keys are deleted together
    objects: ClassVar[dict[str, bytes]] = {}
    folders: ClassVar[Counter[str]] = Counter()  # objects below each of the upper folders
    latency: ClassVar[float] = 0.0
    requests: ClassVar[Counter[str]] = Counter()
    most_at_once: ClassVar[int] = 0
    _at_once: ClassVar[int] = 0
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def clear(cls) -> None:
        """Delete everything."""
        cls.objects.clear()
        cls.folders.clear()

    @classmethod
    def put(cls, key: str, data: bytes) -> None:
        """Put an object without a request."""
        cls.folders.update(_upper_folders(key) if key not in cls.objects else ())
        cls.objects[key] = data

    @classmethod
    def reset(cls, latency: float) -> None:
        """Forget the counts, and take so many seconds for each request from now on."""
        cls.latency, cls.most_at_once = latency, 0
        cls.requests.clear()

    @contextlib.contextmanager
    def _request(self, kind: str, keys: int = 1) -> Iterator[None]:
        kinds, pages = type(self), max(1, -(-keys // _PAGE))
        with self._lock:
            kinds.requests[kind] += pages
            kinds._at_once += 1
            kinds.most_at_once = max(kinds.most_at_once, kinds._at_once)
        time.sleep(self.latency * pages)
        try:
            yield
        finally:
            with self._lock:
                kinds._at_once -= 1

    def _under(self, path: str) -> dict[str, int]:
        root = path.rstrip("/") + "/"
        return {key: len(data) for key, data in list(self.objects.items()) if key.startswith(root)}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        with self._request("GET"):
            if path not in self.objects:
                raise FileNotFoundError(path)
            return self.objects[path][start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        with self._request("PUT"), self._lock:
            if mode == "create" and path in self.objects:
                raise FileExistsError(path)
            self.put(path, bytes(value))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        with open(lpath, "rb") as file:
            self.pipe_file(rpath, file.read())

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Like s3fs, which first asks for the size."""
        self.info(path1)
        with self._request("COPY"), self._lock:
            if path1 not in self.objects:
                raise FileNotFoundError(path1)
            self.put(path2, self.objects[path1])

    def rm_file(self, path: str, **_: Any) -> None:
        self.rm([path])

    def rm(self, path: str | list[str], recursive: bool = False, **_: Any) -> None:
        paths = list(self.find(path)) if isinstance(path, str) else path
        with self._request("DELETE", len(paths)), self._lock:
            for key in paths:
                if self.objects.pop(key, None) is not None:
                    self.folders.subtract(_upper_folders(key))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Like s3fs: what is no object may be a folder, which takes a second request."""
        with self._request("HEAD"):
            if path in self.objects:
                return {"name": path, "size": len(self.objects[path]), "type": "file"}
        with self._request("LIST"):
            if self.folders[path.rstrip("/")]:
                return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def find(self, path: str, detail: bool = False, **_: Any) -> Any:
        found = self._under(path)
        with self._request("LIST", len(found)):
            entries = {key: {"name": key, "size": size, "type": "file"} for key, size in sorted(found.items())}
            return entries if detail else list(entries)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        root, found = path.rstrip("/") + "/", self._under(path)
        names = {root + key[len(root) :].split("/")[0] for key in found}
        with self._request("LIST", len(names)):
            if not names:
                raise FileNotFoundError(path)
        kinds = {name: "file" if name in found else "directory" for name in sorted(names)}
        return [{"name": n, "size": found.get(n, 0), "type": k} for n, k in kinds.items()] if detail else list(kinds)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """A bucket has no folders."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        return _File(self, path, mode, size=self.info(path)["size"])


def _upper_folders(key: str) -> list[str]:
    """The three uppermost folders of a key: bucket, store, and a folder of the store. Nobody asks for others."""
    parts = key.split("/")[:-1]
    return ["/".join(parts[:depth]) for depth in range(1, min(3, len(parts)) + 1)]


class _File(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


fsspec.register_implementation("bucket", Bucket, clobber=True)


def plan_of(shards: int) -> Plan:
    """A plan of so many small shards, with every array that a token store can have."""
    arrays = token_arrays(2, (2, 2, 2), with_accumulated=True, with_latents=True)
    return Plan("tokens", 2 * shards, 2, 2, arrays, token_identity())


def columns_of(plan: Plan) -> dict[str, np.ndarray]:
    """Zeros for the rows of one shard."""
    return {spec.name: np.zeros((2, *spec.row_shape), spec.dtype) for spec in plan.arrays}


def lay_out(url: str, plan: Plan, killed: int) -> None:
    """Put what workers leave: every shard committed, the last `killed` of them with their objects still staged."""
    start_store(url, plan)
    root, columns, sink = url.removeprefix("bucket://"), columns_of(plan), io.BytesIO()
    pq.write_table(pa.table({"row": np.arange(2)}), sink)
    objects = {spec.name: encode_shard(plan, spec, 0, columns[spec.name]) for spec in plan.arrays}
    objects[INDEX] = sink.getvalue()
    digests = {name: ObjectDigest(len(data), hashlib.sha256(data).hexdigest()) for name, data in objects.items()}
    for shard in range(plan.num_shards):
        commit = Commit(shard, 2, (), digests)
        Bucket.put(f"{root}/{commit_name(shard)}", canonical_json(to_json(commit)))
        for name, key in plan.objects(shard).items():
            if shard >= plan.num_shards - killed:
                key = f"staged/{shard_name(shard)}-{digests[name].sha256}"
            Bucket.put(f"{root}/{key}", objects[name])


def measure(shards: int, killed: int, latency: float) -> dict[str, Any]:
    """Requests of writing, and requests and time of publishing. See the module."""
    Bucket.clear()
    Bucket.reset(0)
    few = plan_of(20)
    start_store("bucket://few/store", few)
    Bucket.reset(0)
    for shard in range(few.num_shards):
        write_shard("bucket://few/store", few, shard, columns_of(few), {"row": np.arange(2)})
    written = sum(Bucket.requests.values())

    url, plan = "bucket://many/store", plan_of(shards)
    lay_out(url, plan, killed)
    Bucket.reset(latency)
    began = time.monotonic()
    publish(url, plan)
    seconds = time.monotonic() - began
    Bucket.latency = 0
    assert len(open_store(url)) == plan.rows
    keys = set(itertools.chain.from_iterable(plan.objects(shard).values() for shard in range(shards)))
    assert keys <= {key.removeprefix("many/store/") for key in Bucket.objects}
    return {
        "write_requests_per_shard": written / few.num_shards,
        "publish_requests_per_shard": sum(Bucket.requests.values()) / shards,
        "publish_s": round(seconds, 1),
        "most_at_once": Bucket.most_at_once,
        "requests": dict(Bucket.requests),
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--killed", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.03)
    given = parser.parse_args()
    print(json.dumps(measure(given.shards, given.killed, given.latency)))


if __name__ == "__main__":
    main()
