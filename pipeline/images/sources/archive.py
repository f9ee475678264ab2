"""Tar files, read in place: a tar of class tars (as ILSVRC's), class folders in a tar, and WebDataset shards.

The class of an image is in the `.cls` file of its sample (WebDataset: successive files with the same name up to the
first dot are one sample). Without that it is the folder in the tar, and without a folder the name of the class tar.
"""

import itertools
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.sources.entry import Entry, is_image
from rdpm.pipeline.images.sources.ranges import Ranges

_BLOCK = 512
_LONGEST_CLASS = 4096  # bytes of a .cls file


class Member(NamedTuple):
    """A regular file of a tar."""

    name: str
    """Path in the tar."""
    offset: int
    """Position of its first byte in the outermost tar."""
    size: int
    """Bytes."""


class Tar(NamedTuple):
    """A tar that has not been listed yet."""

    url: str
    """The outermost tar."""
    size: int
    """Bytes of the outermost tar."""
    start: int = 0
    """Position of its first byte in the outermost tar."""
    class_tar: str = ""
    """The class, if it is a class tar in another."""


def entries(containers: Sequence[tuple[str, int]]) -> Iterator[Entry]:
    """Images of some tars, given as (URL, bytes). Of remote ones only headers and classes are read, of many at a time.

    Raises ValueError for a truncated or compressed tar or an unlabelled image.
    """
    tars = [Tar(url, size) for url, size in containers]
    while tars:
        inner: list[Tar] = []
        for found in itertools.chain.from_iterable(_all_found(tars)):
            if isinstance(found, Tar):
                inner.append(found)
            else:
                yield found
        tars = inner


def _all_found(tars: list[Tar]) -> Iterator[Iterator[Entry | Tar] | list[Entry | Tar]]:
    if files.is_local(tars[0].url):
        return map(_found, tars)
    return files.in_parallel(lambda tar: list(_found(tar)), tars)


def _found(tar: Tar) -> Iterator[Entry | Tar]:
    """The images of a tar, and its class tars, in its order."""
    try:
        if files.is_local(tar.url):
            with files.open_read(tar.url) as file:
                yield from _entries(file, tar)
        else:
            yield from _entries(Ranges(tar.url, tar.size, tar.start), tar)
    except tarfile.TarError as error:
        raise ValueError(f"{tar.url!r} is no complete, plain tar ({error}); unpack it or make it again") from None


def _entries(file: Any, tar: Tar) -> Iterator[Entry | Tar]:
    for _, sample in itertools.groupby(_members(file, tar.start), key=_sample):
        members, label = [], ""
        for member in sample:
            members.append(member)
            if member.name.endswith(".cls"):
                label = label or _text(file, member, tar.url)
        for name, offset, size in members:
            folder, _, base = name.rpartition("/")
            if name.endswith(".tar") and not tar.class_tar:
                yield Tar(tar.url, tar.size, offset, base.removesuffix(".tar"))
            elif is_image(name) and not (label and base.count(".") > 1):  # x.mask.png is not the image of sample x
                class_name = label or folder.split("/")[0] or tar.class_tar
                if not class_name:
                    raise ValueError(
                        f"{name!r} in {tar.url!r} has no class; add a .cls file, or put it in a class folder"
                    )
                yield Entry(class_name, name.removeprefix(f"{class_name}/"), size, tar.url, offset)


def _sample(member: Member) -> str:
    folder, base = posixpath.split(member.name)
    return posixpath.join(folder, base.split(".")[0]) if not base.endswith(".tar") else member.name


def _text(file: Any, member: Member, url: str) -> str:
    """The class in a .cls file. Raises ValueError, which names the file."""
    file.seek(member.offset)
    data = file.read(min(member.size, _LONGEST_CLASS + 1))
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(f"{member.name!r} in {url!r} is no class name in UTF-8; write it again") from None
    if len(data) > _LONGEST_CLASS:
        raise ValueError(f"{member.name!r} in {url!r} has more than {_LONGEST_CLASS} bytes; write a class name in it")
    return text


def _members(file: Any, start: int) -> Iterator[Member]:
    """Regular files of the tar that begins at byte `start`.

    Plain headers are read here, because `tarfile` takes 40 us for each; `tarfile` reads the others.
    """
    position = start
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if not header:
            raise tarfile.ReadError("its end mark is missing")
        if header == bytes(_BLOCK):
            return
        member = _plain(header, position)
        if member is None:
            file.seek(position)
            info = tarfile.open(fileobj=file, mode="r:").next()  # noqa: SIM115, the file is the caller's
            assert info is not None  # open() has found one
            member, regular = Member(info.name, info.offset_data, info.size), info.isreg()
        else:
            regular = True
        if member.size < 0:  # else this would never end
            raise tarfile.ReadError(f"{member.name!r} has a size below 0")
        position = member.offset + -(-member.size // _BLOCK) * _BLOCK
        if regular:
            yield member._replace(name=posixpath.normpath(member.name).lstrip("/"))


def _plain(header: bytes, position: int) -> Member | None:
    """The member, given the POSIX header (IEEE 1003.1, ustar) of a regular file; None for any other header."""
    if header[156:157] not in (b"0", b"\0") or header[257:262] != b"ustar" or header[124] & 0x80:
        return None
    try:
        size, checksum = (int(header[a:b].strip(b"\0 "), 8) for a, b in ((124, 136), (148, 156)))
        name = header[:100].rstrip(b"\0").decode()
        prefix = header[345:500].rstrip(b"\0").decode() if header[257:263] == b"ustar\0" else ""
    except ValueError:
        return None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        return None
    return Member(f"{prefix}/{name}" if prefix else name, position + _BLOCK, size)
