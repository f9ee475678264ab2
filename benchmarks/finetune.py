"""Fine-tuning against training from scratch: half of the digits' classes first, the rest after (docs/finetune.md).

    python -m benchmarks.finetune [--out FOLDER] [--seeds 0 1 2] [--steps 100 300]

A tokenizer and a generator of the digits 0 to 4 are trained once. For 5 to 9 there are then three ways of equal steps:

    scratch   a new tokenizer and a new generator
    tuned     both start from those of 0 to 4 (init=)
    kept      the tokenizer of 0 to 4 as it is, and a generator that starts from that of 0 to 4

Prints JSON: for each way, number of steps and seed, what the samples and the tokenizer are like on held-out 5 to 9. All
stages are resumed when it is started again.
"""

import argparse
import json
import os
from contextlib import closing

import numpy as np

from rdpm import RDPM, EvaluateConfig, evaluate
from rdpm.jobs import prepare
from rdpm.pipeline.exports.card import read_card, tokenizer_config
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.images.worklist import Worklist
from rdpm.pipeline.stores.writer import missing_shards, publish, start_store
from rdpm.pipeline.tokenizing.encoder import ShardEncoder
from rdpm.pipeline.tokenizing.encoding import shard_work
from rdpm.pipeline.tokenizing.plan import TokenizeConfig, token_plan
from rdpm.pipeline.tokenizing.rows import images_of
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.export import export_checkpoint
from rdpm.pipeline.training.generator.stage import run as train_generator
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import run as train_tokenizer
from rdpm.storage_schemas.manifest import MANIFEST

CONFIGS = "configs/digits"
HALVES = {"first": range(5), "rest": range(5, 10)}
BASE_TOKENIZER, BASE_GENERATOR, TOKENIZER = 300, 400, 60  # optimizer steps
PER_CLASS = 60
SAMPLER = {"guidance": 0.2, "temperature": 1.0}
SHOWN = {
    "generator": ("class_accuracy", "pixel_frechet_ratio", "spread", "frechet_ratio"),
    "tokenizer": ("psnr",),
}


def lay_out(out: str) -> None:
    """The digits in OUT/data, and folders of links to the classes of each half."""
    prepare.main(["digits", f"{CONFIGS}/data.yaml", f"out={out}/data"])
    for half, digits in HALVES.items():
        for split in ("train", "val"):
            os.makedirs(f"{out}/{half}/{split}", exist_ok=True)
            for digit in digits:
                link = f"{out}/{half}/{split}/{digit}"
                if not os.path.islink(link):
                    os.symlink(os.path.abspath(f"{out}/data/{split}/{digit}"), link)


def tokenizer(out: str, half: str, name: str, *options: str) -> str:
    """A tokenizer of a half's training images."""
    folder = f"{out}/{name}"
    given = [f"images={out}/{half}/train", f"out={folder}", 'validation=""', "optimizer.warmup_steps=20", "ranks=1"]
    train_tokenizer(
        load_config(TrainTokenizerConfig, "train-tokenizer", f"{CONFIGS}/tokenizer.yaml", [*given, *options])
    )
    return folder


def store(out: str, half: str, tokenizer: str, name: str) -> str:
    """Codes and latents of a half's training images, as `rdpm tokenize` makes them, but without Ray."""
    folder = f"{out}/{name}"
    if files.exists(f"{folder}/{MANIFEST}"):
        return folder
    given = [f"images={out}/{half}/train", f"tokenizer={tokenizer}", f"out={folder}"]
    config = load_config(TokenizeConfig, "tokenize", f"{CONFIGS}/store.yaml", given)
    card = read_card(tokenizer, "tokenizer")
    with closing(Worklist(config.images, folder)) as worklist:
        plan = start_store(folder, token_plan(config, worklist.summary, card, "cpu"))
        worklist.write({shard: images_of(plan, shard) for shard in range(plan.num_shards)})
        work = shard_work(config, plan, worklist.folder, tokenizer_config(card), ShardEncoder)
        encoder = ShardEncoder(**work.arguments)
        for shard in missing_shards(folder, plan):
            encoder(shard, work.read(shard, {}))
        publish(folder, plan)
    return folder


def generator(tokenizer: str, store: str, out: str, *options: str) -> TrainGeneratorConfig:
    """Train a generator; returns its config."""
    given = [
        f"stores=[{store}]", f"tokenizer={tokenizer}", f"out={out}", "model.num_classes=5", "model.depth=1",
        "batch=64", "ranks=1",
        "optimizer.warmup_steps=20", "optimizer.decay=constant", "ema_decay=0.98", "checkpoint_every=100",
        "keep_checkpoints=100",
    ]  # fmt: skip
    config = load_config(TrainGeneratorConfig, "train-generator", f"{CONFIGS}/generator.yaml", [*given, *options])
    train_generator(config)
    return config


def measured(out: str, generator: str, tokenizer: str, seed: int) -> dict[str, float]:
    """Metrics of samples of a generator of 5 to 9, and of its tokenizer."""
    labels = np.repeat(np.arange(5), PER_CLASS)
    images = RDPM.from_pretrained(generator, tokenizer, batch=50, device="cpu").sample(labels, seed=seed, **SAMPLER)
    np.savez(f"{generator}.npz", arr_0=images, arr_1=labels)
    metrics = evaluate(
        EvaluateConfig(
            out=f"{out}/metrics.json",
            samples=f"{generator}.npz",
            train_images=f"{out}/rest/train",
            images=f"{out}/rest/val",
            tokenizer=tokenizer,
            threads=1,
        )
    )
    return {name: metrics[part][name] for part, names in SHOWN.items() for name in names if name in metrics[part]}


def compared(out: str, seed: int, steps: list[int]) -> list[dict]:
    """Every way with one seed, after each number of steps."""
    first = f"{out}/tokenizer-first"
    short = [f"steps={TOKENIZER}", f"seed={seed}"]
    new = tokenizer(out, "rest", f"tokenizer-scratch-{seed}", *short)
    tuned = tokenizer(out, "rest", f"tokenizer-tuned-{seed}", *short, f"init={first}")
    rows = []
    for way, its_tokenizer, init in (("scratch", new, ""), ("tuned", tuned, "init"), ("kept", first, "init")):
        codes = store(out, "rest", its_tokenizer, f"store-{os.path.basename(its_tokenizer)}")
        options = [f"steps={steps[-1]}", f"seed={seed}"] + ([f"init={out}/generator-first"] if init else [])
        config = generator(its_tokenizer, codes, f"{out}/generator-{way}-{seed}", *options)
        for count in steps:
            export = f"{config.out}-after-{count}"
            if not files.exists(f"{export}/card.json"):
                export_checkpoint(config, count, export)
            rows.append({"way": way, "seed": seed, "steps": count, **measured(out, export, its_tokenizer, seed)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/finetune")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 300], help="multiples of 100, ascending")
    given = parser.parse_args()
    lay_out(given.out)
    first = tokenizer(given.out, "first", "tokenizer-first", f"steps={BASE_TOKENIZER}")
    codes = store(given.out, "first", first, "store-first")
    generator(first, codes, f"{given.out}/generator-first", f"steps={BASE_GENERATOR}")
    for seed in given.seeds:
        rows = compared(given.out, seed, given.steps)
        files.write_json(f"{given.out}/seed-{seed}.json", rows)
        print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
