"""On every rank: generator steps under each ZeRO stage, saved and loaded halfway, and the same in plain torch."""

from dataclasses import replace
from typing import Any, Literal

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.discriminator import DiscriminatorConfig, DiscriminatorPair
from rdpm.models.generator import GeneratorConfig
from rdpm.models.quantizer import Quantizer
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.training.engine import Engine, EngineConfig, building
from rdpm.pipeline.training.generator.step import GeneratorLoss
from rdpm.pipeline.training.optimizers import OptimizerConfig, adamw
from rdpm.pipeline.training.ranks import Ranks

Precision = Literal["fp32", "bf16"]
STEPS, MICRO, CLIP, RATE = 6, 4, 1.0, 1e-3
SPACE = GeneratorConfig(depth=2, num_classes=3, num_steps=4, codebook_size=16, code_dim=4, grid=2)
QUANTIZER = Quantizer(QuantizerConfig(SPACE.codebook_size, SPACE.code_dim), Schedule(num_steps=SPACE.num_steps))
torch.nn.init.orthogonal_(QUANTIZER.codebook.vectors, 2.0, torch.Generator().manual_seed(0))  # on every rank the same
OPTIMIZER, DECAY = OptimizerConfig(lr=RATE), 0.7


def batch(step: int, rank: int) -> tuple[torch.Tensor, ...]:
    """One rank's micro-batch of a step."""
    data = torch.Generator().manual_seed(100 * step + rank)
    shape = (MICRO, SPACE.code_dim, SPACE.grid, SPACE.grid)
    noise, accumulated = torch.randn(shape, generator=data), torch.randn(shape, generator=data)
    labels = torch.randint(0, SPACE.num_classes, (MICRO,), generator=data)
    steps = torch.randint(1, SPACE.num_steps + 1, (MICRO,), generator=data)
    codes = torch.randint(0, SPACE.codebook_size, (MICRO, SPACE.grid, SPACE.grid), generator=data)
    return noise, labels, steps, accumulated, codes


def model() -> GeneratorLoss:
    """The same weights every time; no parameter is zero, so every gradient flows."""
    torch.manual_seed(0)
    built = GeneratorLoss(SPACE)
    for parameter in built.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return built


def reference(ranks: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights and their average after the steps, by torch.optim.AdamW in a loop over all ranks' batches."""
    trained = model()
    ours = adamw(trained, OPTIMIZER, DECAY).param_groups
    groups = [{k: v for k, v in group.items() if k in ("params", "weight_decay")} for group in ours]
    adam = torch.optim.AdamW(groups, lr=RATE, betas=OPTIMIZER.betas)
    average = {name: p.detach().clone() for name, p in trained.named_parameters()}
    for step in range(STEPS):
        adam.zero_grad()
        for rank in range(ranks):
            (trained(*batch(step, rank)).mean() / ranks).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), CLIP)
        adam.step()
        for name, p in trained.named_parameters():
            average[name] = DECAY * average[name] + (1 - DECAY) * p.detach()
    return dict(trained.named_parameters()), average


def engine(stage: int, state: dict[str, torch.Tensor] | None = None, precision: Precision = "fp32") -> Engine:
    trained = model()
    return Engine(
        trained, adamw(trained, OPTIMIZER, DECAY), EngineConfig(stage, precision, CLIP), MICRO, 1, state=state
    )


def differences(ranks: Ranks) -> dict[str, float]:
    """The largest difference of any weight and of any averaged weight by stage, and how far the two are apart."""
    weights, average = reference(ranks.count)
    result = {"apart": max((weights[n] - average[n]).abs().max().item() for n in weights)}
    for stage in (0, 1, 2, 3):
        tested = engine(stage)
        for step in range(STEPS):
            if step == STEPS // 2:
                tested = engine(stage, {name: value.cpu().clone() for name, value in tested.state()})
            tested.backward(tested(*batch(step, ranks.rank)).mean(), "a test")
            assert tested.problem() is None
            assert tested.update(RATE)
        for kind, found, expected in (
            ("weights", tested.weights(), weights),
            ("average", tested.weights("ema"), average),
        ):
            if ranks.first:
                result[f"{stage} {kind}"] = max((found[n] - e.detach()).abs().max().item() for n, e in expected.items())
    return result


class _Reductions(TorchDispatchMode):
    """The types of what ranks reduce among each other, of more numbers than a norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and "reduce" in func.overloadpacket.__name__:
            self.types |= {
                value.dtype for value in tree_leaves(args) if isinstance(value, torch.Tensor) and value.numel() > 8
            }
        return func(*args, **(kwargs or {}))


def reduced_types(ranks: Ranks) -> dict[int, set[torch.dtype]]:
    """The types in which gradients of a bf16 training are reduced, by ZeRO stage."""
    found = {}
    for stage in (0, 1, 2, 3):
        tested = engine(stage, precision="bf16")
        with _Reductions() as reductions:
            tested.backward(tested(*batch(0, ranks.rank)).mean(), "a test")
            assert tested.problem() is None
            assert tested.update(RATE)
        found[stage] = reductions.types
    return found


def built_in_parts(ranks: Ranks) -> dict[str, int]:
    """Generator, tokenizer and discriminator are built under ZeRO-3 and without. Returns by name how many weights this
    rank held right after building, or -1 where the weights are not the same bits."""
    result = {}
    for name, build in BUILT.items():
        whole, parts = {}, {}
        for stage, found in ((0, whole), (3, parts)):
            torch.manual_seed(5)
            config = EngineConfig(stage, "fp32", CLIP)
            with building(config):
                built = build()
            held = sum(parameter.numel() for parameter in built.parameters())
            tested = Engine(built, torch.optim.Adam(built.parameters()), config, MICRO, 1)
            found |= {key: value.clone() for key, value in tested.state("weight", "buffer")}
        same = whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
        result[name] = held if same else -1
    return result


def _started(**changes: bool) -> GeneratorLoss:
    built = GeneratorLoss(replace(SPACE, **changes))
    built.generator.start_from(QUANTIZER)
    return built


BUILT = {
    "generator": _started,
    "preconditioned generator": lambda: _started(preconditioned=True),
    "tokenizer": lambda: Tokenizer(
        TokenizerConfig(16, AutoencoderConfig(1, 8, (1, 2), 1, (2,), 4), QuantizerConfig(64, 8), Schedule(num_steps=4))
    ),
    "discriminator": lambda: DiscriminatorPair(DiscriminatorConfig(8, 2), 1),
}
