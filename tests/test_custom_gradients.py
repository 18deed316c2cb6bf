"""Operations with custom gradients compute what the plain layers compute, and are used where they are supported."""

from pathlib import Path

import numpy as np
import pytest
from keras import ops

from dl_techniques.layers import convnext
from dl_techniques.layers.convnext import ConvNeXtBlock
from models import randomize

ONLY_TENSORFLOW = pytest.mark.only_backend("tensorflow")  # others take the gradients of the plain layers
BENCHMARKS = str(Path(__file__).parents[1] / "benchmarks")
BLOCKS = [
    {},
    {"remat": True},
    {"use_bias": False},
    {"version": "v1", "layer_scale_init_value": 0.5},
    {"version": "v1", "use_bias": False, "kernel_size": 3},
    {"kernel_size": 5},
    {"kernel_size": 11},
    {"version": "v1", "use_bias": False, "equivariant_block": "no_norm"},
    {"use_bias": False, "equivariant_block": "no_norm", "remat": True},
    {"drop_path_rate": 0.3, "dropout_rate": 0.2, "seed": 3},
]


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def outputs_and_gradients(block, x: np.ndarray, weight: np.ndarray, in_graph: bool = True) -> list[np.ndarray]:
    """Return the output and the gradients of Σ output·weight by the input and by all kernels."""
    import tensorflow as tf

    for variable in block.non_trainable_variables:  # counters of the dropouts
        variable.assign(np.array([1, 2], dtype=variable.dtype))

    def function(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x, training=True)
            loss = tf.reduce_sum(y * weight)
        return [y, *tape.gradient(loss, [x, *(w.value for w in block.trainable_weights)])]

    if in_graph:  # as in fit: the number of images is not known
        function = tf.function(function, input_signature=[tf.TensorSpec((None, *x.shape[1:]), x.dtype)])
    return [value.numpy() for value in function(tf.constant(x))]


@ONLY_TENSORFLOW
@pytest.mark.parametrize("arguments", BLOCKS, ids=lambda arguments: "-".join(arguments) or "default")
@pytest.mark.parametrize("shape", [(2, 7, 10, 4), (3, 70, 130, 8), (1, 1, 1, 4)], ids=str)
def test_custom_gradients_equal_those_of_the_plain_block(arguments, shape, monkeypatch):
    block = ConvNeXtBlock(shape[-1], **arguments)
    block.build(shape)
    randomize(block)
    # In float64 dropouts draw other numbers, and a ReLU's input next to zero may have the other sign.
    dtype = "float32" if {"seed", "equivariant_block"} & set(arguments) else "float64"
    exact = ConvNeXtBlock(shape[-1], **arguments, dtype=dtype)
    exact.build(shape)
    exact.set_weights(block.get_weights())
    x, weight = random_array(*shape), random_array(*shape, seed=1)
    custom = outputs_and_gradients(block, x, weight)
    eagerly = outputs_and_gradients(block, x, weight, in_graph=False)
    again = outputs_and_gradients(block, x, weight)
    monkeypatch.setattr(convnext, "custom_gradient_functions", lambda block, x: None)
    plain = outputs_and_gradients(exact, x.astype(dtype), weight.astype(dtype))
    for expected, graph, eager, second in zip(plain, custom, eagerly, again, strict=True):
        scale = np.abs(expected).max() + 1e-6
        assert np.abs(graph - expected).max() / scale <= 1e-5
        assert np.abs(eager - expected).max() / scale <= 1e-5
        np.testing.assert_array_equal(graph, second)  # to the bit: a resumed run must equal an uninterrupted one


@ONLY_TENSORFLOW
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 1), (2, 3), (64, 51)], ids=str)
def test_custom_gradients_of_upsampling_equal_the_plain_ones(size):
    import tensorflow as tf

    from dl_techniques.layers.tensorflow_cpu import upsample_and_add
    from dl_techniques.layers.upsampling import upsample_bilinear_2x

    height, width = size
    fine = tf.constant(random_array(2, height, width, 3))
    coarse = tf.constant(random_array(2, -(-height // 2), -(-width // 2), 3, seed=1))
    weight = random_array(2, height, width, 3, seed=2)

    def plain(coarse, fine):
        return upsample_bilinear_2x(coarse)[:, :height, :width] + fine

    found = []
    for function in (plain, upsample_and_add):
        with tf.GradientTape() as tape:
            tape.watch([coarse, fine])
            y = function(coarse, fine)
            loss = tf.reduce_sum(y * weight)
        found.append([y, *tape.gradient(loss, [coarse, fine])])
    for expected, actual in zip(*found, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)


@ONLY_TENSORFLOW
def test_custom_gradients_of_the_stem_equal_the_plain_ones(monkeypatch):
    import tensorflow as tf

    stem = convnext.ConvUNextStem(8)
    stem.build((2, 9, 12, 3))
    randomize(stem)
    x = tf.constant(random_array(2, 9, 12, 3))
    weight = random_array(2, 9, 12, 8, seed=1)

    def gradients():
        with tf.GradientTape() as tape:
            y = stem(x, training=True)
            loss = tf.reduce_sum(y * weight)
        return [y, *tape.gradient(loss, [weight.value for weight in stem.trainable_weights])]

    custom = gradients()
    monkeypatch.setattr(convnext, "custom_gradient_ops", lambda x: None)
    for expected, actual in zip(gradients(), custom, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@ONLY_TENSORFLOW
def test_a_black_image_has_finite_gradients():
    block = ConvNeXtBlock(4, use_bias=False)
    block.build((1, 8, 8, 4))
    x = np.zeros((1, 8, 8, 4), "float32")
    assert all(np.isfinite(value).all() for value in outputs_and_gradients(block, x, x + 1))


@ONLY_TENSORFLOW
def test_plain_layers_compute_what_has_no_custom_gradient():
    import tensorflow as tf

    x = tf.zeros((1, 8, 8, 4))
    assert convnext.custom_gradient_functions(ConvNeXtBlock(4), x) is not None
    assert convnext.custom_gradient_functions(ConvNeXtBlock(4), tf.cast(x, "bfloat16")) is None
    assert convnext.custom_gradient_functions(ConvNeXtBlock(4, kernel_size=4), x) is None
    relu = ConvNeXtBlock(4, use_bias=False, equivariant_block="no_norm")
    assert convnext.custom_gradient_functions(relu, x)[2] == relu._bottleneck  # the convolution alone


@pytest.mark.only_backend("jax", "torch")
def test_other_backends_use_the_plain_layers():
    assert convnext.custom_gradient_functions(ConvNeXtBlock(4), ops.zeros((1, 8, 8, 4))) is None


@ONLY_TENSORFLOW
def test_a_training_step_takes_less_memory():
    """What a step adds to the resident memory, with custom gradients against plain."""
    import subprocess
    import sys

    code = """
import sys, keras, numpy as np
sys.path.insert(0, sys.argv[2])
from worker import peak_resident
from dl_techniques.layers import convnext
if sys.argv[1] == "plain":
    convnext.custom_gradient_functions = lambda block, x: None
x = keras.Input((256, 256, 16))
y = x
for _ in range(6):
    y = convnext.ConvNeXtBlock(16)(y)
model = keras.Model(x, y)
model.compile("sgd", "mse")
data = np.zeros((2, 256, 256, 16), "float32")
before = peak_resident()
model.train_on_batch(data, data)
print(peak_resident() - before)
"""
    grown = {
        name: int(subprocess.run([sys.executable, "-c", code, name, BENCHMARKS], capture_output=True, text=True).stdout)
        for name in ("plain", "custom")
    }
    assert grown["custom"] < 0.75 * grown["plain"]
