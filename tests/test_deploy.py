"""The files to submit parse, their commands exist, and the tables on paper rest on the models as they are."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dl_techniques.cli import app
from dl_techniques.cli.training import planned_settings
from dl_techniques.models.convunext.model import create_convunext_variant
from models import small_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import scale_table  # noqa: E402

FILES = sorted(path for path in (ROOT / "deploy").iterdir())


def commands(text: str) -> list[list[str]]:
    """Return the arguments of each `convunext` command in a file."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [line for line in joined.splitlines() if not line.lstrip().startswith("#")]
    found = [line.partition("convunext ")[2] for line in lines if re.search(r"convunext (train|predict) ", line)]
    return [shlex.split(line) for line in found]


def containers(node) -> list[dict]:
    """Return every container of a Kubernetes object."""
    if isinstance(node, list):
        return [found for item in node for found in containers(item)]
    if not isinstance(node, dict):
        return []
    own = node.get("containers", [])
    return [*own, *(found for key, value in node.items() if key != "containers" for found in containers(value))]


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.suffix in (".yaml", ".slurm")], ids=lambda path: path.name
)
def test_commands_are_understood(path, monkeypatch):
    found = commands(path.read_text(encoding="utf-8"))
    assert found
    for tokens in found:
        if "$@" in tokens:  # set above them
            at = tokens.index("$@")
            (told,) = re.findall(r"set -- (.*)", re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8")))
            tokens = [*tokens[:at], *shlex.split(told.replace("$JOB_COMPLETION_INDEX", "1"))]
        monkeypatch.setattr(app, "config", planned_settings(tokens))
        app.parse_args(tokens, exit_on_error=False, print_error=True)


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".slurm"], ids=lambda path: path.name)
def test_scripts_are_scripts(path):
    assert path.read_text(encoding="utf-8").startswith("#!/bin/bash\n")
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_ray_job_is_one():
    job = yaml.safe_load((ROOT / "deploy" / "predict-rayjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in pins  # what the driver and the workers speak
    assert len(containers(cluster)) == 2 and all(item["image"] and item["resources"] for item in containers(cluster))


def test_the_job_set_is_one_and_its_processes_find_one_another():
    job = yaml.safe_load((ROOT / "deploy" / "train-jobset.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (replicated,) = job["spec"]["replicatedJobs"]
    inner = replicated["template"]["spec"]
    (container,) = containers(job)
    script = container["command"][-1]
    name = job["metadata"]["name"]
    assert f"--coordinator {name}-{replicated['name']}-0-0.{name}:" in script  # JobSet's name of the first pod
    assert inner["completionMode"] == "Indexed"  # which JOB_COMPLETION_INDEX comes from
    assert inner["completions"] == inner["parallelism"] == int(re.search(r"--processes (\d+)", script)[1])
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in inner["template"]["spec"]["volumes"]
    }


@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_parameters_of_the_tables_are_those_of_the_models(variant):
    assert scale_table.parameters(variant) == create_convunext_variant(variant).count_params()


def test_a_ring_sends_what_it_must():
    count = small_model().count_params()
    alone, two, many = (scale_table.row(n, count, 0.1) for n in (1, 2, 1000))
    assert (alone.sent, alone.exchange, alone.efficiency) == (0, 0, 1)
    assert two.sent == 4 * count and many.sent == pytest.approx(2 * 4 * count, rel=2e-3)
    assert many.step == pytest.approx(0.1 + many.sent / scale_table.BETWEEN + 1998 * scale_table.LATENCY)
    assert many.efficiency < many.overlapped == 1


@pytest.mark.slow
def test_the_document_holds_the_tables_of_the_script():
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    milliseconds = float(re.search(r"it is taken to be ([\d.]+) ms", text)[1])
    assert scale_table.tables(milliseconds / 1e3) in text
