"""What `rdpm init` says: what it saw, what it chose and why, and what a person should know before hours are spent."""

from rdpm.pipeline.projects.choice import Choice
from rdpm.pipeline.projects.folder import Facts
from rdpm.pipeline.projects.machine import Machine
from rdpm.pipeline.projects.pictures import Pictures, reason_of
from rdpm.pipeline.projects.plan import Plan
from rdpm.pipeline.projects.timing import Speed

_FEW, _FEW_OF_A_CLASS, _UNEVEN, _WAITING = 500, 50, 5, 0.25


def about_pictures(pictures: Pictures) -> list[str]:
    """What the pictures are, and what follows from it."""
    classes = len(pictures.counts)
    smallest, largest = (pick(pictures.counts, key=pictures.counts.__getitem__) for pick in (min, max))
    low, middle, high = pictures.short_sides
    said = [
        f"{pictures.total:,} pictures in {pictures.kind}, {'grey' if pictures.grey else 'in colour'}; the median "
        f"short side has {middle} pixels, the longest {high}, and one in ten has fewer than {low}"
    ]
    if classes == 1:
        said.append(
            f"all pictures are of one class ({largest}), so samples cannot be asked for by class; to have classes, put "
            "pictures at <class>/<picture>"
        )
    else:
        least, most = pictures.counts[smallest], pictures.counts[largest]
        of_each = (
            f"from {least:,} pictures ({smallest}) to {most:,} ({largest})" if least < most else f"of {most:,} each"
        )
        said.append(f"{classes} classes, {of_each}")
    if classes > 1 and pictures.counts[largest] > _UNEVEN * pictures.counts[smallest]:
        said.append("the classes are uneven: samples of the small ones will be worse and vary less")
    lone = [name for name, count in pictures.counts.items() if count == 1]
    if lone:
        said.append(f"{_first(lone)} has one picture, which is trained on; so nothing is held out of it")
    if pictures.total < _FEW:
        said.append(
            f"{pictures.total:,} pictures are few: samples will be close to pictures that were trained on; from some "
            "thousand on they become new"
        )
    elif min(pictures.counts.values()) < _FEW_OF_A_CLASS and classes > 1:
        small = [name for name, count in pictures.counts.items() if count < _FEW_OF_A_CLASS]
        said.append(f"{_first(small)} has fewer than {_FEW_OF_A_CLASS} pictures: samples of it will repeat them")
    if high > 1.2 * low:
        said.append(
            "the sizes differ: the short side is scaled to one size, trainings take windows along the long side, and "
            "measurements its middle"
        )
    if pictures.unusable:
        rest = "" if pictures.complete else f" of the {pictures.looked:,} that were looked at"
        said.append(
            f"{len(pictures.unusable)}{rest} cannot be used and are left out, the first is "
            f"{reason_of(pictures.unusable)}; pictures/unusable.txt lists them"
        )
    if not pictures.complete:
        said.append(
            f"only {pictures.looked:,} were looked at, spread over all; others that cannot be used are left out later"
        )
    return said


def _first(names: list[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"class {names[0]}{more}"


def about_machine(machine: Machine) -> list[str]:
    """What there is to train on."""
    gpus = f"{machine.gpus} GPUs of {_gib(machine.gpu_memory)}" if machine.gpus else "no GPU"
    return [f"this machine gives {machine.cores} cores, {_gib(machine.memory)} of memory and {gpus}"]


def about_choice(choice: Choice, pictures: Pictures, facts: Facts, machine: Machine) -> list[str]:
    """What was chosen, and why."""
    said = [
        f"{len(facts.held_out):,} pictures are held out, about one in ten of every class, to measure with; no file is "
        "moved",
        f"size {choice.size}: pictures of {choice.size} x {choice.size} pixels become ten maps of {choice.grid} x "
        f"{choice.grid} codes out of {choice.codebook_size}",
        f"a tokenizer of {choice.width} channels and a generator of depth {choice.depth}, for "
        f"{'GPUs' if machine.gpus else 'CPUs'} and these hours; {choice.ranks} ranks in {choice.precision}",
    ]
    if choice.size > pictures.short_sides[0]:
        said.append(
            f"one in ten pictures or more is smaller than {choice.size} pixels and is enlarged, which blurs it; a "
            "smaller size avoids that"
        )
    if facts.perceptual == "none":
        said.append(
            "no LPIPS, which needs the weights of VGG16: reconstructions are judged by squared error alone and look "
            "softer; perceptual=PATH of vgg16-397923af.pth, or perceptual=torchvision, uses them"
        )
    if not choice.boxes:
        said.append("too few pictures to match samples' latents to theirs, so rdpm calibrate is left out")
    return said


def about_speed(speed: Speed) -> list[str]:
    """What the timed steps showed, where it matters."""
    said = [
        f"a step takes {speed.tokenizer.step:.2f} s in the tokenizer's training and {speed.generator.step:.2f} s in "
        "the generator's"
    ]
    if speed.tokenizer.waiting > _WAITING:
        said.append(
            f"{speed.tokenizer.waiting:.0%} of the tokenizer's step is reading and decoding pictures; smaller copies "
            "of them, as single files or in tar files, would train more in the same time"
        )
    return said


def about_plan(
    plan: Plan, choice: Choice, pictures: Pictures, memory: dict[str, int], machine: Machine, hours: float
) -> list[str]:
    """The stages, how long each takes and what memory a rank of a training needs."""
    lengths = plan.lengths
    steps = {"train-tokenizer": lengths.tokenizer_steps, "train-generator": lengths.generator_steps}
    said = []
    for job, seconds in plan.seconds.items():
        more = f", {steps[job]:,} steps, {_size(memory[job])} per rank besides Python's own" if job in steps else ""
        said.append(f"{job}: about {max(1, round(seconds / 60))} min{more}")
    said.append(f"together about {sum(plan.seconds.values()) / 60:.0f} minutes of {hours * 60:g}, if nothing else runs")
    loss = "with" if lengths.adversarial else "without"
    why = "there is time for it" if lengths.adversarial else "these hours are better spent on more steps"
    if not choice.discriminates:
        why = f"pictures of {choice.size} pixels are too small for one"
    said.append(f"the tokenizer trains {loss} a discriminator, because {why}")
    if plan.capped:
        said.append(
            f"longer trainings on {pictures.total:,} pictures would only learn them by heart, so not all of the time "
            "is used"
        )
    if max(memory.values()) > machine.rank_memory:
        said.append(
            f"a rank may have {_gib(machine.rank_memory)}, which is not enough; use a smaller size, or lower "
            "micro_batch in the configs"
        )
    return said


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 1 << 30 else _gib(count)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
