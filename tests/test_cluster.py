"""The cluster files, checked by Ray's own validation as far as that goes without an account."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from hiddenweights import cli
from hiddenweights.sweeps import commands as main

TOP = Path(__file__).parents[1]
CLOUDS = ["cluster.yaml", "deploy/gcp.yaml"]
RAY_UP = [*CLOUDS, "deploy/onprem.yaml"]


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((TOP / name).read_text())
    return config


def pinned(package: str) -> str:
    (found,) = re.findall(rf"^{package}==(.+)$", (TOP / "constraints.txt").read_text(), re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_accepts_the_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(TOP)
    config = prepare_config(load(name))
    validate_config(config)
    with pytest.raises(Exception, match="max_worker"):
        validate_config({**config, "max_wokers": 1} | {"max_workers": "many"})


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_are_spot_scale_from_zero_and_the_head_trains_nothing(name: str) -> None:
    config = load(name)
    head, worker = (config["available_node_types"][node] for node in ("head", "worker"))
    assert config["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert worker["min_workers"] == 0 < worker["max_workers"] <= config["max_workers"]
    assert worker["resources"]["GPU"] >= 1
    assert "spot" in str(worker["node_config"]).lower()
    assert "spot" not in str(head["node_config"]).lower()


@pytest.mark.parametrize("name", RAY_UP)
def test_the_set_up_is_the_pinned_one_and_the_dashboard_stays_inside(name: str) -> None:
    config = load(name)
    assert any("--constraint constraints.txt" in command for command in config["setup_commands"])
    (start,) = (command for command in config["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start
    if "docker" in config:  # an image with all packages; the one to do without is named beside it
        assert config["docker"]["image"] == "YOUR-REGISTRY/hidden-weights"
        assert f"rayproject/ray:{pinned('ray')}-py311-gpu" in (TOP / name).read_text()
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    assert any("chmod 600" in command for command in config["setup_commands"])
    assert any(mount.endswith(".ray/auth_token") for mount in config["file_mounts"])


@pytest.mark.parametrize("name", RAY_UP)
def test_the_place_of_the_results_is_set_once(name: str) -> None:
    assert (TOP / name).read_text().count("HIDDENWEIGHTS_STORE=") == 1


@pytest.mark.parametrize("name", [*RAY_UP, "deploy/kuberay.yaml"])
def test_the_launch_command_parses(name: str) -> None:
    text = (TOP / name).read_text()
    commands = re.findall(r"hiddenweights sweeps (launch [^'#\n]+)", text)
    assert commands
    for command in commands:
        cli.parse(main.COMMANDS, "sweeps", shlex.split(command))


def test_the_kubernetes_job_retries_and_its_head_trains_nothing() -> None:
    job = load("deploy/kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert job["spec"]["backoffLimit"] > 0
    assert cluster["rayVersion"] == pinned("ray")
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        (container,) = group["template"]["spec"]["containers"]
        names = [variable["name"] for variable in container["env"]]
        assert "HIDDENWEIGHTS_STORE" in names
        (key,) = (variable for variable in container["env"] if variable["name"] == "WANDB_API_KEY")
        assert "value" not in key  # a secret's, never the file's


def test_the_image_has_the_pinned_packages() -> None:
    text = (TOP / "deploy/Dockerfile").read_text()
    assert re.findall(r"^FROM (.+)$", text, re.MULTILINE) == [f"rayproject/ray:{pinned('ray')}-py311-cpu"]
    installs = re.findall(r"^RUN uv pip install (.+)$", text, re.MULTILINE)
    assert len(installs) == 2
    for words in map(shlex.split, installs):
        assert words[words.index("--constraint") + 1] == "constraints.txt"
        for package in words[words.index("constraints.txt") + 1 :]:
            assert package.startswith((".", "--editable")) or pinned(package.partition("[")[0])
    # The installer is the same with the image and without.
    files = [text, *((TOP / name).read_text() for name in CLOUDS)]
    assert len({re.findall(r"uv==(\S+)", file)[0] for file in files}) == 1


def test_google_gets_its_scheduling_as_an_object() -> None:
    worker = load("deploy/gcp.yaml")["available_node_types"]["worker"]["node_config"]
    assert worker["scheduling"]["provisioningModel"] == "SPOT"  # Ray's own examples have a list here


def test_the_autoscaler_reads_the_kubernetes_job_as_the_clouds_files() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = load("deploy/kuberay.yaml")["spec"]["rayClusterSpec"]
    # As the operator makes a RayCluster of it; Ray validates what it derives.
    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "hidden-weights", "namespace": "default"}, "spec": spec}
    )
    head, worker = config["available_node_types"].values()
    assert (head["resources"]["CPU"], head["resources"].get("GPU", 0)) == (0, 0)
    assert (worker["resources"]["CPU"], worker["resources"]["GPU"]) == (4, 1)
    assert (worker["min_workers"], worker["max_workers"]) == (0, 8)
    assert config["idle_timeout_minutes"] == 5
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group["template"]["spec"]["restartPolicy"] == "Never"
