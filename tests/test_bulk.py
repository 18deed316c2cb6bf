"""Prediction through Ray: the bytes of the local command, a row for every image, and nothing lost when processes die.

Each test is a small version of what `benchmarks/bulk.py` measures; one cluster serves them all.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import tifffile
from PIL import Image
from pyarrow.fs import S3FileSystem

from bad_images import samples
from dl_techniques.atomic import is_temporary
from dl_techniques.bulk.cluster import connected, share_out
from dl_techniques.bulk.credentials import Credentials
from dl_techniques.bulk.running import predict_bulk
from dl_techniques.bulk.shipping import Shipment
from dl_techniques.bulk.status import SCHEMA, refused_before
from dl_techniques.bulk.storage import Folder, find_sources, folder_of, is_address
from dl_techniques.bulk.work import DEATHS, Job, Journal, SharedPredictor, Worker
from dl_techniques.cli import main
from dl_techniques.engines.selection import select_engine
from dl_techniques.errors import ArgumentError, ConvUNextError, FileError
from dl_techniques.inference.settings import PredictionOptions
from models import predict_files
from test_predict import QUIET, save_segmenter

# One backend: the others make the same bytes of the same engine, and each test starts processes.
# Ray warns of its own settings.
pytestmark = [
    pytest.mark.only_backend("tensorflow"),
    *(pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "ResourceWarning")),
]
COUNT, BROKEN = 60, (7, 31)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_segmenter(tmp_path_factory.mktemp("segmenter"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A folder of small images, two of which are broken and one a stack.

    All of one size, square for the symmetries: of another, OpenVINO computes the first with a network of any size,
    whose last bits may differ.
    """
    folder, rng = tmp_path_factory.mktemp("bulk") / "in", np.random.default_rng(7)
    folder.mkdir()
    for index in range(COUNT - 1):
        Image.fromarray(rng.integers(0, 200, (28, 28), dtype="uint8")).save(folder / f"{index:03}.png")
    tifffile.imwrite(folder / "stack.tif", samples(3, 28, 28), photometric="minisblack")
    for index in BROKEN:
        path = folder / f"{index:03}.png"
        path.write_bytes(path.read_bytes()[:200])
    return folder


@pytest.fixture(scope="module")
def expected(model, images, tmp_path_factory) -> dict[str, bytes]:
    """What the local command makes of the images."""
    folder = tmp_path_factory.mktemp("bulk") / "local"
    predict_files(model, [str(images)], options(folder), QUIET)
    return content(folder)


@pytest.fixture(scope="module")
def bucket():
    """An S3 server on this machine, with a bucket, and the environment that leads to it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # Ray's settings would show each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        files = S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
        files.create_dir("bucket")
        yield files
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket) -> Iterator[str]:
    """A cluster whose workers know the bucket; its address."""
    with connected(None):
        yield ray.get_runtime_context().gcs_address


def options(output, **kwargs) -> PredictionOptions:
    return PredictionOptions(output=output, **{"engine": "openvino", "probabilities": True, **kwargs})


def content(folder: Path) -> dict[str, bytes]:
    """Return the images of a folder; what is hidden or half written would show."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "status.parquet"}


def complete(folder: Path) -> dict[str, bytes]:
    """Return the images of a folder, without what a worker was writing when it was killed."""
    return {name: stored for name, stored in content(folder).items() if not is_temporary(folder / name)}


def bulk(model, inputs, output, **kwargs):
    told = options(output, **kwargs)
    return predict_bulk(select_engine(model, told.engine), [str(inputs)], told, QUIET)


def table_of(folder: Path) -> dict[str, dict]:
    """Return the rows by the names of the images: one for each."""
    table = pq.read_table(folder / "status.parquet")
    assert table.schema.equals(SCHEMA)
    rows = {Path(row["path"]).name: row for row in table.to_pylist()}
    assert len(rows) == len(table)
    return rows


def workers() -> list[psutil.Process]:
    """Return the processes that predict."""
    return [child for child in psutil.Process().children(recursive=True) if "MapWorker" in " ".join(child.cmdline())]


def wait_for_results(folder: Path, process: subprocess.Popen) -> None:
    """Wait until a run is in the middle."""
    while not any(folder.glob("*.png")):
        assert process.poll() is None
        time.sleep(0.01)


# === F5: all that can be done is done, what cannot is named ===


def test_results_are_those_of_the_local_command_and_every_image_has_a_row(cluster, model, images, expected, tmp_path):
    scans, output = shutil.copytree(images, tmp_path / "in"), tmp_path / "out"
    first = bulk(model, scans, output)
    assert content(output) == expected and len(expected) == 2 * (COUNT - len(BROKEN))
    assert first.states == Counter(done=COUNT - len(BROKEN), refused=len(BROKEN)) and first.refused == len(BROKEN)
    rows = table_of(output)
    assert sorted(rows) == sorted(path.name for path in scans.iterdir())
    for name, row in rows.items():
        broken = name in [f"{index:03}.png" for index in BROKEN]
        assert row["state"] == ("refused" if broken else "done") and row["path"] == str(scans / name)
        assert row["bytes"] == (scans / name).stat().st_size and row["seconds"] > 0
        if broken:
            assert row["error"].startswith(str(scans / name)) and row["output"] is None
        else:
            assert Path(row["output"]).name in expected and row["error"] == ""
    assert (rows["001.png"]["height"], rows["001.png"]["width"]) == (28, 28)
    assert Path(rows["stack.tif"]["output"]).name == "stack.tif"

    before = {path: path.stat().st_mtime_ns for path in output.glob("*.[pt]*[gf]")}
    again = bulk(model, scans, output)
    assert not again.states and (again.existing, again.refused_earlier) == (COUNT - len(BROKEN), len(BROKEN))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert table_of(output) == rows

    (output / "005.png").unlink()
    shutil.copy(scans / "006.png", scans / "007.png")  # what was refused is tried again when it changed
    third = bulk(model, scans, output)
    assert third.states == Counter(done=2) and third.refused_earlier == len(BROKEN) - 1
    mended = {name: expected[name.replace("007", "006")] for name in ("007.png", "007-probabilities.tif")}
    assert content(output) == {**expected, **mended}
    assert table_of(output)["007.png"]["state"] == "done"


def test_refused_images_are_tried_again_under_other_settings():
    row = {"path": "a.png", "bytes": 1, "modified": 2, "state": "refused", "settings": "digest"}
    table = pa.Table.from_pylist([row, {**row, "path": "b.png", "state": "done"}], SCHEMA)
    assert list(refused_before(table, "digest")) == [("a.png", 1, 2)] and not list(refused_before(table, "other"))


def test_workers_compute_on_the_backend_of_the_command(cluster, model, tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(4):
        Image.fromarray(samples(20 + index % 2, 32)).save(tmp_path / "in" / f"{index}.png")
    bulk(model, tmp_path / "in", tmp_path / "out", engine="keras")
    predict_files(model, [str(tmp_path / "in")], options(tmp_path / "local", engine="keras"), QUIET)
    assert content(tmp_path / "out") == content(tmp_path / "local") and len(content(tmp_path / "out")) == 8


# === F6: processes die ===


def test_a_worker_that_is_killed_costs_nothing(cluster, model, images, tmp_path):
    killed = []

    def kill_one():
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not killed:
            if any((tmp_path / "out").glob("*.png")):
                for process in workers()[:1]:
                    process.kill()
                    killed.append(process.pid)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    outcome = bulk(model, images, tmp_path / "out", tta=8)
    killer.join()
    assert killed
    predict_files(model, [str(images)], options(tmp_path / "local", tta=8), QUIET)
    assert outcome.states == Counter(done=COUNT - len(BROKEN), refused=len(BROKEN))
    assert complete(tmp_path / "out") == content(tmp_path / "local")
    assert len(table_of(tmp_path / "out")) == COUNT


def test_a_run_that_is_killed_is_completed_by_the_next(cluster, model, images, expected, tmp_path):
    output, told = tmp_path / "out", tmp_path / "told.txt"
    command = [sys.executable, "-m", "dl_techniques.cli", "predict", str(model), str(images), "-o", str(output)]
    command += ["--engine", "openvino", "--probabilities", "--ray", cluster]
    with open(told, "w") as stream:  # a pipe would stay open as long as what Ray started
        with subprocess.Popen(command, stdout=stream, stderr=stream) as process:
            wait_for_results(output, process)
            process.kill()
        there = {path: path.stat().st_mtime_ns for path in output.glob("*.png")}
        done = subprocess.run(command, stdout=stream, stderr=stream, timeout=300)
    assert done.returncode == 1 and f"{len(BROKEN)} of {COUNT} images refused" in told.read_text()
    assert complete(output) == expected
    assert len(table_of(output)) == COUNT and not (output / "status").exists()
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_ctrl_c_ends_the_run_with_its_workers_and_keeps_the_rows(model, images, tmp_path):
    command = [sys.executable, "-m", "dl_techniques.cli", "predict", str(model), str(images), "-o", str(tmp_path)]
    command += ["--engine", "openvino", "--tta", "8", "--ray"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_for_results(tmp_path, process)
        begun = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, told = process.communicate(timeout=300)
    assert process.returncode == 130 and told.strip() == "convunext: interrupted."
    _, alive = psutil.wait_procs(begun, timeout=300)
    assert begun and not alive
    assert not (tmp_path / "status").exists()


def test_an_image_that_kills_its_process_is_a_row_in_the_end(model, tmp_path, monkeypatch):
    journal = Journal()
    monkeypatch.setattr(ray, "get", lambda value: value)  # the journal is an object of this process

    class Handle:
        def __getattr__(self, name):
            method = getattr(journal, name)
            return type("Method", (), {"remote": staticmethod(method)})

    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("a", "fatal", "z"):
        Image.fromarray(samples(20, 20)).save(tmp_path / "in" / f"{name}.png")
    paths = [str(path) for path in sorted((tmp_path / "in").iterdir())]
    batch = pa.table({"path": paths, "bytes": [1, 1, 1], "modified": [0, 0, 0]})
    job = Job(select_engine(model, "openvino"), options(tmp_path / "out"), str(tmp_path / "out"), "", "", 1, 1)

    class Killed(BaseException):
        pass

    predict = Worker._predict

    def fragile(self, image):
        if "fatal" in image["path"]:
            raise Killed
        return predict(self, image)

    monkeypatch.setattr(Worker, "_predict", fragile)
    for _ in range(1 + DEATHS):  # once with the batch, then alone
        with pytest.raises(Killed):
            Worker(job, Handle())(batch)
    rows = Worker(job, Handle())(batch).to_pylist()
    assert [row["state"] for row in rows] == ["done", "refused", "done"]
    assert f"{DEATHS} processes crashed" in rows[1]["error"] and str(tmp_path / "in" / "fatal.png") in rows[1]["error"]


# === F7: a bucket ===


def test_a_bucket_is_as_a_folder_and_its_password_is_told_nowhere(
    cluster, bucket, model, images, expected, tmp_path, capfd
):
    for path in images.iterdir():
        with bucket.open_output_stream(f"bucket/scans/{path.name}") as file:
            file.write(path.read_bytes())
    scans, masks = (f"s3://test:hush%2Fhush@bucket/{name}/" for name in ("scans", "masks"))
    arguments = ["predict", str(model), scans, "-o", masks, "--engine", "openvino", "--probabilities", "--ray"]
    assert main(arguments) == 1
    folder = Folder("s3://bucket/masks")
    stored = {info.base_name: folder.read(info.base_name) for info in folder.list()}
    (tmp_path / "status.parquet").write_bytes(stored.pop("status.parquet"))
    assert stored == expected
    rows, shown = table_of(tmp_path), "s3://<hidden>@bucket"
    assert len(rows) == COUNT and rows["007.png"]["error"].startswith(f"{shown}/scans/007.png: ")
    assert not any("hush" in str(row) for row in rows.values())
    assert rows["000.png"]["output"] == f"{shown}/masks/000.png" and rows["000.png"]["height"] == 28
    times = {info.base_name: info.mtime for info in folder.list()}
    assert main(arguments) == 1
    assert "hush" not in "".join(capfd.readouterr())
    del times["status.parquet"]
    assert {name: folder.look(name).mtime for name in times} == times


def test_addresses_are_found_by_folder_pattern_and_name(bucket):
    with bucket.open_output_stream("bucket/some/a.png") as file:
        file.write(b"1")
    with bucket.open_output_stream("bucket/some/b.tif") as file:
        file.write(b"22")
    with bucket.open_output_stream("bucket/some/notes.txt") as file:
        file.write(b"333")
    assert [image.name for image in find_sources(["s3://bucket/some"])[0]] == ["a.png", "b.tif"]
    assert [image.name for image in find_sources(["s3://bucket/some/*.tif"])[0]] == ["b.tif"]
    (alone,), _ = find_sources(["s3://bucket/some/a.png"])
    assert (alone.source, alone.bytes) == ("s3://bucket/some/a.png", 1) and alone.modified > 0
    found, lost = find_sources(["s3://bucket/some/*.tif", "s3://bucket/none/"])
    assert len(found) == 1 and "s3://bucket/none" in lost[0]
    with pytest.raises(FileError, match="holds no image file"):
        find_sources(["s3://bucket/none/"])


# === What is refused, and what is not touched ===


@pytest.mark.parametrize("text, address", [("s3://b/c", True), ("s3:/b/c", True), ("C:/b", False), ("a/b:/c", False)])
def test_addresses_are_distinguished_from_paths(text, address):
    assert is_address(text) == address == is_address(Path(text))


@pytest.mark.parametrize(
    "given, shown",
    [
        ("s3://KEY:pass%2Fword@bucket/in/a@b.png", "s3://<hidden>@bucket/in/a@b.png"),
        ("s3:/KEY:pass/word@bucket/in/a.png", "s3:/<hidden>@bucket/in/a.png"),
        ("s3://bucket/a.png?region=x&session_token=word", "s3://bucket/a.png?region=x&session_token=<hidden>"),
        ("https://host/a.png?X-Amz-Signature=word", "https://host/a.png?X-Amz-Signature=<hidden>"),
        ("s3://host:9000/a@b.png?scheme=http", "s3://host:9000/a@b.png?scheme=http"),
        ("C:/data/a@b.png", "C:/data/a@b.png"),
    ],
)
def test_passwords_of_addresses_are_hidden_and_found_again(given, shown):
    credentials = Credentials()
    assert credentials.hide(given) == shown and credentials.reveal(shown) == given
    assert "word" not in str(FileError(given, f"is not {given}.")) + str(ArgumentError("a", "b", given))
    assert "word" not in credentials.censor(f"When reading {given.partition('?')[0]}: no") + repr(credentials)


def test_two_passwords_for_one_bucket_are_refused():
    credentials = Credentials()
    credentials.hide("s3://a:b@bucket/in")
    assert credentials.reveal("s3://<hidden>@bucket/other/x.png") == "s3://a:b@bucket/other/x.png"
    with pytest.raises(ArgumentError, match="must have one password. Received: address='s3://<hidden>@bucket/out'"):
        credentials.hide("s3://a:c@bucket/out")


def test_settings_of_a_file_system_stay_with_its_addresses():
    folder, name = folder_of("s3://bucket/in/a.png?endpoint_override=127.0.0.1%3A9&scheme=http")
    assert name == "a.png" and str(folder) == "s3://bucket/in?endpoint_override=127.0.0.1%3A9&scheme=http"
    assert folder / "b.png" == "s3://bucket/in/b.png?endpoint_override=127.0.0.1%3A9&scheme=http"
    assert folder.path == "bucket/in"


def test_an_unknown_file_system_is_refused_by_name(tmp_path, model, images, capsys):
    assert main(["predict", str(model), str(images), "-o", "nowhere://x", "--engine", "openvino", "--ray"]) == 2
    assert "nowhere://x" in capsys.readouterr().err


def test_a_file_is_stored_whole_or_not_at_all(tmp_path):
    folder = Folder(tmp_path)
    folder.store("a", b"first")

    with pytest.raises(FileError, match="cannot be written"):
        Folder(tmp_path / "a").store("b", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and folder.read("a") == b"first"


def test_outputs_that_would_mix_are_refused(model, images, tmp_path):
    with pytest.raises(FileError, match="holds the images"):
        bulk(model, images, images)
    with pytest.raises(ArgumentError, match="must be a folder with --ray"):
        bulk(model, images, tmp_path / "mask.png")
    shutil.copy(images / "000.png", tmp_path / "000.png")
    with pytest.raises(FileError, match="would both become 000.png"):
        predict_bulk(select_engine(model, "openvino"), [str(images), str(tmp_path)], options(tmp_path / "out"), QUIET)


@pytest.mark.parametrize("address, told", [("127.0.0.1:1", "no cluster answers"), ("somewhere", "must be HOST:PORT")])
def test_a_cluster_that_is_not_there_is_named(address, told, model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    choice = select_engine(model, "openvino")
    with pytest.raises(ConvUNextError, match=told):
        predict_bulk(choice, [str(images)], options(tmp_path), QUIET, address)


def test_without_ray_the_command_says_how_to_get_it(model, images, tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None; import importlib.util as u; find = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'ray' else find(name, *a);"
        "from dl_techniques.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["predict", str(model), str(images), "-o", str(tmp_path / "out"), "--engine", "openvino"]
    done = subprocess.run([sys.executable, "-c", code, *arguments, "--ray"], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'convunext[ray]'" in done.stderr
    assert subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True).returncode == 1  # two broken


def test_the_local_command_imports_nothing_of_ray(model, images, tmp_path):
    code = (
        "import sys; from dl_techniques.cli import main; main(sys.argv[1:]);"
        "print([name for name in sys.modules if name.split('.')[0] == 'ray' or name.startswith('dl_techniques.bulk')])"
    )
    arguments = ["predict", str(model), str(images / "000.png"), "-o", str(tmp_path / "out"), "--engine", "openvino"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "[]" and (tmp_path / "out" / "000.png").exists()


# === What workers are given ===


@pytest.mark.parametrize(
    "nodes, on_gpu, expected",
    [
        ([{"CPU": 2, "memory": 1e10}], False, (2, 1, 0)),
        ([{"CPU": 64, "memory": 63e9}], False, (16, 4, 0)),  # as many as the memory holds
        ([{"CPU": 4, "memory": 1e9}], False, (1, 4, 0)),
        ([{"CPU": 16, "GPU": 8, "memory": 1e12}, {"CPU": 8, "memory": 1e11}], True, (8, 2, 1)),
        ([{"CPU": 16, "GPU": 8, "memory": 1e12}], False, (16, 1, 0)),
        ([{"memory": 1e9}, {"CPU": 8, "memory": 1e11}], True, (8, 1, 0)),
    ],
)
def test_workers_are_as_many_as_the_cluster_holds(nodes, on_gpu, expected):
    workers = share_out(nodes, 2 * 10**9, on_gpu, False)
    assert (workers.count, workers.cpus, workers.gpus) == expected


def test_a_cluster_without_cores_is_refused():
    with pytest.raises(ArgumentError, match="cores or GPUs"):
        share_out([{"memory": 1e9}], 10**9, False, False)


def test_a_model_that_was_shipped_is_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    choice = select_engine(model, "openvino")
    moved = Shipment.of(choice).unpack(choice)
    assert tmp_path in moved.path.parents and moved.path.read_bytes() == model.read_bytes()
    assert Shipment.of(choice).unpack(choice) == moved  # the first that came put it there
    pixels = samples(40, 50, 1)
    results = [SharedPredictor(one)(pixels) for one in (choice, moved)]
    assert np.array_equal(results[0].probabilities, results[1].probabilities)


def test_threads_that_share_a_predictor_change_nothing(model):
    shared = SharedPredictor(select_engine(model, "keras"), max_memory="200MB", tile=48)
    images = [samples(50 + 9 * (index % 2), 40, 1) + index for index in range(4)]
    alone = [shared(pixels).probabilities for pixels in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pixels: shared(pixels).probabilities, images))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))
