"""On a GPU: batches lie in pinned memory, and copies that are not waited for arrive whole."""

import numpy as np
import pytest
import torch

from rdpm.pipeline.stream.token_stream import StreamConfig, TokenStream

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("latents", [False, True])
def test_copies_out_of_the_stream_arrive_equal_without_waiting(stores, tmp_path, workers, latents) -> None:
    """The device is kept busy: copies start when their batches are long gone and the memory may be used again."""
    store = stores.build(str(tmp_path / "store"), stores.plan(rows=200, shard_rows=64, chunk_rows=16))
    config = StreamConfig(cache=str(tmp_path / "cache"), workers=workers)
    stream = TokenStream([store], seed=0, latents=latents, config=config)
    names = ("positions", "labels", *(("latents",) if latents else ("codes", "seeds")))
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    arrived: list[dict[str, tuple[np.ndarray, torch.Tensor]]] = []
    for batch in stream.batches(0, 50, batch=64, micro_batch=32):
        copies = {}
        for name in names:
            host = torch.from_numpy(getattr(batch, name))
            assert host.is_pinned(), name
            copies[name] = getattr(batch, name).copy(), host.to(DEVICE, non_blocking=True)
        arrived.append(copies)
    torch.cuda.synchronize()
    assert len(arrived) == 100
    for copies in arrived:
        for name, (expected, found) in copies.items():
            assert found.cpu().numpy().tobytes() == expected.tobytes(), name  # latents here may be NaN
