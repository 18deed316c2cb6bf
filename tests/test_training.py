"""Gradients reach every weight, stochastic depth is what it says, less memory changes nothing."""

import signal

import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.layers.convnext import ConvNeXtBlock
from dl_techniques.layers.equivariant import EQUIVARIANT_BLOCKS
from dl_techniques.training.interruption import interruptible
from models import image, randomize, run, small_model

# Tracing a training graph takes TensorFlow seconds; what is shown here holds in both modes, and remat and the demo
# train in graph mode.
EAGER = keras.backend.backend() == "tensorflow"

DESIGNS = [{"use_bias": True}, *({"use_bias": False, "equivariant_block": block} for block in EQUIVARIANT_BLOCKS)]


def fit(model, x, steps: int = 3) -> list[float]:
    """Train on one batch against random targets and return the losses."""
    shapes = model.compute_output_shape(x.shape)
    shapes = shapes if isinstance(shapes, list) else [shapes]
    targets = [image(*shape, seed=5) for shape in shapes]
    loss = ["mse"] * len(targets) if len(targets) > 1 else "mse"
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, run_eagerly=EAGER)
    history = model.fit(x, targets if len(targets) > 1 else targets[0], batch_size=len(x), epochs=steps, verbose=0)
    return history.history["loss"]


@pytest.mark.each_backend
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: d.get("equivariant_block", "biased"))
def test_three_steps_change_every_trainable_weight(design, version):
    model = small_model(
        depth=2, convnext_version=version, enable_deep_supervision=True, drop_path_rate=0.1, dropout_rate=0.1, **design
    )
    before = [np.array(ops.convert_to_numpy(weight)) for weight in model.trainable_weights]
    losses = fit(model, image(2, 16, 16, 3))
    unmoved = [
        weight.path
        for weight, old in zip(model.trainable_weights, before, strict=True)
        if np.array_equal(ops.convert_to_numpy(weight), old)
    ]
    assert not unmoved
    assert np.isfinite(losses).all()


@pytest.mark.each_backend
@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: d.get("equivariant_block", "biased"))
def test_flat_images_give_finite_outputs_and_gradients(design, value):
    model = small_model(depth=2, **design)
    assert np.isfinite(fit(model, np.full((2, 16, 16, 3), value, "float32"), steps=2)).all()
    for weight in model.weights:
        assert np.isfinite(ops.convert_to_numpy(weight)).all(), weight.path


@pytest.mark.each_backend
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: d.get("equivariant_block", "biased"))
def test_zero_projection_block_is_identity(design, version):
    block = ConvNeXtBlock(8, version=version, **design)
    x = image(2, 9, 12, 8)
    block.build(x.shape)
    randomize(block)
    assert not np.array_equal(ops.convert_to_numpy(block(x)), x)
    for weight in block.pwconv2.weights:
        weight.assign(np.zeros(weight.shape))
    if block.grn is not None and block.grn.beta is not None:
        block.grn.beta.assign(np.zeros(block.grn.beta.shape))
    assert np.array_equal(ops.convert_to_numpy(block(x)), x)


@pytest.mark.each_backend
def test_drop_path_drops_whole_samples_and_keeps_the_expectation():
    rate, samples = 0.3, 2000
    block = ConvNeXtBlock(4, kernel_size=3, drop_path_rate=rate, seed=1)
    one = image(1, 5, 5, 4)
    block.build(one.shape)
    randomize(block)
    branch = ops.convert_to_numpy(block(one, training=False)) - one
    x = np.repeat(one, samples, axis=0)
    taken = (ops.convert_to_numpy(block(x, training=True)) - x) / branch  # per value: 0 or 1 / (1 - rate)
    per_sample = taken.reshape(samples, -1).mean(axis=1)
    assert np.allclose(taken.reshape(samples, -1), per_sample[:, None], atol=2e-2)
    kept = per_sample > 0.5
    assert np.allclose(per_sample[kept], 1 / (1 - rate), atol=1e-2) and np.allclose(per_sample[~kept], 0.0, atol=1e-2)
    assert abs(kept.mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / samples)


def test_drop_path_rate_grows_linearly_with_depth():
    model = small_model(depth=2, drop_path_rate=0.4, blocks_per_level=2)
    rates = [layer.drop_path_rate for layer in model.layers if isinstance(layer, ConvNeXtBlock)]
    assert np.allclose(rates, np.linspace(0.0, 0.4, 10))


@pytest.mark.each_backend
def test_drop_path_rests_at_inference():
    model = small_model(drop_path_rate=0.5, dropout_rate=0.5)
    x = image(1, 16, 16, 3)
    assert np.array_equal(run(model, x)[0], run(model, x)[0])


@pytest.mark.each_backend
def test_seeded_models_train_alike():
    def losses() -> list[float]:
        keras.utils.set_random_seed(3)
        model = small_model(depth=2, drop_path_rate=0.3, dropout_rate=0.2, seed=11)
        return fit(model, image(4, 16, 16, 3))

    assert losses() == losses()


@pytest.mark.each_backend
@pytest.mark.parametrize("version", [pytest.param("v1", marks=pytest.mark.only_backend("tensorflow")), "v2"])
@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: d.get("equivariant_block", "biased"))
def test_remat_trains_like_the_plain_model(design, version):
    graph_mode = (design, version) == ({"use_bias": True}, "v2")

    def trained(remat: bool) -> list[np.ndarray]:
        keras.utils.set_random_seed(3)
        model = small_model(
            depth=2, remat=remat, convnext_version=version, drop_path_rate=0.3, dropout_rate=0.2, seed=11, **design
        )
        model.compile(optimizer=keras.optimizers.SGD(1e-4), loss="mse", run_eagerly=EAGER and not graph_mode)
        model.fit(image(2, 16, 16, 3), image(2, 16, 16, 3, seed=1), epochs=2, verbose=0)
        return [ops.convert_to_numpy(weight) for weight in model.weights]

    for plain, recomputed in zip(trained(False), trained(True), strict=True):
        assert np.allclose(plain, recomputed, rtol=1e-4, atol=1e-5)


@pytest.mark.each_backend
def test_moving_variance_follows_the_batches():
    model = small_model(depth=2, use_bias=False, equivariant_block="batchnorm")
    x = image(2, 16, 16, 3)
    fit(model, x, steps=1)
    variance = model.stem.norm.moving_variance
    assert not np.allclose(ops.convert_to_numpy(variance), 1.0)


def test_first_signal_waits_for_the_end_of_the_step_and_a_second_does_not():
    with interruptible() as interruption:
        signal.raise_signal(signal.SIGINT)  # within a step: what it raised could be lost there
        with pytest.raises(KeyboardInterrupt):
            interruption.on_train_batch_end(0)
        interruption.on_train_batch_end(1)
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_after_the_last_step_is_not_lost():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)


def test_signal_that_comes_while_processes_agree_waits_for_all_of_them(monkeypatch):
    def agree(number: int) -> int:
        if not number:
            signal.raise_signal(signal.SIGINT)  # after this process has told the others that none came
        return number

    with interruptible() as interruption:
        monkeypatch.setattr("dl_techniques.training.interruption.agreed_signal", agree)
        interruption.on_train_batch_end(0)
        with pytest.raises(KeyboardInterrupt):
            interruption.on_train_batch_end(1)
        monkeypatch.undo()
