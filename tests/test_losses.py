"""Losses are the papers' formulas in float64, ignored pixels have no influence, gradients are finite."""

import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.errors import ArgumentError
from dl_techniques.losses import CharbonnierLoss, SegmentationLoss
from dl_techniques.training.supervision import supervision_weights, target_pyramid
from models import image

pytestmark = pytest.mark.each_backend

SHAPE = (2, 6, 5, 3)  # one for most tests: JAX compiles anew for every other


def scene(activation: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return targets of 0 and 1 with some ignored pixels, and logits."""
    rng = np.random.default_rng(seed)
    if activation == "softmax":
        classes = np.eye(SHAPE[-1])[rng.integers(SHAPE[-1], size=SHAPE[:-1])]
    else:
        classes = rng.integers(2, size=SHAPE)
    valid = rng.uniform(size=(*SHAPE[:-1], 1)) < 0.7
    target = np.concatenate([classes * valid, valid], axis=-1).astype("float32")
    return target, rng.normal(scale=2.0, size=SHAPE).astype("float32")


def probabilities(activation: str, logits: np.ndarray) -> np.ndarray:
    z = logits.astype("float64")
    return np.exp(z) / np.exp(z).sum(-1, keepdims=True) if activation == "softmax" else 1 / (1 + np.exp(-z))


def value_and_gradient(loss: keras.losses.Loss):
    """Return a function of targets, logits and their float type to the loss and its gradient, as float32."""

    def plain(target, x):
        if keras.backend.backend() == "torch":
            x = x.detach().requires_grad_()
            loss(target, x).backward()
            return loss(target, x).detach(), x.grad
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss(target, x)
        return value, tape.gradient(value, x)

    differentiate = plain
    if keras.backend.backend() == "jax":
        import jax

        differentiate = jax.jit(jax.value_and_grad(loss, argnums=1))

    def both(target: np.ndarray, logits: np.ndarray, dtype: str = "float32") -> tuple[float, np.ndarray]:
        value, gradient = differentiate(target, ops.convert_to_tensor(logits, dtype=dtype))
        return float(ops.convert_to_numpy(value)), ops.convert_to_numpy(ops.cast(gradient, "float32"))

    return both


def value(loss: keras.losses.Loss, target: np.ndarray, logits: np.ndarray, **kwargs) -> float:
    return float(ops.convert_to_numpy(loss(target, logits, **kwargs)))


@pytest.mark.parametrize("over_batch", [True, False], ids=["batch", "image"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_overlap_is_the_tversky_loss_of_the_paper(activation, over_batch):
    target, logits = scene(activation)
    t, v, p = target[..., :-1].astype("float64"), target[..., -1:], probabilities(activation, logits)
    axes = (0, 1, 2) if over_batch else (1, 2)

    def index(alpha: float, beta: float, smooth: float) -> np.ndarray:  # Salehi et al. 2017, equation 3
        found, alarms, misses = ((v * x).sum(axes) for x in (p * t, p * (1 - t), (1 - p) * t))
        return (found + smooth) / (found + alpha * alarms + beta * misses + smooth)

    def loss(**kwargs) -> float:
        return value(SegmentationLoss(activation, cross_entropy=0, over_batch=over_batch, **kwargs), target, logits)

    assert loss() == pytest.approx((1 - index(0.5, 0.5, 1.0)).mean(), rel=1e-5)
    assert loss(alpha=0.3, beta=0.7, smooth=0.2, dice=1.7) == pytest.approx(
        1.7 * (1 - index(0.3, 0.7, 0.2)).mean(), rel=1e-5
    )
    weights = np.array([1.0, 0.0, 3.0])
    expected = ((1 - index(0.5, 0.5, 1.0)) @ weights / weights.sum()).mean()
    assert loss(class_weights=weights.tolist()) == pytest.approx(expected, rel=1e-5)


def test_overlap_is_the_dice_loss_of_keras_where_there_is_something_to_find():
    target, logits = scene("sigmoid")
    target[..., -1] = 1.0
    p = probabilities("sigmoid", logits).astype("float32")
    per_class = [value(keras.losses.Dice(), target[..., c], p[..., c]) for c in range(SHAPE[-1])]
    loss = SegmentationLoss("sigmoid", cross_entropy=0, smooth=1e-6)
    assert value(loss, target, logits) == pytest.approx(np.mean(per_class), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_cross_entropy_is_the_focal_loss_of_the_paper(activation, gamma):
    target, logits = scene(activation)
    t, v, p = target[..., :-1].astype("float64"), target[..., -1:], probabilities(activation, logits)
    right = p if activation == "softmax" else np.where(t > 0, p, 1 - p)  # Lin et al. 2017, equations 2 and 4
    each = -((1 - right) ** gamma) * np.log(right) * (t if activation == "softmax" else 1 / SHAPE[-1])
    weights = np.array([1.0, 0.5, 1.5])
    loss = SegmentationLoss(activation, dice=0, gamma=gamma, class_weights=(weights * 73).tolist())
    assert value(loss, target, logits) == pytest.approx((v * each * weights).sum() / v.sum(), rel=1e-5)
    per_image = ((v * each).sum((1, 2, 3)) / v.sum((1, 2, 3))) @ [0.37, 1.7] / 2
    loss = SegmentationLoss(activation, dice=0, gamma=gamma, over_batch=False)
    assert value(loss, target, logits, sample_weight=np.array([0.37, 1.7])) == pytest.approx(per_image, rel=1e-5)


@pytest.mark.parametrize("settings", [{"cross_entropy": 0}, {"dice": 0}, {"dice": 0, "gamma": 2.0}], ids=str)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_fractions_are_the_best_answer_to_fractions(activation, settings):
    _, logits = scene(activation)
    valid = np.random.default_rng(3).choice([0.25, 0.5, 1.0], size=(*SHAPE[:-1], 1))
    target = np.concatenate([probabilities(activation, logits) * valid, valid], axis=-1).astype("float32")
    loss = SegmentationLoss(activation, **settings)
    best = value(loss, target, logits)
    for factor in (0.8, 1.2, 5.0):
        assert value(loss, target, factor * logits) > best + 1e-4
    if "cross_entropy" in settings or "gamma" in settings:
        assert best < 1e-6


def test_overlap_of_fractions_counts_the_smaller_of_two_as_found():
    target, logits = scene("sigmoid")
    v, p = target[..., -1:].astype("float64"), probabilities("sigmoid", logits)
    t = np.random.default_rng(4).uniform(size=SHAPE)
    found, predicted, true = ((v * x).sum((0, 1, 2)) for x in (np.minimum(p, t), p, t))
    expected = 1 - (found + 1) / (0.3 * (predicted - found) + 0.7 * (true - found) + found + 1)
    loss = SegmentationLoss("sigmoid", cross_entropy=0, alpha=0.3, beta=0.7)
    fractions = np.concatenate([v * t, v], axis=-1).astype("float32")
    assert value(loss, fractions, logits) == pytest.approx(expected.mean(), rel=1e-5)


def test_losses_compute_in_float32_whatever_the_default():
    keras.config.set_floatx("float16")
    try:
        assert SegmentationLoss("sigmoid").dtype == CharbonnierLoss().dtype == "float32"
    finally:
        keras.config.set_floatx("float32")


CASES = {"empty": 0.0, "full": 1.0, "ignored": None}


@pytest.mark.parametrize(
    "gamma, over_batch, dtype", [(0.0, True, "float32"), (2.0, False, "float16"), (0.0, False, "bfloat16")]
)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_empty_full_and_ignored_masks_have_small_losses_and_finite_gradients(activation, gamma, over_batch, dtype):
    differentiate = value_and_gradient(SegmentationLoss(activation, gamma=gamma, over_batch=over_batch))
    for name, foreground in CASES.items():
        target = np.zeros((*SHAPE[:-1], 4), "float32")
        if foreground is not None:
            target[..., -1], target[..., 1] = 1.0, foreground
            target[..., 0] = 1 - foreground if activation == "softmax" else 0
        sure = np.where(target[..., :-1] > 0, 30000.0, -30000.0)
        for logits, low, high in ((sure, 0, 1e-6), (-sure, 0.5, np.inf), (0 * sure, 0.05, 3.0)):
            got, gradient = differentiate(target, logits, dtype)
            assert np.isfinite(gradient).all(), name
            if foreground is None:
                assert got == 0 and not gradient.any()
            else:
                assert low <= got <= high and np.isfinite(got), (name, logits.flat[0])


@pytest.mark.parametrize("over_batch", [True, False], ids=["batch", "image"])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_ignored_pixels_have_no_influence(activation, over_batch):
    loss = SegmentationLoss(activation, gamma=2.0, over_batch=over_batch, class_weights=[1, 2, 3])
    differentiate = value_and_gradient(loss)
    target, logits = scene(activation)
    target[1] = 0  # a whole image
    ignored = target[..., -1] == 0
    got, gradient = differentiate(target, logits)
    assert not gradient[ignored].any() and gradient[~ignored].all()
    changed, other = target.copy(), logits.copy()
    changed[ignored, :-1] = 0.37
    other[ignored] *= -1e4
    assert differentiate(changed, other)[0] == got > 0


def test_one_channel_and_large_half_precision_images_are_exact():
    target = np.zeros((1, 512, 512, 2), "float32")
    target[..., 1], target[:, :200, :, 0] = 1, 1
    logits = np.where(target[..., :1] > 0, 3.0, -3.0)
    got, gradient = value_and_gradient(SegmentationLoss("sigmoid"))(target, logits, "float16")
    p = 1 / (1 + np.exp(-3.0))
    found, alarms, misses = 200 * p, 312 * (1 - p), 200 * (1 - p)
    assert got == pytest.approx(-np.log(p) + 1 - found / (found + (alarms + misses) / 2), rel=1e-3)
    assert np.isfinite(gradient).all()


def test_deeply_supervised_model_learns_in_half_precision_beside_an_ignored_image():
    inputs = keras.Input((None, None, 3), dtype="float32")
    coarse = keras.layers.MaxPooling2D(2, padding="same", dtype="mixed_float16")(inputs)
    outputs = [keras.layers.Conv2D(1, 1, dtype="mixed_float16")(features) for features in (inputs, coarse)]
    model = keras.Model(inputs, outputs)
    x = image(2, 9, 7, 3)
    target = np.concatenate([x[..., :1] > 0.5, np.ones_like(x[..., :1])], axis=-1).astype("float32")
    target[1] = 0
    model.compile(
        optimizer=keras.optimizers.Adam(0.1),
        loss=[SegmentationLoss("sigmoid") for _ in range(2)],
        loss_weights=supervision_weights(2),
    )
    losses = model.fit(x, tuple(target_pyramid(target, 2)), epochs=8, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "loss",
    [
        SegmentationLoss("softmax", 0.3, 0.7, 2.0, 0.4, 0.6, 0.5, False, (1, 2), "sum", "mine"),
        CharbonnierLoss(0.37, reduction="sum", name="mine"),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_come_back_from_their_config(loss):
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss) and again.get_config() == loss.get_config()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"activation": "relu"}, r"`activation` must be one of \['sigmoid', 'softmax'\]"),
        ({"dice": -1.0}, "`dice` must be at least 0"),
        ({"gamma": np.nan}, "`gamma` must be at least 0 and finite"),
        ({"dice": 0.0, "cross_entropy": 0.0}, "`dice` must be above 0 where cross_entropy is 0"),
        ({"smooth": 0.0}, "`smooth` must be above 0"),
        ({"class_weights": [0.0, 0.0, 0.0]}, "`class_weights` must hold a number above 0"),
        ({"class_weights": [1.0, -1.0, 1.0]}, "`class_weights` must be at least 0"),
        ({"class_weights": [1.0, 2.0]}, "`class_weights` must be 3, one per channel"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ArgumentError, match=message):
        SegmentationLoss(**{"activation": "sigmoid", **settings})(*scene("sigmoid"))


def test_targets_that_do_not_fit_are_refused():
    target, logits = scene("sigmoid")
    with pytest.raises(
        ArgumentError, match=r"`y_true` must have the shape \(2, 6, 5, 4\) .* Received: .*\(2, 6, 5, 3\)"
    ):
        SegmentationLoss("sigmoid")(target[..., :-1], logits)
    with pytest.raises(ArgumentError, match="`activation` must be 'sigmoid' for one channel"):
        SegmentationLoss("softmax")(target[..., :2], logits[..., :1])
    with pytest.raises(ArgumentError, match=r"`y_true` must have the shape \(2, 6, 5, 3\)"):
        CharbonnierLoss()(logits[:, :1], logits)
    with pytest.raises(ArgumentError, match="`epsilon` must be above 0"):
        CharbonnierLoss(0.0)


def test_charbonnier_is_its_formula_and_flat_at_a_perfect_output():
    reference, output = image(*SHAPE), image(*SHAPE, seed=1)
    expected = np.sqrt((output.astype("float64") - reference) ** 2 + 0.1**2)
    assert value(CharbonnierLoss(0.1), reference, output) == pytest.approx(expected.mean(), rel=1e-5)
    weights = image(*SHAPE[:-1], seed=2)
    weighed = value(CharbonnierLoss(0.1), reference, output, sample_weight=weights)
    assert weighed == pytest.approx((expected.mean(-1) * weights).mean(), rel=1e-5)
    flat = np.full(SHAPE, 0.5, "float32")
    for dtype in ("float32", "float16", "bfloat16"):
        got, gradient = value_and_gradient(CharbonnierLoss())(flat, flat, dtype)
        assert got == pytest.approx(1e-3) and not gradient.any()
