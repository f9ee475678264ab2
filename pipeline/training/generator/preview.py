"""Pictures of samples while the generator trains."""

import numpy as np

from rdpm.models.generator import Generator
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.inference.rdpm import RDPM
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
    generator = Generator(config.model)
    generator.load_state_dict({name.removeprefix(PREFIX): value for name, value in weights.items()})
    tokenizer = load_tokenizer(config.tokenizer)[0]
    models = RDPM(generator.eval(), tokenizer, precision=config.engine.precision, device=ranks.device)
    classes = range(min(_CLASSES, config.model.num_classes))
    images = models.sample([label for _ in range(_ROWS) for label in classes])
    rows = images.reshape(_ROWS, len(classes), *images.shape[1:])
    log.picture(step, "samples", np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))
