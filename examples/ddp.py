"""PyTorch's own data parallelism on a token store, without DeepSpeed: any ranks, and it goes on where it was stopped.

    torchrun --nproc-per-node 2 examples/ddp.py runs/demo/store --steps 200 --checkpoint ddp.pt

Run the same command again, also with another number of ranks, to go on from the checkpoint: no row is lost and none
comes twice. The model learns the class of an image from its codes; put yours in its place.
"""

import argparse
import os

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from rdpm import TokenDataset


class Classes(nn.Module):
    """(b, T, h, w) codes to (b, classes) logits: an embedding per code and place, then two layers."""

    def __init__(self, codebook: int, places: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.embedding, self.places = nn.Embedding(codebook, width), nn.Parameter(torch.ones(places, width))
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, classes))

    def forward(self, codes: Tensor) -> Tensor:
        return self.layers((self.embedding(codes.flatten(1)) * self.places).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stores", nargs="+", help="token stores: folders or URLs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="rows per step, over all ranks")
    parser.add_argument("--workers", type=int, default=0, help="processes per rank that read ahead")
    parser.add_argument("--every", type=int, default=50, help="steps between checkpoints")
    parser.add_argument("--checkpoint", default="ddp.pt")
    options = parser.parse_args()
    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(0)

    rows = TokenDataset(options.stores)
    made, shape = rows.stores[0].manifest.plan.tokens, rows.stores[0].specs["codes"].row_shape
    places = shape[0] * shape[1] * shape[2]
    model = DistributedDataParallel(Classes(made.codebook_size, places, len(made.classes)).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    data = rows.batches(options.batch, seed=0, rank=rank, ranks=ranks)
    step = 0
    if os.path.exists(options.checkpoint):
        saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        data.load_state_dict(saved["data"])
        step = saved["step"]

    loader = DataLoader(data, batch_size=None, num_workers=options.workers, pin_memory=cuda)
    for epoch in range(data.epoch, 1_000_000):
        data.set_epoch(epoch)
        for batch in loader:
            if step >= options.steps:
                break
            loss = functional.cross_entropy(model(batch["codes"].to(device)), batch["label"].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % options.every == 0 or step == options.steps:
                distributed.all_reduce(loss := loss.detach())
                if rank == 0:
                    print(f"step {step}, epoch {epoch}: loss {loss.item() / ranks:.4f}")
                    save(options.checkpoint, model.module, optimizer, data.state_dict(batch), step)
        if step >= options.steps:
            break
    distributed.barrier()
    distributed.destroy_process_group()


def save(path: str, model: nn.Module, optimizer: torch.optim.Optimizer, data: dict, step: int) -> None:
    """Write a checkpoint, which gets its name when it is complete."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "data": data, "step": step}
    torch.save(state, f"{path}.part")
    os.replace(f"{path}.part", path)


if __name__ == "__main__":
    main()
