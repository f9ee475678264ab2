"""The stage behind `rdpm init`: pictures, a machine and some hours to the configs of a run."""

import os
import tempfile
from dataclasses import dataclass, replace

import numpy as np

from rdpm.models.losses import SMALLEST_PERCEPTUAL
from rdpm.pipeline.costs.describe import describe_generator, describe_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.foundation.lease import held
from rdpm.pipeline.foundation.permutation import permute
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.images.listing import Listing, list_images
from rdpm.pipeline.images.sources.selection import SUFFIXES
from rdpm.pipeline.images.sources.source import open_source
from rdpm.pipeline.projects.choice import Choice, choose, held_out
from rdpm.pipeline.projects.config import InitConfig
from rdpm.pipeline.projects.folder import Facts, Lengths, files_of
from rdpm.pipeline.projects.machine import Machine, this_machine
from rdpm.pipeline.projects.pictures import Pictures, look_at
from rdpm.pipeline.projects.plan import ADVERSARIAL_STEPS, Plan, plan, sample_counts
from rdpm.pipeline.projects.road import RUN
from rdpm.pipeline.projects.sentences import about_choice, about_machine, about_pictures, about_plan, about_speed
from rdpm.pipeline.projects.timing import Speed, time_the_rest, time_tokenizer
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig

JOB = "init"
_REJECTS = 0.01  # share of pictures that may turn out unusable where not all were looked at
_ROOM = 0.8  # share of the memory that a rank is planned to fill
_TIMED = "timed-tokenizer"


def run(config: InitConfig) -> None:
    """Look at the pictures and the machine, time a few steps, and write the run's configs into config.out.

    Raises ValueError for pictures that cannot be learned from, hours that are too short, and a folder that has a run.
    """
    config = _absolute(config)
    if files.exists(files.join(config.out, RUN)):
        raise ValueError(f"{config.out} has a {RUN} already; go on with rdpm run {config.out}, or name another folder")
    with held(config.out, JOB) as lease:
        listing = list_images(config.images)
        pictures, machine = look_at(listing, open_source(config.images).containers), this_machine()
        _say(about_pictures(pictures), about_machine(machine))
        facts = _facts(config, listing, pictures)
        choice = choose(pictures, machine, config.size, config.hours, facts.training)
        if config.perceptual != "none" and choice.size < SMALLEST_PERCEPTUAL:
            raise ValueError(
                f"size is {choice.size}, and LPIPS needs {SMALLEST_PERCEPTUAL} pixels or more; use "
                f"size={SMALLEST_PERCEPTUAL}, or perceptual=none"
            )
        choice = _fitting(choice, facts, machine)
        _say(about_choice(choice, pictures, facts, machine))
        planned, speed = _planned(config, pictures, facts, choice, listing.classes)
        memory = {job: need.of(images) for job, (need, images) in _needs(facts, choice, planned.lengths).items()}
        notes = about_plan(planned, choice, pictures, memory, machine, config.hours)
        _say(about_speed(speed), notes)
        lease.check()
        for name, text in files_of(facts, choice, planned.lengths, notes).items():
            files.write_bytes(files.join(config.out, name), text.encode())
    say(f"init: {config.out} is ready; next: rdpm run {config.out}")


def _absolute(config: InitConfig) -> InitConfig:
    if config.images.endswith(SUFFIXES):
        raise ValueError(f"images {config.images!r} are a part of a source; name the source, of which parts are made")
    images = config.images if "://" in config.images else os.path.abspath(config.images)
    perceptual = config.perceptual
    if perceptual not in ("none", "torchvision"):
        perceptual = os.path.abspath(perceptual)
        if not files.is_file(perceptual):
            raise ValueError(f"perceptual {perceptual!r} does not exist; give the path of vgg16-397923af.pth, or none")
    return replace(config, images=images, out=os.path.abspath(config.out), perceptual=perceptual)


def _say(*parts: list[str]) -> None:
    for sentence in (sentence for part in parts for sentence in part):
        say(f"init: {sentence}")


def _facts(config: InitConfig, listing: Listing, pictures: Pictures) -> Facts:
    """What the files say of the pictures; which of them are held out is drawn here."""
    labels, keys = np.asarray(listing.table["label"]), listing.table["key"]
    chosen: list[str] = []
    for label, count in enumerate(held_out(pictures).values()):
        rows = np.flatnonzero(labels == label)
        order = permute(np.arange(len(rows)), len(rows), config.seed, np.full(len(rows), label))
        usable = (keys[int(rows[place])].as_py() for place in order)
        taken = [key for key in usable if key not in pictures.unusable and "\n" not in key][:count]
        chosen += taken
    return Facts(
        out=config.out,
        images=config.images,
        classes=len(listing.classes),
        training=len(listing) - len(chosen) - len(pictures.unusable),
        held_out=tuple(sorted(chosen)),
        unusable=tuple(sorted(pictures.unusable)),
        max_rejects=0.001 if pictures.complete else _REJECTS + 2 * len(pictures.unusable) / pictures.looked,
        perceptual=config.perceptual,
    )


def _planned(
    config: InitConfig, pictures: Pictures, facts: Facts, choice: Choice, classes: tuple[str, ...]
) -> tuple[Plan, Speed]:
    """The plan, from timed steps; with a discriminator where that leaves the tokenizer enough of them."""
    samples, matched = sample_counts(choice, len(classes), len(facts.held_out))
    lengths = Lengths(1000, 1000, False, samples, matched)
    windows = 3 if pictures.seconds * choice.tokenizer_batch / choice.ranks < 1 else 2
    say("init: timing a few steps of each training takes about two minutes, and four where DeepSpeed compiles first")
    say("init: timing the tokenizer's training")
    with tempfile.TemporaryDirectory() as folder:

        def write(lengths: Lengths) -> None:
            for name, text in files_of(replace(facts, out=folder), choice, lengths, []).items():
                files.write_bytes(files.join(folder, name), text.encode())

        write(lengths)
        tokenizer = time_tokenizer(folder, _TIMED, windows, choice)
        say("init: timing the encoding of pictures and the generator's training")
        speed = time_the_rest(folder, _TIMED, windows, tokenizer, choice, classes)
        counts = (facts.training, len(facts.held_out), len(classes))
        planned = plan(config.hours, speed, choice, *counts, adversarial=False)
        if choice.discriminates and planned.lengths.tokenizer_steps >= ADVERSARIAL_STEPS:
            say("init: timing the tokenizer's training with an adversarial loss")
            write(replace(lengths, adversarial=True))
            slower = time_tokenizer(folder, "timed-adversarial", windows, choice, "loss.discriminator_start=0")
            with_it = plan(config.hours, replace(speed, tokenizer=slower), choice, *counts, adversarial=True)
            if with_it.lengths.tokenizer_steps >= ADVERSARIAL_STEPS:
                return with_it, replace(speed, tokenizer=slower)
    return planned, speed


@dataclass(frozen=True)
class _Need:
    """Bytes of memory of a rank."""

    fixed: int
    per_image: int

    def of(self, images: int) -> int:
        """With so many images in a forward pass."""
        return self.fixed + images * self.per_image


def _needs(facts: Facts, choice: Choice, lengths: Lengths) -> dict[str, tuple[_Need, int]]:
    """What a rank of each training needs, and its images per forward pass, by job."""
    texts = files_of(facts, choice, lengths, [])
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tokenizer.yaml", "generator.yaml"):
            files.write_bytes(files.join(folder, name), texts[name].encode())
        tokenizer = load_config(TrainTokenizerConfig, "train-tokenizer", files.join(folder, "tokenizer.yaml"), [])
        generator = load_config(TrainGeneratorConfig, "train-generator", files.join(folder, "generator.yaml"), [])
    found = {}
    for job, facts_of, images in (
        ("train-tokenizer", describe_tokenizer(tokenizer), tokenizer.micro_batch),
        ("train-generator", describe_generator(generator), generator.micro_batch_on(generator.ranks)),
    ):
        found[job] = _Need(facts_of["memory_bytes_per_rank"]["zero_0"], facts_of["peak_bytes_per_sample"]), images
    return found


def _fitting(choice: Choice, facts: Facts, machine: Machine) -> Choice:
    """The choice with micro-batches halved until a rank of each training has room for one."""
    needs = _needs(facts, choice, Lengths(1000, 1000, choice.discriminates, 1, 1))
    room = int(_ROOM * machine.rank_memory)

    def fit(job: str) -> int:
        need, images = needs[job]
        while images > 1 and images % 2 == 0 and need.of(images) > room:
            images //= 2
        return images

    return replace(choice, tokenizer_micro_batch=fit("train-tokenizer"), generator_micro_batch=fit("train-generator"))
