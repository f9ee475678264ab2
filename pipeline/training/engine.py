"""The only import of DeepSpeed: engines whose state is full tensors under every ZeRO stage."""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from rdpm.models.fields import EXECUTION
from rdpm.pipeline.training.pace import Stopwatch
from rdpm.pipeline.training.ranks import SharedError
from rdpm.pipeline.training.saved_state import flat_part, named

GRADIENT = "the gradient is not finite"


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


def load_deepspeed() -> Any:
    """The package, which is imported when it is first needed, and quiet."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no CUDA
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    return deepspeed


def building(config: EngineConfig) -> contextlib.AbstractContextManager:
    """Within this context, under ZeRO-3, every layer is split over the ranks as soon as it is made.

    So no rank ever holds the whole model. Weights are drawn on the CPU, one layer at a time and in the same order as
    without it, so they are the same. A module that changes the weights of another one must do it through `apply`.
    """
    if config.zero_stage < 3:
        return contextlib.nullcontext()
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    return load_deepspeed().zero.Init(config_dict_or_path=settings, tensor_overrides=())


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
            load_deepspeed().utils.set_z3_leaf_modules(model, list(whole))
        if state:
            _load(model, state)
        self.config, self._optimizer = config, optimizer
        self._losses: list[tuple[Tensor, str]] = []
        self._due = False  # whether the gradient of a whole step waits for its update
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
            "torch_autocast": {
                "enabled": config.precision == "bf16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # whose gradients it would reduce in bfloat16: none
            },
            "steps_per_print": 10**12,
        }
        self._engine, *_ = load_deepspeed().initialize(
            model=model, optimizer=optimizer, dist_init_required=False, config=settings
        )
        self.forward = Stopwatch(self._engine.device)
        """How long the forward passes of the training take."""
        if state:
            self._restore_optimizer(state)

    @property
    def module(self) -> nn.Module:
        """The model itself."""
        return self._engine.module

    def __call__(self, *inputs: Any) -> Any:
        self.forward.start()
        outputs = self._engine(*inputs)
        self.forward.stop()
        return outputs

    @torch.no_grad()
    def evaluate(self, *inputs: Any) -> Any:
        """A forward pass without gradients, in eval mode; every rank calls it."""
        self._engine.eval()
        outputs = self._engine(*inputs)
        self._engine.train()
        return outputs

    def backward(self, loss: Tensor, where: str) -> None:
        """Backward pass of one micro-batch. After the last one of a step, `problem` and then `update` must follow.

        where: names the batch, for the error message.
        """
        self._engine.backward(loss)
        self._losses.append((loss.detach(), where))
        self._due = self._engine.is_gradient_accumulation_boundary()
        if not self._due:
            self._engine.step()

    def problem(self) -> str | None:
        """What forbids the update on this rank: a loss of this step that is not finite, or, at stage 0, a gradient.

        None where the update may follow. Waits for the device, once per step.
        """
        if not self._due:
            return None
        values = [loss for loss, _ in self._losses]
        if self.config.zero_stage == 0:
            self._norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip or math.inf)
            values.append(self._norm)
        numbers = torch.stack([value.float() for value in values]).tolist()
        for value, (_, where) in zip(numbers, self._losses, strict=False):
            if not math.isfinite(value):
                return f"the loss is {value} at {where}"
        return None if math.isfinite(numbers[-1]) else GRADIENT

    def update(self, lr: float) -> bool:
        """The clipped update after the last micro-batch of a step; False, on every rank, where the gradient forbids it.

        A gradient that is not finite changes no weight. Does nothing where there was no backward pass.
        """
        if not self._due:
            return True
        self._due, self._losses = False, []
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return self._engine.was_step_applied()

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
        """Full float32 weights (with "ema": their averages) and buffers. Every rank calls it; the first gets them.

        Raises SharedError when one is not finite.
        """
        first = dist.get_rank() == 0
        tensors: dict[str, Tensor] = {}
        finite: dict[str, Tensor] = {}
        for name, value in self.state("buffer", kind):
            finite[name] = torch.isfinite(value).all()
            if first:
                tensors[name] = value.to("cpu", copy=True)
        damaged = next((name for name, good in finite.items() if not good), None)
        if damaged:
            raise SharedError(f"{damaged} is not finite; train into another out with a lower learning rate")
        return named(tensors, "buffer", kind)

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
            self._optimizer.state[tensor] = {"step": state["step/"].to(tensor.device, copy=True), **zeros}
        self._link_states()
        for name, parameter in self.module.named_parameters():
            for kind in kinds:
                if f"{kind}/{name}" in state:
                    self._set(parameter, kind, state, name)

    def _set(self, parameter: nn.Parameter, kind: str, state: Mapping[str, Tensor], name: str) -> None:
        """Write this rank's share of a tensor of the state to where the optimizer keeps it. Nothing else is read."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.config.zero_stage == 0:
            self._optimizer.state[parameter][kind].copy_(state[f"{kind}/{name}"])
        elif self.config.zero_stage == 3:
            safe_set_local_optimizer_state(parameter, _share(parameter, state, f"{kind}/{name}"), kind)
        elif getattr(parameter, "_hp_mapping") is not None:  # noqa: B009, set by ZeRO: this rank updates a part of it
            safe_set_full_optimizer_state(parameter, state[f"{kind}/{name}"].to(parameter.device), kind)


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set weights and buffers. Of weights that are split already, only this rank's share is read."""
    split = {name: p for name, p in model.named_parameters() if hasattr(p, "ds_tensor")}
    if not split:
        model.load_state_dict(named(state, "weight", "buffer"))
        return
    model.load_state_dict(named(state, "buffer"), strict=False)
    for name, parameter in split.items():
        parameter.ds_tensor.data.copy_(_share(parameter, state, f"weight/{name}"))


def _share(parameter: nn.Parameter, state: Mapping[str, Tensor], name: str) -> Tensor:
    """This rank's share of a tensor under ZeRO-3, flat; the last rank's is padded."""
    size = getattr(parameter, "ds_tensor").numel()  # noqa: B009, set by ZeRO-3
    start = dist.get_rank() * size
    part = flat_part(state, name, start, start + size)
    return F.pad(part, (0, size - len(part)))


def _wanted(kind: str, kinds: tuple[str, ...]) -> bool:
    return not kinds or kind in kinds
