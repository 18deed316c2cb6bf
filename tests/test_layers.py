"""Every layer passes one generic check; its numbers are the paper's formula in NumPy float64."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from dl_techniques.layers.convnext import ConvNeXtBlock, ConvUNextStem, LayerScale
from dl_techniques.layers.equivariant import (
    RangeReduction,
    RangeRestoration,
    ScaleCarryingLayerNormalization,
    VarianceBatchNormalization,
)
from dl_techniques.layers.normalization import GlobalResponseNormalization
from dl_techniques.layers.pointwise import PointwiseConv, fresh_initializer, gelu
from dl_techniques.layers.resampling import Downsampling2x, SkipFusion
from dl_techniques.layers.upsampling import upsample_bilinear_2x
from models import image, randomize

pytestmark = pytest.mark.each_backend

# layer, its arguments, the channels of each input, how many times smaller the first input is than the second
LAYERS = [
    (PointwiseConv, {"filters": 5, "activation": "relu", "kernel_regularizer": "l2"}, (3,)),
    (PointwiseConv, {"filters": 5, "use_bias": False, "activation": gelu}, (3,)),
    (GlobalResponseNormalization, {}, (4,)),
    (GlobalResponseNormalization, {"use_bias": False, "epsilon": 1e-12}, (4,)),
    (LayerScale, {"initial_value": 0.3}, (4,)),
    (ScaleCarryingLayerNormalization, {"epsilon": 1e-20}, (4,)),
    (VarianceBatchNormalization, {"momentum": 0.8, "epsilon": 1e-5}, (4,)),
    (RangeReduction, {}, (3,)),
    (ConvUNextStem, {"filters": 4, "kernel_size": 5, "kernel_initializer": "glorot_uniform"}, (3,)),
    (ConvUNextStem, {"filters": 4, "use_bias": False}, (3,)),
    (ConvUNextStem, {"filters": 4, "use_bias": False, "equivariant_block": "no_norm"}, (1,)),
    (ConvUNextStem, {"filters": 4, "use_bias": False, "equivariant_block": "batchnorm"}, (1,)),
    (ConvNeXtBlock, {"filters": 4}, (4,)),
    (ConvNeXtBlock, {"filters": 4, "version": "v1", "expansion": 2, "kernel_size": 3, "remat": True}, (4,)),
    (ConvNeXtBlock, {"filters": 4, "drop_path_rate": 0.2, "dropout_rate": 0.1, "seed": 3}, (4,)),
    (ConvNeXtBlock, {"filters": 4, "use_bias": False}, (4,)),
    (ConvNeXtBlock, {"filters": 4, "use_bias": False, "equivariant_block": "no_norm", "version": "v1"}, (4,)),
    (ConvNeXtBlock, {"filters": 4, "use_bias": False, "equivariant_block": "batchnorm"}, (4,)),
    (Downsampling2x, {"filters": 6}, (3,)),
    (Downsampling2x, {"filters": 6, "method": "conv", "use_bias": False}, (3,)),
    (SkipFusion, {"filters": 4, "kernel_regularizer": "l2"}, (6, 3)),
    (SkipFusion, {"filters": 4, "use_bias": False}, (6, 3)),
]
IDS = [f"{layer.__name__}-{index}" for index, (layer, *_) in enumerate(LAYERS)]


def inputs_of(channels, height=7, width=10) -> list[np.ndarray]:
    """Return one image, or a coarse one and the skip connection that it is fused with."""
    if len(channels) == 1:
        return [image(2, height, width, channels[0])]
    return [image(2, -(-height // 2), -(-width // 2), channels[0]), image(2, height, width, channels[1])]


def one_or_list(values: list):
    return values if len(values) > 1 else values[0]


def arrays(outputs) -> list[np.ndarray]:
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    return [ops.convert_to_numpy(output) for output in outputs]


@pytest.mark.parametrize("layer_class, arguments, channels", LAYERS, ids=IDS)
def test_layer_keeps_its_contract(layer_class, arguments, channels, tmp_path):
    layer = layer_class(**arguments)
    x = inputs_of(channels)
    outputs = arrays(layer(*x))
    randomize(layer)
    outputs = arrays(layer(*x))

    # config: exact, not edited by from_config, and enough to make the same layer
    config = layer.get_config()
    for name, value in arguments.items():
        assert getattr(layer, name) == value or name.endswith(("initializer", "regularizer", "activation"))
    copy_of_config = {**config}
    clone = layer_class.from_config(config)
    assert config == copy_of_config and clone.get_config() == config
    clone(*x)
    clone.set_weights(layer.get_weights())
    for output, again in zip(outputs, arrays(clone(*x)), strict=True):
        assert np.array_equal(output, again)

    # shapes: as computed, known or unknown
    shapes = layer.compute_output_shape(*(array.shape for array in x))
    shapes = shapes if isinstance(shapes[0], tuple) else (shapes,)
    assert [output.shape for output in outputs] == [tuple(shape) for shape in shapes]
    symbols = [keras.Input((None, None, count)) for count in channels]
    model = keras.Model(one_or_list(symbols), layer(*symbols))
    for size in ((1, 1), (2, 3), (8, 5)):
        other = inputs_of(channels, *size)
        symbolic = arrays(model(one_or_list(other)))
        assert all(np.array_equal(a, b) for a, b in zip(symbolic, arrays(layer(*other)), strict=True))

    # a file: config and weights survive
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras", safe_mode=True)
    again = arrays(loaded(one_or_list(x)))
    assert all(np.array_equal(a, b) for a, b in zip(outputs, again, strict=True))

    # training: a step with finite results
    training = arrays(layer(*x, training=True)) if "training" in layer._call_signature.parameters else outputs
    assert all(np.isfinite(output).all() for output in training)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("layer_class, arguments, channels", LAYERS, ids=IDS)
def test_layer_computes_in_the_dtype_of_its_policy(layer_class, arguments, channels, policy):
    layer = layer_class(**arguments, dtype=policy)
    outputs = arrays(layer(*inputs_of(channels)))
    expected = "float32" if layer_class is RangeReduction else keras.dtype_policies.get(policy).compute_dtype
    assert all(str(output.dtype) == expected for output in outputs)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 101)
    expected = [0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x]
    assert np.allclose(ops.convert_to_numpy(gelu(ops.convert_to_tensor(x.astype("float32")))), expected, atol=1e-6)


def test_grn_matches_the_paper(rng):
    layer = GlobalResponseNormalization()
    x = rng.normal(size=(2, 6, 5, 4))
    layer.build(x.shape)
    gamma, beta = rng.normal(size=4), rng.normal(size=4)
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    response = np.linalg.norm(x, axis=(1, 2), keepdims=True)  # Woo et al. 2023, algorithm 1
    expected = gamma * (x * response / response.mean(axis=-1, keepdims=True)) + beta + x
    assert np.allclose(ops.convert_to_numpy(layer(x.astype("float32"))), expected, atol=1e-5)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_biased_block_matches_the_paper(version, rng):
    """`x + pwconv2(grn(gelu(pwconv1(norm(dwconv(x))))))`, written out in float64."""
    layer = ConvNeXtBlock(4, kernel_size=3, version=version)
    x = rng.normal(size=(1, 5, 6, 4))
    layer.build(x.shape)
    randomize(layer)
    w = {weight.path: np.asarray(ops.convert_to_numpy(weight), "float64") for weight in layer.weights}
    dw_kernel, dw_bias = (ops.convert_to_numpy(v).astype("float64") for v in layer.dwconv.weights)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    u = dw_bias + sum(padded[:, i : i + 5, j : j + 6] * dw_kernel[i, j, :, 0] for i in range(3) for j in range(3))
    gamma, beta = (ops.convert_to_numpy(v).astype("float64") for v in layer.norm.weights)
    centered = u - u.mean(-1, keepdims=True)
    u = gamma * centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) + beta
    kernel, bias = (ops.convert_to_numpy(v).astype("float64") for v in layer.pwconv1.weights)
    u = u @ kernel + bias
    u = 0.5 * u * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))
    if version == "v2":
        response = np.linalg.norm(u, axis=(1, 2), keepdims=True)
        gamma, beta = (ops.convert_to_numpy(v).astype("float64") for v in layer.grn.weights)
        u = gamma * (u * response / response.mean(-1, keepdims=True)) + beta + u
    kernel, bias = (ops.convert_to_numpy(v).astype("float64") for v in layer.pwconv2.weights)
    u = u @ kernel + bias
    if version == "v1":
        u = u * ops.convert_to_numpy(layer.layer_scale.gamma)
    assert len(w) == len(layer.weights)  # paths are unique: conversion maps weights by them
    assert np.allclose(ops.convert_to_numpy(layer(x.astype("float32"))), x + u, atol=2e-5)


def test_scale_carrying_norm_returns_what_it_divided_by(rng):
    layer = ScaleCarryingLayerNormalization()
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    normalized, scale = arrays(layer(x))
    assert np.allclose(normalized * scale, x - x.mean(-1, keepdims=True), atol=1e-6)
    assert np.allclose(np.sqrt((normalized**2).mean(-1)), 1.0, atol=1e-5)


def test_variance_batch_norm_divides_by_the_deviation_of_the_batch(rng):
    layer = VarianceBatchNormalization(momentum=0.9, epsilon=0.0)
    x = rng.normal(loc=3.0, scale=2.0, size=(4, 5, 6, 3))
    variance = x.var(axis=(0, 1, 2))
    trained = ops.convert_to_numpy(layer(x.astype("float32"), training=True))
    assert np.allclose(trained, x / np.sqrt(variance), atol=1e-4)
    assert np.allclose(ops.convert_to_numpy(layer.moving_variance), 0.9 + 0.1 * variance, atol=1e-4)


def bilinear_reference(x: np.ndarray) -> np.ndarray:
    """Return the bilinear interpolation at half-pixel centres, by its definition, one axis after the other."""
    for axis in (1, 2):
        size = x.shape[axis]
        position = np.clip((np.arange(2 * size) + 0.5) / 2 - 0.5, 0, size - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, size - 1)
        weight = np.expand_dims(position - low, tuple(range(1, x.ndim - axis)))
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    return x


@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 4))
def test_upsampling_is_bilinear(height, width, channels):
    x = image(2, height, width, channels)
    actual = ops.convert_to_numpy(upsample_bilinear_2x(ops.convert_to_tensor(x)))
    assert np.allclose(actual, bilinear_reference(x.astype("float64")), atol=1e-6)


@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_skip_fusion_is_upsample_concatenate_and_convolve(height, width):
    x, skip = inputs_of((3, 2), height, width)
    layer = SkipFusion(4)
    layer.build(x.shape, skip.shape)
    randomize(layer)
    upsampled = bilinear_reference(x.astype("float64"))[:, :height, :width]
    kernel, bias = (ops.convert_to_numpy(weight).astype("float64") for weight in layer.weights)
    expected = np.concatenate([upsampled, skip], axis=-1) @ kernel + bias
    assert np.allclose(ops.convert_to_numpy(layer(x, skip)), expected, atol=1e-5)


def test_max_downsampling_keeps_the_odd_edge():
    layer = Downsampling2x(1, use_bias=False, kernel_initializer="ones")
    x = np.arange(15, dtype="float32").reshape(1, 3, 5, 1)
    assert ops.convert_to_numpy(layer(x))[0, :, :, 0].tolist() == [[6, 8, 9], [11, 13, 14]]


@given(value=st.floats(1e-30, 1e30))
def test_range_reduction_divides_by_a_power_of_two_near_the_maximum(value):
    x = np.full((1, 2, 2, 1), value, "float32")
    reduced, unit = arrays(RangeReduction()(x))
    assert 0.99 <= reduced.max() <= 2.01
    restored = ops.convert_to_numpy(RangeRestoration()(reduced, unit))
    assert np.allclose(restored, x, rtol=1e-6)


def test_layers_never_start_with_the_same_numbers():
    for initializer in ("he_normal", keras.initializers.HeNormal(seed=1), keras.initializers.HeNormal()):
        first, second = (fresh_initializer(initializer, salt)((3, 4)) for salt in (0, 1))
        assert not np.allclose(ops.convert_to_numpy(first), ops.convert_to_numpy(second))
    block = ConvNeXtBlock(4, expansion=1, kernel_initializer=keras.initializers.HeNormal(seed=1))
    block.build((None, None, None, 4))
    assert not np.allclose(ops.convert_to_numpy(block.pwconv1.kernel), ops.convert_to_numpy(block.pwconv2.kernel))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ConvNeXtBlock(4, version="v3"), "`version` must be 'v1' or 'v2'. Received: version='v3'."),
        (lambda: ConvNeXtBlock(4, use_bias=False, equivariant_block="x"), "`equivariant_block` must be one of"),
        (lambda: Downsampling2x(4, "mean"), "`method` must be one of ['max', 'conv']. Received: method='mean'."),
        (lambda: ConvNeXtBlock(4).build((None, 8, 8, 3)), "`filters` must equal the input's 3 channels"),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)
