"""The page: an image in, a result out at full depth; all else is refused with a sentence by a server that lives."""

import contextlib
import http.client
import io
import json
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from dl_techniques.card import write_card
from dl_techniques.errors import ArgumentError
from dl_techniques.images.files import Picture, read_image, write_image
from dl_techniques.inference.predictor import Predictor
from dl_techniques.page.settings import PageOptions
from models import image, randomize, small_model
from page_server import ARRIVAL

CLASSES = {
    "task": "segment",
    "classes": [{"name": name, "mask_value": value} for value, name in enumerate(("sky", "road <b>", "car"))],
    "ignored_mask_values": [],
    "every_other_value_is_foreground": False,
    "normalization": "standardize",
}


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
def go(tmp_path_factory) -> Path:
    """The file whose existence lets the third model work."""
    return tmp_path_factory.mktemp("go") / "go"


@pytest.fixture(scope="module")
def url(models, go):
    command = [sys.executable, str(Path(__file__).with_name("page_server.py")), str(go), *map(str, models)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield (url := server.stdout.readline().strip())
        _, answer = upload(url, ("a.png", b"mine"))
        folder = Path(json.loads(answer)[0]).parents[1]
        assert folder.is_dir()
        server.communicate(timeout=300)
        assert server.returncode == 0 and not folder.exists()


@pytest.fixture(scope="module")
def client(url, tmp_path_factory) -> Client:
    return Client(url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


@pytest.fixture(autouse=True)
def server_lives(url):
    """Whatever a test sends, the page is there afterwards."""
    yield
    status, body = request(url, "GET", "/config")
    assert status == 200 and json.loads(body)["title"] == "ConvUNext"


def address(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    return host, int(port)


def request(url: str, method: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*address(url), timeout=300)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    """Return the body and the type of a form of files."""
    pieces = [
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in parts
    ]
    return b"".join(pieces) + b"--x--\r\n", "multipart/form-data; boundary=x"


def upload(url: str, *parts: tuple[str, bytes]) -> tuple[int, str]:
    body, kind = form(*parts)
    return request(url, "POST", "/gradio_api/upload", body, content_type=kind)


def call(url: str, path: str) -> tuple[int, str]:
    """Ask for a file to be opened, by its path."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file, 0], "fn_index": 0, "session_hash": "s"}).encode()
    return request(url, "POST", "/gradio_api/queue/join", body, content_type="application/json")


def apply(client: Client, path: Path, model: int) -> tuple[tuple[str, str] | None, str, str | None]:
    """Return the pictures, the facts and the download of a result."""
    _, slider, facts, download = client.predict(handle_file(path), model, api_name="/apply")
    return slider, facts, download["value"]


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


# === What it is for ===


@pytest.mark.parametrize("dtype, suffix", [("uint8", ".png"), ("uint16", ".png"), ("float32", ".tif")])
def test_upload_gives_the_result_at_full_depth(dtype, suffix, client, models, tmp_path):
    pixels = image(40, 48, 1)
    pixels = pixels if dtype == "float32" else (pixels * np.iinfo(dtype).max).astype(dtype)
    source = tmp_path / f"noisy{suffix}"
    write_image(source, Picture(pixels))
    slider, facts, download = apply(client, source, 0)
    assert Path(download).name == f"noisy-denoised{suffix}"
    result = read_image(download).pixels
    assert result.dtype == dtype and np.array_equal(result, Predictor(models[0])(pixels).pixels)
    assert [read_image(path).pixels.shape for path in slider] == [(40, 48, 3)] * 2
    assert f"48 x 40 pixels, grey, {dtype}" in facts and "sigma" in facts and "megapixels a second" in facts


def test_segmenter_gives_a_mask_and_its_legend(client, models, tmp_path):
    pixels = np.uint8(255 * image(40, 48, 3))
    (tmp_path / "street.png").write_bytes(png(pixels))
    slider, facts, download = apply(client, tmp_path / "street.png", 1)
    with Image.open(download) as mask:
        assert mask.mode == "P"
        classes = np.asarray(mask)
    expected = Predictor(models[1])(pixels).pixels[..., 0]
    assert Path(download).name == "street-mask.png" and np.array_equal(classes, expected)
    assert "road &lt;b&gt;" in facts and f"{np.mean(expected == 0):.2%}" in facts
    before, after = (read_image(path).pixels for path in slider)
    assert np.array_equal(before[expected == 0], after[expected == 0])
    assert (before[expected > 0] != after[expected > 0]).any()


def test_page_asks_nobody_else_and_listens_to_this_machine_alone(url):
    assert url.startswith("http://127.0.0.1:")
    connection = http.client.HTTPConnection(*address(url), timeout=300)
    connection.request("GET", "/")
    response = connection.getresponse()
    policy = response.headers["content-security-policy"]
    response.read()
    connection.close()
    assert policy.startswith("default-src 'self' data: blob:;") and "http" not in policy
    assert request(url, "GET", "/", host="a.name.that.points.here")[0] == 400


# === What is refused ===


def bomb() -> bytes:
    """Return a PNG of 30,000 x 30,000 pixels in a few hundred bytes of header and a short stream."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    size = (30_000).to_bytes(4, "big")
    header = chunk(b"IHDR", size + size + b"\x08\x00\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100_000))) + chunk(b"IEND", b"")


NOT_IMAGES = {
    "page.png": (b"<html><body>no</body></html>", "is not an image in one of PNG"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image in one of PNG"),
    "empty.png": (b"", "empty.png"),
    "bomb.png": (bomb(), "more pixels than"),
    "large.png": (png(np.zeros((50, 100), "uint8")), "has 100x50 pixels, more than the 4000 allowed"),
    "cut.png": (png(np.uint8(255 * image(60, 60)))[:-900], "cut.png: cannot be read"),
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_no_image_is_refused_by_name(name, client, tmp_path):
    content, reason = NOT_IMAGES[name]
    (tmp_path / name).write_bytes(content)
    slider, facts, download = apply(client, tmp_path / name, 0)
    assert slider is None and download is None
    assert facts.startswith(f"<p>{name}: ") and reason in facts and "/" not in facts.replace("</p>", "")


def test_body_over_the_limit_is_refused_with_and_without_its_length(url):
    # Of what is refused by its length, no byte is waited for.
    many = {"content_length": "9" * 9}
    status, reason = request(url, "POST", "/gradio_api/upload", content_type="multipart/form-data", **many)
    assert status == 413 and "Larger than the 1 MB allowed" in reason
    status, reason = request(url, "POST", "/gradio_api/queue/join", content_type="application/json", **many)
    assert status == 413 and "Request too large" in reason
    body, kind = form(("large.png", bytes(1_066_000)))
    chunked = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    status, reason = request(url, "POST", "/gradio_api/upload", chunked, content_type=kind, transfer_encoding="chunked")
    assert status in (400, 413) and "Larger than the 1 MB allowed" in reason


def test_names_with_paths_stay_in_the_folder_and_no_other_file_is_read(url):
    status, answer = upload(url, ("../../etc/passwd", b"mine"))
    (path,) = json.loads(answer)
    folder = Path(path).parents[1]
    assert status == 200 and Path(path).name == "passwd" and folder.name.startswith("convunext-page-")
    assert request(url, "GET", f"/gradio_api/file={path}") == (200, "mine")
    outside = ["/etc/passwd", f"{folder}/../../etc/passwd", __file__, "x", "\0"]
    for other in [*outside, f"{folder}/%2e%2e/%2e%2e/etc/passwd"]:
        status, reason = request(url, "GET", f"/gradio_api/file={other}".replace("\0", "%00"))
        assert status == 403 and "is not a file of this page" in reason
    for other in outside:
        status, reason = call(url, other)
        assert status == 403 and "was not uploaded to this page" in reason
    (folder / "link").symlink_to("/etc/passwd")
    assert request(url, "GET", f"/gradio_api/file={folder}/link")[0] == 403


def test_addresses_are_not_fetched(url):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(1)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.png"
        assert call(url, address)[0] == 403
        assert request(url, "GET", f"/gradio_api/file={address}")[0] == 403
        assert request(url, "GET", f"/gradio_api/proxy={address}")[0] == 403
        with pytest.raises(TimeoutError):
            listener.accept()


def test_forms_of_many_parts_and_bodies_that_are_no_calls_are_refused(url):
    status, reason = upload(url, *[("a", b"")] * 10_000)
    assert status == 400 and "too many parts" in reason
    for body in (b"nothing of the kind", b"[" * 500_000):
        status, reason = request(url, "POST", "/gradio_api/queue/join", body, content_type="application/json")
        assert status == 400 and "Not JSON" in reason


def test_slow_upload_is_ended(url):
    body, kind = form(("a.png", png(np.zeros((8, 8), "uint8"))))
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(address(url), timeout=10 * ARRIVAL) as slow:
        slow.sendall(head.encode() + body[:40])
        start = time.perf_counter()
        answer = slow.recv(10_000)
        assert b" 400 " in answer.splitlines()[0] and time.perf_counter() - start >= 0.5 * ARRIVAL
        while b"Too slow" not in answer:
            assert (more := slow.recv(10_000)), answer
            answer += more


def test_more_jobs_than_the_queue_holds_are_refused(client, go, tmp_path):
    def submit(number: int):
        path = tmp_path / f"{number}.png"  # Gradio keeps equal results as one file, written while another reads it
        write_image(path, Picture(np.uint8(255 * image(8, 8, 1, seed=number))))
        return client.submit(handle_file(path), 2, api_name="/apply")

    jobs = [submit(0)]
    end = time.monotonic() + 300
    while jobs[0].status().code.name != "PROCESSING":
        assert time.monotonic() < end
        time.sleep(0.05)
    try:
        jobs += [submit(number) for number in range(1, 5)]
        errors = []
        while len(errors) < 2 and time.monotonic() < end:
            errors = [str(job.exception()) for job in jobs if job.done()]
            time.sleep(0.05)
        assert len(errors) == 2 and all("ueue is full" in error for error in errors)
    finally:
        go.touch()
    assert len([job.result(timeout=300) for job in jobs if "ueue" not in str(job.exception(timeout=60))]) == 3


def test_what_cannot_be_served_is_refused_by_the_command(url, tmp_path):
    def refusal(*arguments: str) -> str:
        command = [sys.executable, "-m", "dl_techniques.cli", "page", *arguments]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        return result.stderr

    assert "must be a file (.keras, .onnx, .xml, .tflite)" in refusal("nothing")
    assert "must be free at 127.0.0.1" in refusal("denoise-gray", f"--port={address(url)[1]}")
    with pytest.raises(ArgumentError, match="`port` must be from 1 to 65535"):
        PageOptions(port=0)
