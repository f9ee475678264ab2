"""The compiled sampler: one graph for all steps, any settings, and on a GPU one CUDA graph of them."""

import functools
import itertools
import shutil

import pytest
import torch
from torch import nn

from rdpm.models.compiled_steps import CompiledSteps, _copy, _forms, _values
from rdpm.models.sampler import Known, SamplerConfig, advance, all_steps, modulations_of, sample, step_settings
from tests.models.test_sampler import LABELS, MIXED, SEEDS, everywhere


@pytest.mark.parametrize(
    "config", [MIXED[0], MIXED[4], SamplerConfig(temperature=0.0)], ids=["random", "all", "greedy"]
)
@pytest.mark.parametrize("expanded", [True, False], ids=["known", "unknown"])
def test_a_graph_has_buffers_of_its_own_for_every_tensor_of_a_call(unchecked, generator, config, expanded):
    """Also for settings that are one tensor in all steps, and for a mask whose rows are one row in memory."""
    mask = torch.ones(1, 4, 4, 4, dtype=torch.bool).expand(5, -1, -1, -1)
    known = Known(torch.zeros(5, 4, 4, 4, dtype=torch.int64), mask) if expanded else None
    given = modulations_of(generator, LABELS), SEEDS, step_settings([config] * 5, 4, SEEDS.device), known
    own = tuple(_copy(part) for part in given)
    assert _forms(own) == _forms(given)
    places = set()
    for mine, value in zip(_values(own), _values(given), strict=True):
        if mine is not None and value is not None:
            assert torch.equal(mine, value)
            mine.copy_(torch.zeros_like(value))
            places |= {mine.data_ptr(), value.data_ptr()}
    tensors = [value for value in _values(given) if value is not None]
    assert len(places) == len(tensors) + len({value.data_ptr() for value in tensors})
    other = step_settings([SamplerConfig(temperature=0.0 if config.temperature else 1.0)] * 5, 4, SEEDS.device)
    assert _forms((*given[:2], other, known)) != _forms(given)


def test_all_steps_share_one_graph(unchecked, tokenizer, generator):
    """Without a break, with everything at once, and it draws the codes of the loop."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    codebook, graph = tokenizer.quantizer.codebook, torch.compile(advance, backend="eager", fullgraph=True)
    drawn = sample(generator, codebook, LABELS, SEEDS, MIXED)
    known = Known(drawn.codes.flip(0), torch.arange(4).view(4, 1).expand(5, 4, 4, 4) == 0)
    eager = sample(generator, codebook, LABELS, SEEDS, MIXED, known)
    shown = []
    run = functools.partial(all_steps, step=graph)
    compiled = sample(generator, codebook, LABELS, SEEDS, MIXED, known, after_step=lambda *s: shown.append(s), run=run)
    assert torch.equal(compiled.codes, eager.codes)
    assert torch.equal(compiled.accumulated, eager.accumulated)
    assert [t for t, _ in shown] == [1, 2, 3, 4]
    assert torch.equal(torch.stack([accumulated for _, accumulated in shown], 1), eager.accumulated)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_one_process_may_compile_many_kinds_of_settings(unchecked, monkeypatch, tokenizer, generator):
    """More than the compiler allows unless it is told; by its front alone, which takes no C++ compiler."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    codebook, graph = tokenizer.quantizer.codebook, CompiledSteps()
    known = everywhere(sample(generator, codebook, LABELS, SEEDS, SamplerConfig()).codes)
    kinds = itertools.product((None, known), (0, 2.0), (0, 1.0), (0, 3))
    for given, guidance, temperature, top_k in itertools.islice(kinds, 10):
        config = SamplerConfig(guidance, "constant", temperature, top_k)
        eager = sample(generator, codebook, LABELS, SEEDS, config, given)
        compiled = sample(generator, codebook, LABELS, SEEDS, config, given, run=graph)
        assert torch.equal(compiled.codes, eager.codes)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_the_compiled_steps_draw_the_same_codes(unchecked, tokenizer, generator):
    """With guidance, randomness, truncation and known codes at once."""
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    generator.transformer.blocks = generator.transformer.blocks[:1]  # half the compiler's time
    generator.transformer.adaln = nn.Linear(128, 8 * 128)
    codebook = tokenizer.quantizer.codebook
    drawn = sample(generator, codebook, LABELS, SEEDS, MIXED).codes
    known = Known(drawn.flip(0), torch.arange(4).view(4, 1).expand(5, 4, 4, 4) == 0)
    eager = sample(generator, codebook, LABELS, SEEDS, MIXED, known)
    graph = sample(generator, codebook, LABELS, SEEDS, MIXED, known, run=CompiledSteps())
    assert torch.equal(graph.codes, eager.codes)
    torch.testing.assert_close(graph.accumulated, eager.accumulated)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")
def test_the_cuda_graph_of_all_steps_draws_the_codes_of_the_loop(unchecked, tokenizer, generator):
    """Again and again, for other labels, seeds and settings of the same kind, with known codes, and step by step."""
    torch._dynamo.reset()
    codebook, generator = tokenizer.quantizer.codebook.cuda(), generator.cuda()
    graph = CompiledSteps()
    labels, seeds = LABELS.cuda(), SEEDS.cuda()
    for turn in range(5):
        configs = [SamplerConfig(guidance=1.0 + turn, temperature=0.5 + turn / 4)] * 5
        eager = sample(generator, codebook, labels.roll(turn), seeds + turn, configs)
        drawn = sample(generator, codebook, labels.roll(turn), seeds + turn, configs, run=graph)
        assert (drawn.codes == eager.codes).float().mean() > 0.99  # rounding may decide between two codes
        known = Known(eager.codes, torch.ones_like(eager.codes, dtype=torch.bool))
        forced = sample(generator, codebook, labels, seeds, configs, known, run=graph)
        assert torch.equal(forced.codes, eager.codes)
        shown: list[int] = []
        again = sample(
            generator, codebook, labels.roll(turn), seeds + turn, configs,
            after_step=lambda t, _, shown=shown: shown.append(t), run=graph,
        )  # fmt: skip
        assert torch.equal(again.accumulated, drawn.accumulated)
        assert shown == [1, 2, 3, 4]
