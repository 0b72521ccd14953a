"""`ray up cluster.yaml` against a stand-in of AWS: what it asks for, of the head and of a spot worker.

The stand-in (moto) keeps the books of EC2, IAM and S3 and starts nothing; ssh and rsync only say what they
were asked to do. That the image boots, and that the account's quota suffices, nobody can learn here.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

pytestmark = pytest.mark.timeout(200)

TOP = Path(__file__).parents[1]
REGION = "us-west-2"
BUCKET = "results-of-ours"
IMAGE_DISK = 140  # GiB, of the largest of AWS's deep learning images so far
SSH = """#!/bin/sh
echo "$*" >> {log}
case "$*" in
  *.Config.Env*) echo '["HOME=/home/ray"]';;
  *"command -v docker"*) echo /usr/bin/docker;;
  *State.Running*) echo true;;
  *"printenv HOME"*) echo /home/ray;;
  *".Mounts"*) echo '[]';;
  *".Config.Image"*) echo YOUR-REGISTRY/hidden-weights;;
esac
"""
RSYNC = """#!/bin/sh
for argument; do before=$last; last=$argument; done
echo "$before $last" >> {log}
case "$last" in */ray_bootstrap_*) cp "$before" {head}/"${{last##*/}}";; esac
"""


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose commands talk to the stand-in, with what deploy/aws.yaml makes in it."""
    home = tmp_path_factory.mktemp("laptop")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "made-up")
        client("cloudformation").create_stack(
            StackName="hidden-weights",
            TemplateBody=(TOP / "deploy/aws.yaml").read_text(),
            Parameters=[{"ParameterKey": "Bucket", "ParameterValue": BUCKET}],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        yield home
    server.stop()


@pytest.fixture(scope="module")
def up(aws: Path) -> Path:
    """The head's home after `ray up cluster.yaml`; what was done over ssh stands in the laptop's ``log``."""
    head = aws / "head"
    head.mkdir()
    commands = aws / "bin"
    commands.mkdir()
    for name, script in (("ssh", SSH), ("rsync", RSYNC)):
        (commands / name).write_text(script.format(log=aws / "log", head=head))
        (commands / name).chmod(0o755)
    (aws / ".ray").mkdir()
    (aws / ".ray/auth_token").write_text("0" * 64)
    shutil.copy(TOP / "cluster.yaml", aws)  # not from the checkout: what is found there would be hashed
    done = subprocess.run(
        [Path(sys.executable).with_name("ray"), "up", "--yes", "cluster.yaml"],
        cwd=aws, capture_output=True, text=True, check=False,
        env={**os.environ, "HOME": str(aws), "TMPDIR": str(aws), "PATH": f"{commands}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return head


def client(service: str) -> Any:
    return boto3.client(service, REGION)


def instances(kind: str) -> list[dict[str, Any]]:
    filters = [{"Name": "tag:ray-user-node-type", "Values": [kind]}]
    found = client("ec2").describe_instances(Filters=filters)["Reservations"]
    return [instance for reservation in found for instance in reservation["Instances"]]


def statements(role: str) -> list[dict[str, Any]]:
    """All that the role may do."""
    iam = client("iam")
    found = []
    for policy in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        version = iam.get_policy(PolicyArn=policy["PolicyArn"])["Policy"]["DefaultVersionId"]
        document = iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId=version)
        found += document["PolicyVersion"]["Document"]["Statement"]
    return found


def check_what_both_have(instance: dict[str, Any], role: str) -> None:
    assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{role}")
    profile = client("iam").get_instance_profile(InstanceProfileName=role)["InstanceProfile"]
    assert [found["RoleName"] for found in profile["Roles"]] == [role]
    assert instance["ImageId"].startswith("resolve:ssm:/aws/service/deeplearning/ami/x86_64/base-oss-nvidia")
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    (disk,) = instance["BlockDeviceMappings"]
    (volume,) = client("ec2").describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"]
    assert volume["Size"] >= IMAGE_DISK
    (group,) = client("ec2").describe_security_groups(
        GroupIds=[found["GroupId"] for found in instance["SecurityGroups"]]
    )["SecurityGroups"]
    # Open to the world is ssh, which asks for the key; to each other the nodes are open.
    world = [rule for rule in group["IpPermissions"] if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in world] == [(22, 22)]


def test_the_head(aws: Path, up: Path) -> None:
    (head,) = instances("head")
    assert head["InstanceType"] == "m5.xlarge"
    assert head.get("InstanceLifecycle") is None  # on demand
    check_what_both_have(head, "hidden-weights-head")
    log = (aws / "log").read_text()
    for command in yaml.safe_load((TOP / "cluster.yaml").read_text())["head_start_ray_commands"]:
        assert command.replace("~", "/home/ray").rpartition("; ")[2] in log
    assert "chmod 600 /home/ray/.ray/auth_token" in log
    assert "RAY_AUTH_MODE=token" in log


def test_a_spot_worker_that_the_autoscaler_starts(up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.v2.instance_manager.config import FileConfigReader
    from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter

    # As Ray's monitor does on the head, with what `ray up` has sent there.
    monkeypatch.setenv("HOME", str(up))
    reader = FileConfigReader(str(up / "ray_bootstrap_config.yaml"), skip_content_hash=True)
    config = reader.get_cached_autoscaling_config()
    provider = _get_node_provider(config.get_provider_config(), config.get_config("cluster_name"))
    adapter = NodeProviderAdapter(provider, reader)
    adapter._do_launch({"worker": 1}, "a request")  # what its thread does
    adapter._node_launcher_executors.shutdown()  # waits for the threads of the launch
    assert adapter.poll_errors() == []
    workers = instances("worker")
    assert len(workers) == 1
    for worker in workers:
        assert worker["InstanceType"] == "g5.xlarge"
        assert worker["InstanceLifecycle"] == "spot"
        check_what_both_have(worker, "hidden-weights-worker")
    (head,) = instances("head")
    assert {w["SecurityGroups"][0]["GroupId"] for w in workers} == {head["SecurityGroups"][0]["GroupId"]}


def test_the_roles_may_do_what_they_must_and_no_more(aws: Path) -> None:
    head, worker = statements("hidden-weights-head"), statements("hidden-weights-worker")
    passed = [s for s in head if "iam:PassRole" in s["Action"]]
    assert [s["Resource"].rpartition("/")[2] for s in passed] == ["hidden-weights-worker"]
    assert all(action.startswith("s3:") for s in worker for action in listed(s["Action"]))
    for statement in (*head, *worker):
        actions = listed(statement["Action"])
        assert not {"*", "ec2:*", "s3:*", "iam:*"} & set(actions)
        if any(action.startswith("s3:") for action in actions):
            assert all(f":{BUCKET}" in resource for resource in listed(statement["Resource"]))
        if "*" in listed(statement["Resource"]):
            assert actions == ["ec2:Describe*"]
        if set(actions) & {"ec2:TerminateInstances", "ec2:CreateTags"}:
            assert statement["Condition"]
    assert client("s3").head_bucket(Bucket=BUCKET)


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
