"""A linear probe: how much of an image's class a linear map finds in the latents of a token store.

    python examples/linear_probe.py runs/demo/store

The store must hold latents (`latents: true` of rdpm tokenize). Every fifth row is held out.
"""

import argparse

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Subset

from rdpm import TokenDataset


def read(rows: TokenDataset, numbers: list[int], batch: int) -> tuple[Tensor, Tensor]:
    """Latents as vectors (n, d h w) float32, and labels (n,), of these rows."""
    loader = DataLoader(Subset(rows, numbers), batch_size=batch)
    parts = [(part["latents"].float().flatten(1), part["label"]) for part in loader]
    latents, labels = zip(*parts, strict=True)
    return torch.cat(latents), torch.cat(labels)


def fit(latents: Tensor, labels: Tensor, classes: int, decay: float) -> torch.nn.Linear:
    """Logistic regression by L-BFGS, with `decay` times the squared weights."""
    probe = torch.nn.Linear(latents.shape[1], classes)
    torch.nn.init.zeros_(probe.weight)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(probe(latents), labels) + decay * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return probe


@torch.no_grad()
def accuracy(probe: torch.nn.Linear, latents: Tensor, labels: Tensor) -> float:
    return (probe(latents).argmax(1) == labels).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", help="token stores with latents: folders or URLs")
    parser.add_argument("--decay", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    rows = TokenDataset(options.stores, columns=("latents", "label"))
    held_out = list(range(0, len(rows), 5))
    seen = sorted(set(range(len(rows))) - set(held_out))
    latents, labels = read(rows, seen, options.batch)
    mean, scale = latents.mean(0), latents.std(0).clamp_min(1e-3)
    classes = len(rows.stores[0].manifest.plan.tokens.classes)
    probe = fit((latents - mean) / scale, labels, classes, options.decay)
    others, truth = read(rows, held_out, options.batch)
    found = accuracy(probe, (latents - mean) / scale, labels), accuracy(probe, (others - mean) / scale, truth)
    print(f"accuracy {found[0]:.3f} in {len(seen)} rows, {found[1]:.3f} in {len(held_out)} held-out rows")
    print(f"chance {1 / classes:.3f}")


if __name__ == "__main__":
    main()
