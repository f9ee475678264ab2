"""A scale-wise generator (Tian et al. 2024, "VAR"): codes of growing maps, all codes of a map at once.

The tokenizer quantizes residuals of block means (`quantizer.growing`). The network sees, at the positions of map t, the
block means of z'_{t-1}, and attends to all maps up to t.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.choice import StepSettings, choose_codes
from rdpm.models.codebook import Codebook
from rdpm.models.generator import GeneratorConfig
from rdpm.models.initial import normal
from rdpm.models.quantizer import Quantizer
from rdpm.models.rivals.rival import Drawn, Given, Rival, Rows
from rdpm.models.scales import block_means, check_sides, repeated, sides
from rdpm.models.transformer import position_embedding, rotary_angles


class ScaleWise(Rival):
    """Logits of the codes of every map, given z' of the maps before it. All maps follow each other in one sequence."""

    map_of: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        check_sides(config.grid, config.num_steps)
        super().__init__(config, config.code_dim, config.codebook_size, timed=False)
        transformer, grid = self.transformer, config.grid
        self.sides = sides(grid, config.num_steps)
        self.map_embedding = nn.Embedding(config.num_steps, transformer.width)
        self.map_embedding.apply(normal)
        numbers = [torch.full((side**2,), number) for number, side in enumerate(self.sides)]
        self.register_buffer("map_of", torch.cat(numbers), persistent=False)
        self.mask = self.map_of.unsqueeze(1) >= self.map_of.unsqueeze(0)
        angles = _on_every_map(rotary_angles(grid, 64), grid, self.sides)  # linear in the place, so block means fit
        transformer.cos, transformer.sin = angles.cos(), angles.sin()
        transformer.positions = _on_every_map(position_embedding(grid, transformer.width), grid, self.sides)

    @staticmethod
    def evaluations(config: GeneratorConfig, asked: int) -> int:
        """One per map."""
        if asked not in (0, config.num_steps):
            raise ValueError(f"evaluations is {asked}; method scales takes {config.num_steps}, one per map")
        return config.num_steps

    @staticmethod
    def given(quantizer: Quantizer, rows: Rows) -> Given:
        """What is seen, labels and codes, of all maps."""
        assert rows.codes is not None
        T, grid, codebook = *rows.codes.shape[1:3], quantizer.codebook
        total, seen, codes = codebook.start(rows.codes[:, 0]), [], []
        for side, on_grid in zip(sides(grid, T), rows.codes.unbind(1), strict=True):
            seen.append(block_means(codebook.phi(total), side).flatten(2))
            codes.append(on_grid[:, :: grid // side, :: grid // side].flatten(1))
            total = codebook.accumulate_step(total, on_grid)
        inputs = torch.cat(seen, 2).transpose(1, 2)
        return Given((inputs, rows.labels, torch.cat(codes, 1)), torch.ones_like(rows.labels))

    def embed(self, inputs: Float[Tensor, "b s i"]) -> Float[Tensor, "b s width"]:
        """Maps of one size differ by an embedding."""
        projected = self.project(inputs)
        return projected + self.map_embedding(self.map_of).to(projected.dtype)

    def loss(self, *arguments: Tensor) -> Float[Tensor, " b"]:
        """Cross-entropy in nats, averaged over the codes of all maps."""
        seen, labels, codes = arguments
        losses = F.cross_entropy(self(seen, labels).flatten(0, 1), codes.flatten(), reduction="none")
        return losses.view_as(codes).mean(1)

    def example(self, count: int) -> tuple[Tensor, ...]:
        """What is seen, labels and codes."""
        codes = torch.zeros(count, len(self.map_of), dtype=torch.int64)
        seen = torch.empty(count, len(self.map_of), self.config.code_dim)
        return seen, torch.zeros(count, dtype=torch.int64), codes

    def draw(
        self,
        codebook: Codebook,
        labels: Int[Tensor, " b"],
        seeds: Int[Tensor, " b"],
        settings: Sequence[StepSettings],
    ) -> Drawn:
        """Map by map. Earlier maps are computed again each time: there is no cache of keys and values."""
        grid, first, maps = self.config.grid, 0, []
        total = codebook.start(seeds.new_zeros(len(seeds), grid, grid))
        seen = total.new_zeros(len(seeds), len(self.map_of), total.shape[1])
        for number, (side, at_map) in enumerate(zip(self.sides, settings, strict=True), start=1):
            own = slice(first, first + side**2)
            seen[:, own] = block_means(codebook.phi(total), side).flatten(2).transpose(1, 2)
            logits = self.guided(seen, labels, at_map.guidance)[:, own].unflatten(1, (side, side))
            drawn = choose_codes(logits, at_map, seeds, torch.full_like(seeds, number))
            maps.append(repeated(drawn, grid))
            total, first = codebook.accumulate_step(total, maps[-1]), own.stop
        return Drawn(codebook.phi(total), torch.stack(maps, 1))


def _on_every_map(table: Float[Tensor, "s k"], grid: int, all_sides: Sequence[int]) -> Float[Tensor, "n k"]:
    """A table of grid x grid positions for the codes of all maps: the mean over the positions that a code covers."""
    on_grid = table.T.reshape(1, -1, grid, grid)
    return torch.cat([block_means(on_grid, side).flatten(2) for side in all_sides], 2)[0].T.contiguous()
