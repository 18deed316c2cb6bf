"""Training of denoisers: patches from a seed, a state that survives stops and damage, clear refusals."""

import signal
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from rich.console import Console

from dl_techniques import atomic
from dl_techniques.card import read_card
from dl_techniques.cli import main
from dl_techniques.datasets.batches import seeded_batches
from dl_techniques.datasets.noise import add_gaussian_noise, add_poisson_gaussian_noise, recorrupt
from dl_techniques.engines.loading import load_engine
from dl_techniques.errors import ArgumentError, ConvUNextError, FileError
from dl_techniques.images.files import Picture, read_pixels, write_image
from dl_techniques.metrics import denoising_psnr, psnr
from dl_techniques.training import callbacks, checkpoint
from dl_techniques.training.callbacks import steps_done
from dl_techniques.training.estimate import time_steps
from dl_techniques.training.recipes.denoising.batches import DenoisingSample, pair_function, training_patches
from dl_techniques.training.recipes.denoising.recipe import build_denoiser
from dl_techniques.training.recipes.denoising.settings import DenoisingConfig, Phase
from dl_techniques.training.run_folder import open_run, read_log, stored_config, task_of, trim_log
from dl_techniques.training.schedule import WarmupCosine, WarmupStableDecay
from dl_techniques.training.trainer import train

pytestmark = pytest.mark.usefixtures("eager")

SMALL = {
    "patch": 12, "final_patch": 16, "batch_size": 2, "steps": 6, "steps_per_epoch": 3, "held_out": 1,
    "depth": 2, "initial_filters": 4, "blocks_per_level": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(3):
        smooth = np.kron(rng.uniform(0, 255, (6, 5)), np.ones((8, 8)))
        Image.fromarray(np.uint8(smooth)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A short run, from its first step to its last."""
    config = DenoisingConfig(images=str(photos), output=tmp_path_factory.mktemp("runs") / "run", **SMALL)
    return config, train(config, Console(quiet=True))


def weights(model) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def test_resumed_run_ends_where_an_uninterrupted_one_does(finished):
    config, result = finished
    files = checkpoint.list_checkpoints(config.output / "checkpoints")
    assert [path.name[:14] for path in files] == ["step-000000006", "step-000000003"]
    log = (config.output / "log.csv").read_text()
    files[0].unlink()
    resumed = train(config, Console(quiet=True), resume=True)
    for actual, expected in zip(weights(resumed.model), weights(result.model), strict=True):
        assert np.array_equal(actual, expected)
    assert (config.output / "log.csv").read_text().splitlines()[-1] == log.splitlines()[-1]
    assert all(f"val_psnr_{sigma}" in log for sigma in (15, 25, 50)) and log.count("\n") == 3


def test_run_leaves_a_model_that_explains_itself(finished):
    config, result = finished
    card = read_card(config.output / "model.keras").as_dict()
    assert (card["task"], card["channels"], card["noise"]["sigma"]) == ("denoise", 1, [0, 55.0])
    assert card["training"]["images"] == 2 and card["metrics"] == {"images": 1, **result.figures}
    engine = load_engine(config.output)
    clean = [read_pixels(Path(config.images) / "0.png", 1) / np.float32(255)]
    measured = denoising_psnr(lambda x: engine.function(x[None])[0], clean, 25.0)
    assert measured == pytest.approx(card["metrics"]["psnr_25"], abs=1e-3)
    page = result.report.read_text()
    assert page.count("<img") == 4 and "worst: noisy: 0" in page and "psnr_50 on the validation images" in page
    assert (config.output / "split.csv").read_text().splitlines()[1:] == [
        "training,1", "training,2", "validation,0",
    ]  # fmt: skip
    assert tomllib.loads((config.output / "plan.toml").read_text())["settings"]["precision"] == "float32"


def test_a_plan_is_measured_and_followed(photos, tmp_path, capfd):
    small = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    path, output = tmp_path / "plan.toml", tmp_path / "run"
    assert main(["plan", "denoise", f"--images={photos}", *small, f"--output={path}"]) == 0
    assert "16x16 pixels, in the last" in capfd.readouterr().out
    plan = tomllib.loads(path.read_text())
    assert plan["measured"]["step_seconds"] > 0 and 0 <= plan["measured"]["waiting"] <= 1
    assert main(["train", "denoise", f"--plan={path}", "--preview-every=1", f"--output={output}"]) == 0
    assert capfd.readouterr().out.splitlines()[-1] == str(output / "report.html")
    assert [path.name for path in sorted((output / "previews").iterdir())] == ["epoch-0001-0.png", "epoch-0002-0.png"]


def test_validation_images_may_be_named(photos, tmp_path):
    settings = {**SMALL, "steps": 3, "sigma": 10.0}
    training, validation = str(photos / "[01].png"), str(photos / "2.png")
    config = DenoisingConfig(images=training, val_images=validation, output=tmp_path / "run", **settings)
    train(config, Console(quiet=True))
    assert (config.output / "split.csv").read_text().splitlines()[-1] == "validation,2"
    both = DenoisingConfig(images=str(photos), val_images=validation, output=tmp_path / "other", **settings)
    with pytest.raises(FileError, match="2.png: is the same image as .*2.png, which is in the training set"):
        train(both, Console(quiet=True))


def test_batches_depend_on_seed_and_position_alone(photos):
    images = [DenoisingSample("a", np.random.default_rng(1).uniform(size=(40, 48, 1)).astype("float32"), 0.0)]
    phase = Phase(first=10, last=16, patch=16, batch_size=2)
    make_pair = pair_function(DenoisingConfig(images=str(photos), output=photos, sigma=25.0))
    batches = list(training_patches(images, phase, (0, 0), make_pair))
    later = next(training_patches(images, phase, (0, 0), make_pair, done=4))
    assert len(batches) == 6 and np.array_equal(batches[4][0], later[0])
    assert not np.array_equal(batches[0][1], batches[1][1])
    assert not np.array_equal(batches[0][1], next(training_patches(images, phase, (0, 1), make_pair))[1])
    noisy, clean = batches[0]
    assert noisy.shape == clean.shape == (2, 16, 16, 1) and noisy.dtype == clean.dtype == "float32"
    assert 0 <= clean.min() and clean.max() <= 1
    assert ((noisy - clean).std(axis=(1, 2, 3)) < 25.0 / 255 * 1.2).all()


def test_patches_grow_when_the_learning_rate_begins_to_fall(photos):
    config = DenoisingConfig(images=str(photos), output=photos / "unused", steps=20_000, cooldown=0.56)
    assert config.phases == (Phase(0, 9_000, 96, 2), Phase(9_000, 20_000, 136, 1))


def test_shot_noise_grows_with_the_light(rng):
    image = np.full((200, 200), 0.5, "float32")
    image[:100] = 0.05
    noisy = add_poisson_gaussian_noise(image, 0.01, 0.02, rng)
    dark, bright = noisy[:100], noisy[100:]
    assert noisy.dtype == "float32" and abs(bright.mean() - 0.5) < 0.003 and abs(dark.mean() - 0.05) < 0.002
    assert bright.var() == pytest.approx(0.01 * 0.5 + 0.02**2, rel=0.05)
    assert dark.var() == pytest.approx(0.01 * 0.05 + 0.02**2, rel=0.05)
    assert np.array_equal(add_poisson_gaussian_noise(image, 0.0, 0.0, rng), image)


def test_recorrupted_images_have_independent_noise(rng):
    clean = np.full((300, 300), 0.5, "float32")
    first, second = recorrupt(add_gaussian_noise(clean, 0.1, rng), 0.1, rng)
    one, other = first - clean, second - clean
    assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015
    assert one.std() == pytest.approx(0.1 * 1.25**0.5, rel=0.02) and other.std() == pytest.approx(
        0.1 * 5**0.5, rel=0.02
    )


def test_noisy_images_alone_teach_a_denoiser(traced, tmp_path):
    rng = np.random.default_rng(0)
    smooth = [np.kron(rng.uniform(0.2, 0.8, (6, 5)), np.ones((8, 8)))[..., None] for _ in range(4)]
    for index, image in enumerate(smooth):
        noisy = add_gaussian_noise(image, 0.1, rng)
        write_image(tmp_path / f"{index}.tif", Picture((4095 * noisy).astype("float32")))
    settings = {**SMALL, "steps": 400, "steps_per_epoch": 200, "batch_size": 4, "patch": 16}
    config = DenoisingConfig(images=str(tmp_path), output=tmp_path / "run", noisy_only=True, **settings)
    train(config, Console(quiet=True))
    gains = [row["val_gain"] for row in read_log(config.output)]
    assert gains[1] > gains[0] and gains[1] > 1.0  # dB, and the images were never seen clean


def test_noise_has_the_level_asked_for(rng):
    noise = add_gaussian_noise(np.zeros((200, 200), "float32"), 0.1, rng)
    assert noise.dtype == "float32" and abs(noise.std() - 0.1) < 0.002 and abs(noise.mean()) < 0.002


def test_psnr_of_a_known_error():
    assert psnr(np.full((4, 4), 0.6), np.full((4, 4), 0.5)) == pytest.approx(20.0)
    assert psnr(np.ones(3), np.ones(3)) == float("inf")


@pytest.mark.each_backend
def test_learning_rate_rises_stays_and_falls():
    schedule = WarmupStableDecay(1.0, steps=100, cooldown=0.5, warmup=10)
    rates = [float(keras.ops.convert_to_numpy(schedule(step))) for step in (0, 4, 9, 49, 75, 100)]
    assert rates == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.each_backend
@pytest.mark.parametrize("steps", [5, 40, 4000])
def test_cosine_without_branches_is_that_of_keras(steps):
    warmup = min(100, steps // 10)
    theirs = keras.optimizers.schedules.CosineDecay(0.0, steps - warmup, 0.01, warmup_target=1.0, warmup_steps=warmup)
    for step in map(float, (0, 1, warmup, steps // 2, steps, steps + 1)):
        ours, expected = (float(keras.ops.convert_to_numpy(rate(step))) for rate in (WarmupCosine(1.0, steps), theirs))
        assert ours == pytest.approx(expected, abs=1e-6)


def test_fresh_denoiser_is_equivariant_and_residual(photos):
    config = DenoisingConfig(images=str(photos), output=photos / "unused", precision="float32", **SMALL)
    model = build_denoiser(config, 1)
    assert model.residual_learning and not model.use_bias and model.input_channels == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_checkpoint_is_passed_over(damage, tmp_path):
    checkpoint.save_checkpoint(tmp_path, 1, {"a": np.arange(3)})
    newest = checkpoint.save_checkpoint(tmp_path, 2, {"a": np.arange(4)})
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    step, state, torn = checkpoint.load_checkpoint(tmp_path)
    assert step == 1 and np.array_equal(state["a"], np.arange(3)) and torn == [newest]
    for path in checkpoint.list_checkpoints(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(FileError, match="holds no intact checkpoint: step-000000002-.*backup"):
        checkpoint.load_checkpoint(tmp_path)


def test_only_two_checkpoints_stay(tmp_path):
    for step in range(4):
        checkpoint.save_checkpoint(tmp_path, step, {"a": np.array(step)})
    assert [path.name[:14] for path in checkpoint.list_checkpoints(tmp_path)] == ["step-000000003", "step-000000002"]
    assert len(list(tmp_path.iterdir())) == 2


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(FileError, match="cannot be written: No space left on device"):
        atomic.write_file(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"


def test_disk_without_room_for_a_run_is_refused_before_its_first_step(finished, photos, tmp_path, monkeypatch):
    config, _ = finished
    state = np.load(checkpoint.list_checkpoints(config.output / "checkpoints")[0])
    size = sum(state[name].nbytes for name in state.files)
    usage = checkpoint.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage._replace(free=2 * size))
    with pytest.raises(FileError, match="checkpoints: has .* MB free; the checkpoints and models of this run take"):
        train(DenoisingConfig(images=str(photos), output=tmp_path / "run", **SMALL), Console(quiet=True))
    assert not (tmp_path / "run" / "log.csv").exists()
    train(config, Console(quiet=True), resume=True)  # has two checkpoints already


def test_checkpoint_of_another_model_is_refused_before_anything_changes(finished, photos):
    config, _ = finished
    other = DenoisingConfig(
        images=str(photos), output=config.output, precision="float32", **{**SMALL, "initial_filters": 6}
    )
    model = build_denoiser(other, 1)
    model.compile(optimizer=keras.optimizers.AdamW(use_ema=True, name="adam_w"), loss="mae")
    model.optimizer.build(model.trainable_variables)
    _, state, _ = checkpoint.load_checkpoint(config.output / "checkpoints")
    before = weights(model)
    with pytest.raises(FileError, match="is of another run: 'model/0/stem/conv/kernel' is .*4.* there and .*6.* here"):
        checkpoint.restore_model_state(model, state, config.output)
    assert all(map(np.array_equal, weights(model), before))


def test_resuming_with_other_settings_shows_the_difference(finished, photos):
    other = DenoisingConfig(images=str(photos), output=finished[0].output, **{**SMALL, "initial_filters": 6, "seed": 3})
    with pytest.raises(FileError, match="other settings: initial_filters was 4 and is 6; seed was 0 and is 3"):
        train(other, Console(quiet=True), resume=True)


def test_run_remembers_its_settings(finished, tmp_path):
    config, _ = finished
    assert task_of(config.output) == "denoise"
    assert stored_config(config.output, DenoisingConfig) == replace(config, precision="float32")
    with pytest.raises(FileError, match="holds no run"):
        task_of(tmp_path)


def test_two_processes_do_not_share_a_run(finished):
    config, _ = finished
    with (
        FileLock(config.output / ".lock"),
        pytest.raises(FileError, match="is in use: another process trains in it"),
        open_run(config.output, "denoise", config, True, {}),
    ):
        pass


class StopAt(callbacks.Validation):
    """Send a signal within a step."""

    def __init__(self, step: int, *args) -> None:
        super().__init__(*args)
        self.step = step

    def on_train_batch_begin(self, batch, logs=None) -> None:
        if steps_done(self.model) == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", [4, 5], ids=["within an epoch", "in an epoch's last step"])
def test_interrupted_run_ends_where_an_uninterrupted_one_does(step, finished, photos, tmp_path, monkeypatch):
    _, result = finished
    config = DenoisingConfig(images=str(photos), output=tmp_path / "run", **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "Validation", lambda *args: StopAt(step, *args))
        with pytest.raises(KeyboardInterrupt):
            train(config, Console(quiet=True))
    assert checkpoint.list_checkpoints(config.output / "checkpoints")[0].name.startswith(f"step-00000000{step + 1}")
    assert len(read_log(config.output)) == (step + 1) // 3
    resumed = train(config, Console(quiet=True), resume=True)
    for actual, expected in zip(weights(resumed.model), weights(result.model), strict=True):
        assert np.array_equal(actual, expected)


@pytest.mark.parametrize("logged", [False, True], ids=["within an epoch", "between the log and the checkpoint"])
def test_run_killed_before_its_first_checkpoint_starts_anew_and_says_so(logged, finished, photos, tmp_path, capsys):
    first, result = finished
    config = DenoisingConfig(images=str(photos), output=tmp_path / "run", precision="float32", **SMALL)
    with open_run(config.output, "denoise", config, False, {}):
        if logged:
            rows = (first.output / "log.csv").read_text().splitlines(keepends=True)
            (config.output / "log.csv").write_text("".join(rows[:2]))
    resumed = train(config, Console(soft_wrap=True), resume=True)
    assert "stopped before its first checkpoint: starting from the first step" in capsys.readouterr().out
    assert all(map(np.array_equal, weights(resumed.model), weights(result.model)))
    assert read_log(config.output) == read_log(first.output)
    for path in checkpoint.list_checkpoints(config.output / "checkpoints"):
        path.unlink()
    with pytest.raises(FileError, match="holds no checkpoint"):  # it had some, as its log tells
        train(config, Console(quiet=True), resume=True)


def test_loss_that_is_no_number_stops_the_run(photos, tmp_path):
    config = DenoisingConfig(images=str(photos), output=tmp_path / "run", **{**SMALL, "learning_rate": float("inf")})
    with pytest.raises(ConvUNextError, match="loss: became nan in step 2. Lower the learning rate"):
        train(config, Console(quiet=True))


def test_log_loses_what_came_after_the_checkpoint(tmp_path):
    (tmp_path / "log.csv").write_text("epoch,loss\n0,0.5\n1,0.25\n2,0.125\n")
    trim_log(tmp_path, 2)
    assert read_log(tmp_path) == [{"epoch": 0.0, "loss": 0.5}, {"epoch": 1.0, "loss": 0.25}]


def test_a_run_is_never_begun_over_another(finished):
    with pytest.raises(FileError, match="exists already. Name a new folder, or resume"):
        train(finished[0], Console(quiet=True))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"steps": 7}, "`steps` must be a multiple of steps_per_epoch=3"),
        ({"cooldown": 1.5}, r"`cooldown` must be in \[0, 1\]"),
        ({"sigma": 0.0}, "`sigma` must be above 0"),
        ({"gain": -1.0}, "`gain` must be at least 0"),
        ({"patch": 64}, "1.png: is smaller than a patch of 64 pixels"),
        ({"images": "nowhere"}, "nowhere: does not exist"),
        ({"held_out": 3}, "holds 3 images; 3 are held out and none is left"),
    ],
)
def test_wrong_settings_are_refused_and_leave_nothing(change, message, photos, tmp_path):
    with pytest.raises(ConvUNextError, match=message):
        config = DenoisingConfig(output=tmp_path / "run", **{"images": str(photos), **SMALL, **change})
        train(config, Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_empty_folder_is_named(tmp_path):
    with pytest.raises(FileError, match="holds no image file"):
        train(DenoisingConfig(images=str(tmp_path), output=tmp_path / "run", **SMALL), Console(quiet=True))


def test_photons_are_never_negative(tmp_path):
    for number in range(3):
        pixels = np.random.default_rng(number).uniform(-0.1 if number == 1 else 0, 1, (20, 20, 1))
        write_image(tmp_path / f"{number}.tif", Picture(pixels.astype("float32")))
    config = DenoisingConfig(images=str(tmp_path), output=tmp_path / "run", gain=4.0, **SMALL)
    with pytest.raises(ArgumentError, match="`gain` must be 0 if values are negative .*in 1 images: 1.tif"):
        train(config, Console(quiet=True))
    assert not config.output.exists()


def test_waiting_is_seen_past_what_was_made_ahead():
    def make(seconds: float):
        def sample(rng):
            time.sleep(seconds)
            return (np.zeros(1),)

        return seeded_batches(sample, 10_000, 1, seed=0)

    for made, trained, low, high in ((0.02, 0.002, 0.7, 1.0), (0.0, 0.02, 0.0, 0.3)):
        step, waiting = time_steps(lambda batch, trained=trained: time.sleep(trained), make(made))
        assert low <= waiting <= high and step >= max(made, trained)
