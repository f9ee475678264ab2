"""Publishing the exports of a run under a URL, with a card to read."""

import os
from dataclasses import dataclass
from dataclasses import replace as replaced
from typing import Literal

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.card import read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import Lease, held
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.inference.batches import own_device
from rdpm.pipeline.sharing import hub, storage
from rdpm.pipeline.sharing.contents import Contents, collect, picture, public_card
from rdpm.pipeline.sharing.published import (
    EXPORTS,
    GENERATOR,
    PICTURE,
    README,
    TOKENIZER,
    PublishedFile,
    of_bytes,
    of_others,
    require_clean,
)
from rdpm.pipeline.sharing.readme import readme
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.cards import CARD, WEIGHTS

JOB = "push"


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Publish trained models."""

    out: str
    """Where to publish: a folder, a URL of an object store, or hf://USER/REPOSITORY."""
    run: str = ""
    """Folder or URL of a run, whose generator/, tokenizer/, calibrated/ and metrics.json are published."""
    generator: str = ""
    """Export of a generator, instead of a run's."""
    tokenizer: str = ""
    """Export of its tokenizer."""
    metrics: str = ""
    """A metrics.json about these exports; empty for that of the run, if it has one."""
    sampler: SamplerConfig | None = None
    """How the pictures are drawn; if empty, as the run's samples."""
    name: str = ""
    """Title of the card; empty for the last part of out."""
    license: str = "unknown"
    """Licence of weights and pictures, as the Hugging Face hub calls it: apache-2.0, cc-by-4.0, other."""
    private: bool = False
    """Whether a new repository of the hub is private."""
    replace: bool = False
    """Whether exports of another training that are there are replaced."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the pictures are drawn; auto is the GPU if there is one."""

    def __post_init__(self) -> None:
        if not self.run and not (self.generator and self.tokenizer):
            raise ValueError("there is nothing to publish; give a run, or generator and tokenizer")
        if bool(self.generator) != bool(self.tokenizer):
            raise ValueError("generator and tokenizer belong together; give both, or a run alone")


def run(config: PushConfig) -> None:
    """Publish, in an order in which nobody finds half of it. A publication that is complete stays as it is.

    The hub takes a publication as one commit; elsewhere one start at a time publishes under a URL (`held`). Raises
    ValueError before anything is written for exports that do not belong together, metrics of other models, a secret or
    a path of this machine in a text, a URL that holds something else or cannot be written to, and a second start.
    """
    files.is_local(config.out)  # refuses credentials in the URL
    url = config.out.rstrip("/")
    if url.startswith(hub.SCHEME):
        hub.check(url)
        _publish(config, url, None)
    else:
        storage.require_writable(url)
        with held(url, JOB) as lease:
            _publish(config, url, lease)


def _publish(config: PushConfig, url: str, lease: Lease | None) -> None:
    """See `run`. lease: that of the URL; None on the hub."""
    contents = collect(config.run, config.generator, config.tokenizer, config.metrics, config.sampler)
    remove = of_others(url, contents.digests, config.replace)
    publication = _publication(config, contents, url)
    if lease is None:
        hub.publish(url, publication, remove, config.private)
    else:
        storage.publish(url, publication, remove, lease)
    read_pair(files.join(url, GENERATOR), files.join(url, TOKENIZER))
    generator, tokenizer = (contents.digests[name][:12] for name in (GENERATOR, TOKENIZER))
    say(f"push: {url} holds generator {generator} and tokenizer {tokenizer}")
    if config.license == "unknown":
        say("push: its card says that no licence is given, so others may not use it; push again with license=...")


def _publication(config: PushConfig, contents: Contents, url: str) -> list[PublishedFile]:
    """Weights, the picture, the cards of the exports, and the README.md, in the order in which they appear."""
    exports = [name for name in EXPORTS if name in contents.folders]
    cards = {name: public_card(contents.cards[name]) for name in exports}
    title = config.name or os.path.basename(os.path.abspath(files.local_path(url)) if files.is_local(url) else url)
    public = replaced(contents, cards=cards)
    text = readme(public, title, "" if files.is_local(url) else url, config.license)
    private = _private_paths(config)
    texts = {f"{name}/{CARD}": canonical_json(card.to_json()) for name, card in cards.items()} | {README: text.encode()}
    for name, data in texts.items():
        require_clean(data.decode(), name, private)
    made = of_bytes(PICTURE, picture(contents, own_device(config.device)))
    weights = [
        PublishedFile(f"{n}/{WEIGHTS}", files.join(contents.folders[n], WEIGHTS), cards[n].weights_digest)
        for n in exports
    ]
    return [*weights, made, *(of_bytes(name, data) for name, data in texts.items())]


def _private_paths(config: PushConfig) -> tuple[str, ...]:
    """Folders of this machine that no text may name."""
    given = (path for path in (config.run, config.generator, config.tokenizer, config.metrics) if path)
    folders = [os.path.abspath(files.local_path(path)) for path in given if files.is_local(path)]
    folders += [os.getcwd(), os.path.expanduser("~")]
    return tuple(folder for folder in folders if len(folder) > 1)
