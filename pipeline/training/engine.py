"""The door to DeepSpeed: ranks, engines, their checkpoints and their averaged weights."""

import logging
import os
import socket
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.ema import AdamWithEMA
from pipeline.training.launch import end_with_launcher


@dataclass(frozen=True)
class EngineConfig:
    """zero_stage: 0 to 3. precision: "bf16" autocasts over float32 weights. clip: bound of the gradient norm or 0."""

    zero_stage: int = 0
    precision: Literal["fp32", "bf16"] = "bf16"
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage is {self.zero_stage}; use 0, 1, 2 or 3")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warmup, then a constant rate or a half cosine down to `final_share` of it."""

    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.03
    warmup_steps: int = 1000
    decay: Literal["constant", "cosine"] = "constant"
    final_share: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of 0-based `step` out of `steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = (1 + torch.cos(torch.tensor(progress * torch.pi)).item()) / 2
        return self.lr * (self.final_share + (1 - self.final_share) * cosine)


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0


def join_ranks(threads: int) -> Ranks:
    """Join the process group that torchrun or deepspeed set up, or make one of a single rank."""
    end_with_launcher()
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        alone = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    deepspeed = _deepspeed()
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def leave_ranks() -> None:
    """Wait for the others and end the process group."""
    dist.barrier()
    dist.destroy_process_group()


def barrier() -> None:
    """Wait for the others."""
    dist.barrier()


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of a tensor over the ranks."""
    values = values.detach().clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over the ranks."""
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def gather(value: Any) -> list[Any]:
    """Every rank's value (anything that can be pickled), on every rank."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_first_rank(values: Tensor) -> Tensor:
    """The first rank's tensor, on every rank."""
    values = values.detach().clone()
    dist.broadcast(values, 0)
    return values


def _deepspeed():
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says there is no CUDA on a CPU machine
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    return deepspeed


def accumulation(batch: int, micro_batch: int, ranks: int) -> int:
    """Micro-batches a rank runs before an update. Raises ValueError when the batch does not divide."""
    if min(batch, micro_batch, ranks) < 1:
        raise ValueError(f"batch is {batch}, micro_batch {micro_batch}, ranks {ranks}; each needs 1 or more")
    if batch % (micro_batch * ranks):
        raise ValueError(
            f"batch {batch} is not a multiple of micro_batch {micro_batch} x {ranks} ranks; change one of them"
        )
    return batch // (micro_batch * ranks)


class Engine:
    """One model with its optimizer under DeepSpeed; calls, gradients and checkpoints go through it.

    whole: classes of modules whose weights ZeRO-3 must bring together as one, for their forward uses those of children.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        micro_batch: int,
        accumulation: int,
        whole: tuple[type[nn.Module], ...] = (),
    ) -> None:
        if config.zero_stage == 3 and whole:
            _deepspeed().utils.set_z3_leaf_modules(model, list(whole))
        self.config = config
        self._engine, *_ = _deepspeed().initialize(
            model=model,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation,
                "gradient_clipping": config.clip,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {"stage": config.zero_stage},
                "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
                "steps_per_print": 10**12,
            },
        )

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self._engine.module

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def step(self, loss: Tensor, rate: float, where: str) -> None:
        """One micro-batch: its gradients, and after the last of a step the clipped update with this learning rate.

        Raises ValueError, before anything is updated, when the loss is not finite; `where` names the batch.
        """
        self._engine.backward(loss)
        if not torch.isfinite(loss).item():
            raise ValueError(
                f"the loss is {loss.item()} at {where}; the last checkpoint is whole: "
                "look at these images, or train into another out with a lower learning rate"
            )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        self._engine.step()

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient of the last update, before clipping."""
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def save(self, folder: str, tag: str) -> None:
        """Write weights and optimizer under folder/tag; every rank calls it."""
        self._engine.save_checkpoint(folder, tag=tag, save_latest=False)

    def load(self, folder: str, tag: str) -> None:
        """Inverse of save. Raises ValueError when it is not there."""
        if self._engine.load_checkpoint(folder, tag=tag)[0] is None:
            raise ValueError(f"checkpoint {folder}/{tag} is gone or damaged; delete {folder}'s parent to start anew")

    def weights(self) -> dict[str, Tensor]:
        """Full float32 weights and buffers; every rank calls it."""
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_fp32_param

        if self.config.zero_stage < 3:
            return {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        named = dict(self.module.named_parameters())
        with zero.GatheredParameters(list(named.values())):
            shapes = {name: parameter.detach().clone() for name, parameter in named.items()}
        full = {name: safe_get_full_fp32_param(parameter) for name, parameter in named.items()}
        buffers = {name: value for name, value in self.module.state_dict().items() if name not in named}
        return {**buffers, **{name: shapes[name] if full[name] is None else full[name] for name in named}}

    def averaged_weights(self) -> dict[str, Tensor]:
        """Full float32 averages kept by AdamWithEMA, and the buffers; every rank calls it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        weights = self.weights()
        if self.config.zero_stage in (1, 2):
            # DeepSpeed links states to parameters once, after the first step of the first parameter group, when the
            # other groups have none yet; and loading a checkpoint leaves the links behind.
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.module.named_parameters():
            if self.config.zero_stage == 0:
                weights[name] = self._engine.optimizer.state[parameter]["ema"].detach().clone()
            else:
                weights[name] = safe_get_full_optimizer_state(parameter, "ema").view_as(weights[name]).clone()
        return weights


def adamw(model: nn.Module, config: OptimizerConfig, ema_decay: float) -> AdamWithEMA:
    """The generator's optimizer: no weight decay on norms, biases and embeddings."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in model.parameters() if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamWithEMA(groups, lr=config.lr, betas=config.betas, ema_decay=ema_decay)


def adam(model: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    """The tokenizer's optimizer, and its discriminator's: plain Adam."""
    return torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
