"""The page as people use it, in Chromium: an image in, before and after, a mask, a download; a refusal in words."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dl_techniques.card import write_card
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.inference.predictor import Predictor
from models import image, randomize, small_model
from test_page import CLASSES

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from page import find_chromium, visiting  # noqa: E402

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs Chromium: apt install chromium")


@pytest.fixture(scope="module")
def models(preset, tmp_path_factory) -> list[Path]:
    """A denoiser and a segmenter."""
    model = small_model(depth=2, initial_filters=4, output_channels=3, final_activation="softmax")
    randomize(model)
    path = tmp_path_factory.mktemp("segmenter") / "classes.keras"
    model.save(path)
    write_card(path, {**CLASSES, "channels": 3})
    return [preset, path]


@pytest.fixture(scope="module")
def url(models, tmp_path_factory):
    go = tmp_path_factory.mktemp("go") / "go"
    command = [sys.executable, str(Path(__file__).with_name("page_server.py")), str(go), *map(str, models)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.communicate(timeout=300)
        assert server.returncode == 0


def test_image_goes_in_and_its_result_comes_out_at_full_depth(url, models, tmp_path):
    pixels = np.uint16(60000 * image(40, 48, 1))
    write_image(tmp_path / "noisy.png", Picture(pixels))
    with visiting(url, find_chromium()) as visit:
        said = visit.give(tmp_path / "noisy.png")
        assert "48 x 40 pixels, grey, uint16" in said and "sigma" in said
        slider = visit.page.locator(".slider-wrap img, img[alt]")
        visit.page.wait_for_function("() => [...document.images].filter(i => i.naturalWidth === 48).length >= 2")
        assert slider.count() >= 2
        (tmp_path / "results").mkdir()
        result = visit.take(tmp_path / "results")
        assert visit.asked == [] and visit.complaints == []
    assert result.name == "noisy-denoised.png"
    downloaded = read_image(result).pixels
    assert downloaded.dtype == np.uint16 and np.array_equal(downloaded, Predictor(models[0])(pixels).pixels)


def test_another_model_makes_a_mask_with_its_legend(url, models, tmp_path):
    pixels = np.uint8(255 * image(40, 48, 3))
    Image.fromarray(pixels).save(tmp_path / "street.png")
    with visiting(url, find_chromium()) as visit:
        visit.choose(1)
        said = visit.give(tmp_path / "street.png")
        (tmp_path / "results").mkdir()
        result = visit.take(tmp_path / "results")
        assert visit.asked == [] and visit.complaints == []
    expected = Predictor(models[1])(pixels).pixels[..., 0]
    assert "road <b>" in said and f"{np.mean(expected == 0):.2%}" in said
    with Image.open(result) as mask:
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), expected)


def test_what_is_no_image_is_refused_in_words_and_the_next_one_goes_through(url, tmp_path):
    (tmp_path / "page.png").write_bytes(b"<html><body>no</body></html>")
    write_image(tmp_path / "large.png", Picture(np.zeros((80, 90, 1), "uint8")))
    write_image(tmp_path / "good.png", Picture(np.uint8(255 * image(20, 24, 1))))
    with visiting(url, find_chromium()) as visit:
        assert "page.png: is not an image in one of PNG" in visit.give(tmp_path / "page.png")
        assert visit.page.get_by_text("Download the result").is_disabled()
    with visiting(url, find_chromium()) as visit:
        assert "has 90x80 pixels, more than the 4000 allowed" in visit.give(tmp_path / "large.png")
    with visiting(url, find_chromium()) as visit:
        assert "24 x 20 pixels" in visit.give(tmp_path / "good.png")
