"""A raster transformer (Esser et al. 2021; Sun et al. 2024): codes of one step, one after the other, row by row."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rdpm.models.choice import StepSettings, choose_codes
from rdpm.models.codebook import Codebook
from rdpm.models.generator import GeneratorConfig
from rdpm.models.quantizer import Quantizer
from rdpm.models.rivals.maskgit import check_one_step
from rdpm.models.rivals.rival import Drawn, Given, Rival, Rows


class Raster(Rival):
    """Logits of the code at each position, given the codes before it."""

    def __init__(self, config: GeneratorConfig) -> None:
        check_one_step(config)
        super().__init__(config, config.code_dim, config.codebook_size, timed=False)
        self.mask = torch.ones(config.grid**2, config.grid**2, dtype=torch.bool).tril()

    @staticmethod
    def evaluations(config: GeneratorConfig, asked: int) -> int:
        """One per position."""
        if asked not in (0, config.grid**2):
            raise ValueError(f"evaluations is {asked}; method raster takes {config.grid**2}, one per position")
        return config.grid**2

    @staticmethod
    def given(quantizer: Quantizer, rows: Rows) -> Given:
        """What is seen, labels and codes."""
        assert rows.codes is not None
        codes = rows.codes[:, 0]
        return Given((before(quantizer.codebook, codes), rows.labels, codes), torch.ones_like(rows.labels))

    def loss(self, *arguments: Tensor) -> Float[Tensor, " b"]:
        """Cross-entropy in nats, averaged over positions."""
        seen, labels, codes = arguments
        losses = F.cross_entropy(self(seen, labels).flatten(0, 1), codes.flatten(), reduction="none")
        return losses.view(len(codes), -1).mean(1)

    def example(self, count: int) -> tuple[Tensor, ...]:
        """What is seen, labels and codes."""
        config = self.config
        seen = torch.empty(count, config.grid**2, config.code_dim)
        codes = torch.zeros(count, config.grid, config.grid, dtype=torch.int64)
        return seen, torch.zeros(count, dtype=torch.int64), codes

    def draw(
        self,
        codebook: Codebook,
        labels: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        settings: Sequence[StepSettings],
    ) -> Drawn:
        """Position by position. Earlier ones are computed again each time: there is no cache of keys and values."""
        grid = self.config.grid
        codes = torch.zeros(len(seeds), grid, grid, dtype=torch.int64, device=seeds.device)
        for place, at_place in enumerate(settings):
            logits = self.guided(before(codebook, codes), labels, at_place.guidance)[:, place]
            drawn = choose_codes(logits.view(len(seeds), 1, 1, -1), at_place, seeds, torch.full_like(seeds, place + 1))
            codes = codes.flatten(1).index_copy(1, seeds.new_tensor([place]), drawn.flatten(1)).view_as(codes)
        return Drawn(codebook.accumulated(codes.unsqueeze(1), 1), codes.unsqueeze(1))


def before(codebook: Codebook, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b s d"]:
    """The code vector of the position before each one; zeros at the first."""
    vectors = codebook.look_up(codes).flatten(2).transpose(1, 2)
    return F.pad(vectors[:, :-1], (0, 0, 1, 0))
