"""The page in a real browser: drop an image, wait for the result, download it, take a picture of all that.

Run: `convunext page MODEL… --port 7860`, then `python benchmarks/page.py http://127.0.0.1:7860/ IMAGE PICTURE.png`.
Needs playwright (`pip install playwright`), which is in no extra, and Chromium. Prints how long it took, what was
downloaded, what the browser complained of, and every other host that it was made to ask: there should be none.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("image", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", type=int, help="position in the list of models")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1240, "height": 860}, accept_downloads=True)
        others: list[str] = []
        page.on("request", lambda request: others.append(request.url))
        page.on("console", lambda m: print(f"browser: {m.text}") if m.type == "error" else None)
        page.goto(options.url)
        page.wait_for_selector("input[type=file]", state="attached")
        if options.model is not None:
            page.get_by_label("Model").click()
            page.get_by_role("option").nth(options.model).click()
        start = time.perf_counter()
        page.set_input_files("input[type=file]", options.image)
        page.wait_for_selector("text=megapixels a second", timeout=120_000)
        print(f"result after {time.perf_counter() - start:.1f} s")
        time.sleep(2)  # pictures load
        page.screenshot(path=options.picture)
        with page.expect_download() as download:
            page.get_by_text("Download the result").click()
        result = options.picture.with_name(download.value.suggested_filename)
        download.value.save_as(result)
        print(f"downloaded {result}, {result.stat().st_size} bytes")
        others = [url for url in others if not url.startswith((options.url, "data:", "blob:"))]
        print(f"other hosts asked: {others or 'none'}")
        browser.close()


if __name__ == "__main__":
    main()
