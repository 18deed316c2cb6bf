"""With use_bias=False nothing is added anywhere, and f(a·x) = a·f(x) to float precision."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl_techniques.layers.equivariant import EQUIVARIANT_BLOCKS
from dl_techniques.models.convunext.model import (
    ConvUNextModel,
    create_convunext_variant,
    create_inference_model_from_training_model,
)
from dl_techniques.models.convunext.receptive import receptive_radius
from models import DENOISER, image, randomize, relative_difference, run, small_model

pytestmark = pytest.mark.each_backend

ALPHAS = np.array([0.013, 0.37, 1.7, 73.0], dtype="float32")  # no powers of two: floats scale by those exactly
# Wider than tiny, which no backend sees a difference in: once.
WIDER = [pytest.param(net, marks=pytest.mark.only_backend("tensorflow")) for net in ("small", "base")]
SIZES = {"small": ((32, 32), (49, 31)), "base": ((32, 32), (49, 31))}  # and of these, fewer pixels
ANY_NET = ((64, 64), (97, 61))
DEPTH_5 = {"depth": 5, "initial_filters": 8, "blocks_per_level": 1, "drop_path_rate": 0.0}


def scale_errors(model, height: int, width: int, channels: int = 3) -> np.ndarray:
    """Return ‖f(αx) − αf(x)‖ / ‖αf(x)‖ for every output (rows) and α (columns)."""
    x = image(1, height, width, channels)
    outputs = run(model, np.concatenate([x, *(alpha * x for alpha in ALPHAS)]))
    return np.array(
        [
            [relative_difference(y[i + 1], alpha * y[0].astype("float64")) for i, alpha in enumerate(ALPHAS)]
            for y in outputs
        ]
    )


def build(net: str, **kwargs) -> ConvUNextModel:
    arguments = {**DEPTH_5, **kwargs} if net == "depth 5" else {**ConvUNextModel.MODEL_VARIANTS[net], **kwargs}
    # Kernels start at zero, which costs nothing; then all of them are drawn.
    model = ConvUNextModel(kernel_initializer="zeros", enable_deep_supervision=True, **arguments)
    randomize(model)
    return model


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("block", list(EQUIVARIANT_BLOCKS))
@pytest.mark.parametrize("net", ["tiny", *WIDER, "depth 5"])
def test_bias_free_output_scales_with_input(net, block, version):
    supervised = build(net, use_bias=False, equivariant_block=block, convnext_version=version)
    plain = create_inference_model_from_training_model(supervised)
    for model, size in itertools.product((supervised, plain), SIZES.get(net, ANY_NET)):
        errors = scale_errors(model, *size)
        assert errors.shape[0] == (supervised.depth if model is supervised else 1)
        assert errors.max() <= 1e-5, (size, errors)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("net", ["tiny", "depth 5"])
def test_biased_output_does_not_scale_with_input(net, version):
    model = build(net, use_bias=True, convnext_version=version)
    for size in ANY_NET:
        assert scale_errors(model, *size).min() > 1e-2


@pytest.mark.parametrize("downsample", ["max", "conv"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_every_choice_of_a_bias_free_model_scales(downsample, activation):
    model = small_model(use_bias=False, downsample=downsample, final_activation=activation)
    randomize(model)
    assert scale_errors(model, 33, 47).max() <= 1e-5


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("block", list(EQUIVARIANT_BLOCKS))
def test_black_image_stays_exactly_black(block, version):
    model = small_model(use_bias=False, equivariant_block=block, convnext_version=version, enable_deep_supervision=True)
    randomize(model)
    for output in run(model, np.zeros((1, 33, 47, 3), "float32")):
        assert np.all(output == 0.0)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("block", list(EQUIVARIANT_BLOCKS))
def test_no_weight_of_a_bias_free_model_is_additive(block, version):
    def names(**kwargs) -> set[str]:
        model = small_model(convnext_version=version, enable_deep_supervision=True, drop_path_rate=0.1, **kwargs)
        return {weight.path.rsplit("/", 1)[-1] for weight in model.weights}

    multiplicative = {"kernel", "gamma", "moving_variance"}
    assert names(use_bias=False, equivariant_block=block) <= multiplicative
    assert names(use_bias=True) - multiplicative == {"bias", "beta"}


def test_equivariance_is_local(rng):
    """Brightening one half of an image brightens that half of the output alone, beyond the receptive field."""
    model = small_model(depth=2, use_bias=False, convnext_version="v1")
    randomize(model)
    x = image(1, 16, 256, 3)
    brighter = x.copy()
    brighter[:, :, 128:] *= 3.7
    before, after = run(model, x)[0], run(model, brighter)[0]
    assert np.array_equal(after[:, :, :40], before[:, :, :40])
    assert relative_difference(after[:, :, -40:], 3.7 * before[:, :, -40:].astype("float64")) <= 1e-5


@given(alpha=st.floats(1e-3, 1e3), height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_scaling_holds_for_any_factor_and_size(property_model, alpha, height, width, seed):
    x = image(1, height, width, 1, seed=seed)
    alpha = np.float32(alpha)
    (expected,), (actual,) = run(property_model, x), run(property_model, alpha * x)
    assert relative_difference(actual, alpha * expected.astype("float64")) <= 1e-5


@pytest.fixture(scope="module")
def property_model():
    model = small_model(input_shape=(None, None, 1), depth=2, initial_filters=4, use_bias=False)
    randomize(model)
    return model


@pytest.mark.parametrize("block", list(EQUIVARIANT_BLOCKS))
@pytest.mark.parametrize("zero_mean", [True, False])
def test_model_that_sees_differences_only_is_shift_equivariant(zero_mean, block):
    arguments = {**DENOISER, "equivariant_block": block, "zero_mean_stem": zero_mean}
    model = small_model(input_shape=(None, None, 1), **arguments)
    randomize(model)
    radius = receptive_radius(model)
    inner = (slice(None), slice(radius, -radius), slice(radius, -radius))  # the borders see padded zeros
    x = image(1, 2 * radius + 16, 2 * radius + 12, 1)
    y, moved = run(model, np.concatenate([x, 2.7 * x - 1.3]))[0]
    expected = 2.7 * y - 1.3
    error = np.abs(moved - expected)[inner[1:]].max()
    assert error <= 2e-5 * np.abs(expected).max() if zero_mean else error > 0.1


def test_variant_factory_passes_the_promise_on():
    model = create_convunext_variant("tiny", input_shape=(None, None, 1), use_bias=False)
    assert scale_errors(model, 33, 47, channels=1).max() <= 1e-5
