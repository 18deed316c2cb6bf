"""A short run of `benchmarks/fuzz.py models`: damage is refused by name or changes nothing."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz  # noqa: E402
import fuzz_models  # noqa: E402

HERE = [kind for kind in fuzz_models.KINDS if ("no digest" not in kind or "preset" in kind) and "saved" not in kind]


@pytest.mark.parametrize("kind", HERE)
def test_damaged_models_are_refused_or_change_nothing(kind):
    outcomes = [fuzz.attempt("models", kind, seed) for seed in range(12)]
    assert not [outcome for outcome in outcomes if outcome.state in fuzz.DEFECTS]
    assert any(outcome.state == "refused" for outcome in outcomes)


def test_a_damaged_export_without_digest_runs_in_its_process_or_is_refused():
    outcomes = [fuzz.attempt("models", "onnx, no digest", seed) for seed in range(4)]
    assert not [outcome for outcome in outcomes if outcome.state in fuzz.DEFECTS]
