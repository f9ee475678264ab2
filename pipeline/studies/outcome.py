"""A study of training images and held-out ones: what it ends in is written once, and its table is printed."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of, load_config
from rdpm.pipeline.foundation.names import slug
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin, read_record
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


def check_distinct(name: str, values: Sequence[Any]) -> None:
    """Raises ValueError where a value of a list stands there twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name} is {list(values)}; give each value once")


def check_folders(what: str, names: Iterable[str]) -> None:
    """Raises ValueError where two names would have the same folder."""
    slugs = [slug(name) for name in names]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"{what} {', '.join(names)} share a folder; give names that differ in letters or digits")


def run_study(
    job: str,
    config: StudyConfig,
    makes: Sequence[str],
    study: Callable[[], tuple[Sequence[bytes], dict[str, Any]]],
    stages: dict[str, tuple[type, str]],
    grows: str = "",
) -> None:
    """Make config.out, unless its record says that it is finished, and print the table.

    makes: names of the files to write under config.out, the table first. study: does all the work; returns the contents
    of these files, and what the record says of them. stages: the fields of the config that name configs of stages, with
    the class and the job of each; what they hold decides the result. grows: see `begin`. Raises ValueError as `begin`
    and as the study, and when held-out images are those of the training.
    """

    def inputs() -> dict[str, Any]:
        digests = {f"{name}_digest": list_images(getattr(config, name)).digest for name in ("images", "validation")}
        if len(set(digests.values())) == 1:
            raise ValueError(
                f"validation {config.validation!r} holds the same images as {config.images!r}; give images that were "
                "not trained on"
            )
        old = read_record(config.out)
        if old and "stages" not in old.inputs:  # of an earlier release
            return digests
        loaded: dict[str, Any] = {
            name: load_config(kind, stage, getattr(config, name), [f"out={config.out}"])
            for name, (kind, stage) in stages.items()
        }
        return {**digests, "stages": {name: identity_of(each) for name, each in loaded.items()}}

    with begin(job, config, inputs, tuple(makes), grows=grows) as record:
        if record.lease is not None:
            contents, result = study()
            record.lease.check()
            for name, data in zip(makes, contents, strict=True):
                files.write_bytes(files.join(config.out, name), data)
            record.finish(result)
    say(files.read_bytes(files.join(config.out, makes[0])).decode())
    say(f"{job}: {config.out} has {', '.join(makes)}")
