"""Token stores as PyTorch datasets: single rows by number, or the batches of a `TokenStream`, for any `DataLoader`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from rdpm.pipeline.foundation.permutation import batch_positions
from rdpm.pipeline.foundation.records import first_change
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.rows import Rows
from rdpm.pipeline.stream.token_stream import StreamConfig, TokenBatch, TokenStream
from rdpm.storage_schemas.tokens import KIND

_WIDE = ("codes", "label")

Tensors = dict[str, torch.Tensor]
"""Columns by name. codes and label are int64, for embeddings and losses; other columns have the type of the store."""


class TokenDataset(Dataset[Tensors]):
    """The usable rows of token stores, in the order of the stores: row i is {"codes": (T, h, w), "label": ()}.

    A row costs the chunk that holds it (`chunk_rows` rows of the store), wherever the store lies; nothing is cached on
    disk. That suits samplers, subsets and evaluations. To train, use `batches`, which reads every byte once.
    """

    def __init__(
        self, stores: str | Store | Sequence[str | Store], columns: Sequence[str] = ("codes", "label")
    ) -> None:
        """stores: folders, URLs or open stores, of one tokenizer. columns: arrays of the stores.

        Raises ValueError for stores of several tokenizers, and for a column that a store does not have.
        """
        given = [stores] if isinstance(stores, str | Store) else stores
        self.stores = [open_store(store, KIND) if isinstance(store, str) else store for store in given]
        self.columns = tuple(columns)
        self._check()
        self._rows = [Rows(store, self.columns) for store in self.stores]
        rejected = [np.asarray(store.manifest.rejected, dtype=np.int64) for store in self.stores]
        self._before = [numbers - np.arange(len(numbers)) for numbers in rejected]  # usable rows before each reject
        usable = [len(store) - len(numbers) for store, numbers in zip(self.stores, rejected, strict=True)]
        self._ends = np.cumsum(usable)

    def _check(self) -> None:
        if not self.stores:
            raise ValueError("stores is empty; name at least one token store")
        for store in self.stores:
            lacking = [name for name in self.columns if name not in store.specs]
            if lacking or not self.columns:
                raise ValueError(
                    f"columns are {list(self.columns)}, and store {store.url} has {', '.join(store.specs)}; name those"
                )
        first = self.stores[0]
        for store in self.stores[1:]:
            if store.manifest.plan.tokens.tokenizer_digest != first.manifest.plan.tokens.tokenizer_digest:
                raise ValueError(
                    f"stores {first.url} and {store.url} are of two tokenizers, so their codes mean different things; "
                    "give stores of one tokenizer"
                )

    def __len__(self) -> int:
        """Usable rows of all stores."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tensors:
        """One row. Raises IndexError, and DamagedStore."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensors]:
        """Rows in this order, whose chunks are fetched together: what a `DataLoader` calls for a batch."""
        given = np.asarray(indices, dtype=np.int64)
        outside = given[(given < -len(self)) | (given >= len(self))]
        if len(outside):
            raise IndexError(f"row {outside[0]} is not among the {len(self)} usable rows")
        places = given % len(self)
        which = np.searchsorted(self._ends, places, side="right")
        found: list[Tensors] = [{}] * len(places)
        for number in np.unique(which).tolist():
            mine = np.flatnonzero(which == number)
            local = places[mine] - (self._ends[number - 1] if number else 0)
            rows = local + np.searchsorted(self._before[number], local, side="right")  # and the rejects before them
            columns = _tensors(self._rows[number].read(rows))
            for at, index in enumerate(mine.tolist()):
                found[index] = {name: values[at] for name, values in columns.items()}
        return found

    def batches(
        self,
        batch: int,
        *,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        weights: Sequence[int] = (),
        config: StreamConfig | None = None,
    ) -> "TokenBatches":
        """These stores as shuffled batches: an iterable dataset for `DataLoader(..., batch_size=None)`.

        batch: rows per global batch, of which each of `ranks` ranks gets an equal part. seed, weights, config: as for
        `TokenStream`. If `columns` has latents, batches hold latents and labels, else codes, seeds and labels.
        Raises ValueError for ranks that do not divide the batch, and a batch that is larger than the stores.
        """
        streamed = {"latents", "label"} if "latents" in self.columns else {"codes", "noise_seed", "label"}
        if not streamed.issuperset(self.columns):
            raise ValueError(
                f"columns are {list(self.columns)}; a stream has latents and label, or codes, noise_seed and label"
            )
        stream = TokenStream(self.stores, seed=seed, latents="latents" in self.columns, weights=weights, config=config)
        return TokenBatches(stream, self.columns, batch, rank, ranks)


class TokenBatches(IterableDataset[Tensors]):
    """One rank's parts of the global batches of a stream, from a position to the end of its epoch.

    Global batch k is positions kG to (k + 1)G - 1 of the endless `TokenStream`, whatever ranks and workers are. An
    epoch is the batches that begin in it: every batch is full, nothing is dropped, and rows that its last batch takes
    from the next epoch do not come again there. `DataLoader(data, batch_size=None)` yields them in order.
    Every iteration begins where `set_epoch` or `load_state_dict` said, also in workers that persist::

        for epoch in range(data.epoch, epochs):
            data.set_epoch(epoch)
            for batch in loader:  # {"position": (b,), "codes": (b, T, h, w), "label": (b,)}
                ...
                state = data.state_dict(batch)  # with load_state_dict, goes on after this batch
    """

    def __init__(self, stream: TokenStream, columns: tuple[str, ...], batch: int, rank: int, ranks: int) -> None:
        """See `TokenDataset.batches`."""
        if not 0 <= rank < ranks:
            raise ValueError(f"rank is {rank} of {ranks} ranks; use 0 to {ranks - 1}")
        if batch < 1 or batch % ranks:
            raise ValueError(f"batch {batch} cannot be shared equally by {ranks} ranks; use a multiple of {ranks}")
        if batch > len(stream):
            raise ValueError(f"batch {batch} is larger than an epoch, which has {len(stream)} rows; use a smaller one")
        self.stream, self.columns, self.batch, self.rank, self.ranks = stream, columns, batch, rank, ranks
        self._first = torch.zeros(1, dtype=torch.int64).share_memory_()  # the first batch; workers that persist see it

    @property
    def epoch(self) -> int:
        """The epoch in which the next iteration begins."""
        return int(self._first) * self.batch // len(self.stream)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration begin at the start of an epoch; at a loaded position, if that lies in this epoch."""
        if epoch != self.epoch:
            self._first.fill_(self._start(epoch))

    def _start(self, epoch: int) -> int:
        """The first batch that begins in an epoch."""
        return -(-epoch * len(self.stream) // self.batch)

    def __len__(self) -> int:
        """Batches of the next iteration."""
        return self._start(self.epoch + 1) - int(self._first)

    def __iter__(self) -> Iterator[Tensors]:
        """The batches; in a worker of a `DataLoader` every so-manyth of them. Raises DamagedStore."""
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        first = int(self._first)
        for step in range(first + number, first + len(self), workers):
            found = self.stream.batch(batch_positions(step, self.batch, self.rank, self.ranks))
            yield _tensors({name: _columns(found)[name] for name in ("position", *self.columns)})

    def state_dict(self, batch: Tensors) -> dict[str, Any]:
        """Where to go on after this batch, as JSON data. A loader's workers are ahead of it, so it must be named."""
        after = int(batch["position"][0]) // self.batch + 1
        return {"position": after * self.batch, "stream": self.stream.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on where `state_dict` was, on any number of ranks and workers.

        Raises ValueError for a state of other stores, another order, or a batch that does not divide the position.
        """
        if change := first_change(state["stream"], self.stream.identity):
            raise ValueError(
                f"the state is of another stream ({change}); give the stores, seed and weights that it had"
            )
        if state["position"] % self.batch:
            raise ValueError(f"batch {self.batch} does not divide position {state['position']}; use the former batch")
        self._first.fill_(state["position"] // self.batch)


def _columns(batch: TokenBatch) -> dict[str, np.ndarray | None]:
    """A batch of a stream under the names of the store's arrays."""
    return {
        "position": batch.positions,
        "codes": batch.codes,
        "label": batch.labels,
        "noise_seed": batch.seeds,
        "latents": batch.latents,
    }


def _tensors(columns: dict[str, Any]) -> Tensors:
    """Columns as tensors; codes and label as int64."""
    wide = {name: values.astype(np.int64) if name in _WIDE else values for name, values in columns.items()}
    return {name: torch.from_numpy(values) for name, values in wide.items()}
