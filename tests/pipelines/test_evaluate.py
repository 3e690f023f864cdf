"""`pipelines.evaluate` on a tiny project: figures, grids, and nothing at all where an input is bad."""

import json
import math
import shutil

import pytest
import torch
import yaml
from PIL import Image

from components.artifacts import run_folder
from components.errors import ConfigError, DataError, InputError, SamplerError
from components.evaluation import generation
from components.evaluation.foreseen import foreseen
from components.evaluation.protocol import Protocol
from components.evaluation.set_figures import Reference, feature_figures, label_figures
from components.families import family_class
from components.metrics.figures import values
from infra.config import ClusterConfig
from infra.ray_cluster.worker_pool import worker_pool
from pipelines import evaluate, reference
from pipelines.support import measurement
from pipelines.support.params import EvaluateConfig, load
from tests.pipelines.measured import PARAMS, write_images, write_run, write_run_with_averages


@pytest.fixture
def project(described_project, tmp_path, monkeypatch):
    """A project whose real images are described."""
    root = tmp_path / "project"
    shutil.copytree(described_project, root)
    monkeypatch.chdir(root)
    return root


def measured(project, name: str) -> dict:
    """The details of a metrics file; sets whose quality is known by their names, too."""
    evaluate.main([f"samplers.{name}"])
    (details,) = json.loads((project / "metrics" / f"{name}.json").read_text())["details"]
    return details | {one["name"]: one for one in details["known"]}


def test_every_candidate_has_every_figure_and_a_grid(project, capsys):
    result = measured(project, "ldm")
    assert [c["settings"]["solver"] for c in result["candidates"]] == ["ddim", "heun"]
    for candidate in result["candidates"]:
        figures, intervals = candidate["figures"], candidate["intervals"]
        assert intervals["frechet_distance"][0] >= 0
        assert all(0 <= figures[name] <= 1 for name in ("precision", "recall", "coverage", "label_agreement"))
        assert figures["ms_per_image"] > 0 < figures["ms_single"]
        assert math.isfinite(figures["kid"]) and intervals["kid"][0] < intervals["kid"][1]
        for name in ("kid", "cmmd", "precision", "recall", "density", "coverage", "inception_score", "label_agreement"):
            low, high = intervals[name]
            assert low <= figures[name] <= high
        low, high = intervals["frechet_distance"]
        assert low <= figures["frechet_distance"] <= high
        assert 0 <= figures["memorised"] <= 1 >= figures["classifier_accuracy"] >= 0
        assert not {"lpips_diversity", "clip_score"} & figures.keys()  # nobody asked
        assert set(figures) <= {one["name"] for one in result["definitions"]}
        kinds = family_class("judge"), [family_class("latent_diffusion")]
        assert figures.keys() <= foreseen(EvaluateConfig(), *kinds, has_clip=False).known.keys()
    distances = [candidate["figures"]["frechet_distance"] for candidate in result["candidates"]]
    assert distances[result["best"]] == min(distances)
    assert Protocol(**result["protocol"]).num_samples == 24
    assert result["noise"]["num_samples"] == 24 == result["floor"]["num_samples"]
    assert result["copy"]["figures"]["memorised"] == 1 > result["floor"]["figures"]["memorised"]
    floors = [result["floor"], result["floor_by_chance"]]
    for floor in floors:
        low, high = floor["intervals"]["frechet_distance"]
        assert low <= floor["figures"]["frechet_distance"] <= high and "pixel_distance" in floor["figures"]
    assert ["label_agreement" in floor["figures"] for floor in floors] == [True, False]
    assert result["floor_name"] == "floor" and "classifier_accuracy" in result["floor"]["figures"]
    assert 0 <= result["judge"]["figures"]["judge_accuracy"] <= 1
    assert {"training_bias", "held_out_distance"} <= result["judge"]["figures"].keys()
    assert {"pixel_distance", "frechet_balanced", "class_imbalance"} <= result["candidates"][0]["figures"].keys()
    shown = json.loads((project / "metrics/ldm.json").read_text())
    assert shown["frechet_distance"] == min(distances), "what `dvc metrics show` lists"
    assert all(isinstance(value, float) for name, value in shown.items() if name != "details")
    names = {f"{number}{picture}.png" for number in (0, 1) for picture in ("-grid", "-nearest", "-failures")}
    assert {path.name for path in (project / "samples/ldm").iterdir()} == {*names, "candidates.csv"}
    with Image.open(project / "samples/ldm/1-grid.png") as grid:  # three classes in rows of ten, each pixel three wide
        assert grid.size == ((10 * 17 - 1) * 3, (3 * 17 - 1) * 3)
    told = capsys.readouterr().out
    assert "real images" in told and "#1: " in told and "guidance scale 2.0" in told
    header, first, second = (project / "samples/ldm/candidates.csv").read_text().splitlines()
    assert header.startswith("candidate,frechet_distance,") and first.startswith("ldm #0,")
    assert float(second.split(",")[1]) == distances[1]


def test_a_sampler_without_classes_has_no_label_agreement(project):
    result = measured(project, "dcgan")
    figures = result["candidates"][0]["figures"]
    assert not result["conditional"] and "label_agreement" not in figures
    assert result["floor_name"] == "floor_by_chance"
    assert {"inception_score", "classes_hit", "label_entropy"} <= figures.keys()
    assert figures["network_evaluations"] == 1
    generator = run_folder.load(project / "runs/dcgan").family.nets["generator"]
    assert figures["parameters"] == sum(weights.numel() for weights in generator.parameters()), "no discriminator's"
    assert (project / "samples/dcgan/candidates.csv").read_text().count("label_agreement") == 0


def test_figures_are_a_function_of_the_inputs(project):
    def without_time() -> dict:
        result = measured(project, "ldm")
        for candidate in result["candidates"]:
            del candidate["figures"]["ms_per_image"], candidate["figures"]["ms_single"]
        return result

    assert without_time() == without_time()


def test_the_set_is_the_same_whatever_the_batch_size(project):
    sampler = run_folder.load(project / "runs/ldm").family
    settings = sampler.Settings(num_inference_steps=2)
    sets = []
    for batch_size in (4, 7):
        batches = [generation.generate(sampler, r) for r in generation.requests(sampler, settings, 14, 3, batch_size)]
        assert torch.cat([batch.labels for batch in batches]).tolist() == [i % 3 for i in range(14)]
        sets.append(torch.cat([batch.images for batch in batches]))
    assert (sets[0] - sets[1]).abs().max() <= 2.01 / 255  # a rounding may fall to the next of 256 levels


def test_sets_of_different_seeds_share_no_image():
    assert not set(generation.seeds(1000, 0).tolist()) & set(generation.seeds(1000, 1).tolist())


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"solver": "ddim", "num_inference_steps": 3, "guidance_scale": 1.0}, 3 + 1),
        ({"solver": "ddim", "num_inference_steps": 3, "guidance_scale": 2.0}, 2 * 3 + 1),
        ({"solver": "heun", "num_inference_steps": 3, "guidance_scale": 1.0}, 5 + 1),
    ],
)
def test_network_evaluations_count_rows(project, settings, rows):
    sampler = run_folder.load(project / "runs/ldm").family
    assert generation.network_evaluations(sampler, sampler.Settings(**settings)) == rows


def test_time_is_the_median_of_full_batches():
    assert generation.ms_per_image([(10, 1.0), (10, 9.0), (10, 2.0), (4, 0.001)]) == 200


def test_the_reference_itself_is_perfect():
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = EvaluateConfig(neighbours=3, resamples=20)
    figures = values(feature_figures(features, Reference.of(features, config), config))
    assert figures["frechet_distance"] == pytest.approx(0, abs=1e-9)
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1


def test_label_figures_need_somebody_who_knows_classes():
    config, logits = EvaluateConfig(resamples=20), torch.eye(3)
    assert label_figures(None, None, config) == {}
    assert set(label_figures(None, logits, config)) == {"inception_score"}
    judged = label_figures(logits, 5 * torch.eye(3), config, torch.arange(3))
    assert set(judged) == {"inception_score", "classes_hit", "label_entropy", "label_agreement"}
    assert judged["inception_score"].value == pytest.approx(2.77, abs=0.01)


def nothing_written(project) -> bool:
    return not any(project.glob("metrics/*")) and not any(project.glob("samples/*"))


def test_a_missing_judge_is_named(project):
    shutil.rmtree(project / "runs/judge")
    with pytest.raises(SamplerError, match="runs/judge/config.json: missing"):
        evaluate.main(["samplers.ldm"])
    assert nothing_written(project)


def test_an_altered_shard_is_named(project):
    path = project / "data/images/test/00000.image.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="test/00000.image.npy: shard is truncated or altered"):
        evaluate.main(["samplers.ldm"])
    assert nothing_written(project)


def test_images_of_another_shape_than_the_judge_knows(project):
    shutil.rmtree(project / "data/images/test")
    write_images(project / "data/images/test", 30, 2, size=8)
    with pytest.raises(DataError, match=r"test: images of shape \(1, 8, 8\); the judge was trained on \(1, 16, 16\)"):
        reference.main([])


def test_too_few_reference_images(project):
    shutil.rmtree(project / "data/images/test")
    write_images(project / "data/images/test", 3, 2)
    with pytest.raises(DataError, match=r"3 images; expected more than evaluate\.neighbours"):
        reference.main([])


def test_real_images_are_described_once(project, capsys):
    before = {path: path.stat().st_mtime_ns for path in project.glob("reference/*/*")}
    reference.main([])
    assert "train: 40 images unchanged" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shutil.rmtree(project / "data/images/test")
    write_images(project / "data/images/test", 20, 9)
    reference.main([])
    told = capsys.readouterr().out
    assert "train: 40 images unchanged" in told and "test: 20 images described" in told


def test_a_damaged_description_is_made_again(project, capsys):
    path = project / "reference/train/00000.vectors.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    reference.main([])
    assert "train: 40 images described" in capsys.readouterr().out
    assert path.read_bytes() == content


def test_many_workers_describe_and_sample_the_same(project, ray_session):
    task = measurement.sampling(load(), project / "runs/ldm", {"solver": "ddim", "num_inference_steps": 2})
    described = {path.name: path.read_bytes() for path in project.glob("reference/*/*")}
    shutil.rmtree(project / "reference")
    sets = []
    for cluster in (ClusterConfig(), ClusterConfig(num_workers=2)):
        extractors = measurement.open_extractors(load(), "cpu")
        with worker_pool(cluster, evaluate.ROOT) as workers:
            batches = measurement.sample(workers, task, task.open("cpu"), extractors)
        assert len(batches) == 3
        sets.append(batches)
    params = load().model_copy(update={"cluster": ClusterConfig(num_workers=2)})
    reference.reference(params)
    assert {path.name: path.read_bytes() for path in project.glob("reference/*/*")} == described
    for one, two in zip(*sets, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.features.vectors, two.features.vectors)


def test_without_reference_it_says_what_to_run(project):
    shutil.rmtree(project / "reference")
    with pytest.raises(InputError, match="reference/train: missing; expected what `python -m pipelines.reference`"):
        evaluate.main(["samplers.ldm"])


def test_another_protocol_than_the_references_is_refused(project):
    (project / "params.yaml").write_text(yaml.safe_dump({**PARAMS, "evaluate": {**PARAMS["evaluate"], "seed": 5}}))
    with pytest.raises(InputError, match="known.json: measured under another protocol"):
        evaluate.main(["samplers.ldm"])


def test_averages_on_the_way_tell_quality_over_training_time(project):
    shutil.rmtree(project / "runs/ldm")
    write_run_with_averages(project / "runs/ldm")
    content = {**PARAMS, "evaluate": {**PARAMS["evaluate"], "snapshot_samples": 12}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    points = measured(project, "ldm")["over_training"]
    assert [point["step"] for point in points] == [1, 3]
    assert points[0]["figures"]["frechet_distance"] != points[1]["figures"]["frechet_distance"]
    assert measured(project, "dcgan")["over_training"] == []


def test_a_search_adds_the_best_settings_as_a_candidate(project):
    search = {"trials": 4, "num_samples": 12, "space": {"num_inference_steps": [1, 4], "solver": ["ddim", "heun"]}}
    content = {**PARAMS, "evaluate": {**PARAMS["evaluate"], "search": search}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    result = measured(project, "ldm")
    assert [candidate["searched"] for candidate in result["candidates"]] == [False, False, True]
    assert len(result["search"]) == 4
    best = min(result["search"], key=lambda trial: trial["distance"])
    assert best["settings"].items() <= result["candidates"][2]["settings"].items()
    assert result["search"][0]["settings"]["num_inference_steps"] == 2  # the first candidate's own
    assert (project / "samples/ldm/2-grid.png").is_file()
    assert measured(project, "dcgan")["search"] == []  # a GAN has nothing to search over


def test_a_run_of_another_family(project):
    shutil.rmtree(project / "runs/ldm")
    write_run(project / "runs/ldm", "dcgan")
    with pytest.raises(SamplerError, match="holds a dcgan, params.yaml says latent_diffusion"):
        evaluate.main(["samplers.ldm"])
    assert nothing_written(project)


@pytest.mark.parametrize("key", ["samplers.gan", "autoencoders.vae", "ldm"])
def test_an_unknown_sampler_lists_those_there_are(project, key):
    with pytest.raises(ConfigError, match=r"expected one of samplers.ldm, samplers.dcgan"):
        evaluate.main([key])


def test_no_judge_in_params(project):
    (project / "params.yaml").write_text(
        yaml.safe_dump({**PARAMS, "judges": {}, "inputs": {"latents/autoencoder": "runs/vae"}})
    )
    with pytest.raises(ConfigError, match=r"inputs: expected evaluate/judge"):
        reference.reference(load())


def test_a_failure_half_way_leaves_the_old_outputs(project, monkeypatch):
    measured(project, "ldm")
    before = {path: path.read_bytes() for path in project.glob("*/ldm*/*")} | {
        path: path.read_bytes() for path in project.glob("metrics/*")
    }
    calls = iter([None])

    def fails_second(*_):
        if next(calls, "no more") is not None:
            raise InputError("the second candidate fails")
        return 1

    monkeypatch.setattr(generation, "network_evaluations", fails_second)
    with pytest.raises(InputError, match="second"):
        evaluate.main(["samplers.ldm"])
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in (project / "samples").iterdir()] == ["ldm"]
