"""On a GPU: two processes, each with compiled code of its own, draw the same samples to the bit."""

import os
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SAMPLES = """
import hashlib, sys, torch
from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.inference.rdpm import RDPM

torch.manual_seed(0)
sizes = AutoencoderConfig(channels=32, num_res_blocks=1)
generator, tokenizer = Generator(GeneratorConfig(depth=4)), Tokenizer(TokenizerConfig(autoencoder=sizes))
with torch.no_grad():
    for weight in generator.parameters():
        weight.add_(0.02 * torch.randn_like(weight))
model = RDPM(generator.eval(), tokenizer.eval(), batch=16, precision=sys.argv[1], compile=sys.argv[2] == "compiled")
images = model.sample(list(range(40)), guidance=2.0, temperature=1.0)  # three batches: a graph is replayed
looped = model.sample(list(range(40)), guidance=2.0, temperature=1.0, callback=lambda *_: None)
assert (images == looped).all()  # with a callback no graph is used
print(hashlib.sha256(images.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("compiled", ["eager", "compiled"])
def test_two_processes_draw_the_same_samples(repository, tmp_path, compiled) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAMPLES, precision, compiled],
            cwd=repository,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"{precision}-{number}")},
            stdout=subprocess.PIPE,
            text=True,
        )
        for precision in ("fp32", "bf16")
        for number in range(2)
    ]
    try:
        digests = [process.communicate()[0].strip() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * 4
    assert digests[0] == digests[1] != ""
    assert digests[2] == digests[3] != digests[0]
