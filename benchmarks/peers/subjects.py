"""How each model is made, trained for a step and sampled, by its own code: as its own scripts do, with random weights.

A process that measures one model imports this file by its path, in the environment and the folder of that model. So it
imports nothing of ours at the top, and each function imports the model's code when it is called. All models are for
ImageNet at 256 x 256; samples are guided, as published.
"""

# ruff: noqa: TID251, I001 (here, models is the peers' own)

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Subject:
    """A model that is ready to be measured, in training mode or for sampling."""

    parts: dict[str, nn.Module]
    """Modules that are called once per forward pass of a network, by the network's name."""
    work: Callable[[int], Tensor]
    """Training: the loss of a batch. Sampling: images of a batch, in so many steps of the sampler."""
    steps: int = 1
    """Steps of the published sampler."""
    short: tuple[int, int] | None = None
    """Two smaller numbers of steps, where time grows evenly with the number; None where `work` takes no number."""
    own_precision: bool = False
    """Whether the model casts itself; else it runs under autocast."""
    weights: list[nn.Module] = field(default_factory=list)
    """What is trained."""


@dataclass(frozen=True)
class Run:
    """What is asked for."""

    sampling: bool
    batch: int
    device: torch.device
    precision: str

    @property
    def labels(self) -> Tensor:
        """One class per image."""
        return torch.arange(self.batch, device=self.device) % 1000


def _sd_vae(device: torch.device) -> nn.Module:
    """Stable Diffusion's VAE by its published sizes, which DiT and SiT decode with."""
    from diffusers.models import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    )
    return vae.to(device).eval()


def _guided(run: Run) -> tuple[Tensor, Tensor]:
    """Noise and labels of a batch, and the same noise with the empty label, as DiT's and SiT's sample.py make them."""
    noise = torch.randn(run.batch, 4, 32, 32, device=run.device)
    return torch.cat([noise, noise]), torch.cat([run.labels, torch.full_like(run.labels, 1000)])


def dit(run: Run) -> Subject:
    """DiT-XL/2: train.py's loss, and sample.py with 250 steps of DDPM and guidance 1.5."""
    from diffusion import create_diffusion
    from models import DiT_models

    model = DiT_models["DiT-XL/2"](input_size=32, num_classes=1000).to(run.device).train(not run.sampling)
    parts = {"transformer": model.x_embedder}
    if not run.sampling:
        diffusion, latents = create_diffusion(timestep_respacing=""), torch.randn(run.batch, 4, 32, 32).to(run.device)

        def loss(_: int) -> Tensor:
            t = torch.randint(0, diffusion.num_timesteps, (run.batch,), device=run.device)
            return diffusion.training_losses(model, latents, t, {"y": run.labels})["loss"].mean()

        return Subject(parts, loss, weights=[model])
    vae = _sd_vae(run.device)

    def sample(steps: int) -> Tensor:
        noise, labels = _guided(run)
        given = {"y": labels, "cfg_scale": 1.5}
        found = create_diffusion(str(steps)).p_sample_loop(
            model.forward_with_cfg, noise.shape, noise, clip_denoised=False, model_kwargs=given, device=run.device
        )
        return vae.decode(found.chunk(2)[0] / 0.18215).sample

    return Subject(parts, sample, 250, (2, 4))


def sit(run: Run, solver: str = "sde") -> Subject:
    """SiT-XL/2: train.py's loss, and sample.py with 250 steps of Euler's method (SDE or ODE) and guidance 1.5."""
    from models import SiT_models
    from transport import Sampler, create_transport

    model = SiT_models["SiT-XL/2"](input_size=32, num_classes=1000).to(run.device).train(not run.sampling)
    parts, transport = {"transformer": model.x_embedder}, create_transport()
    if not run.sampling:
        latents = torch.randn(run.batch, 4, 32, 32).to(run.device)
        return Subject(
            parts,
            lambda _: transport.training_losses(model, latents, {"y": run.labels})["loss"].mean(),
            weights=[model],
        )
    vae, sampler = _sd_vae(run.device), Sampler(transport)

    def sample(steps: int) -> Tensor:
        noise, labels = _guided(run)
        if solver == "ode":
            solve = sampler.sample_ode(sampling_method="euler", num_steps=steps)
        else:
            solve = sampler.sample_sde(sampling_method="Euler", diffusion_form="sigma", num_steps=steps)
        found = solve(noise, model.forward_with_cfg, y=labels, cfg_scale=1.5)[-1]
        return vae.decode(found.chunk(2)[0] / 0.18215).sample

    return Subject(parts, sample, 250, (3, 5) if solver == "ode" else (2, 3))


def var(run: Run, depth: int) -> Subject:
    """VAR: the trainer's loss on given codes, and autoregressive_infer_cfg as README.md evaluates it."""
    from models import build_vae_var

    vae, model = build_vae_var(device=run.device, depth=depth, shared_aln=False)  # it leaves the VAE's memory as it is
    with torch.no_grad():
        for weight in vae.parameters():
            weight.normal_(std=0.02)
    model.train(not run.sampling)
    parts = {"transformer": model.blocks[0]}
    if run.sampling:

        def sample(_: int) -> Tensor:
            return model.autoregressive_infer_cfg(run.batch, run.labels, cfg=1.5, top_k=900, top_p=0.96)

        return Subject(parts, sample, len(model.patch_nums))
    codes = [torch.randint(0, model.V, (run.batch, side**2), device=run.device) for side in model.patch_nums]
    expected = torch.cat(codes, dim=1).flatten()

    def loss(_: int) -> Tensor:
        logits = model(run.labels, vae.quantize.idxBl_to_var_input(codes))
        return nn.functional.cross_entropy(logits.view(-1, model.V), expected)

    return Subject(parts, loss, weights=[model])


def llamagen(run: Run, size: str) -> Subject:
    """LlamaGen at 16 x 16 codes: train_c2i.py's loss, and sample_c2i_ddp.py with guidance 2, its weights cast."""
    from autoregressive.models.generate import generate
    from autoregressive.models.gpt import GPT_models
    from tokenizer.tokenizer_image.vq_model import VQ_models

    model = GPT_models[f"GPT-{size}"](vocab_size=16384, block_size=256, num_classes=1000, cls_token_num=1)
    model = model.to(run.device).train(not run.sampling)
    parts = {"transformer": model.layers[0]}
    if not run.sampling:
        codes = torch.randint(0, 16384, (run.batch, 256), device=run.device)
        return Subject(
            parts, lambda _: model(cond_idx=run.labels, idx=codes[:, :-1], targets=codes)[1], weights=[model]
        )
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    model, decoder = model.to(dtype), VQ_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8)
    decoder = decoder.to(run.device).eval()

    def sample(_: int) -> Tensor:
        codes = generate(model, run.labels, 256, cfg_scale=2.0, temperature=1.0, top_k=0, top_p=1.0, sample_logits=True)
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            return decoder.decode_code(codes, [run.batch, 8, 16, 16])

    return Subject(parts, sample, 256, own_precision=True)


def mar(run: Run, size: str) -> Subject:
    """MAR: its loss with four noise levels per token, and sample_tokens as README.md evaluates it (256 iterations)."""
    if run.device.type == "cpu":  # the code asks for CUDA by name: where there is none, a tensor stays where it is
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
    from models import mar as code
    from models.vae import AutoencoderKL

    depth, width, guidance = {"base": (6, 1024, 2.9), "large": (8, 1280, 3.0)}[size]
    model = getattr(code, f"mar_{size}")(diffloss_d=depth, diffloss_w=width).to(run.device).train(not run.sampling)
    parts = {"transformer": model.encoder_blocks[0], "diffusion head": model.diffloss.net.input_proj}
    if not run.sampling:
        latents = torch.randn(run.batch, 16, 16, 16).to(run.device)
        return Subject(parts, lambda _: model(latents, run.labels), weights=[model])
    vae = AutoencoderKL(embed_dim=16, ch_mult=(1, 1, 2, 2, 4)).to(run.device).eval()

    def sample(steps: int) -> Tensor:
        tokens = model.sample_tokens(run.batch, num_iter=steps, cfg=guidance, cfg_schedule="linear", labels=run.labels)
        return vae.decode(tokens / 0.2325)

    return Subject(parts, sample, 256, (4, 8))


def rdpm(run: Run, depth: int) -> Subject:
    """Ours: the generator's loss on stored codes (noise and z'_{t-1} are made in the step), and RDPM.sample."""
    import numpy as np
    from rdpm.models.generator import Generator, GeneratorConfig, code_loss
    from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
    from rdpm.pipeline.inference.rdpm import RDPM
    from rdpm.pipeline.stream.token_stream import TokenBatch
    from rdpm.pipeline.training.generator.draws import Draws, training_batch

    model, tokenizer = Generator(GeneratorConfig(depth=depth)).to(run.device), Tokenizer(TokenizerConfig())
    if run.sampling:
        sampler = RDPM(model.eval(), tokenizer.eval(), batch=run.batch, device=run.device, precision=_precision(run))
        settings = {"guidance": 2.0, "ramp": "linear", "temperature": 1.0}
        labels: Sequence[int] = run.labels.tolist()
        return Subject({}, lambda _: torch.from_numpy(sampler.sample(labels, **settings)), 10, own_precision=True)
    draw, quantizer = np.random.default_rng(0), tokenizer.quantizer.to(run.device)
    batch = TokenBatch(
        positions=np.arange(run.batch),
        labels=run.labels.cpu().numpy().astype(np.int32),
        codes=draw.integers(0, 4096, (run.batch, 10, 16, 16)).astype(np.uint16),
        seeds=draw.integers(0, 2**63, run.batch).astype(np.uint64),
    )
    draws = Draws("stored", 1, 0.1, 1000, 0)

    def loss(_: int) -> Tensor:
        *given, codes = training_batch(quantizer, batch, draws, run.device).arguments
        return code_loss(model(*given), codes).mean()

    return Subject({"transformer": model.transformer}, loss, weights=[model])


def _precision(run: Run) -> Any:
    return run.precision


SUBJECTS: dict[str, Callable[[Run], Subject]] = {
    "DiT-XL/2": dit,
    "SiT-XL/2 (SDE)": sit,
    "SiT-XL/2 (ODE)": lambda run: sit(run, "ode"),
    "VAR-d16": lambda run: var(run, 16),
    "VAR-d20": lambda run: var(run, 20),
    "LlamaGen-B": lambda run: llamagen(run, "B"),
    "LlamaGen-L": lambda run: llamagen(run, "L"),
    "LlamaGen-XL": lambda run: llamagen(run, "XL"),
    "MAR-B": lambda run: mar(run, "base"),
    "MAR-L": lambda run: mar(run, "large"),
    "RDPM d12": lambda run: rdpm(run, 12),
    "RDPM d16": lambda run: rdpm(run, 16),
    "RDPM d20": lambda run: rdpm(run, 20),
}
"""Every model by its name; SiT's training does not depend on its solver, so only the first trains."""
