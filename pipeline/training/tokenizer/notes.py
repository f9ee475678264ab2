"""What a person should know of the training images."""

from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.images.stream import ImageBatch
from rdpm.pipeline.training.ranks import Ranks, gather


class ImageNotes:
    """What a person should know of the images, said once: those that cannot be used, and that some are small."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self._named = ranks, set[str]()
        self._rejects: dict[str, str] = {}
        self._enlarged: dict[str, str] = {}
        self._told_of_small = False

    def add(self, batch: ImageBatch) -> None:
        """Note what one batch says."""
        self._rejects.update(batch.rejects)
        if not self._told_of_small:
            self._enlarged.update(batch.enlarged)

    def say(self) -> None:
        """Tell what is new on any rank. Every rank calls it."""
        for rejects, enlarged in gather((self._rejects, self._enlarged)):
            for key, reason in sorted(rejects.items()):
                if key not in self._named and self._ranks.first:
                    say(f"train-tokenizer: image {key} cannot be used ({reason}); another takes its place")
                self._named.add(key)
            if enlarged and not self._told_of_small:
                self._told_of_small = True
                key = min(enlarged)
                if self._ranks.first:
                    say(
                        f"train-tokenizer: image {key} ({enlarged[key]}) is smaller than the crop and is enlarged, "
                        "as are others like it; leave them out, or lower model.image_size"
                    )
        self._rejects.clear()
        self._enlarged.clear()
