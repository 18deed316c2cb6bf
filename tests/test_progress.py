"""What a training says of itself while it runs."""

import io

from rich.console import Console

from dl_techniques.training import progress


def test_estimate_of_the_run_leaves_out_what_is_not_a_step(monkeypatch):
    now, printed = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(progress, "peak_memory", lambda: 1.94)
    shown = progress.TrainingProgress(epochs=125, steps=8, console=Console(file=printed, width=100), done=400)
    shown.on_train_begin()
    for epoch in range(4):
        now[0] += 50.0  # the validation of the epoch before
        shown.on_epoch_begin(epoch)
        for step in range(8):
            now[0] += 0.5 if epoch or step > 1 else 30.0  # the first ones compile
            shown.on_train_batch_end(step, {"loss": 1.0})
        assert ("to go" in printed.getvalue()) == (epoch > 1)  # 2 and 20 steps
    shown.on_train_end()
    assert printed.getvalue() == (
        "0.5 s a step: about 4.82 minutes to go, without validation · 1.9 GB of memory so far\n"
    )


def test_slow_steps_are_estimated_early(monkeypatch):
    now, printed = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    shown = progress.TrainingProgress(epochs=1, steps=107, console=Console(file=printed, width=100))
    shown.on_train_begin()
    for step in range(progress.WARMUP + progress.FEWEST):
        assert not printed.getvalue()
        now[0] += 6.0
        shown.on_train_batch_end(step, {"loss": 1.0})
    shown.on_train_end()
    assert printed.getvalue().startswith("6 s a step: about 10 minutes to go, without validation")
