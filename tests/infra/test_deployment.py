"""What brings a cluster up, checked offline: Ray's launcher file, KubeRay's objects, the image, the bucket."""

import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

from components.config import parse
from infra.ray_cluster import ray_session
from infra.serving.ray_serve import AppConfig
from tests.infra.kustomize import apply, build

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT.parent / "shared/kuberay-schemas"
OVERLAYS = ("cpu", "gpu")
CUSTOM = ("RayCluster", "RayJob", "RayService")


def locked(package: str) -> str:
    return re.search(rf"^{package}==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]


class TestLauncher:
    @pytest.fixture(scope="class")
    def config(self) -> dict:
        return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())

    def test_rays_own_schema_accepts_it(self, config):
        validate_config(config)
        validate_config(fillout_defaults(config))

    def test_and_refuses_what_it_does_not_know(self, config):
        with pytest.raises(jsonschema.ValidationError):
            validate_config({**config, "head_node": {}, "idle_minutes": 3})

    def test_a_head_without_work_and_spot_workers_that_go_when_idle(self, config):
        head, workers = (config["available_node_types"][name] for name in ("head", "gpu_spot"))
        assert config["head_node_type"] == "head"
        assert head["resources"] == {"CPU": 0}
        assert workers["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert workers["min_workers"] == 0 < workers["max_workers"] == config["max_workers"]
        assert config["idle_timeout_minutes"] <= 30
        starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        assert sum("--object-spilling-directory" in command for command in starts) == 2

    def test_a_token_is_asked_for_and_nobody_outside_sees_the_dashboard(self, config):
        assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        assert "/home/ray/.ray/auth_token" in config["file_mounts"]
        assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
        assert "RAY_AUTH_MODE" not in ray_session.ENVIRONMENT, "it would be set for every session"

    def test_images_are_of_the_locked_ray(self, config):
        for image in (config["docker"]["head_image"], config["docker"]["worker_image"]):
            assert image.split(":")[1].startswith(f"{locked('ray')}-py311")

    def test_roles_are_those_that_terraform_makes(self, config):
        made = set(re.findall(r'"\$\{var\.name\}-(\w+)"', (ROOT / "infra/terraform/iam.tf").read_text()))
        for kind in config["available_node_types"].values():
            name = kind["node_config"]["IamInstanceProfile"]["Name"]
            assert name.removeprefix("latent-foundry-") in made


def strangers(value: object, schema: dict, path: str = "") -> list[str]:
    """Fields that a schema does not know, which the server would drop without a word."""
    if isinstance(value, list):
        found = [strangers(item, schema.get("items", {}), f"{path}/{number}") for number, item in enumerate(value)]
        return [*itertools.chain(*found)]
    if not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return []
    known, rest = schema.get("properties", {}), schema.get("additionalProperties")
    if not known and rest is None:
        return []
    unknown = [f"{path}/{name}" for name in value if name not in known and rest is None]
    inside = [strangers(item, known.get(name, rest or {}), f"{path}/{name}") for name, item in value.items()]
    return [*unknown, *itertools.chain(*inside)]


def pod_specs(item: dict) -> list[dict]:
    spec = item["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request) -> list[dict]:
    return build(ROOT / "infra/kuberay/overlays" / request.param)


def custom(objects: list[dict]) -> list[dict]:
    found = [item for item in objects if item["kind"] in CUSTOM]
    assert {item["kind"] for item in found} == set(CUSTOM)
    return found


class TestKubeRay:
    @pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's published schemas are not beside the project")
    def test_the_published_schemas_accept_every_object_and_know_every_field(self, objects):
        for item in custom(objects):
            path = SCHEMAS / f"{item['kind'].lower()}.v1.schema.json.gz"
            schema = json.loads(gzip.decompress(path.read_bytes()))
            jsonschema.Draft7Validator(schema).validate(item)
            schema["properties"]["metadata"] = {"type": "object", "additionalProperties": {}}
            assert strangers(item, schema) == []

    def test_an_unknown_field_is_found(self):
        schema = {"properties": {"spec": {"properties": {"a": {"items": {"properties": {"b": {}}}}}}}}
        assert strangers({"spec": {"a": [{"b": 1, "c": 2}]}}, schema) == ["/spec/a/0/c"]

    def test_every_cluster_asks_for_a_token(self, objects):
        for item in custom(objects):
            spec = item["spec"]
            cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
            assert cluster["authOptions"] == {"mode": "token"}
            assert cluster["rayVersion"] == locked("ray")

    def test_every_container_has_limits_and_probes_and_no_secret_in_clear(self, objects):
        for item in custom(objects):
            for pod in pod_specs(item):
                for container in pod["containers"] + pod.get("initContainers", []):
                    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
                    assert {"cpu", "memory"} <= set(container["resources"]["requests"])
                    assert {"secretRef": {"name": "latent-foundry"}} in container["envFrom"]
                    named = {variable["name"] for variable in container.get("env", ()) if "value" in variable}
                    assert not any(re.search("KEY|TOKEN|PASSWORD|SECRET", name) for name in named)
                for container in pod["containers"]:
                    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)

    def test_disruptions_are_bounded_by_labels_that_pods_have(self, objects):
        budgets = [item for item in objects if item["kind"] == "PodDisruptionBudget"]
        assert len(budgets) == 2
        for item in custom(objects):
            spec = item["spec"]
            cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
            for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                labels = group["template"]["metadata"]["labels"]
                assert all(
                    budget["spec"]["selector"]["matchLabels"]["app.kubernetes.io/part-of"]
                    == labels["app.kubernetes.io/part-of"]
                    for budget in budgets
                )

    def test_the_settings_in_the_environment_are_settings(self, objects):
        """As pipelines.support.params takes them."""
        from infra.config import ClusterConfig, TrackingConfig

        (settings,) = [item["data"] for item in objects if item["kind"] == "ConfigMap"]
        cluster = ClusterConfig(**yaml.safe_load(settings["LATENT_FOUNDRY_CLUSTER"]))
        assert cluster.elastic and cluster.storage_path.startswith("s3://")
        assert TrackingConfig(**yaml.safe_load(settings["LATENT_FOUNDRY_TRACKING"])).uri.startswith("http")

    def test_the_service_names_an_application(self, objects):
        (item,) = [item for item in objects if item["kind"] == "RayService"]
        (application,) = yaml.safe_load(item["spec"]["serveConfigV2"])["applications"]
        module, name = application["import_path"].split(":")
        assert callable(getattr(__import__(module, fromlist=[name]), name))

    @pytest.mark.parametrize("overlay", OVERLAYS)
    def test_the_application_takes_its_arguments(self, overlay):
        made = custom(build(ROOT / "infra/kuberay/overlays" / overlay))
        (item,) = [item for item in made if item["kind"] == "RayService"]
        (application,) = yaml.safe_load(item["spec"]["serveConfigV2"])["applications"]
        config = parse(AppConfig, application["args"], "args")
        assert (config.serve.use_gpu is True) == (overlay == "gpu")

    def test_only_the_gpu_overlay_asks_for_gpus(self):
        for overlay in OVERLAYS:
            made = custom(build(ROOT / "infra/kuberay/overlays" / overlay))
            workers = [pod for item in made for pod in pod_specs(item)[1:]]
            counts = {pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) for pod in workers}
            assert counts == ({1} if overlay == "gpu" else {0})

    def test_a_patch_that_meets_nothing_is_no_patch(self):
        with pytest.raises(KeyError):
            apply({"spec": {}}, {"op": "replace", "path": "/spec/gone", "value": 1})


class TestImage:
    def test_both_targets_install_the_lock(self):
        text = (ROOT / "infra/docker/Dockerfile").read_text()
        stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
        assert [stage.splitlines()[0].split(" AS ")[1] for stage in stages] == ["base", "cpu", "cuda"]
        for stage in stages[1:]:
            assert "--requirement /opt/latent-foundry/requirements.lock" in stage
            assert "USER ray" in stage

    def test_what_it_copies_is_let_in(self):
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        text = (ROOT / "infra/docker/Dockerfile").read_text()
        copied = re.findall(r"^COPY (?:--\S+ )?(\S+) ", text, re.MULTILINE)
        assert set(copied) == allowed

    def test_what_it_copies_is_in_git(self):
        text = (ROOT / "infra/docker/Dockerfile").read_text()
        for pattern in re.findall(r"^COPY (?:--\S+ )?(.+) \S+$", text, re.MULTILINE):
            listed = subprocess.run(["git", "ls-files", *pattern.split()], cwd=ROOT, capture_output=True, text=True)
            assert listed.stdout.split(), f"{pattern}: no file of the repository"

    def test_manifests_call_what_it_has(self, objects):
        """Programs of the image by their place in it, in every command of a pod or a job."""
        called = set(re.findall(r"/opt/latent-foundry/([\w.]+)", json.dumps(objects)))
        assert called == {"checkout.sh", "repro.sh"}
        for name in called:
            assert os.access(ROOT / "infra/docker" / name, os.R_OK)

    @pytest.mark.parametrize("script", ["checkout.sh", "repro.sh"])
    def test_scripts_are_bash(self, script):
        subprocess.run(["bash", "-n", ROOT / "infra/docker" / script], check=True)


class TestMake:
    """The targets around the cluster, with programs that write down how they were called."""

    @pytest.fixture
    def make(self, tmp_path):
        log, venv = tmp_path / "log", tmp_path / "venv"
        (venv / "bin").mkdir(parents=True)
        (tmp_path / "there").mkdir()
        said = f'echo "$(basename "$0") $* $LATENT_FOUNDRY_CLUSTER" >> {log}\n'
        there = 'if [ "$1" = exec ]; then exec bash -c "$3"; fi\n'
        for name, rest in {"uv": "", "python": "", "dvc": '[ "$1" != pull ]\n', "ray": there}.items():
            (venv / "bin" / name).write_text(f"#!/bin/sh\n{said}{rest}")
            (venv / "bin" / name).chmod(0o755)
        (venv / ".installed").touch()

        def run(*arguments: str) -> list[str]:
            command = ["make", *arguments, f"VENV={venv}", f"REMOTE={tmp_path}/there"]
            environment = os.environ | {"HOME": str(tmp_path)}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return [line.rstrip() for line in log.read_text().splitlines() if not line.startswith("uv")]

        return run

    def test_up_makes_the_token_first(self, make):
        assert make("cluster-up") == ["ray get-auth-token --generate", "ray up --yes ray_cluster.yaml"]

    def test_repro_joins_the_cluster_even_where_nothing_could_be_pulled(self, make, tmp_path):
        calls = make("cluster-repro", "TARGETS=autoencoder@vae")
        assert [call for call in calls if not call.startswith("ray exec")] == [
            f"ray rsync-up ray_cluster.yaml {ROOT}/ {tmp_path}/there/",
            "dvc pull --quiet --allow-missing",
            "python -m pipelines.repro autoencoder@vae {address: auto}",
            "dvc push",
            f"ray rsync-down ray_cluster.yaml {tmp_path}/there/dvc.lock {ROOT}/dvc.lock",
        ]

    def test_down_asks_nothing(self, make):
        assert make("cluster-down") == ["ray down --yes ray_cluster.yaml"]


class TestTerraform:
    @pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
    def test_format(self):
        done = subprocess.run(
            ["terraform", "fmt", "-check", "-recursive", "-diff", ROOT / "infra/terraform"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout

    def test_the_bucket_is_versioned_encrypted_private_and_tidied(self):
        text = (ROOT / "infra/terraform/bucket.tf").read_text()
        for kind in ("versioning", "server_side_encryption_configuration", "public_access_block"):
            assert f'"aws_s3_bucket_{kind}"' in text
        assert "noncurrent_version_expiration" in text and "abort_incomplete_multipart_upload" in text
        assert text.count("= true") >= 4  # all four blocks of public access

    def test_no_policy_allows_everything(self):
        text = (ROOT / "infra/terraform/iam.tf").read_text()
        assert not re.search(r'actions\s*=\s*\[\s*"(\*|s3:\*|ec2:\*|iam:\*)"', text)

    def test_what_is_not_in_the_bucket_yet_is_missing_rather_than_forbidden(self):
        """A listing right that asks for a prefix is not there for HeadObject and HeadBucket, which have none."""
        (text,) = re.findall(
            r'statement \{\s+actions\s+= \["s3:ListBucket"\].*?\n  \}',
            (ROOT / "infra/terraform/iam.tf").read_text(),
            re.DOTALL,
        )
        assert re.search(r'test\s+= "StringLikeIfExists"', text) and '"s3:prefix"' in text


@pytest.mark.parametrize("folder", ["plain", "with two spaces"])
def test_make_in_any_folder_makes_one_environment_in_it(tmp_path, folder):
    here = tmp_path / folder
    here.mkdir()
    for name in ("Makefile", "requirements.lock"):
        (here / name).write_text((ROOT / name).read_text())
    # stands for Python: says so when it makes an environment, whose programs do nothing
    python = tmp_path / "python"
    program = 'echo "#!/bin/sh" > "$3/bin/$name" && chmod +x "$3/bin/$name"'
    made = f'mkdir -p "$3/bin"\nfor name in pip uv python; do {program}; done\n'
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exit 0\n{made}')
    python.chmod(0o755)
    for _ in range(2):
        done = subprocess.run(
            ["make", "setup", f"PYTHON={python}"], cwd=here, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob(".venv")] == [Path(folder) / ".venv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([folder, "python"])
    assert (here / ".venv/.installed").exists()
    shown = subprocess.run(["make", "-pn", "setup"], cwd=here, capture_output=True, text=True).stdout
    assert re.search(rf"^(export )?PATH := {re.escape(str(here))}/\.venv/bin:", shown, re.MULTILINE)
