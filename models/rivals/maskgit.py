"""MaskGIT (Chang et al. 2022): codes of one step, of which hidden ones are predicted, and drawn a few at a time."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rdpm.models.choice import StepSettings, choose_codes
from rdpm.models.codebook import Codebook
from rdpm.models.generator import GeneratorConfig
from rdpm.models.noise import Stream, gumbel, random_words, uniform
from rdpm.models.quantizer import Quantizer
from rdpm.models.rivals.rival import Drawn, Given, Rival, Rows

_USUAL = 10  # rounds
_CHOICE = 4.5  # factor of the noise on confidences, before it fades evenly over the rounds, as in the authors' code


class MaskGIT(Rival):
    """Logits of the codes at all positions, given those at some."""

    def __init__(self, config: GeneratorConfig) -> None:
        check_one_step(config)
        super().__init__(config, config.code_dim + 1, config.codebook_size, timed=False)

    @staticmethod
    def evaluations(config: GeneratorConfig, asked: int) -> int:
        """Rounds: 10 unless others are asked for, and no more than positions."""
        if asked > config.grid**2:
            raise ValueError(f"evaluations is {asked}; use at most {config.grid**2}, one per position")
        return asked or min(_USUAL, config.grid**2)

    @staticmethod
    def given(quantizer: Quantizer, rows: Rows) -> Given:
        """What is seen, labels, codes, and what is hidden: cos(pi u / 2) of all for a uniform u, at least one."""
        assert rows.codes is not None
        codes = rows.codes[:, 0]
        count = codes[0].numel()
        share = torch.cos(math.pi / 2 * uniform(rows.seeds, 1, (1,), Stream.STEP))
        order = random_words(rows.seeds, 2, Stream.STEP, count).argsort(dim=1, stable=True).argsort(dim=1)
        hidden = (order < (share * count).ceil().clamp(min=1)).view_as(codes)
        seen = look(quantizer.codebook, codes, hidden)
        return Given((seen, rows.labels, codes, hidden), torch.ones_like(rows.labels))

    def loss(self, *arguments: Tensor) -> Float[Tensor, " b"]:
        """Cross-entropy in nats, averaged over the hidden positions."""
        seen, labels, codes, hidden = arguments
        losses = F.cross_entropy(self(seen, labels).flatten(0, 1), codes.flatten(), reduction="none")
        weights = hidden.flatten(1).float()
        return (losses.view_as(weights) * weights).sum(1) / weights.sum(1)

    def example(self, count: int) -> tuple[Tensor, ...]:
        """What is seen, labels, codes and what is hidden."""
        config = self.config
        seen = torch.empty(count, config.grid**2, config.code_dim + 1)
        codes = torch.zeros(count, config.grid, config.grid, dtype=torch.int64)
        return seen, torch.zeros(count, dtype=torch.int64), codes, codes == 0

    def draw(
        self,
        codebook: Codebook,
        labels: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        settings: Sequence[StepSettings],
    ) -> Drawn:
        """Keep, round by round, the codes of which the network is surest. Noise on that fades from round to round."""
        grid, rounds = self.config.grid, len(settings)
        codes = torch.zeros(len(seeds), grid, grid, dtype=torch.int64, device=seeds.device)
        hidden = torch.ones_like(codes, dtype=torch.bool)
        for number, count in enumerate(revealed(grid**2, rounds), start=1):
            steps = torch.full_like(seeds, number)
            logits = self.guided(look(codebook, codes, hidden), labels, settings[number - 1].guidance)
            drawn = choose_codes(logits.unflatten(1, (grid, grid)), settings[number - 1], seeds, steps)
            sure = logits.log_softmax(-1).gather(2, drawn.flatten(1).unsqueeze(2)).squeeze(2)
            sure = sure + _CHOICE * (1 - number / rounds) * gumbel(seeds, number, (grid**2,), Stream.STEP)
            best = sure.masked_fill(~hidden.flatten(1), -math.inf).topk(count, 1).indices
            kept = torch.zeros_like(hidden).flatten(1).scatter(1, best, True).view_as(hidden)
            codes, hidden = torch.where(kept, drawn, codes), hidden & ~kept
        return Drawn(codebook.accumulated(codes.unsqueeze(1), 1), codes.unsqueeze(1))


def check_one_step(config: GeneratorConfig) -> None:
    """Raise ValueError unless the codes are of one step."""
    if config.num_steps != 1:
        raise ValueError(f"num_steps is {config.num_steps}; method {config.method} learns codes of 1 step")


def look(codebook: Codebook, codes: Int[Tensor, "b h w"], hidden: Bool[Tensor, "b h w"]) -> Float[Tensor, "b s i"]:
    """What the network sees: code vectors, zeros where they are hidden, and a one there."""
    there = hidden.unsqueeze(1).to(codebook.vectors)
    return torch.cat([codebook.look_up(codes) * (1 - there), there], dim=1).flatten(2).transpose(1, 2)


def revealed(positions: int, rounds: int) -> list[int]:
    """Codes to keep in each round, at least 1: after round k of R, cos(pi k / 2 R) of all positions are hidden."""
    hidden = [positions]
    for number in range(1, rounds + 1):
        wanted = math.floor(positions * math.cos(math.pi / 2 * number / rounds))
        hidden.append(max(rounds - number, min(hidden[-1] - 1, wanted)))
    return [before - after for before, after in pairwise(hidden)]
