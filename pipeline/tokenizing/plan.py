"""The settings of a token store, and the plan that follows from them."""

from dataclasses import dataclass, field
from typing import Literal

from rdpm.models.fields import EXECUTION
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.exports.card import read_card, tokenizer_config
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.images.decode import ViewWord, view_names
from rdpm.pipeline.images.worklist import Summary
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import KIND, TokenIdentity, token_arrays


@dataclass(frozen=True)
class TokenizeConfig:
    """Settings of a token store: which images, which tokenizer, which rows."""

    images: str = field(metadata=EXECUTION)
    """Path, URL or pattern of class folders, tar files or Parquet files."""
    tokenizer: str = field(metadata=EXECUTION)
    """Folder or URL of the tokenizer's export."""
    out: str = field(metadata=EXECUTION)
    """Folder or URL of the store to write."""
    views: tuple[ViewWord, ...] = ("center",)
    """Views of every image: center, flip, ten-crop-1.1, ten-crop-1.05. One row per view; a ten-crop is ten views."""
    accumulated: bool = True
    """Whether to store z'_T of every row."""
    latents: bool = False
    """Whether to store the latent v of every row, so that training can mix in fresh noise."""
    seed: int = 0
    """Seed of the store. The noise seed of a row follows from it, the image's key and the view."""
    shard_rows: int = 4096
    """Rows per shard."""
    chunk_rows: int = 256
    """Rows per chunk of a shard; divides shard_rows."""
    batch: int = 64
    """Images per call of the encoder. Every call has this shape, because another shape rounds differently."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the encoder. The quantizer is always fp32."""
    compile: bool = False
    """Whether to compile the encoder."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=EXECUTION)
    """Kind of device to encode on; auto is cuda where there is a GPU. The plan records the kind, and a worker without
    such a device refuses."""
    max_rejects: float = field(default=0.001, metadata=EXECUTION)
    """Highest share of rows that may be rejected; above it the job ends without a store."""
    threads: int = field(default=1, metadata=EXECUTION)
    """CPU threads of every model replica."""
    resources: Resources = field(default_factory=Resources, metadata=EXECUTION)
    """What the job may use of this machine or of a cluster."""

    def __post_init__(self) -> None:
        if not self.views or len(set(self.views)) != len(self.views):
            raise ValueError(f"views is {list(self.views)}; name at least one view, and each only once")
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if self.chunk_rows < 1 or self.shard_rows < 1 or self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows {self.shard_rows} must be a multiple of chunk_rows {self.chunk_rows}")
        if not 0 <= self.max_rejects < 1:
            raise ValueError(f"max_rejects is {self.max_rejects}; use a share of at least 0 and below 1")


def token_plan(config: TokenizeConfig, images: Summary, card: ModelCard, device: str) -> Plan:
    """The plan of a token store, from its settings, its images, its tokenizer and the kind of device."""
    tokenizer = tokenizer_config(card)
    views = view_names(config.views)
    identity = TokenIdentity(
        tokenizer_digest=card.digest,
        tokenizer_config=card.config,
        noise_version=card.noise_version,
        source_digest=images.digest,
        classes=images.classes,
        views=tuple(views),
        seed=config.seed,
        encoder_batch=config.batch,
        precision=config.precision,
        compile=config.compile,
        device=device,
    )
    rows = images.images * len(views)
    shard_rows = min(config.shard_rows, -(-rows // config.chunk_rows) * config.chunk_rows)
    arrays = token_arrays(tokenizer.schedule.num_steps, tokenizer.latent_shape, config.accumulated, config.latents)
    return Plan(KIND, rows, shard_rows, config.chunk_rows, arrays, identity)


def tokenizer_of(store: Store, folder: str) -> Tokenizer:
    """The tokenizer in a folder or URL. Raises ValueError unless it is the one that wrote the store."""
    writer, given = store.manifest.plan.tokens.tokenizer_digest, read_card(folder, "tokenizer").digest
    if given != writer:
        raise ValueError(
            f"tokenizer {folder!r} is {given[:12]}, but {store.url} was written by {writer[:12]}; give that tokenizer"
        )
    return load_tokenizer(folder)[0]
