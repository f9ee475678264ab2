"""What `rdpm init` chooses: every file that it writes is a config of its job, and fits the machine."""

import importlib
from itertools import product

import pytest
import yaml

from rdpm.jobs.cli import COMMANDS
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.projects.choice import Choice, choose, held_out, own_share
from rdpm.pipeline.projects.folder import Facts, Lengths, files_of
from rdpm.pipeline.projects.machine import Machine, this_machine
from rdpm.pipeline.projects.pictures import Pictures
from rdpm.pipeline.projects.plan import Plan, plan, sample_counts
from rdpm.pipeline.projects.road import read_road
from rdpm.pipeline.projects.sentences import about_plan
from rdpm.pipeline.projects.timing import Speed, Timed

CPU = Machine(cores=2, memory=16 << 30, gpus=0, gpu_memory=0, bf16=False)
MACHINES = {
    "laptop": CPU,
    "one core": Machine(1, 4 << 30, 0, 0, False),
    "server": Machine(48, 256 << 30, 0, 0, True),
    "three GPUs": Machine(16, 128 << 30, 3, 80 << 30, True),
}
TRAININGS = {"train-tokenizer", "train-generator"}


def pictures(*counts: int, short_side: int = 100, grey: bool = False) -> Pictures:
    by_class = {f"class {number}": count for number, count in enumerate(counts)}
    sides = (short_side, short_side, short_side)
    return Pictures(by_class, "class folders", sum(counts), sides, grey, 0.001, {})


def facts(out: str, choice: Choice, classes: int = 3, training: int = 1000) -> Facts:
    return Facts(out, "/my pictures: all", classes, training, ("a/1.png", "b/é #1.png"), ("a/2.png",), 0.001, "none")


@pytest.mark.parametrize(("machine", "size"), list(product(MACHINES, (0, 8, 28, 256))))
def test_every_file_is_a_config_of_its_job_and_the_parts_fit_together(tmp_path, machine, size):
    set_of = pictures(400, 30, 1, short_side=70, grey=size == 28)
    choice = choose(set_of, MACHINES[machine], size, 0.5, 380)
    for adversarial in (False, True) if choice.discriminates else (False,):
        out = tmp_path / str(adversarial)
        texts = files_of(facts(str(out), choice), choice, Lengths(450, 700, adversarial, 100, 50), ["a note"])
        assert list(texts)[-1] == "run.yaml"
        for name, text in texts.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text)
        configs = {}
        for stage in read_road(str(out)):
            kind = importlib.import_module(COMMANDS[stage.job][0]).Config
            configs[stage.job] = load_config(kind, stage.job, stage.config, [])
        assert configs.keys() >= TRAININGS | {"tokenize", "sample", "evaluate", "report"}
        tokenizer, generator = configs["train-tokenizer"], configs["train-generator"]
        space, model = tokenizer.model, generator.model
        assert (space.grid, space.schedule.num_steps) == (model.grid, model.num_steps)
        assert (space.quantizer.codebook_size, space.quantizer.code_dim) == (model.codebook_size, model.code_dim)
        assert space.image_size == choice.size == (size or choice.size)
        assert (tokenizer.steps, generator.steps, bool(tokenizer.loss.adversarial)) == (450, 700, adversarial)
        assert configs["sample"].sampler == configs.get("calibrate", configs["sample"]).sampler
        assert yaml.safe_load(texts["pictures/train.yaml"])["images"] == "/my pictures: all"


def test_sizes_follow_pictures_machine_and_hours():
    def size(short_side: int, machine: str, hours: float) -> int:
        return choose(pictures(400, short_side=short_side), MACHINES[machine], 0, hours, 360).size

    assert [size(side, "laptop", 1) for side in (10, 17, 33, 1000)] == [16, 16, 32, 32]
    assert size(1000, "laptop", 8) == 64
    assert [size(1000, "three GPUs", hours) for hours in (1, 4, 10)] == [64, 128, 256]
    assert choose(pictures(400, grey=True), CPU, 0, 1, 360).channels == 1


@pytest.mark.parametrize(("size", "near"), [(30, 32), (4, 8), (100, 96), (1001, 1008)])
def test_a_size_that_no_tokenizer_has_is_refused_with_one_that_is(size, near):
    with pytest.raises(ValueError, match=f"size is {size}; .* example {near}"):
        choose(pictures(400), CPU, size, 1, 360)
    choose(pictures(400), CPU, near, 1, 360)


def test_small_pictures_get_no_discriminator():
    chosen = [choose(pictures(400), CPU, size, 1, 360) for size in (8, 12, 32)]
    assert [choice.discriminates for choice in chosen] == [False, True, True]
    speed = Speed(Timed(0.1, 0.0, 5.0), Timed(0.1, 0.0, 5.0), 0.01, 0.05)
    for choice, why in zip(
        chosen, ("pictures of 8 pixels are too small for one", "better spent", "better spent"), strict=True
    ):
        made = plan(1, speed, choice, 3000, 300, 9, adversarial=False)
        assert why in "; ".join(
            about_plan(made, choice, pictures(3300), {"train-tokenizer": 1, "train-generator": 1}, CPU, 1)
        )


def test_latents_are_matched_where_there_are_pictures_enough_for_their_covariance():
    def boxes(training: int) -> int:
        return choose(pictures(training, short_side=32), CPU, 32, 1, training).boxes

    assert [boxes(count) for count in (10, 99, 100, 128, 511, 512, 10_000)] == [0, 0, 1, 2, 2, 4, 4]


def test_classes_get_as_much_of_their_own_covariance_as_their_pictures_tell():
    assert [own_share(150, 96), own_share(112, 128), own_share(10, 128), own_share(1, 6)] == [0.61, 0.47, 0.0, 0.0]
    choice = choose(pictures(3700), CPU, 32, 1, 3330)

    def written(classes: int) -> float:
        texts = files_of(facts("/out", choice, classes, 3330), choice, Lengths(450, 700, False, 100, 50), [])
        return yaml.safe_load(texts["calibration.yaml"])["own_share"]

    assert written(9) == own_share(50, choice.boxes**2 * choice.code_dim)
    assert written(100) == own_share(33, choice.boxes**2 * choice.code_dim) > 0
    assert written(1000) == 0


def test_every_class_of_two_has_a_held_out_picture_and_large_sets_hold_out_no_tenth():
    assert held_out(pictures(820, 100, 11, 2, 1)) == dict(
        zip(pictures(1, 1, 1, 1, 1).counts, (82, 10, 1, 1, 0), strict=True)
    )
    assert sum(held_out(pictures(*[1300] * 1000)).values()) <= 2000


def planned(hours: float, total: int = 3000, step: float = 0.2, classes: int = 9) -> Plan:
    choice = choose(pictures(total), CPU, 32, hours, total)
    speed = Speed(Timed(step, 0.0, 10.0), Timed(step, 0.0, 12.0), 0.01, 0.1)
    return plan(hours, speed, choice, total, 300, classes, adversarial=False)


def test_plans_fill_the_hours_and_do_not_exceed_them():
    for hours in (0.25, 0.5, 1, 4):
        found = planned(hours, step=0.6)
        assert 0.8 * hours * 3600 < sum(found.seconds.values()) <= 0.9 * hours * 3600
        assert not found.capped
    assert planned(1).lengths.tokenizer_steps > planned(0.5).lengths.tokenizer_steps > 200


def test_few_pictures_do_not_get_all_the_hours():
    found = planned(10, total=40)
    assert found.capped
    assert found.lengths.tokenizer_steps == found.lengths.generator_steps == 2000


def test_too_few_hours_are_refused_with_enough_of_them():
    with pytest.raises(ValueError, match=r"hours is 0.01, .* use hours=0.\d+ or more") as refused:
        planned(0.01)
    enough = float(str(refused.value).split("hours=")[1].split()[0])
    assert planned(enough).lengths.tokenizer_steps >= 200


@pytest.mark.parametrize(("classes", "held"), [(1, 30), (9, 370), (1000, 2000), (3, 2)])
def test_samples_are_enough_for_draws_and_for_a_covariance(classes, held):
    choice = choose(pictures(10_000), CPU, 32, 1, 9000)
    samples, matched = sample_counts(choice, classes, held)
    assert samples * classes >= held
    assert (matched - 1) * classes >= 2 * choice.boxes**2 * choice.code_dim  # a mean takes one


def test_this_machine_has_cores_and_memory():
    found = this_machine()
    assert found.cores >= 1
    assert found.memory > 1 << 28
    assert found.rank_memory <= max(found.memory, found.gpu_memory)
