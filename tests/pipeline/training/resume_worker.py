"""On every rank: one training, or the same training resumed at every step of it.

    resume_worker.py once|everywhere|stages tokenizer|generator FOLDER OUT STEPS key=value ...

FOLDER holds images/, and for a generator tokenizer/ and store/. "everywhere" continues from each checkpoint of OUT for
one step and prints, from rank 0, the steps whose next checkpoint differed in any byte. "stages" trains under every ZeRO
stage, and with the optimizer on the CPU, into OUT-<name>.
"""

import os
import shutil
import sys

from rdpm.jobs.arguments import parse
from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.stage import train_generator
from rdpm.pipeline.training.ranks import barrier, leave_ranks
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import train_tokenizer

TOKENIZER = [
    "model.image_size=8", "model.autoencoder.in_channels=1", "model.autoencoder.channels=8",
    "model.autoencoder.multipliers=[1,2]", "model.autoencoder.num_res_blocks=1",
    "model.autoencoder.attention_factors=[]", "model.autoencoder.groups=4", "model.quantizer.codebook_size=16",
    "model.quantizer.code_dim=4", "model.quantizer.update=ema", "model.schedule.num_steps=3",
    "discriminator.channels=8", "discriminator.num_layers=1", "loss.perceptual=none", "loss.adversarial=0.5",
    "loss.discriminator_start=3", "optimizer.lr=1e-3", "optimizer.warmup_steps=2", "workers=1",
]  # fmt: skip
GENERATOR = [
    "model.depth=1", "model.num_classes=2", "model.num_steps=3", "model.codebook_size=16", "model.code_dim=4",
    "model.grid=4", "optimizer.lr=1e-3", "optimizer.warmup_steps=2", "ema_decay=0.9",
]  # fmt: skip
STAGES = {f"zero-{stage}": [f"engine.zero_stage={stage}"] for stage in range(4)}
STAGES["offload"] = ["engine.zero_stage=2", "engine.offload=true"]


def train(kind: str, folder: str, out: str, steps: int, options: list[str]) -> None:
    """One training, to its end."""
    common = [f"out={out}", f"steps={steps}", "batch=8", "log_every=1", "engine.precision=fp32", *options]
    if kind == "tokenizer":
        config = parse(TrainTokenizerConfig, "train-tokenizer", [f"images={folder}/images", *TOKENIZER, *common])
        train_tokenizer(config, list_images(config.images))
        return
    inputs = [f"stores=[{folder}/store]", f"tokenizer={folder}/tokenizer"]
    train_generator(parse(TrainGeneratorConfig, "train-generator", [*inputs, *GENERATOR, *common]))


def parts(out: str, step: int) -> dict:
    """Digests of every file of a checkpoint."""
    return files.read_json(f"{out}/checkpoints/step-{step:08d}/checkpoint.json")["parts"]


def main() -> None:
    mode, kind, folder, out, steps, *options = sys.argv[1:]
    if mode == "stages":
        for name, settings in STAGES.items():
            train(kind, folder, f"{out}-{name}", int(steps), [*options, *settings])
        leave_ranks()
        return
    train(kind, folder, out, int(steps), options)
    if mode == "everywhere":
        wrong = []
        for step in range(1, int(steps)):
            again = f"{out}-from-{step}"
            if os.environ["RANK"] == "0":
                tag = f"checkpoints/step-{step:08d}"
                shutil.copytree(f"{out}/{tag}", f"{again}/{tag}")
            barrier()
            train(kind, folder, again, step + 1, options)
            barrier()
            if parts(again, step + 1) != parts(out, step + 1):
                wrong.append(step)
        print("WRONG", wrong)
    leave_ranks()


if __name__ == "__main__":
    main()
