"""Someone who uses the page in a browser."""

import base64
import io
import re
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image


class Visitor:
    """Someone who uses the page, and remembers which controls were used and what the browser said."""

    def __init__(self, browser, url: str, width: int) -> None:
        height = 844 if width < 800 else 900
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"]
        )
        self.page = self.context.new_page()
        self.used, self.said, self.hosts = set(), [], set()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("requestfailed", lambda request: self.said.append(f"{request.failure}: {request.url[:80]}"))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.goto(url)
        self.one(".chip >> nth=0").wait_for()

    def one(self, selector: str):
        """An element, noted as used if it has an id or is one of a group that has one."""
        self.used.add(re.split(r"[ .>:\[]", selector.removeprefix("#"))[0])
        return self.page.locator(selector)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).text_content()

    def slide(self, name: str, value: float) -> None:
        self.one(f"#{name}").fill(str(value))

    def draw(self) -> None:
        """Draw, and wait for the end."""
        self.one("#go").click()
        self.page.locator("#status", has_text=" pictures in ").or_(self.page.locator("#error:visible")).wait_for()
        assert not self.page.locator("#error").is_visible(), self.text("#error")

    def complaint(self, sentence: str) -> None:
        """Wait for this refusal."""
        self.page.locator("#error", has_text=sentence).wait_for()

    def pictures(self) -> np.ndarray:
        """What the grid shows, (N, H, W, 3)."""
        images = self.page.locator("#pictures img").all()
        return np.stack([pixels(image.get_attribute("src")) for image in images])

    def assert_fits(self) -> None:
        """Nothing is wider than the window."""
        assert self.page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0

    def python_into(self, folder: Path) -> tuple[Path, np.ndarray]:
        """Copy the Python into a folder, with the picture that it reads. Returns the folder and what is shown."""
        folder.mkdir()
        self.one("#copy").click()
        self.page.locator("#copy", has_text="Copied").wait_for()
        (folder / "same.py").write_text(self.page.evaluate("() => navigator.clipboard.readText()"))
        if self.page.locator("#save-source").is_visible():
            with self.page.expect_download() as download:
                self.one("#save-source").click()
            download.value.save_as(folder / download.value.suggested_filename)
        return folder, self.pictures()


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
