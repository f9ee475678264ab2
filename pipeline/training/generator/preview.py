"""Pictures of samples while the generator trains."""

import numpy as np
import torch

from rdpm.models.methods import new_generator
from rdpm.models.noise import child_seeds
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.inference.rivals import sampler_of
from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.step import PREFIX
from rdpm.pipeline.training.log import TrainingLog
from rdpm.pipeline.training.ranks import Ranks

_CLASSES, _ROWS = 10, 4


def show_samples(config: TrainGeneratorConfig, engine: Engine, ranks: Ranks, log: TrainingLog, step: int) -> None:
    """Log samples of the averaged weights: one column per class, of the first classes, always from the same noise.

    They are drawn in the precision of the training, which flash-attn may need.
    """
    weights = engine.weights("ema")
    if not ranks.first:
        return
    generator = new_generator(config.model)
    generator.load_state_dict({name.removeprefix(PREFIX): value for name, value in weights.items()})
    tokenizer = load_tokenizer(config.tokenizer)[0]
    models = sampler_of(generator.eval(), tokenizer, precision=config.engine.precision, device=ranks.device)
    classes = range(min(_CLASSES, config.model.num_classes))
    labels = np.tile(np.array(classes, np.int64), _ROWS)
    seeds = child_seeds(0, torch.arange(len(labels))).numpy()
    images = models.draw(labels, seeds, [SamplerConfig()] * len(labels)).images
    rows = images.reshape(_ROWS, len(classes), *images.shape[1:])
    log.picture(step, "samples", np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))
