"""The files of a publication, in the order in which they must appear."""

import hashlib
from dataclasses import dataclass

from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.secrets import masked
from rdpm.storage_schemas.cards import CARD, WEIGHTS

README, PICTURE = "README.md", "samples.png"
LIBRARY = "rdpm"  # in the metadata of a README.md that this package wrote
GENERATOR, TOKENIZER, CALIBRATED = "generator", "tokenizer", "calibrated"  # folders of a publication
EXPORTS = (TOKENIZER, CALIBRATED, GENERATOR)  # a reader of the last one finds the others
_KINDS = {TOKENIZER: "tokenizer", CALIBRATED: "generator", GENERATOR: "generator"}


@dataclass(frozen=True)
class PublishedFile:
    """One file of a publication."""

    name: str
    """Its name under the URL."""
    source: bytes | str
    """Its bytes, or the path or URL where they are."""
    sha256: str
    """Digest of its bytes."""


def of_bytes(name: str, data: bytes) -> PublishedFile:
    """A file that is made for the publication."""
    return PublishedFile(name, data, hashlib.sha256(data).hexdigest())


def require_clean(text: str, name: str, private: tuple[str, ...]) -> None:
    """Raise ValueError for a secret in a text to publish, and for a path of this machine. private: such paths."""
    if masked(text) != text:
        raise ValueError(f"{name} would hold what looks like a password or key; nothing was published")
    for path in private:
        if path in text:
            raise ValueError(f"{name} would hold the path {path} of this machine; nothing was published")


def of_others(url: str, digests: dict[str, str], replace: bool) -> list[str]:
    """Names of the files under a URL that belong to other exports than these, and of the README.md beside them.

    digests: of the exports to publish, by folder. Cards come before weights. Raises ValueError for such files, and for
    a README.md that no push wrote, unless `replace`.
    """
    readme, found = files.join(url, README), []
    written = files.read_bytes(readme).decode(errors="replace") if files.is_file(readme) else f"name: {LIBRARY}\n"
    problem = "" if f"name: {LIBRARY}\n" in written else f"{readme} was not written by rdpm push"
    for folder in reversed(EXPORTS):
        place = files.join(url, folder)
        if not files.is_file(files.join(place, CARD)):
            continue
        try:
            digest = read_card(place, _KINDS[folder]).digest
        except ValueError as error:
            digest = str(error)
        if digest != digests.get(folder):
            found += [f"{folder}/{CARD}", f"{folder}/{WEIGHTS}"]
            problem = problem or f"{place} already holds another export ({digest[:12]})"
    if problem and not replace:
        raise ValueError(f"{problem}; choose another URL, or give replace=true")
    return sorted([README, *found] if found else [], key=lambda name: name.endswith(WEIGHTS))
