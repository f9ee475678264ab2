"""Model cards: the hub's parser reads them, and their code draws their picture."""

import numpy as np
import pytest

from rdpm import RDPM
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.exports.card import read_card
from tests.pipeline.sharing.publications import LABELS, pixels, push


def test_the_hubs_parser_reads_the_card(trained, tmp_path) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    push(
        trained,
        str(tmp_path / "public"),
        license="cc-by-4.0",
        name="Digits: a trial",
        sampler=SamplerConfig(guidance=0.5),
    )
    card = huggingface_hub.ModelCard.load(str(tmp_path / "public" / "README.md"))
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "rdpm"
    assert card.data.model_name == "Digits: a trial"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found == {"frechet_distance (classifier features)": 1.25, "spread": 0.75}
    for text in ("![Samples", "guidance=0.5", "| generator: spread | 0.75 |", "0 `zero`, 1 `one`", "`cc-by-4.0`, for"):
        assert text in card.text


def test_the_code_in_the_card_draws_its_picture(trained, tmp_path, monkeypatch) -> None:
    from PIL import Image

    exports = tmp_path / "public"
    push(trained, str(exports), sampler=SamplerConfig(guidance=0.5, temperature=0.8))
    code = (exports / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(exports))
    names: dict = {}
    exec(code, names)
    picture = np.asarray(Image.open(exports / "samples.png"))
    assert np.array_equal(picture[:8, :8], names["images"][0])
    assert np.array_equal(picture[10:18, 70:78], names["images"][15])


@pytest.mark.slow
def test_a_calibrated_generator_is_published_and_shown(trained, tmp_path, exports) -> None:
    exports.generator(str(trained / "calibrated"), read_card(str(trained / "tokenizer"), "tokenizer"), seed=5)
    url = tmp_path / "public"
    push(trained, str(url))
    assert np.array_equal(pixels(str(url)), pixels(str(trained)))
    assert not np.array_equal(
        pixels(str(url)), RDPM.from_pretrained(f"{url}/generator", f"{url}/tokenizer").sample(LABELS)
    )
    assert "calibrated/`: `generator/` with matched latents" in (url / "README.md").read_text()
