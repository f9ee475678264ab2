"""README.md of a publication: metadata that the Hugging Face hub reads, and text for people."""

import json
from typing import Any

import yaml

from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.card import generator_config, tokenizer_config
from rdpm.pipeline.sharing.contents import MOST_CLASSES, PER_CLASS, Contents, settings_shown
from rdpm.pipeline.sharing.published import CALIBRATED, GENERATOR, LIBRARY, PICTURE, TOKENIZER

_TASK = "unconditional-image-generation"  # the hub has no task for images of a class
_TAGS = ["class-conditional", "image-generation", "discrete-diffusion", LIBRARY]
_SHOWN = {  # of metrics.json
    "generator": (
        "frechet_distance", "frechet_ratio", "pixel_frechet_ratio", "inception_score", "precision", "recall", "kid",
        "spread", "class_accuracy", "copies",
    ),
    "tokenizer": ("psnr", "ssim", "lpips", "rfid", "codebook_usage"),
}  # fmt: skip
_REAL = {"class_accuracy": "classifier_accuracy_on_real"}
_MOST_NAMES = 50


def readme(contents: Contents, name: str, url: str, license: str) -> str:
    """The whole file. url: where readers find it; empty where that is not known. license: as the hub calls it."""
    front = yaml.safe_dump(_metadata(contents, name, license), sort_keys=False, allow_unicode=True)
    parts = [f"# {name}", _lead(contents), _use(contents, url), _classes(contents), _models(contents)]
    parts += [_metrics(contents)] if contents.metrics else []
    parts.append(_license(license))
    return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"


def _metadata(contents: Contents, name: str, license: str) -> dict[str, Any]:
    data: dict[str, Any] = {"license": license, "library_name": LIBRARY, "pipeline_tag": _TASK, "tags": _TAGS}
    results = _results(contents.metrics)
    if results:
        data["model-index"] = [{"name": name, "results": results}]
    return data


def _results(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics in the form of the hub's model-index; their names say in which feature space."""
    measured = [
        {
            "type": metric,
            "value": metrics["generator"][metric],
            "name": metric + _space(metrics["protocol"], f"generator.{metric}"),
        }
        for metric in _SHOWN["generator"]
        if metric in metrics.get("generator", {})
    ]
    if not measured:
        return []
    reference = metrics["protocol"]["reference"]
    dataset = {"name": f"images with digest {reference['digest'][:12]}", "type": "private"}
    return [{"task": {"type": _TASK}, "dataset": dataset, "metrics": measured}]


def _space(protocol: dict[str, Any], metric: str) -> str:
    """The feature space that a metric is measured in, in brackets; empty where it needs none."""
    needs = "extractor" in protocol["metrics"][metric]["of"]
    return f" ({protocol['extractor']['name']} features)" if needs else ""


def _lead(contents: Contents) -> str:
    tokenizer, generator = tokenizer_config(contents.cards[TOKENIZER]), generator_config(contents.cards[GENERATOR])
    colour = "grey" if tokenizer.autoencoder.in_channels == 1 else "colour"
    size, classes = tokenizer.image_size, contents.cards[GENERATOR].classes
    return (
        f"![Samples, one row per class]({PICTURE})\n\n"
        f"A Recurrent Diffusion Probabilistic Model (RDPM): it draws {colour} images of {size} x {size} pixels of "
        f"{_counted(len(classes), 'class', 'classes')}, in {generator.num_steps} steps of {generator.grid} x "
        f"{generator.grid} discrete codes. The picture shows {PER_CLASS} images of "
        + ("each class" if len(classes) <= MOST_CLASSES else f"each of the first {MOST_CLASSES} classes")
        + ", drawn by the code below; nothing was picked."
    )


def _use(contents: Contents, url: str) -> str:
    place = url or "FOLDER"
    other = ""
    if contents.shown == CALIBRATED:
        other = (
            f"\n\nThis takes `{CALIBRATED}/`: `{GENERATOR}/` with matched latents, whose samples vary more. Without "
            f'them: `RDPM.from_pretrained("{place}/{GENERATOR}", tokenizer="{place}/{TOKENIZER}")`.'
        )
    settings = _arguments(contents.sampler)
    settings = f", {settings}" if settings else ""
    shown = min(MOST_CLASSES, len(contents.cards[GENERATOR].classes))
    where = "" if url else " `FOLDER` is the folder or URL that holds this file."
    extra = {"hf": "[hub]", "s3": "[s3]"}.get(url.split("://")[0], "")
    return (
        f"## Use\n\nWith the package `rdpm{extra}`.{where}\n\n```python\nfrom rdpm import RDPM\n\n"
        f'model = RDPM.from_pretrained("{place}")\n'
        f"labels = [label for label in range({shown}) for _ in range({PER_CLASS})]\n"
        f"images = model.sample(labels, seed=0{settings})  # (N, H, W, 3) uint8: the picture above\n```\n\n"
        "The same pixels come on any machine with the same kind of device and the same versions. To train on from "
        f"these weights: `init={place}/{GENERATOR}` for `rdpm train-generator`, `init={place}/{TOKENIZER}` for "
        f"`rdpm train-tokenizer`.{other}"
    )


def _classes(contents: Contents) -> str:
    names = contents.cards[GENERATOR].classes
    listed = ", ".join(f"{label} {_code(name)}" for label, name in enumerate(names[:_MOST_NAMES]))
    more = f", and {len(names) - _MOST_NAMES} more in `{GENERATOR}/card.json`" if len(names) > _MOST_NAMES else ""
    return f"## Classes\n\nLabels and the names of their folders: {listed}{more}."


def _models(contents: Contents) -> str:
    lines = ["## Models", "", "| folder | digest | optimizer steps | batch |", "|---|---|---|---|"]
    for folder, card in contents.cards.items():
        lines.append(f"| `{folder}/` | `{card.digest}` | {card.steps} | {card.training.get('batch', '')} |")
    lines += ["", "Each `card.json` holds the settings of model and training, and the digest of its weights."]
    return "\n".join(lines)


def _metrics(contents: Contents) -> str:
    """Each number beside that of held-out images, with what it means and what it was measured on."""
    metrics = contents.metrics
    protocol = metrics["protocol"]
    lines = ["## Metrics", "", "| metric | value | of held-out images | what it is |", "|---|---|---|---|"]
    for part, names in _SHOWN.items():
        values = metrics.get(part, {})
        for name in names:
            if name in values:
                real = values.get(_REAL.get(name, f"{name}_real"))
                meaning = protocol["metrics"][f"{part}.{name}"]["convention"].replace("|", "\\|")
                title = name + _space(protocol, f"{part}.{name}")
                lines.append(f"| {part}: {title} | {_number(values[name])} | {_number(real)} | {meaning} |")
    lines += ["", f"Numbers compare only with those of the same protocol: {_inputs(protocol)}."]
    settings = json.dumps(protocol.get("settings", {}), sort_keys=True)
    if contents.measured:
        lines += ["", f"The samples were drawn with `{_arguments(contents.measured) or 'the default settings'}`."]
    return "\n".join([*lines, "", f"Settings: `{settings}`. Pixels: {protocol.get('rounding', '')}."])


def _inputs(protocol: dict[str, Any]) -> str:
    facts = []
    for name in ("samples", "reference", "held_out", "train", "extractor", "generator", "tokenizer"):
        if name in protocol:
            what = protocol[name]
            kind = f" {what['name']}" if "name" in what else ""
            count = f" {what['images']} images," if what.get("images") else ""
            facts.append(f"{name.replace('_', '-')}{kind}:{count} digest `{what['digest'][:12]}`")
    return "; ".join(facts)


def _arguments(sampler: SamplerConfig) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings_shown(sampler).items())


def _license(license: str) -> str:
    if license == "unknown":
        return "## Licence\n\nNone is stated, so nothing is allowed: ask whoever published this."
    return f"## Licence\n\n`{license}`, for weights and pictures."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _code(text: str) -> str:
    """A stranger's text as Markdown shows it literally, on one line."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"
