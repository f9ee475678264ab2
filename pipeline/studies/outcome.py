"""A study of training images and held-out ones: what it ends in is written once, and its table is printed."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.images.listing import list_images


class StudyConfig(Protocol):
    """What the configs of studies have in common."""

    @property
    def images(self) -> str:
        """Images to train on."""

    @property
    def validation(self) -> str:
        """Held-out images."""

    @property
    def out(self) -> str:
        """Folder of everything that the study makes."""


def run_study(
    job: str,
    config: StudyConfig,
    makes: Sequence[str],
    study: Callable[[], tuple[Sequence[bytes], dict[str, Any]]],
    grows: str = "",
) -> None:
    """Make config.out, unless its record says that it is finished, and print the table.

    makes: names of the files to write under config.out, the table first. study: does all the work; returns the contents
    of these files, and what the record says of them. grows: see `begin`. Raises ValueError as `begin` and as the study.
    """

    def digests() -> dict[str, str]:
        return {f"{name}_digest": list_images(getattr(config, name)).digest for name in ("images", "validation")}

    with begin(job, config, digests, tuple(makes), grows=grows) as record:
        if record.lease is not None:
            contents, result = study()
            record.lease.check()
            for name, data in zip(makes, contents, strict=True):
                files.write_bytes(files.join(config.out, name), data)
            record.finish(result)
    say(files.read_bytes(files.join(config.out, makes[0])).decode())
    say(f"{job}: {config.out} has {', '.join(makes)}")
