"""A publication in a folder or an object store: file by file, cards last, each read back before the next."""

import shutil
from collections.abc import Sequence

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.sharing.published import PublishedFile

_BLOCK = 1 << 24  # bytes that are copied at a time


def require_writable(url: str) -> None:
    """Raise ValueError for a web server, and for a whole bucket, beside which there is no place for a lease."""
    if url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} can only be read; push to the folder that is served there, or to an object store")
    if not files.is_local(url) and "/" not in url.partition("://")[2]:
        raise ValueError(f"{url!r} is a whole bucket; publish under a name in it, as in {url}/NAME")


def publish(url: str, publication: Sequence[PublishedFile], remove: Sequence[str], lease: Lease) -> None:
    """Delete what is to be removed, in its order, then write what is not there yet.

    A file appears under its name when it is complete. One that is there with the right digest stays, so a publication
    that was interrupted goes on. Raises ValueError when a file reads otherwise than it was written, and LeaseLost
    before the next file when another start has taken the URL over.
    """
    lease.check()
    for name in remove:
        files.remove(files.join(url, name))
    for file in publication:
        place = files.join(url, file.name)
        if _is_there(place, file.sha256):
            continue
        lease.check()
        say(f"push: writing {place}")
        with files.atomic_file(place) as target:
            if isinstance(file.source, bytes):
                target.write(file.source)
            else:
                with files.open_read(file.source) as source:
                    shutil.copyfileobj(source, target, _BLOCK)
        if not _is_there(place, file.sha256):
            raise ValueError(f"{place} reads otherwise than it was written; check the storage and push again")


def _is_there(place: str, sha256: str) -> bool:
    return files.is_file(place) and files.digest_file(place).sha256 == sha256
