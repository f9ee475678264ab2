"""On a GPU: the compiled loss of the generator is one graph, and its values and gradients are the eager ones."""

import pytest
import torch

from rdpm.models.generator import Generator, GeneratorConfig, code_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = "cuda"
CONFIG = GeneratorConfig(depth=2, num_classes=5, num_steps=4, codebook_size=256, code_dim=8, grid=8)


def inputs() -> tuple[torch.Tensor, ...]:
    """Six images: noise, labels, steps, accumulated latents and codes."""
    draw = torch.Generator().manual_seed(1)
    noise, accumulated = torch.randn(2, 6, 8, 8, 8, generator=draw)
    labels, steps = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([1, 2, 3, 4, 1, 2])
    codes = torch.randint(0, 256, (6, 8, 8), generator=draw)
    return tuple(value.to(DEVICE) for value in (noise, labels, steps, accumulated, codes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 5e-2)])
def test_the_compiled_loss_and_its_gradients_are_the_eager_ones(unchecked, randomize, precision, tolerance) -> None:
    generator = randomize(Generator(CONFIG)).to(DEVICE)
    *given, codes = inputs()

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            logits = generator(*arguments)
        return code_loss(logits, codes)

    torch._dynamo.reset()
    found = []
    for step in (loss, torch.compile(loss, fullgraph=True, dynamic=False)):
        generator.zero_grad()
        losses = step(*given)
        losses.mean().backward()
        found.append((losses.detach(), {name: weight.grad for name, weight in generator.named_parameters()}))
    (eager, gradients), (compiled, others) = found
    torch.testing.assert_close(compiled, eager, atol=tolerance, rtol=tolerance)
    for name, gradient in gradients.items():
        assert torch.isfinite(others[name]).all(), name
        assert (others[name] - gradient).norm() <= tolerance * gradient.norm(), name
