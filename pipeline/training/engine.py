"""The only import of DeepSpeed: the process group, and engines whose state is full tensors under every ZeRO stage."""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rdpm.models.fields import EXECUTION
from rdpm.pipeline.training.launch import end_with_launcher
from rdpm.pipeline.training.ranks import Ranks, forget_groups


@dataclass(frozen=True)
class EngineConfig:
    """Precision, clipping and sharding of one model under DeepSpeed."""

    zero_stage: int = field(default=0, metadata=EXECUTION)
    """ZeRO stage: 0 shards nothing, 1 the optimizer's state, 2 the gradients too, 3 the weights too."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """fp32, or bf16: the model runs under autocast, over float32 weights."""
    clip: float = 1.0
    """Largest norm of the gradient, beyond which it is scaled down; 0 for no limit."""
    offload: bool = field(default=False, metadata=EXECUTION)
    """Keep the optimizer's state on the CPU and update the weights there (stages 1 to 3)."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"zero_stage is {self.zero_stage}; use 0, 1, 2 or 3")
        if self.offload and self.zero_stage == 0:
            raise ValueError("offload is true at zero_stage 0, which shards nothing; use zero_stage 1, 2 or 3")


@contextlib.contextmanager
def joined_ranks(threads: int) -> Iterator[Ranks]:
    """For the length of the block, join the process group that torchrun or deepspeed set up, or one of a single rank.

    Afterwards this process can join another group. After an error in the block, it does not wait for the other ranks.
    """
    end_with_launcher()
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")
    with _launcher_variables():
        _deepspeed().init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), device)
        together = True
        try:
            yield ranks
        except BaseException as error:
            together = ranks.count == 1 or isinstance(error, SystemExit)  # SIGTERM ends every rank after the same step
            raise
        finally:
            if together:
                dist.barrier()
                _deepspeed().comm.destroy_process_group()
                forget_groups()


@contextlib.contextmanager
def _launcher_variables() -> Iterator[None]:
    """Where no launcher set the variables that DeepSpeed reads, set them for a single rank.

    They must not outlast the group: a training that this process starts later would take itself for a rank.
    """
    single: dict[str, str] = {}
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        single = {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    before = {name: os.environ.get(name) for name in single}
    os.environ.update(single)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _deepspeed():
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no CUDA
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    return deepspeed


class Engine:
    """One model with its optimizer under DeepSpeed: calls, updates, and the complete state as full tensors."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: EngineConfig,
        micro_batch: int,
        accumulation: int,
        whole: tuple[type[nn.Module], ...] = (),
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        """whole: classes of modules that ZeRO-3 must gather with their children, whose weights their forward uses.

        state: the `state` of an engine to continue, under any ZeRO stage and on any number of ranks.
        """
        if config.zero_stage == 3 and whole:
            _deepspeed().utils.set_z3_leaf_modules(model, list(whole))
        if state:
            model.load_state_dict(_named(state, "weight", "buffer"))
        self.config, self._optimizer = config, optimizer
        self._norm = torch.zeros(())  # at stage 0, where DeepSpeed clips but does not tell the norm
        zero: dict[str, Any] = {"stage": config.zero_stage}
        if config.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        settings = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": config.clip if config.zero_stage else 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # ours holds the average of the weights
            "zero_optimization": zero,
            "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
            "steps_per_print": 10**12,
        }
        self._engine, *_ = _deepspeed().initialize(
            model=model, optimizer=optimizer, dist_init_required=False, config=settings
        )
        if state:
            self._restore_optimizer(state)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self._engine.module

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    @torch.no_grad()
    def evaluate(self, *inputs: Any) -> Any:
        """A forward pass without gradients, in eval mode; every rank calls it."""
        self._engine.eval()
        outputs = self._engine(*inputs)
        self._engine.train()
        return outputs

    def step(self, loss: Tensor, lr: float, where: str) -> None:
        """Backward pass of one micro-batch and, after the last one of a step, the clipped update.

        where: names the batch, for the error message. Raises ValueError, before the update, when the loss is not
        finite.
        """
        self._engine.backward(loss)
        if not torch.isfinite(loss).item():
            raise ValueError(
                f"the loss is {loss.item()} at {where}; look at these images, or train into another out with a lower "
                "learning rate (the last checkpoint is undamaged)"
            )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        if self.config.zero_stage == 0 and self._engine.is_gradient_accumulation_boundary():
            self._norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip or math.inf)
        self._engine.step()

    @property
    def gradient_norm(self) -> float:
        """Norm of the gradient of the last update, before clipping."""
        return float(self._norm if self.config.zero_stage == 0 else self._engine.get_global_grad_norm())

    def state(self, *kinds: str) -> Iterator[tuple[str, Tensor]]:
        """Everything that training changes, or the given kinds of it, as full tensors, one at a time.

        Names are KIND/PARAMETER, where KIND is "buffer", "weight", "step", or a key of the optimizer's state ("exp_avg"
        or "ema"). Each tensor is gathered from all ranks, so every rank must iterate to the end. Some tensors share
        memory with the model: copy what you keep.
        """
        parameters = dict(self.module.named_parameters())
        for name, value in self.module.state_dict().items():
            if name not in parameters and _wanted("buffer", kinds):
                yield f"buffer/{name}", value.detach()
        states = self._states()
        for state in states[:1]:
            if _wanted("step", kinds):
                yield "step/", state["step"]
        keys = sorted({key for state in states for key, value in state.items() if value.ndim})
        self._link_states()
        for name, parameter in parameters.items():
            for kind in ("weight", *keys):
                if _wanted(kind, kinds):
                    value = self._full(parameter, kind)
                    if value is not None:
                        yield f"{kind}/{name}", value

    def weights(self, kind: str = "weight") -> dict[str, Tensor]:
        """Full float32 weights (with "ema": their averages) and buffers. Every rank calls it; the first gets them."""
        first = dist.get_rank() == 0
        tensors = {name: value.to("cpu", copy=True) for name, value in self.state("buffer", kind) if first}
        return _named(tensors, "buffer", kind)

    def _states(self) -> list[dict[str, Tensor]]:
        """The optimizer's state of each tensor that it updates; under ZeRO, of flat shards of many parameters."""
        return [state for state in self._optimizer.state.values() if state]

    def _updated(self) -> list[Tensor]:
        """The tensors that the optimizer updates on this rank."""
        if self.config.zero_stage == 0:
            return [p for group in self._optimizer.param_groups for p in group["params"]]
        if self.config.zero_stage == 3:
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return list(self._engine.optimizer.single_partition_of_fp32_groups)

    def _link_states(self) -> None:
        """Renew the links by which ZeRO-1 and 2 find a parameter's state; they make them once, after the first step."""
        if self.config.zero_stage in (1, 2) and self._states():
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _full(self, parameter: nn.Parameter, kind: str) -> Tensor | None:
        """The full tensor of a parameter, or of its state of this kind; None where there is none."""
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_optimizer_state

        if kind == "weight":
            if self.config.zero_stage < 3:
                return parameter.detach()
            with zero.GatheredParameters([parameter]):
                return parameter.detach().clone()
        if self.config.zero_stage == 0:
            return self._optimizer.state.get(parameter, {}).get(kind)
        return safe_get_full_optimizer_state(parameter, kind).view(getattr(parameter, "ds_shape", parameter.shape))

    def _restore_optimizer(self, state: Mapping[str, Tensor]) -> None:
        """Restore the optimizer's state, if it had made a step; the model already has the weights."""
        kinds = sorted({name.split("/", 1)[0] for name in state} - {"weight", "buffer", "step"})
        if "step/" not in state:
            return
        for tensor in self._updated():
            zeros = {kind: torch.zeros_like(tensor, dtype=torch.float32, requires_grad=False) for kind in kinds}
            self._optimizer.state[tensor] = {"step": state["step/"].clone(), **zeros}
        self._link_states()
        for name, parameter in self.module.named_parameters():
            for kind in kinds:
                if f"{kind}/{name}" in state:
                    self._set(parameter, kind, state[f"{kind}/{name}"])

    def _set(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        """Write this rank's share of a full tensor to where the optimizer keeps it."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.config.zero_stage == 0:
            self._optimizer.state[parameter][kind].copy_(value)
        elif self.config.zero_stage < 3:
            safe_set_full_optimizer_state(parameter, value.to(parameter.device), kind)
        else:
            share = getattr(parameter, "ds_tensor").numel()  # noqa: B009, set by ZeRO-3; the last rank's is padded
            part = value.flatten()[dist.get_rank() * share :][:share]
            safe_set_local_optimizer_state(parameter, F.pad(part, (0, share - len(part))), kind)


def _wanted(kind: str, kinds: tuple[str, ...]) -> bool:
    return not kinds or kind in kinds


def _named(state: Mapping[str, Tensor], *kinds: str) -> dict[str, Tensor]:
    """The tensors of these kinds by the name of their parameter or buffer."""
    parts = ((name.split("/", 1), name) for name in state)
    return {own: state[name] for (kind, own), name in parts if kind in kinds}
