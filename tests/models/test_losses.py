"""Losses of Eq. 3-5, VQGAN's adaptive weight, and LPIPS."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

import rdpm.models.losses as losses_module
from rdpm.models.autoencoder import AutoencoderConfig, Decoder
from rdpm.models.discriminator import Discriminator, DiscriminatorConfig
from rdpm.models.losses import (
    PerceptualLoss,
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    last_layer_gradient,
    load_vgg16,
    reconstruction_loss,
)


def logits(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


@pytest.mark.parametrize(
    ("real", "fake", "loss"),
    [
        ((1.0,), (-1.0,), 0.0),
        ((5.0,), (-5.0,), 0.0),
        ((0.0,), (0.0,), 1.0),
        ((-1.0,), (1.0,), 2.0),
        ((0.5, 3.0), (-0.5, -3.0), 0.25),
        ((0.0, 2.0), (1.0, 1.0), 1.25),
    ],
)
def test_the_discriminators_hinge_stops_at_the_margin(real, fake, loss):
    assert discriminator_hinge(logits(*real), logits(*fake)).item() == pytest.approx(loss)


def test_the_generators_hinge_is_linear():
    assert generator_hinge(logits(3.0, -1.0)).item() == -1
    assert generator_hinge(logits(-10.0)).item() == 10


def test_the_reconstruction_loss_is_the_mean_square():
    x, y = torch.rand(2, 2, 3, 4, 4)
    assert reconstruction_loss(x, y).item() == pytest.approx(((x - y) ** 2).sum().item() / x.numel())
    assert reconstruction_loss(x, x) == 0
    assert reconstruction_loss(x, y.bfloat16()).dtype == torch.float32


CONFIG = AutoencoderConfig(channels=8, multipliers=(1, 2), num_res_blocks=1, attention_factors=(), groups=4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_the_adaptive_weight_is_vqgans(channels, scale):
    """Against plain autograd through the whole decoder and discriminator, as taming-transformers computes it."""
    decoder = Decoder(replace(CONFIG, in_channels=channels), 4)
    critic = Discriminator(DiscriminatorConfig(4), channels)
    latents, images = torch.randn(2, 4, 8, 8), torch.rand(2, channels, 16, 16)
    features = decoder.features(latents)
    picture = decoder.last(features)
    nll, gan = reconstruction_loss(images, picture), scale * generator_hinge(critic(picture))
    norms = [torch.autograd.grad(loss, decoder.last.weight, retain_graph=True)[0].norm() for loss in (nll, gan)]
    expected = torch.clamp(norms[0] / (norms[1] + 1e-4), 0, 1e4)

    cut = picture.detach().requires_grad_()
    grads = [
        torch.autograd.grad(loss, cut)[0]
        for loss in (reconstruction_loss(images, cut), scale * generator_hinge(critic(cut)))
    ]
    torch.testing.assert_close(adaptive_weight(features, *grads), expected, atol=0, rtol=1e-4)


def test_the_last_layers_gradient_is_autograds():
    decoder, features = Decoder(CONFIG, 4), torch.randn(2, 8, 16, 16)
    picture = decoder.last(features)
    upstream = torch.randn_like(picture)
    (expected,) = torch.autograd.grad(picture, decoder.last.weight, upstream)
    torch.testing.assert_close(last_layer_gradient(features, upstream), expected, atol=1e-4, rtol=1e-5)


def test_the_adaptive_weight_is_clamped_and_carries_no_gradient():
    features, grad = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(1, 3, 4, 4)
    assert adaptive_weight(features, 1e6 * grad, 0 * grad) == 1e4
    assert adaptive_weight(features, 0 * grad, grad) == 0
    assert not adaptive_weight(features, grad, grad).requires_grad


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small_trunk():
    """Named like lpips' VGG16, with one convolution in each of two slices."""
    trunk = nn.Module()
    trunk.slice1 = nn.Sequential()
    trunk.slice1.add_module("0", nn.Conv2d(3, 4, 3))
    trunk.slice2 = nn.Sequential()
    trunk.slice2.add_module("5", nn.Conv2d(4, 4, 3))
    return trunk


@pytest.fixture
def small_file(tmp_path):
    layers = {"0": nn.Conv2d(3, 4, 3), "5": nn.Conv2d(4, 4, 3)}
    state = {f"features.{i}.{name}": w for i, layer in layers.items() for name, w in layer.state_dict().items()}
    path = tmp_path / "vgg.pth"
    torch.save({**state, "classifier.0.weight": torch.zeros(1)}, path)
    return path


def test_weights_are_loaded_into_their_layers(small_trunk, small_file):
    load_vgg16(small_trunk, str(small_file), digest(small_file)[:8])
    state = torch.load(small_file)
    for slice_name, layer in (("slice1", "0"), ("slice2", "5")):
        for name in ("weight", "bias"):
            loaded = small_trunk.state_dict()[f"{slice_name}.{layer}.{name}"]
            assert torch.equal(loaded, state[f"features.{layer}.{name}"])


def test_a_missing_file_is_refused_with_its_name(small_trunk, tmp_path):
    path = str(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match=re.escape(path)):
        load_vgg16(small_trunk, path, "00000000")


def test_a_wrong_file_is_refused_with_its_name_and_digest(small_trunk, small_file):
    before = {name: weight.clone() for name, weight in small_trunk.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(str(small_file))) as refusal:
        load_vgg16(small_trunk, str(small_file), "00000000")
    assert digest(small_file)[:8] in str(refusal.value)
    assert "00000000" in str(refusal.value)
    assert all(torch.equal(weight, before[name]) for name, weight in small_trunk.state_dict().items())


def test_a_flipped_byte_is_refused(small_trunk, small_file):
    expected = digest(small_file)[:8]
    content = bytearray(small_file.read_bytes())
    content[len(content) // 2] ^= 1
    small_file.write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        load_vgg16(small_trunk, str(small_file), expected)


def test_a_file_that_lacks_a_layer_is_refused_with_the_layers_name(small_trunk, small_file):
    state = torch.load(small_file)
    del state["features.5.bias"]
    torch.save(state, small_file)
    with pytest.raises(ValueError, match=r"features\.5\.bias"):
        load_vgg16(small_trunk, str(small_file), digest(small_file)[:8])


@pytest.fixture(scope="module")
def vgg16_file(tmp_path_factory):
    """A file with the names and shapes of torchvision's vgg16 features, and random weights."""
    path = tmp_path_factory.mktemp("lpips") / "vgg16.pth"
    torch.manual_seed(1)
    torch.save({f"features.{k}": v for k, v in make_layers(cfgs["D"], batch_norm=False).state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def perceptual(vgg16_file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses_module, "VGG16_SHA256_PREFIX", digest(vgg16_file)[:8])
        return PerceptualLoss(str(vgg16_file))


@pytest.mark.slow
def test_lpips_runs_on_the_weights_of_the_file(perceptual, vgg16_file):
    loaded = perceptual.metric.net.state_dict()
    state = torch.load(vgg16_file)
    assert len(loaded) == len(state) == 26
    for name, weight in loaded.items():
        assert torch.equal(weight, state["features." + name.split(".", 1)[1]])


def test_other_weights_give_another_distance(perceptual, vgg16_file):
    x, y = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    before = perceptual(x, y)
    state = torch.load(vgg16_file)
    try:
        with torch.no_grad():
            for weight in perceptual.metric.net.parameters():
                weight.mul_(1.5)
        assert not torch.allclose(perceptual(x, y), before, rtol=1e-4)
    finally:
        names = {name: "features." + name.split(".", 1)[1] for name in perceptual.metric.net.state_dict()}
        perceptual.metric.net.load_state_dict({name: state[source] for name, source in names.items()})
    assert torch.equal(perceptual(x, y), before)


def test_the_perceptual_distance_is_zero_only_for_equal_images(perceptual):
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    assert perceptual(x, x) == 0
    assert perceptual(x, y) > 0
    pairs = [perceptual(x[i : i + 1], y[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(perceptual(x, y), torch.stack(pairs).mean())


def test_a_grey_image_is_repeated_to_three_channels(perceptual):
    x, y = torch.rand(2, 1, 1, 32, 32) * 2 - 1
    torch.testing.assert_close(perceptual(x, y), perceptual(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))


def test_the_perceptual_loss_has_a_gradient_for_the_picture_and_none_for_its_own_weights(perceptual):
    x, y = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32, requires_grad=True)
    perceptual(x, y).backward()
    assert y.grad.any()
    assert not any(weight.requires_grad for weight in perceptual.parameters())
    assert not any(module.training for module in perceptual.modules())


def test_the_perceptual_loss_is_lpips_formula(perceptual):
    """Unit-normalized features of five layers, squared differences weighted by the published heads."""
    x, y = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    total = torch.zeros(())
    parts = [(image - shift) / scale for image in (x, y)]
    for level in range(1, 6):
        parts = [perceptual.metric.net.get_submodule(f"slice{level}")(part) for part in parts]
        one, other = (F.normalize(part, dim=1) for part in parts)
        head = perceptual.metric.lins[level - 1].model[-1].weight
        total = total + F.conv2d((one - other) ** 2, head).mean()
    torch.testing.assert_close(perceptual(x, y), total, atol=1e-6, rtol=1e-4)


def test_under_autocast_only_vgg16_is_rounded(perceptual):
    x, y = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        rounded, same = perceptual(x, y), perceptual(x, x)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, perceptual(x, y), atol=0, rtol=0.02)
    assert rounded != perceptual(x, y)
    assert same == 0


def test_positions_without_any_feature_have_a_finite_gradient(perceptual):
    bias = perceptual.metric.net.slice5[-2].bias
    before = bias.clone()
    x, y = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32, requires_grad=True)
    try:
        bias.data.fill_(-1e3)  # so the last features are all zero
        perceptual(x, y).backward()
    finally:
        bias.data.copy_(before)
    assert torch.isfinite(y.grad).all()
    assert y.grad.any()


@pytest.mark.slow
def test_a_failed_download_of_vgg16_is_refused_with_the_fix(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "torchvision.models.VGG16_Weights.IMAGENET1K_V1.value.url", "file:///nowhere/vgg16-397923af.pth"
    )
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth could not be downloaded.*loss\.perceptual=none"):
        PerceptualLoss("torchvision")


@pytest.mark.slow
def test_torchs_own_copy_of_vgg16_is_checked_too(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    copy = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"not those weights")
    with pytest.raises(ValueError, match="sha256"):
        PerceptualLoss("torchvision")
