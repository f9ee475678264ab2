"""float32 is computed in float32 wherever bytes are promised, whatever the process allows."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rdpm.models.noise import child_seeds
from rdpm.models.precision import full_precision
from rdpm.models.quantizer import Quantizer
from rdpm.pipeline.evaluation.classifier import Classifier, ClassifierConfig
from rdpm.pipeline.evaluation.features import ClassifierExtractor
from rdpm.pipeline.exports.weights import load_generator, load_tokenizer
from rdpm.pipeline.inference.batches import in_batches
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.pipeline.stream.token_stream import TokenBatch
from rdpm.pipeline.training.generator.draws import Draws, training_batch

CPU = torch.device("cpu")
BACKENDS = [getattr(torch.backends.mkldnn, part) for part in ("matmul", "conv", "rnn")]
BACKENDS += [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]


def precisions() -> list[str]:
    return [backend.fp32_precision for backend in BACKENDS]


@pytest.fixture
def rough() -> Iterator[list[str]]:
    """A process whose user allows bfloat16 on the CPU and TF32 on the GPU in place of float32."""
    former = precisions()
    for backend, precision in zip(BACKENDS, ["bf16"] * 3 + ["tf32"] * 3, strict=True):
        backend.fp32_precision = precision
    yield precisions()
    for backend, precision in zip(BACKENDS, former, strict=True):
        backend.fp32_precision = precision


@pytest.fixture(scope="module")
def models(tmp_path_factory, exports) -> tuple:
    """A small generator and its tokenizer."""
    folder = str(tmp_path_factory.mktemp("models"))
    exports.generator(f"{folder}/generator", exports.tokenizer(f"{folder}/tokenizer"))
    return load_generator(f"{folder}/generator")[0], load_tokenizer(f"{folder}/tokenizer")[0]


def test_every_model_computes_in_float32_and_the_users_choice_comes_back(rough, models, digits):
    generator, tokenizer = models
    seen = []
    parts = (tokenizer.encoder, tokenizer.decoder, generator, tokenizer.quantizer.codebook.bias)
    hooks = [part.register_forward_hook(lambda *_: seen.append(precisions())) for part in parts if part is not None]
    codec = Codec(tokenizer, 4, CPU)
    codec.decode(codec.encode(digits[0][:3, :, :, None], np.arange(3)).codes)
    RDPM(generator, tokenizer, batch=2, device=CPU).sample([0, 1, 1])
    for hook in hooks:
        hook.remove()
    assert len(seen) >= 4
    assert all(precision == ["ieee"] * 6 for precision in seen)
    assert precisions() == rough


def test_an_error_brings_the_users_choice_back_too(rough):
    def fail(rows, x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        in_batches(fail, (np.zeros((2, 3), np.float32),), 2, CPU)
    assert precisions() == rough


def test_codes_latents_and_pixels_are_those_of_a_process_that_allows_nothing(models, digits, request):
    codec, pixels, seeds = Codec(models[1], 8, CPU), digits[0][:40, :, :, None], np.arange(40)
    exact = codec.encode(pixels, seeds)
    images = codec.decode(exact.codes)
    request.getfixturevalue("rough")
    again = codec.encode(pixels, seeds)
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(exact).items())
    assert np.array_equal(images, codec.decode(exact.codes))


def test_z_of_a_training_batch_is_that_of_the_store(rough, models):
    """phi runs in training as it ran when the store was written."""
    quantizer: Quantizer = models[1].quantizer
    torch.nn.init.normal_(quantizer.codebook.bias.weight, generator=torch.Generator().manual_seed(0))
    codes = np.random.default_rng(0).integers(0, 16, (6, 3, 4, 4)).astype(np.uint16)
    seeds = child_seeds(1, torch.arange(6)).numpy().view(np.uint64)
    batch = TokenBatch(positions=np.arange(6), labels=np.zeros(6, np.int32), codes=codes, seeds=seeds)
    made = training_batch(quantizer, batch, Draws("stored", 3, 0.0, 2, seed=0), CPU)
    each = torch.from_numpy(codes.astype(np.int64)).repeat_interleave(3, 0)
    with full_precision():
        expected = quantizer.codebook.accumulated(each, made.steps - 1)
    assert torch.equal(made.accumulated, expected)


def test_a_quantizer_computes_in_float32_wherever_it_is_called(rough, models):
    """Also in the tokenizer's training, which computes the rest as the user allows."""
    quantizer, seen = models[1].quantizer, []
    latents = torch.randn(2, *models[1].config.latent_shape)

    def noise_at(t: int) -> torch.Tensor:
        seen.append(precisions())
        return torch.zeros_like(latents)

    quantizer.train()(latents, noise_at)
    assert seen == [["ieee"] * 6] * quantizer.schedule.num_steps
    assert precisions() == rough


def test_blocks_of_several_threads_leave_what_they_found(rough):
    """The first block to end does not end the other's, and the last one restores what was there before both."""
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with full_precision():
            entered.set()
            leave.wait(60)
            seen.append(precisions())

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        entered.wait(60)
    assert precisions() == ["ieee"] * 6
    leave.set()
    thread.join()
    assert seen == [["ieee"] * 6]
    assert precisions() == rough


def test_features_can_be_taken_inside_a_block():
    """Torch refuses to read its older flags there."""
    extractor = ClassifierExtractor(Classifier(ClassifierConfig(num_classes=2)), 4)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    plain = extractor.extract(pixels)
    with full_precision():
        assert np.array_equal(extractor.extract(pixels).features, plain.features)
