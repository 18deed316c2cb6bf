"""Learning rate schedules."""

from __future__ import annotations

import math

import keras
from keras import ops

from dl_techniques.layers.pointwise import REGISTRY


@keras.saving.register_keras_serializable(package=REGISTRY)
class WarmupStableDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly, stay constant, and fall linearly to zero.

    During the constant part a run can be prolonged: the decay has not begun.

    Args:
        peak: Learning rate after the warm-up.
        steps: Steps of the whole run.
        cooldown: Share of the steps at the end in which the rate falls to zero.
        warmup: Steps in which the rate rises from zero.

    Reference: Hu et al. 2024, MiniCPM, section 4.2; Hägele et al. 2024, Scaling Laws Beyond Fixed Training Durations.
    """

    def __init__(self, peak: float, steps: int, cooldown: float = 0.3, warmup: int = 500) -> None:
        self.peak, self.steps, self.cooldown, self.warmup = peak, steps, cooldown, warmup

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.steps * self.cooldown, 1.0)
        return self.peak * ops.clip(ops.minimum(rise, fall), 0.0, 1.0)

    def get_config(self) -> dict:
        return {"peak": self.peak, "steps": self.steps, "cooldown": self.cooldown, "warmup": self.warmup}


@keras.saving.register_keras_serializable(package=REGISTRY)
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly for a tenth of the steps, at most 100, and fall along a cosine to a hundredth.

    Without the branches of `keras.optimizers.schedules.CosineDecay`, which optimizers trace once for each weight.

    Args:
        peak: Learning rate after the warm-up.
        steps: Steps of the whole run.

    Reference: Loshchilov & Hutter 2017, SGDR, equation 5.
    """

    def __init__(self, peak: float, steps: int) -> None:
        self.peak, self.steps = peak, steps
        self.warmup = min(100, steps // 10)

    def __call__(self, step):
        step = ops.cast(step, "float32")
        done = ops.clip((step - self.warmup) / (self.steps - self.warmup), 0.0, 1.0)
        share = 0.505 + 0.495 * ops.cos(math.pi * done)
        return self.peak * (ops.minimum(step / self.warmup, share) if self.warmup else share)

    def get_config(self) -> dict:
        return {"peak": self.peak, "steps": self.steps}
