"""On a GPU: two processes, each with compiled code of its own, draw the same samples to the bit."""

import os
import subprocess
import sys

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SAMPLES = """
import hashlib, sys, torch
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.inference.rdpm import RDPM

torch.manual_seed(0)
generator, tokenizer = Generator(GeneratorConfig(depth=6)), Tokenizer(TokenizerConfig())
with torch.no_grad():
    for weight in generator.parameters():
        weight.add_(0.02 * torch.randn_like(weight))
model = RDPM(generator.eval(), tokenizer.eval(), batch=16, precision=sys.argv[1], compile=sys.argv[2] == "compiled")
images = model.sample(list(range(24)), guidance=2.0, temperature=1.0)
print(hashlib.sha256(images.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("compiled", ["eager", "compiled"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_two_processes_draw_the_same_samples(repository, tmp_path, precision, compiled) -> None:
    digests = []
    for number in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SAMPLES, precision, compiled],
            cwd=repository,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / str(number))},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        digests.append(done.stdout.split()[-1])
    assert digests[0] == digests[1]
