"""The stage behind `rdpm export`: a generator and its tokenizer as graphs for onnxruntime, and a sampler in numpy.

A graph is a function of `models.sampler`, the codebook, the matching or the decoder, traced by torch. Noise and the
choice of codes stay outside, in `onnx_sample`, which is copied beside the graphs.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxscript  # noqa: F401, for torch.onnx; that the extra is missing is said before models are loaded
import torch
from torch import Tensor, nn

from rdpm.models.fields import EXECUTION
from rdpm.models.noise import NOISE_VERSION
from rdpm.models.sampler import guided_logits, modulations_of
from rdpm.models.tokenizer import to_pixels
from rdpm.pipeline.exports.card import pair_at, read_pair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.inference import onnx_sample
from rdpm.pipeline.inference.per_image import configs_of, seeds_of
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.storage_schemas.canonical import canonical_json

JOB = "export"
FACTS, SCRIPT = "model.json", "sample.py"
_FORMAT = 1
_COMPARED = 4  # images that both draw
_LEAST = 0.9  # share of their codes that must be equal; where one differs, those of later steps do too
_EXAMPLES = 3  # in a traced batch: a number that no size of a model is likely to have


@dataclass(frozen=True)
class ExportConfig:
    """Write the models of a run as ONNX graphs, with a sampler that needs only numpy and onnxruntime."""

    run: str = field(metadata=EXECUTION)
    """Folder or URL of a run, which holds generator/ or calibrated/, and tokenizer/; or the export of a generator."""
    out: str = field(metadata=EXECUTION)
    """Folder or URL of the graphs."""
    tokenizer: str = field(default="", metadata=EXECUTION)
    """Export of the tokenizer, where `run` is the export of a generator."""


def run(config: ExportConfig) -> None:
    """Write graphs, facts and the sampler, unless the record says that this is done.

    The graphs draw a few images, whose codes are compared with RDPM's. Raises ValueError when a model is missing or is
    of another method, or the two do not belong together.
    """
    pair = pair_at(config.run, config.tokenizer or None)
    cards = read_pair(*pair)
    inputs = {"generator_digest": cards[0].digest, "tokenizer_digest": cards[1].digest}
    with begin(JOB, config, lambda: inputs, (FACTS,)) as record:
        if record.lease is None:
            say(f"export: {config.out} is already there")
            return
        model = RDPM.from_pretrained(*pair, batch=_COMPARED, device="cpu")
        with tempfile.TemporaryDirectory() as place:
            graphs = write_graphs(model, place)
            Path(place, FACTS).write_bytes(canonical_json(facts_of(model, graphs) | inputs))
            shutil.copyfile(onnx_sample.__file__, Path(place, SCRIPT))
            equal, codes = _compare(model, place)
            if equal < _LEAST * codes:
                raise ValueError(
                    f"the graphs draw only {equal} of {codes} codes as RDPM does, so torch {torch.__version__} or "
                    "onnxruntime does not understand these models; use another version"
                )
            record.lease.check()
            with files.atomic_folder(config.out) as out:
                for path in sorted(Path(place).iterdir(), key=lambda path: path.name == FACTS):  # the facts at last
                    files.write_bytes(files.join(out, path.name), path.read_bytes())
        record.finish({"graphs": graphs, "codes_compared": codes, "codes_equal": equal})
        say(f"export: {config.out} is there; of {codes} codes it drew {equal} as RDPM does")


def facts_of(model: RDPM, graphs: list[str]) -> dict[str, Any]:
    """What a sampler needs to know besides the graphs."""
    return {
        "format": _FORMAT,
        "noise_version": NOISE_VERSION,
        "graphs": graphs,
        "num_steps": model.generator.config.num_steps,
        "latent_shape": list(model.tokenizer.config.latent_shape),
        "classes": list(model.classes),
    }


def _compare(model: RDPM, folder: str) -> tuple[int, int]:
    """How many codes the graphs draw as the model does, and of how many."""
    labels = np.arange(_COMPARED) % len(model.classes)
    drawn = model.draw(labels, seeds_of(0, _COMPARED), configs_of({}, _COMPARED)).codes
    _, codes = onnx_sample.Sampler(folder).draw(labels.tolist(), seed=0)
    return int((codes == drawn).sum()), codes.size


@torch.no_grad()
def write_graphs(model: RDPM, folder: str) -> list[str]:
    """Write the graphs of a model on the CPU, in fp32, as NAME.onnx; returns the names. A batch may have any size."""
    generator, codebook = model.generator, model.tokenizer.quantizer.codebook
    labels = torch.zeros(_EXAMPLES, dtype=torch.int64)
    latents = torch.zeros(_EXAMPLES, *model.tokenizer.config.latent_shape)
    codes = torch.zeros(_EXAMPLES, *latents.shape[2:], dtype=torch.int64)
    modulations = modulations_of(generator, labels)[0]
    inputs = {
        "noise": latents, "accumulated": latents, "modulations": modulations, "steps": labels + 1,
        "guidance": torch.ones(_EXAMPLES),
    }  # fmt: skip
    graphs = [
        _Graph("conditions", modulations_of, generator, {"labels": labels}, ("modulations",)),
        _Graph("step", _logits, generator, inputs, ("logits",)),
        _Graph("accumulate", _accumulate, codebook, {"total": latents, "codes": codes}, ("new_total", "accumulated")),
        _Graph("decoder", _decode, model.tokenizer.decoder, {"accumulated": latents}, ("images",)),
    ]
    if generator.matching is not None:
        inputs = {"accumulated": latents, "labels": labels}
        graphs.append(_Graph("matching", _match, generator.matching, inputs, ("matched",)))
    for graph in graphs:
        graph.write(folder)
    return [graph.name for graph in graphs]


class _Graph(nn.Module):
    """A function of a model and of tensors, of which the first axis is the batch."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, Tensor],
        outputs: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.name, self.function, self.model = name, function, model
        self.inputs, self.outputs = inputs, outputs

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.model, *inputs)

    def write(self, folder: str) -> None:
        """Write it as NAME.onnx, with NAME.onnx.data beside it where the weights take more than 2 GB."""
        batch = torch.export.Dim("batch", min=1)
        sizes = tuple({0: batch + 1 if name == "modulations" else batch} for name in self.inputs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            # Traced here: where that fails, torch.onnx would go on with a batch of one size.
            examples = tuple(value.clone() for value in self.inputs.values())  # of two that are one, one would be lost
            traced = torch.export.export(self.eval(), examples, dynamic_shapes=(sizes,))
            program = torch.onnx.export(
                traced, input_names=list(self.inputs), output_names=list(self.outputs), verbose=False
            )
        assert program is not None
        program.save(f"{folder}/{self.name}.onnx")


def _logits(
    generator: Any, noise: Tensor, accumulated: Tensor, modulations: Tensor, steps: Tensor, guidance: Tensor
) -> Tensor:
    """`guided_logits`, without the half that has no label where no image is guided."""

    def guided(*given: Tensor) -> Tensor:
        return guided_logits(generator, given[0], given[1], given[2], given[3], given[4])

    def plain(*given: Tensor) -> Tensor:
        return guided_logits(generator, given[0], given[1], given[2], given[3], None)

    return torch.cond((guidance != 0).any(), guided, plain, (noise, accumulated, modulations, steps, guidance))


def _accumulate(codebook: Any, total: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    total = codebook.accumulate_step(total, codes)
    return total, codebook.phi(total)


def _match(matching: Any, accumulated: Tensor, labels: Tensor) -> Tensor:
    return matching(accumulated, matching.table[labels])


def _decode(decoder: Any, accumulated: Tensor) -> Tensor:
    return to_pixels(decoder(accumulated)).permute(0, 2, 3, 1)
