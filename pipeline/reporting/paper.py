"""The paper's Table 5, class-conditional ImageNet at 256 x 256. The report shows it beside a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """A row as printed; None where the paper has a dash."""

    model: str
    """Name of the model."""
    kind: str
    """Kind of model."""
    parameters: str
    """How many parameters it has; "-" where the paper does not say."""
    steps: str
    """How many steps a sample takes."""
    fid: float
    """FID on 50,000 samples."""
    inception_score: float | None
    """Inception score."""
    precision: float | None
    """Improved precision."""
    recall: float | None
    """Improved recall."""


TABLE_5 = (
    PublishedRow("RDPM (depth=12)", "discrete diffusion", "133M", "10", 3.68, 244.6, 0.84, 0.49),
    PublishedRow("RDPM (depth=16)", "discrete diffusion", "310M", "10", 2.91, 270.3, 0.83, 0.54),
    PublishedRow("RDPM (depth=20)", "discrete diffusion", "602M", "10", 2.56, 295.1, 0.80, 0.58),
    PublishedRow("BigGAN", "GAN", "112M", "1", 6.95, 224.5, 0.89, 0.38),
    PublishedRow("GigaGAN", "GAN", "569M", "1", 3.45, 225.5, 0.84, 0.61),
    PublishedRow("StyleGAN-XL", "GAN", "166M", "1", 2.30, 265.1, 0.78, 0.53),
    PublishedRow("ADM", "continuous diffusion", "554M", "250", 10.94, 101.0, 0.69, 0.63),
    PublishedRow("CDM", "continuous diffusion", "-", "8,100", 4.88, 158.7, None, None),
    PublishedRow("LDM-4", "continuous diffusion", "400M", "250", 3.60, 247.7, None, None),
    PublishedRow("GIVT", "continuous diffusion", "304M", "256", 3.35, None, 0.84, 0.53),
    PublishedRow("DiT-XL/2", "continuous diffusion", "675M", "250", 2.27, 278.2, 0.83, 0.57),
    PublishedRow("MAR", "continuous autoregression", "208M", "64", 2.31, 281.7, 0.82, 0.57),
    PublishedRow("MAR", "continuous autoregression", "479M", "64", 1.78, 296.0, 0.81, 0.60),
    PublishedRow("MAR", "continuous autoregression", "943M", "64", 1.55, 303.7, 0.81, 0.62),
    PublishedRow("VQGAN", "discrete autoregression", "227M", "256", 18.65, 80.4, 0.78, 0.26),
    PublishedRow("VQGAN", "discrete autoregression", "1.4B", "256", 15.78, 74.3, None, None),
    PublishedRow("VQGAN, rejection sampling", "discrete autoregression", "1.4B", "256", 5.20, 280.3, None, None),
    PublishedRow("ViT-VQGAN", "discrete autoregression", "1.7B", "1,024", 4.17, 175.1, None, None),
    PublishedRow("ViT-VQGAN, rejection sampling", "discrete autoregression", "1.7B", "1,024", 3.04, 227.4, None, None),
    PublishedRow("RQ-Transformer", "discrete autoregression", "3.8B", "68", 7.55, 134.0, None, None),
    PublishedRow(
        "RQ-Transformer, rejection sampling", "discrete autoregression", "3.8B", "68", 3.80, 323.7, None, None
    ),
    PublishedRow("MaskGIT", "discrete autoregression", "227M", "8", 6.18, 182.1, 0.80, 0.51),
    PublishedRow("MaskGIT, rejection sampling", "discrete autoregression", "227M", "8", 4.02, 355.6, None, None),
    PublishedRow("VAR-d16", "discrete autoregression", "310M", "10", 3.30, 274.4, 0.84, 0.51),
    PublishedRow("VAR-d20", "discrete autoregression", "600M", "10", 2.57, 302.6, 0.83, 0.56),
)
