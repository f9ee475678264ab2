"""What every worker proves when it starts: that its node sees what the driver sees, and runs the same versions.

On a cluster a path may name another folder on every node. Without this check, a job with such a path would work for
hours and then miss its shards.
"""

import hashlib
import platform
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import ray

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.environment import environment

_NONCE = ".probe"  # an object under a store, while its job runs
_PACKAGES = ("rdpm", "torch", "zarr", "numpy")
_checked: set[str] = set()  # ids of the probes that this process has passed


@dataclass(frozen=True)
class Sight:
    """Bytes that every node must read as the driver did."""

    what: str
    """What it is called in a refusal, with its path or URL."""
    read: Callable[[], bytes]
    """Reads it on any node."""
    digest: str
    """sha256 of what the driver read."""


def sight(what: str, read: Callable[[], bytes]) -> Sight:
    """What `read` reads here and now."""
    return Sight(what, read, hashlib.sha256(read()).hexdigest())


@dataclass(frozen=True)
class Probe:
    """The check of one job. The driver makes it, workers run it."""

    sights: tuple[Sight, ...]
    """What every node must see."""
    versions: dict[str, str | None]
    """The driver's versions."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Its number, so that a process checks once."""

    def check(self) -> None:
        """Raise ValueError, which names the node and the path or package, unless this process passes."""
        if self.id in _checked:
            return
        node = f"node {ray.util.get_node_ip_address()} ({socket.gethostname()})"
        here = versions()
        for name, version in self.versions.items():
            if here[name] != version:
                raise ValueError(
                    f"{node} has {name} {here[name]} and the driver has {version}; install the same on every node"
                )
        for each in self.sights:
            reason = _unlike(each)
            if reason:
                raise ValueError(
                    f"{node} does not see {each.what} as the driver does ({reason}); use a path or URL that every "
                    "node shares"
                )
        _checked.add(self.id)


def _unlike(sight: Sight) -> str:
    """Why this process does not see it; "" if it does. Raises StorageUnavailable, which proves nothing."""
    try:
        return "" if hashlib.sha256(sight.read()).hexdigest() == sight.digest else "it reads other bytes"
    except files.StorageUnavailable:
        raise
    except FileNotFoundError:
        return "it is not there"
    except (OSError, ValueError) as error:
        return str(error)


def versions() -> dict[str, str | None]:
    """Versions that must be the same on all nodes; None for a package without metadata."""
    packages = environment()["packages"]
    minor = ".".join(platform.python_version_tuple()[:2])
    return {"python": minor, **{name: packages.get(name) for name in _PACKAGES}}


def probe_of(stores: Sequence[str], sights: Sequence[Sight] = ()) -> Probe:
    """A probe of these output folders or URLs, and of more sights. It writes a nonce into each store."""
    seen = []
    for store in stores:
        nonce = files.join(files.absolute(store), _NONCE)
        files.write_bytes(nonce, uuid.uuid4().hex.encode())
        seen.append(sight(f"out={store}", partial(files.read_bytes, nonce)))
    return Probe((*seen, *sights), versions())


def remove_nonce(store: str) -> None:
    """Delete the nonce of a store."""
    files.remove(files.join(store, _NONCE))
