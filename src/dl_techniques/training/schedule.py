"""Learning rate over a run."""

from __future__ import annotations

import keras
from keras import ops

from dl_techniques.layers.pointwise import REGISTRY


@keras.saving.register_keras_serializable(package=REGISTRY)
class WarmupStableDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly, stay, and fall linearly to zero.

    While it stays, a run can be stopped, resumed or prolonged without having spent its decay on the old end.

    Args:
        peak: Learning rate after the warm-up.
        steps: Steps of the whole run.
        cooldown: Share of the steps, at the end, over which the rate falls to zero.
        warmup: Steps over which it rises from zero.

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


def warmup_cosine(peak: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """Return a learning rate that rises for a tenth of the steps, at most 100, and falls along a cosine to a hundredth.

    Reference: Loshchilov & Hutter 2017, SGDR, equation 5.
    """
    warmup = min(100, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=peak, warmup_steps=warmup, alpha=0.01
    )
