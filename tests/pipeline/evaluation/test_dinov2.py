"""DINOv2's features, with made weights of a small network: torch-fidelity's preprocessing, and no other file."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from rdpm.pipeline.evaluation import dinov2
from rdpm.pipeline.evaluation.dinov2 import DinoExtractor, DinoTransformer
from rdpm.pipeline.evaluation.evaluate import evaluate
from tests.pipeline.evaluation.made_run import DRAWN, make_run

WIDTH, DEPTH = 128, 2


def made(positions: int) -> DinoTransformer:
    """A network whose weights are all random."""
    torch.manual_seed(0)
    network = DinoTransformer(WIDTH, DEPTH, positions)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with DINOv2's names, whose digest is accepted. Its positions must be resized."""
    path = tmp_path_factory.mktemp("dinov2") / "made.pth"
    torch.save(made(5).state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        prefix = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        patch.setattr(dinov2, "DINOV2", dataclasses.replace(dinov2.DINOV2, sha256_prefix=prefix))
        yield path


def _pixels(n: int, channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(n, 16, 16, channels)).astype(np.uint8)


def test_the_network_is_a_transformer_with_scaled_branches():
    """PyTorch's own layers, with the scales folded into their last weights, give the same."""
    network, images = made(2), torch.randn(3, 3, 28, 28)
    tokens = torch.cat([network.cls_token.expand(3, -1, -1), network.patch_embed(images)], 1) + network.pos_embed
    patch = (images[1, :, :14, 14:] * network.patch_embed.proj.weight[7]).sum() + network.patch_embed.proj.bias[7]
    assert network.patch_embed(images)[1, 1, 7] == pytest.approx(float(patch), rel=1e-3)
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(
            WIDTH, WIDTH // 64, 4 * WIDTH, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        one, two = block.ls1.gamma, block.ls2.gamma
        layer.load_state_dict(
            {
                **{f"self_attn.in_proj_{kind}": getattr(block.attn.qkv, kind) for kind in ("weight", "bias")},
                "self_attn.out_proj.weight": block.attn.proj.weight * one[:, None],
                "self_attn.out_proj.bias": block.attn.proj.bias * one,
                **{f"linear1.{kind}": getattr(block.mlp.fc1, kind) for kind in ("weight", "bias")},
                "linear2.weight": block.mlp.fc2.weight * two[:, None],
                "linear2.bias": block.mlp.fc2.bias * two,
                **{f"norm{i}.{kind}": getattr(getattr(block, f"norm{i}"), kind)
                   for i in (1, 2) for kind in ("weight", "bias")},
            }
        )  # fmt: skip
        with torch.no_grad():
            tokens = layer.train()(tokens)  # in eval mode it takes a fused path
    expected = network.norm(tokens)[:, 0]
    assert torch.allclose(network(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.slow
def test_images_are_prepared_as_by_torch_fidelity(weights, monkeypatch):
    """Its extractor, around the same network, which it would get from torch.hub, gives the same features."""
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    asked = []
    monkeypatch.setattr(torch.hub, "load", lambda *names: asked.append(names) or made(5))
    theirs = FeatureExtractorDinoV2("dinov2-vit-l-14", ["dinov2"])
    assert asked == [("facebookresearch/dinov2", "dinov2_vitl14")]
    pixels = _pixels(3, 3)
    with torch.no_grad():
        (expected,) = theirs(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    ours = DinoExtractor(str(weights), 2).extract(pixels)
    assert ours.logits is None
    assert ours.spatial is None
    assert ours.features.shape == (3, WIDTH)
    assert np.allclose(ours.features, expected.numpy(), rtol=1e-4, atol=1e-5)
    grey = DinoExtractor(str(weights), 3).extract(_pixels(3, 1))
    repeated = DinoExtractor(str(weights), 1).extract(np.repeat(_pixels(3, 1), 3, axis=-1))
    assert np.allclose(grey.features, repeated.features, rtol=1e-4, atol=1e-5)  # in other batches, too
    assert grey.features.std(axis=0).max() > 0.01


def test_another_file_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"dinov2_weights 'missing' does not exist; give the path of dinov2_vitl14"):
        DinoExtractor("missing", 4)
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"not the weights")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))
    digest = hashlib.sha256(b"not the weights").hexdigest()[:8]
    with pytest.raises(ValueError, match=rf"dinov2_weights .* has sha256 {digest}, not [0-9a-f]+; give the path of"):
        DinoExtractor(str(wrong), 4)


@pytest.mark.slow
def test_an_evaluation_has_every_metric_that_needs_no_logits(weights, tmp_path):
    run = make_run(tmp_path)
    names = {"frechet_distance", "precision", "recall", "kid", "frechet_ratio", "spread", "pixel_frechet_ratio"}
    metrics = evaluate(run.config(extractor="dinov2", dinov2_weights=str(weights), batch=15))
    assert names <= set(metrics["generator"])
    assert not {"inception_score", "class_accuracy", "spatial_frechet_distance"} & set(metrics["generator"])
    assert np.isfinite([v for v in metrics["generator"].values() if isinstance(v, float)]).all()
    assert metrics["protocol"]["extractor"] == {
        "name": "dinov2", "digest": hashlib.sha256(weights.read_bytes()).hexdigest()
    }  # fmt: skip
    assert metrics["protocol"]["samples"]["images"] == 3 * DRAWN
