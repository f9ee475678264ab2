"""The page in a real Chromium, at the widths of a telephone and of a desk: every control, every refusal."""

import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.models.generator import Generator
from rdpm.pipeline.app.uploads import MOST_BYTES
from rdpm.pipeline.exports.weights import save_export
from rdpm.storage_schemas.cards import GeneratorOrigin
from tests.pipeline.app.test_uploads import png_that_claims
from tests.pipeline.app.visitor import Visitor, pixels

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine; apt-get install chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
]

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip
CLASSES = ("<img src=x onerror=alert(1)>", "a 'quoted' \"name\"", *(f"class {number}" for number in range(2, 24)))
RUN_ALL = "import os, sys\nfor folder in sys.argv[1:]:\n    os.chdir(folder)\n    exec(open('same.py').read(), {})"


@pytest.fixture(scope="module")
def run(tmp_path_factory, exports) -> str:
    """A run of more classes than the page shows without a search, with names that strangers chose."""
    folder = tmp_path_factory.mktemp("run")
    config = replace(exports.generator_config, num_classes=len(CLASSES))
    tokenizer = exports.tokenizer(f"{folder}/tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        state = Generator(config).state_dict()
        weights = {name: value + 0.3 * torch.randn_like(value) for name, value in state.items()}
    made_from = GeneratorOrigin(tokenizer.digest, (), CLASSES)
    save_export(f"{folder}/generator", "generator", config, weights, made_from, {}, 1)
    return str(folder)


@pytest.fixture(scope="module")
def server(run, python, repository):
    """`rdpm serve` as a process, and its address. It ends with code 0 when it is told to."""
    command = [*python, "-u", "-m", "rdpm", "serve", run, "port=0", "device=cpu"]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True, env=os.environ)
    process.url = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
    yield process
    process.terminate()
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield chromium
        chromium.close()


def every_control(visitor: Visitor) -> set[str]:
    """Ids of the controls, and of the groups that hold those without."""
    ids = "each => each.id || each.closest('div[id]').id"
    return set(visitor.page.evaluate(f"() => [...document.querySelectorAll('button, input, select, a')].map({ids})"))


@pytest.mark.parametrize("width", [390, 1440])
def test_every_control_works_and_nothing_is_loaded_from_outside(browser, server, width, digit, tmp_path):
    visitor = Visitor(browser, server.url, width)
    one, slide, page = visitor.one, visitor.slide, visitor.page
    programs = [
        draw_classes(visitor, tmp_path),
        vary_an_upload(visitor, tmp_path, digit),
        redraw_a_part(visitor, tmp_path),
        blend(visitor, tmp_path),
    ]
    stop(visitor, server)
    slide("guidance", 1.5)
    slide("temperature", 0)
    one("#new-seed").click()
    assert page.locator("#seed").input_value() != "41"
    visitor.draw()
    assert every_control(visitor) <= visitor.used, every_control(visitor) - visitor.used
    given_up = (
        f"net::ERR_ABORTED: {server.url}/draw"  # Playwright says so of any answer that streams, also of whole ones
    )
    assert set(visitor.said) <= {given_up}, visitor.said
    assert visitor.hosts - {""} == {urlsplit(server.url).netloc}  # "" are the page's own data: URLs
    run_again(programs)


def draw_classes(visitor: Visitor, folder: Path) -> tuple[Path, np.ndarray]:
    """Classes, number and seed; how pictures grew; a picture is saved."""
    one, page = visitor.one, visitor.page
    assert visitor.text(".chip >> nth=0") == CLASSES[0]
    one("#filter").fill("class 1")
    assert page.locator(".chip:visible").count() == 10  # 10 to 19
    page.locator(".chip", has_text="class 17").click()
    one("#filter").fill("")
    one("#classes input >> nth=0").locator("..").click()  # not the first class, which is picked in the beginning
    page.locator(".chip", has_text="quoted").click()
    visitor.slide("count", 3)
    one("#seed").fill("41")
    visitor.draw()
    assert visitor.text("#pictures button >> nth=1") == "class 17seed 42"
    visitor.assert_fits()
    one("#pictures button >> nth=2").click()
    assert visitor.text("#chosen") == f"{CLASSES[1]}, seed 43, step by step"
    growth = [pixels(image.get_attribute("src")) for image in page.locator("#growth img").all()]
    final = visitor.pictures()
    assert len(growth) == 3
    assert np.array_equal(growth[-1], final[2])
    visitor.slide("shown", 1)
    assert np.array_equal(visitor.pictures()[2], growth[0])
    assert not np.array_equal(growth[0], growth[-1])
    visitor.slide("shown", 3)
    with page.expect_download() as download:
        one("#save").click()
    assert np.array_equal(np.asarray(Image.open(download.value.path())), final[2])
    return visitor.python_into(folder / "sample")


def vary_an_upload(visitor: Visitor, folder: Path, digit: np.ndarray) -> tuple[Path, np.ndarray]:
    """A drawn picture and a loaded one are varied from a step on."""
    one, page = visitor.one, visitor.page
    one("#to-vary").click()
    assert page.locator("#label").input_value() == "1"
    assert np.array_equal(pixels(page.locator("#picture").get_attribute("src")), visitor.pictures()[2])
    Image.fromarray(digit).resize((48, 32), Image.Resampling.NEAREST).save(folder / "mine.png")
    before = page.locator("#picture").get_attribute("src")
    one("#file").set_input_files(folder / "mine.png")
    page.locator(f'#picture:not([src="{before}"])').wait_for()
    one("#label").select_option("9")
    visitor.slide("step", 2)
    assert visitor.text("#step-value") == "2 of 3"
    visitor.draw()
    visitor.assert_fits()
    return visitor.python_into(folder / "vary")


def redraw_a_part(visitor: Visitor, folder: Path) -> tuple[Path, np.ndarray]:
    """Cells are painted by the mouse and by the keyboard."""
    one, page = visitor.one, visitor.page
    one("#tab-inpaint").click()
    one("#to-inpaint").click()
    one("#all").click()
    assert page.locator("#cells [aria-pressed=true]").count() == 16
    one("#none").click()
    cell = page.locator("#cells button")
    one("#cells button >> nth=0").hover()
    page.mouse.down()
    for number in (1, 2, 6):
        cell.nth(number).hover()
    page.mouse.up()
    cell.nth(9).hover()  # with no button down, which paints nothing
    cell.nth(1).click()  # erases
    cell.nth(15).focus()
    page.keyboard.press("Space")
    rows = [cell.nth(number).get_attribute("aria-pressed") == "true" for number in range(16)]
    assert [number for number in range(16) if rows[number]] == [0, 2, 6, 15]
    visitor.draw()
    visitor.assert_fits()
    assert '"1010",\n    "0010",\n    "0000",\n    "0001",' in visitor.text("#python")
    return visitor.python_into(folder / "inpaint")


def blend(visitor: Visitor, folder: Path) -> tuple[Path, np.ndarray]:
    """The tabs by the keyboard; the slider between two classes."""
    one, page = visitor.one, visitor.page
    one("#tab-vary").click()
    page.keyboard.press("ArrowRight")
    assert one("#tab-blend").get_attribute("aria-selected") == "true"
    one("#first").select_option("3")
    one("#second").select_option("20")
    visitor.draw()
    visitor.assert_fits()
    for number in (0, 7, 10):
        visitor.slide("weight", number)
        between = pixels(page.locator("#between").get_attribute("src"))
        assert np.array_equal(between, visitor.pictures()[number])
    assert visitor.text("#weight-value") == "100% of the way"
    return visitor.python_into(folder / "blend")


def stop(visitor: Visitor, server: subprocess.Popen) -> None:
    """A drawing is stopped while the server is held up, and the next is drawn."""
    one, page = visitor.one, visitor.page
    one("#tab-sample").click()
    assert page.locator("#stop").is_disabled()
    server.send_signal(signal.SIGSTOP)
    try:
        one("#go").click()
        one("#go").click()  # impatience: the second takes the place of the first
        one("#stop").click()
        page.locator("#status", has_text="Stopped.").wait_for()
    finally:
        server.send_signal(signal.SIGCONT)


def run_again(programs: list[tuple[Path, np.ndarray]]) -> None:
    """Run what was copied in a fresh Python: the same pixels."""
    folders = [str(folder) for folder, _ in programs]
    subprocess.run([sys.executable, "-c", RUN_ALL, *folders], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for folder, shown in programs:
        again = [np.asarray(Image.open(folder / f"image-{number}.png")) for number in range(len(shown))]
        assert np.array_equal(np.stack(again), shown), folder.name


def test_refusals_are_shown_and_lose_nothing(browser, server, digit, tmp_path):
    visitor = Visitor(browser, server.url, 390)
    one, page = visitor.one, visitor.page
    page.locator(".chip").first.click()
    one("#go").click()
    visitor.complaint("Pick a class")
    one("#tab-vary").click()
    one("#go").click()
    visitor.complaint("Load a picture first")
    Image.fromarray(digit).save(tmp_path / "mine.png")
    one("#file").set_input_files(tmp_path / "mine.png")
    page.locator("#picture").wait_for()
    for name, data, sentence in (
        ("notes.png", b"hello", "no picture that can be read"),
        ("bomb.png", png_that_claims(60_000, 60_000), "too many pixels"),
        ("large.png", png_that_claims(9000, 9000), "9000 x 9000 pixels"),
        ("long.png", bytes(MOST_BYTES + 1), "too large"),
    ):
        (tmp_path / name).write_bytes(data)
        one("#file").set_input_files(tmp_path / name)
        visitor.complaint(sentence)
        assert np.array_equal(pixels(page.locator("#picture").get_attribute("src")), digit)
    one("#tab-inpaint").click()
    one("#go").click()
    visitor.complaint("Paint over a part")
    one("#all").click()
    visitor.draw()
    assert all("400" in said or "413" in said or "net::ERR" in said for said in visitor.said), visitor.said


def test_a_server_that_has_ended_is_said(browser, run, python, repository):
    command = [*python, "-u", "-m", "rdpm", "serve", run, "port=0", "device=cpu"]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, text=True)
    visitor = Visitor(browser, re.search(r"http://\S+:\d+", process.stdout.readline())[0], 1440)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    visitor.one("#go").click()
    visitor.complaint("may have ended")
