"""ConvUNextModel: any size in and out, names and attributes as promised, wrong arguments named, conversion exact."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from dl_techniques.layers.convnext import ConvNeXtBlock
from dl_techniques.models.convunext.model import (
    MODEL_VARIANTS,
    ConvUNextModel,
    ConvUNextStem,
    create_convunext_variant,
    create_inference_model_from_training_model,
)
from dl_techniques.training.supervision import target_pyramid
from models import image, randomize, relative_difference, run, small_model

pytestmark = pytest.mark.each_backend

SIZES = [(1, 1), (2, 3), (17, 31), (129, 257), (481, 321)]


# === sizes ===


@pytest.mark.parametrize("static", [False, True], ids=["unknown", "static"])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_any_size_goes_in_and_comes_out(depth, static):
    model = None
    for height, width in SIZES:
        if model is None or static:
            shape = (height, width, 3) if static else (None, None, 3)
            model = small_model(
                input_shape=shape, depth=depth, initial_filters=4, output_channels=2, kernel_initializer="zeros"
            )
            randomize(model)
            assert model.output_shape == (None, *shape[:2], 2)
        (output,) = run(model, image(1, height, width, 3))
        assert output.shape == (1, height, width, 2)
        assert np.isfinite(output).all() and np.ptp(output) > 0


@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_deeply_supervised_outputs_halve_and_round_up(height, width):
    model = small_model(depth=3, initial_filters=2, output_channels=1, enable_deep_supervision=True)
    sizes = [(-(-height // 2**level), -(-width // 2**level)) for level in range(3)]
    assert [output.shape for output in run(model, image(1, height, width, 3))] == [(1, *size, 1) for size in sizes]


def test_predict_takes_one_size_after_another():
    model = small_model()
    for height, width in ((16, 16), (33, 47)):
        x = image(2, height, width, 3)
        assert relative_difference(model.predict(x, verbose=0), run(model, x)[0]) <= 1e-5


def test_empty_batch_is_refused():
    with pytest.raises(ValueError, match=r"`inputs` must hold at least one image. Received: inputs=\(0, 8, 8, 3\)"):
        small_model()(np.zeros((0, 8, 8, 3), "float32"))


def test_wrong_channel_count_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"None, None, None, 3.*1, 8, 8, 4"):
        small_model()(np.zeros((1, 8, 8, 4), "float32"))


# === names and arguments ===


@pytest.mark.parametrize("variant", list(MODEL_VARIANTS))
def test_variant_has_the_specified_configuration(variant):
    depth, filters, blocks, rate = {
        "tiny": (3, 32, 2, 0.0),
        "small": (3, 48, 2, 0.1),
        "base": (4, 64, 3, 0.1),
        "large": (4, 96, 4, 0.2),
        "xlarge": (5, 128, 5, 0.3),
    }[variant]
    settings = ConvUNextModel.MODEL_VARIANTS[variant]
    assert settings == {
        "depth": depth, "initial_filters": filters, "blocks_per_level": blocks, "drop_path_rate": rate,
    }  # fmt: skip


@pytest.mark.parametrize("variant, expected", [("tiny", 1_942_657), ("small", 4_297_153), ("base", 44_213_761)])
def test_parameter_count_is_near_the_reference(variant, expected):
    model = create_convunext_variant(variant, output_channels=1)
    assert abs(model.count_params() / expected - 1) < 0.02


def test_attributes_carry_the_names_of_the_constructor():
    arguments = {
        "input_shape": (32, 48, 2),
        "depth": 2,
        "initial_filters": 4,
        "filter_multiplier": 3,
        "blocks_per_level": 1,
        "convnext_version": "v1",
        "stem_kernel_size": 5,
        "block_kernel_size": 3,
        "drop_path_rate": 0.25,
        "use_bias": False,
        "enable_deep_supervision": True,
        "output_channels": 5,
        "include_top": True,
        "downsample": "conv",
        "dropout_rate": 0.1,
        "equivariant_block": "no_norm",
        "layer_scale_init_value": 0.1,
        "residual_learning": False,
        "zero_mean_stem": True,
        "remat": True,
        "seed": 4,
    }
    model = ConvUNextModel(
        final_activation="relu", kernel_initializer="glorot_normal", kernel_regularizer="l2", **arguments
    )
    for name, value in arguments.items():
        assert getattr(model, name) == value, name
    assert model.final_activation is keras.activations.relu
    assert isinstance(model.kernel_initializer, keras.initializers.GlorotNormal)
    assert isinstance(model.kernel_regularizer, keras.regularizers.L2)
    assert list(model.filter_sizes) == [4, 12, 36]
    assert model.input_channels == 2
    assert isinstance(model.stem, ConvUNextStem)
    assert len(model.losses) > 0
    clone = ConvUNextModel.from_config(model.get_config())
    assert clone.get_config() == model.get_config()


def test_output_channels_default_to_the_input():
    model = small_model(input_shape=(None, None, 2))
    assert model.output_channels == 2 and model.output_shape == (None, None, None, 2)


def test_factories_pass_overrides_on():
    model = create_convunext_variant("tiny", depth=2, initial_filters=4, blocks_per_level=1, final_activation="sigmoid")
    assert (model.depth, model.initial_filters, model.blocks_per_level) == (2, 4, 1)
    assert 0 < run(model, image(1, 8, 8, 3))[0].min()
    assert ConvUNextModel.from_variant("tiny", initial_filters=4).filter_sizes == [4, 8, 16, 32]


def test_without_top_the_features_come_out():
    model = small_model(include_top=False, enable_deep_supervision=True)
    assert [output.shape[-1] for output in run(model, image(1, 16, 16, 3))] == [8, 16, 32]
    assert run(small_model(include_top=False), image(1, 16, 16, 3))[0].shape == (1, 16, 16, 8)


@pytest.mark.parametrize("use_bias", [True, False])
def test_residual_learning_adds_the_input(use_bias):
    plain = small_model(enable_deep_supervision=True, use_bias=use_bias)
    randomize(plain)
    residual = ConvUNextModel.from_config({**plain.get_config(), "residual_learning": True})
    residual.set_weights(plain.get_weights())
    x = image(1, 17, 30, 3)
    expected = target_pyramid(x, 3)
    for y, r, pooled in zip(run(residual, x), run(plain, x), expected, strict=True):
        assert np.allclose(y, pooled + r, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"output_channels": 1}, {"include_top": False}])
def test_residual_learning_needs_the_channels_of_the_input(arguments):
    with pytest.raises(ValueError, match="`residual_learning` needs include_top=True and output_channels=3"):
        small_model(residual_learning=True, **arguments)


def test_stem_answers_for_itself():
    stem = ConvUNextStem(filters=6, kernel_size=5, use_bias=False)
    assert (stem.filters, stem.kernel_size, stem.use_bias) == (6, 5, False)
    assert stem.compute_output_shape((None, None, 9, 3)) == (None, None, 9, 6)


def test_no_two_kernels_start_equal():
    model = small_model(blocks_per_level=2, kernel_initializer=keras.initializers.HeNormal(seed=3))
    kernels = [ops.convert_to_numpy(w).ravel()[:4].tobytes() for w in model.weights if w.path.endswith("kernel")]
    assert len(kernels) == len(set(kernels))


def test_summary_and_layer_names_show_the_structure(capsys):
    model = small_model(depth=2)
    model.summary()
    assert "bottleneck_block_0" in capsys.readouterr().out
    names = {layer.name for layer in model.layers if isinstance(layer, ConvNeXtBlock)}
    expected = {
        "encoder_0_block_0",
        "encoder_1_block_0",
        "bottleneck_block_0",
        "decoder_1_block_0",
        "decoder_0_block_0",
    }
    assert names == expected


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"depth": 1}, "`depth` must be an integer of at least 2. Received: depth=1."),
        ({"depth": 2.5}, "`depth` must be an integer of at least 2. Received: depth=2.5."),
        ({"depth": 40}, "`depth` must be at most 12"),
        (
            {"convnext_version": "v3"},
            "`convnext_version` must be one of ['v1', 'v2']. Received: convnext_version='v3'.",
        ),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be in [0, 1). Received: drop_path_rate=1.0."),
        ({"drop_path_rate": -0.1}, "`drop_path_rate` must be in [0, 1)"),
        ({"dropout_rate": float("nan")}, "`dropout_rate` must be in [0, 1)"),
        ({"initial_filters": 0}, "`initial_filters` must be an integer of at least 1. Received: initial_filters=0."),
        ({"initial_filters": 2**31}, "`initial_filters` must be at most 65536. Received: initial_filters=2147483648."),
        ({"initial_filters": 4096, "depth": 6}, "more than the 8.6e+09 that are allowed"),
        ({"filter_multiplier": 0}, "`filter_multiplier` must be an integer of at least 1"),
        ({"blocks_per_level": 0}, "`blocks_per_level` must be an integer of at least 1"),
        ({"blocks_per_level": True}, "`blocks_per_level` must be an integer of at least 1"),
        ({"stem_kernel_size": 0}, "`stem_kernel_size` must be an integer of at least 1"),
        ({"block_kernel_size": -7}, "`block_kernel_size` must be an integer of at least 1"),
        ({"output_channels": 0}, "`output_channels` must be an integer of at least 1"),
        ({"input_shape": (32, 32)}, "`input_shape` must be (height, width, channels)"),
        ({"input_shape": (0, 32, 3)}, "`input_shape` must be (height, width, channels)"),
        ({"input_shape": (None, None, None)}, "`input_shape` must be (height, width, channels)"),
        ({"input_shape": (2**40, 2**40, 3)}, "`input_shape` must be (height, width, channels)"),
        ({"downsample": "mean"}, "`downsample` must be one of ['max', 'conv']"),
        ({"equivariant_block": "x", "use_bias": False}, "`equivariant_block` must be one of"),
        ({"use_bias": None}, "`use_bias` must be True or False"),
        ({"seed": -1}, "`seed` must be None or an integer of at least 0"),
        ({"layer_scale_init_value": float("inf")}, "`layer_scale_init_value` must be a finite number"),
        ({"use_bias": False, "final_activation": "sigmoid"}, "`final_activation` must be one of ['linear', 'relu'"),
        ({"use_bias": False, "final_activation": "softmax"}, "Choose one of these, or use_bias=True."),
    ],
)
def test_wrong_arguments_are_named_with_the_remedy(arguments, message):
    with pytest.raises(ValueError) as error:
        small_model(**arguments)
    assert message in str(error.value)


def test_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`variant` must be one of \['tiny', .*'xlarge'\]. Received: variant='huge'"):
        create_convunext_variant("huge")


# === conversion ===


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("use_bias", [True, False])
def test_inference_model_gives_the_first_output_bit_for_bit(use_bias, version):
    training_model = small_model(
        use_bias=use_bias, convnext_version=version, enable_deep_supervision=True, drop_path_rate=0.2, output_channels=1
    )
    randomize(training_model)
    before = [ops.convert_to_numpy(weight).copy() for weight in training_model.weights]
    model = create_inference_model_from_training_model(training_model)
    for size in ((64, 64), (33, 47)):
        x = image(2, *size, 3)
        assert np.array_equal(run(model, x, compiled=False)[0], run(training_model, x, compiled=False)[0])
    kept = {weight.path: weight for weight in model.weights}
    for weight, old in zip(training_model.weights, before, strict=True):
        assert np.array_equal(ops.convert_to_numpy(weight), old)
        if not weight.path.startswith(("head_1", "head_2")):
            assert np.array_equal(ops.convert_to_numpy(kept.pop(weight.path)), old)
    assert not kept


def test_models_live_on_after_one_of_them_predicts_or_trains():
    training_model = small_model(depth=2, enable_deep_supervision=True, output_channels=1)
    x = image(2, 16, 16, 3)
    model = create_inference_model_from_training_model(training_model)
    before = run(model, x)[0]
    training_model.compile(optimizer="sgd", loss="mse")
    training_model.predict(x, verbose=0)
    training_model.train_on_batch(x, [np.zeros_like(y) for y in run(training_model, x)])
    assert np.array_equal(run(model, x)[0], before)


def test_inference_model_is_returned_as_it_is():
    model = small_model()
    assert create_inference_model_from_training_model(model) is model


def test_conversion_takes_overrides_of_constructor_arguments():
    training_model = small_model(input_shape=(32, 32, 3), enable_deep_supervision=True, output_channels=1)
    model = create_inference_model_from_training_model(
        training_model, input_shape=(None, None, 3), final_activation="sigmoid", drop_path_rate=0.3
    )
    logits = run(training_model, image(1, 32, 32, 3))[0]
    assert np.allclose(run(model, image(1, 32, 32, 3))[0], 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert run(model, image(1, 17, 40, 3))[0].shape == (1, 17, 40, 1)
    features = create_inference_model_from_training_model(training_model, include_top=False)
    assert run(features, image(1, 32, 32, 3))[0].shape == (1, 32, 32, 8)


@pytest.mark.parametrize(
    "override", [{"initial_filters": 16}, {"blocks_per_level": 2}, {"use_bias": False}, {"convnext_version": "v1"}]
)
def test_a_weight_without_a_place_is_an_error(override):
    training_model = small_model(enable_deep_supervision=True)
    with pytest.raises(ValueError, match="training_model: has (no weight of that shape for|the weight) '"):
        create_inference_model_from_training_model(training_model, **override)


def test_conversion_names_unknown_arguments_and_foreign_models():
    with pytest.raises(ValueError, match="filters"):
        create_inference_model_from_training_model(small_model(enable_deep_supervision=True), filters=3)
    with pytest.raises(ValueError, match="`training_model` must be a ConvUNextModel. Received: .*Sequential"):
        create_inference_model_from_training_model(keras.Sequential())
