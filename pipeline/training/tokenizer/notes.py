"""Messages about training images that cannot be used or are small."""

from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.images.stream import ImageBatch
from rdpm.pipeline.training.ranks import Ranks, gather


class ImageNotes:
    """Collects what batches report of their images, on every rank, and says it once, on the first."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._rejects: dict[str, str] = {}
        self._enlarged: dict[str, str] = {}
        self._reported = set[str]()
        self._reported_small = False

    def add(self, batch: ImageBatch) -> None:
        """Collect what one batch reports."""
        self._rejects.update(batch.rejects)
        if not self._reported_small:
            self._enlarged.update(batch.enlarged)

    def say(self) -> None:
        """Say what is new on any rank: each unusable image, and once that some are small. Every rank calls it."""
        for rejects, enlarged in gather((self._rejects, self._enlarged)):
            for key, reason in sorted(rejects.items()):
                if key not in self._reported and self._ranks.first:
                    say(f"train-tokenizer: image {key} cannot be used ({reason}); another one replaces it")
                self._reported.add(key)
            if enlarged and not self._reported_small:
                self._reported_small = True
                key = min(enlarged)
                if self._ranks.first:
                    say(
                        f"train-tokenizer: image {key} ({enlarged[key]}) is smaller than model.image_size; such images "
                        "are enlarged, so remove them or lower model.image_size"
                    )
        self._rejects.clear()
        self._enlarged.clear()
