"""Exports of a generator: at the end of its training, and from a checkpoint of it."""

from dataclasses import asdict

from torch import Tensor

from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.foundation import files
from rdpm.pipeline.training.first_weights import init_digest
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.inputs import TrainingStores, open_stores
from rdpm.pipeline.training.generator.step import PREFIX
from rdpm.pipeline.training.saved_state import SavedState, checkpoint_folder, complete_checkpoints, named
from rdpm.storage_schemas.cards import GeneratorOrigin, ModelCard


def save_generator(
    config: TrainGeneratorConfig, weights: dict[str, Tensor], stores: TrainingStores, out: str, steps: int
) -> ModelCard:
    """Write averaged weights, named as in the loss, and the card of a generator that was trained for so many steps."""
    made_from = GeneratorOrigin(stores.tokenizer.digest, tuple(stores.ids), stores.classes)
    training = {
        "batch": config.batch,
        "noise": config.noise,
        "seed": config.seed,
        "optimizer": asdict(config.optimizer),
    } | init_digest(stores.init)
    named_weights = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    return save_export(out, "generator", config.model, named_weights, made_from, training, steps)


def export_checkpoint(config: TrainGeneratorConfig, step: int, out: str) -> ModelCard:
    """Export the averaged weights of a checkpoint. Raises ValueError where there is none of this step."""
    folder = checkpoint_folder(config.out)
    saved = next((saved for saved in complete_checkpoints(folder) if saved.step == step), None)
    if saved is None:
        raise ValueError(
            f"{config.out} has no checkpoint of step {step}; train it with a checkpoint_every that has one"
        )
    paths = [files.join(folder, f"step-{step:08d}", name) for name in sorted(saved.parts)]
    weights = named(SavedState(paths, "generator"), "buffer", "ema")
    return save_generator(config, weights, open_stores(config), out, step)
