"""The page in a real browser: drop an image, wait for the result, download it, take a picture of all that.

Run: `convunext page MODEL… --port 7860`, then `python benchmarks/page.py http://127.0.0.1:7860/ IMAGE PICTURE.png`.
Needs playwright, which the extra `dev` brings, and Chromium (`apt install chromium`). Prints how long it took, what was
downloaded, what the browser complained of, and every other host that it was made to ask: there should be none.
`tests/test_browser.py` does the same.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]

DONE, REFUSED = '.facts :text("megapixels a second")', ".facts p"
WAIT = 300_000  # milliseconds


def find_chromium() -> str | None:
    """Return the path of a Chromium, `None` where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Visit:
    """The page in a browser.

    Attributes:
        page: What playwright makes of it.
        asked: Addresses that the browser was made to ask, except for the page's own.
        complaints: What the browser wrote on its console as errors.
    """

    page: Any
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def choose(self, model: int) -> None:
        """Choose a model by its position in the list."""
        self.page.get_by_label("Model").click()
        self.page.get_by_role("option").nth(model).click()

    def give(self, image: Path) -> str:
        """Upload an image and return what the page says of it, at the end."""
        self.page.wait_for_selector("input[type=file]", state="attached")
        self.page.set_input_files("input[type=file]", image)
        self.page.wait_for_selector(f"{DONE}, {REFUSED}", timeout=WAIT)
        return self.page.locator(".facts").first.inner_text()

    def take(self, folder: Path) -> Path:
        """Download the result into a folder."""
        with self.page.expect_download() as download:
            self.page.get_by_text("Download the result").click()
        result = folder / download.value.suggested_filename
        download.value.save_as(result)
        return result


@contextlib.contextmanager
def visiting(url: str, chromium: str) -> Iterator[Visit]:
    """Open the page in a browser without a window, and close it at the end."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1240, "height": 860}, accept_downloads=True)
        visit = Visit(page)
        own = (url, "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(own) else visit.asked.append(asked.url))
        page.on("console", lambda said: visit.complaints.append(said.text) if said.type == "error" else None)
        page.goto(url)
        yield visit
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("image", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", type=int, help="position in the list of models")
    parser.add_argument("--chromium", default=find_chromium())
    options = parser.parse_args()
    with visiting(options.url, options.chromium) as visit:
        if options.model is not None:
            visit.choose(options.model)
        start = time.perf_counter()
        visit.give(options.image)
        print(f"result after {time.perf_counter() - start:.1f} s")
        time.sleep(2)  # pictures load
        visit.page.screenshot(path=options.picture)
        result = visit.take(options.picture.parent)
        print(f"downloaded {result}, {result.stat().st_size} bytes")
        print(f"the browser complained of: {visit.complaints or 'nothing'}")
        print(f"other hosts asked: {visit.asked or 'none'}")


if __name__ == "__main__":
    main()
