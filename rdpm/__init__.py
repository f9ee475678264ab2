"""RDPM: images to discrete codes by a diffusion of ten steps, and codes to images by a transformer.

This is all that a user imports; everything below `rdpm.models`, `rdpm.pipeline`, `rdpm.jobs` and `rdpm.storage_schemas`
may change between releases. Names are loaded when they are first used, so importing rdpm is cheap.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.2.0"

__all__ = [
    "RDPM",
    "DamagedStore",
    "EvaluateConfig",
    "SamplerConfig",
    "Store",
    "StreamConfig",
    "TokenBatch",
    "TokenBatches",
    "TokenDataset",
    "TokenStream",
    "__version__",
    "evaluate",
    "open_store",
]

if TYPE_CHECKING:
    from rdpm.models.sampler import SamplerConfig as SamplerConfig
    from rdpm.pipeline.evaluation.evaluate import evaluate as evaluate
    from rdpm.pipeline.evaluation.inputs import EvaluateConfig as EvaluateConfig
    from rdpm.pipeline.inference.rdpm import RDPM as RDPM
    from rdpm.pipeline.stores.reader import DamagedStore as DamagedStore
    from rdpm.pipeline.stores.reader import Store as Store
    from rdpm.pipeline.stores.reader import open_store as open_store
    from rdpm.pipeline.stream.dataset import TokenBatches as TokenBatches
    from rdpm.pipeline.stream.dataset import TokenDataset as TokenDataset
    from rdpm.pipeline.stream.token_stream import StreamConfig as StreamConfig
    from rdpm.pipeline.stream.token_stream import TokenBatch as TokenBatch
    from rdpm.pipeline.stream.token_stream import TokenStream as TokenStream

_HOMES = {
    "RDPM": "rdpm.pipeline.inference.rdpm",
    "DamagedStore": "rdpm.pipeline.stores.reader",
    "EvaluateConfig": "rdpm.pipeline.evaluation.inputs",
    "SamplerConfig": "rdpm.models.sampler",
    "Store": "rdpm.pipeline.stores.reader",
    "StreamConfig": "rdpm.pipeline.stream.token_stream",
    "TokenBatch": "rdpm.pipeline.stream.token_stream",
    "TokenBatches": "rdpm.pipeline.stream.dataset",
    "TokenDataset": "rdpm.pipeline.stream.dataset",
    "TokenStream": "rdpm.pipeline.stream.token_stream",
    "evaluate": "rdpm.pipeline.evaluation.evaluate",
    "open_store": "rdpm.pipeline.stores.reader",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'rdpm' has no attribute {name!r}; it has {', '.join(__all__)}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        from rdpm.pipeline.foundation.extras import extra_for

        raise ModuleNotFoundError(extra_for(error) or error.msg, name=error.name) from error


def __dir__() -> list[str]:
    return __all__
