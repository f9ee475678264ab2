"""A raster transformer in plain PyTorch, trained on a token store: after the class, it predicts code after code.

    python examples/raster_transformer.py runs/demo/store --steps 300 --out raster.npy

A row of the store is T x h x w codes, read here as one sentence: step by step, row by row. `raster.npy` gets an image
of each class as codes, which `RDPM.from_pretrained("runs/demo").decode(numpy.load("raster.npy"))` makes visible.
"""

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from rdpm import TokenDataset


class Raster(nn.Module):
    """Logits of every code of a sentence, given the codes before it."""

    def __init__(self, words: int, length: int, width: int = 128, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, words)

    def forward(self, sentence: Tensor) -> Tensor:
        """(b, l) words to (b, l, words): logits of the word after each."""
        length = sentence.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length, device=sentence.device)
        return self.head(self.blocks(self.word(sentence) + self.place[:length], mask=causal, is_causal=True))


def sentences(codes: Tensor, labels: Tensor, codebook: int) -> Tensor:
    """(b, T, h, w) codes and (b,) labels to (b, 1 + T h w) words; a class is a word after those of the codebook."""
    return torch.cat([codebook + labels[:, None], codes.flatten(1)], dim=1)


@torch.no_grad()
def draw(model: Raster, labels: Tensor, codebook: int, length: int) -> Tensor:
    """One sentence of codes per label, (b, length), drawn word after word."""
    said = codebook + labels[:, None]
    for _ in range(length):
        logits = model(said)[:, -1, :codebook]
        said = torch.cat([said, torch.multinomial(logits.softmax(-1), 1)], dim=1)
    return said[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", help="token stores: folders or URLs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--out", default="raster.npy")
    options = parser.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    rows = TokenDataset(options.stores)
    made = rows.stores[0].manifest.plan.tokens
    shape, classes = rows.stores[0].specs["codes"].row_shape, len(made.classes)
    length, codebook = int(np.prod(shape)), made.codebook_size
    model = Raster(codebook + classes, length).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    data = rows.batches(options.batch, seed=0)
    loader = DataLoader(data, batch_size=None, num_workers=options.workers)
    step, epoch = 0, 0
    while step < options.steps:
        data.set_epoch(epoch)
        for batch in loader:
            said = sentences(batch["codes"], batch["label"], codebook).to(device)
            logits = model(said[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), said[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 20 == 0 or step == options.steps - 1:
                print(f"step {step}: {loss.item():.3f} nats per code; even guesses cost {np.log(codebook):.3f}")
            step += 1
            if step == options.steps:
                break
        epoch += 1
    drawn = draw(model.eval(), torch.arange(classes, device=device), codebook, length)
    np.save(options.out, drawn.reshape(classes, *shape).cpu().numpy().astype(np.uint16))


if __name__ == "__main__":
    main()
