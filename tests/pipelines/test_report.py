"""report.html on a tiny project: whole, alone, escaped, a function of its inputs."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import torch

from components.artifacts import run_folder
from components.errors import InputError
from components.files import write_json
from components.metrics.figures import Definition
from components.metrics.held_out import DENOISING
from infra.ray_train import validation
from pipelines import report
from pipelines.support import report_words
from tests.infra import chromium

VOID = {"meta", "link", "img", "br"}


@pytest.fixture(scope="module")
def promoted_project(measured_project, tmp_path_factory):
    root = tmp_path_factory.mktemp("promoted") / "project"
    shutil.copytree(measured_project, root)
    promote_candidate(root, "ldm", 1)
    lock = "schema: '2.0'\nstages:\n  prepare:\n    outs:\n    - {path: data/images/train, md5: 0123456789abcdef.dir}\n"
    lock += (
        "  autoencoder@vae:\n    deps:\n    - {path: data/images/train}\n    outs:\n    - {path: runs/vae, md5: fed}\n"
    )
    (root / "dvc.lock").write_text(lock)
    write_json(root / ".cache/durations/autoencoder@vae.json", {"seconds": 151.2})
    return root


def promote_candidate(root, sampler: str, number: int) -> None:
    """What promote writes, without a registry."""
    shutil.rmtree(root / "champion", ignore_errors=True)
    shutil.copytree(root / "runs" / sampler, root / "champion/sampler")
    for suffix, name in {"-grid": "grid", "-nearest": "nearest", "-failures": "failures"}.items():
        if (picture := root / f"samples/{sampler}/{number}{suffix}.png").is_file():
            shutil.copy(picture, root / f"champion/{name}.png")
    (details,) = json.loads((root / f"metrics/{sampler}.json").read_text())["details"]
    candidate = details["candidates"][number]
    kept = {name: details[name] for name in ("sampler", "definitions", "protocol", "device")}
    write_json(root / "champion/candidate.json", {**candidate, **kept, "candidate": number})
    promoted = {
        "sampler": sampler,
        "key": f"samplers.{sampler}",
        "candidate": number,
        "settings": candidate["settings"],
        "figures": candidate["figures"],
        "run_folder": "champion/sampler",
        "model": "latent-foundry",
        "version": "7",
        "hash": "f" * 64,
        "why": "lowest of all",
    }
    write_json(root / "promoted.json", promoted)


@pytest.fixture
def project(promoted_project, tmp_path, monkeypatch):
    root = tmp_path / "project"
    shutil.copytree(promoted_project, root)
    monkeypatch.chdir(root)
    return root


def page(root) -> str:
    report.main([])
    return (root / "report.html").read_text()


class Balance(HTMLParser):
    """Every tag that opens closes, in order; keeps attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text.append(data)


def parsed(content: str) -> Balance:
    parser = Balance()
    parser.feed(content)
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_asks_for_nothing_outside(project):
    content = parsed(page(project))
    addresses = [value for _, name, value in content.attributes if name in ("src", "href")]
    assert addresses and all(value.startswith("data:") for value in addresses)
    assert not [tag for tag, _, _ in content.attributes if tag == "script"]
    assert "http://" not in "".join(content.text) and "https://" not in "".join(content.text)


def test_it_shows_the_champion_every_candidate_floor_noise_and_lineage(project):
    content = page(project)
    text = " ".join(" ".join(parsed(content).text).split())
    for expected in ("latent-foundry", "version 7", "ldm #0", "ldm #1", "dcgan #0", "real images", "noise", "f" * 64):
        assert expected in text
    for expected in ("data/images/train", "0123456789abcdef.dir", "d" * 64, "c" * 64, "nought"):
        assert expected in text
    assert len(re.findall(r"<title>(?:ldm|dcgan) #\d \(", content)) == 2 * 3  # on hover, one a candidate and a plot
    assert re.search(r'<tr class="reigning"><th>ldm #1', content)
    first, second = content.index("Images that the champion made"), content.index('id="candidates"')
    assert first < second


def test_a_student_is_told_with_its_teacher_and_its_steps_are_joined(project):
    path = project / "runs/ldm/config.json"
    config = json.loads(path.read_text())
    config["provenance"]["inputs"] = {"teacher": f"runs/big {'a' * 64}"}
    write_json(path, config)
    metrics = json.loads((project / "metrics/ldm.json").read_text())
    first, second = metrics["details"][0]["candidates"]
    first["settings"] |= {"num_inference_steps": 1}
    second["settings"] = {**first["settings"], "num_inference_steps": 4}
    write_json(project / "metrics/ldm.json", metrics)
    content = page(project)
    section = content[content.index('id="trade-off"') : content.index('id="classes"')]
    assert section.count("<svg") == 2 and section.count('<polyline class="path"') == 2
    assert section.count("ldm, taught by big</li>") == 2 and "dcgan</li>" in section
    assert ">4 steps</text>" in section
    assert re.search(r"<th>ldm #0(?:(?!</th>).)*<small>taught by big</small></th>", content, re.DOTALL)
    assert "taught by" not in content[content.index("<th>dcgan #0") :].partition("</th>")[0]


def test_the_autoencoder_shows_its_figures_and_the_champion_the_ways_between_its_samples(project):
    path = project / "metrics/vae.json"
    figures = {"psnr": 21.37, "ssim": 0.862, "reconstruction_fd": 3.14159}
    content = json.loads(path.read_text())
    content["details"][0]["figures"] = figures
    write_json(path, content)
    content = page(project)
    text = " ".join(" ".join(parsed(content).text).split())
    assert "peak signal-to-noise ratio 21.4 dB, structural similarity 0.862" in text
    assert "Fréchet distance of the reconstructions 3.14" in text and "on the features of judge" in text
    assert "Between seeds" in text and "Between classes" in text
    path.unlink()
    with pytest.raises(InputError, match=r"metrics/vae\.json: missing; expected what .*reconstruct autoencoders\.vae"):
        report.main([])


def test_a_champion_without_classes_shows_ways_between_seeds_alone(project):
    promote_candidate(project, "dcgan", 0)
    content = page(project)
    assert "Between seeds" in content and "Between classes" not in content and "Between held-out" not in content


def test_a_collapsed_candidate_is_called_so_in_its_row(project):
    path = project / "metrics/dcgan.json"
    metrics = json.loads(path.read_text())
    metrics["details"][0]["candidates"][0]["collapsed"] = "collapsed: draws 1 of 99 classes"
    write_json(path, metrics)
    content = page(project)
    told = re.findall(r"<tr[^>]*><th>(\S+ #\d)(?:(?!</tr>).)*collapsed: draws 1 of 99 classes", content, re.DOTALL)
    assert told == ["dcgan #0"]


def test_equal_inputs_give_equal_bytes(project):
    assert page(project) == page(project)


def test_names_are_escaped(project):
    for path in (project / "data/images").glob("*/manifest.json"):
        path.write_text(path.read_text().replace('"nought"', '"<b>&nought"'))
    assert "<b>&nought" not in (content := page(project))
    assert "&lt;b&gt;&amp;nought" in content


def test_a_champion_without_classes_has_no_class_rows(project):
    promote_candidate(project, "dcgan", 0)
    content = page(project)
    assert "Class by class" not in content and "Failures" not in content
    assert "From noise to image" not in content  # a GAN makes an image in one step


def test_a_champion_of_an_earlier_training_has_a_row_of_its_own(project):
    promoted = json.loads((project / "promoted.json").read_text())
    write_json(project / "promoted.json", {**promoted, "candidate": None})
    content = page(project)
    assert re.search(r'<tr class="reigning"><th>ldm v7', content)
    assert content.count('<tr class="reigning">') == 1 and "<th>ldm #1" in content


def test_the_closer_look_and_the_graph(project):
    content = page(project)
    text = " ".join(" ".join(parsed(content).text).split())
    for expected in ("Nearest to training images", "Failures", "From noise to image", "Lowest of all.", "copy"):
        assert expected in text
    assert "autoencoder@vae 2 min 31 s after prepare" in text
    assert "No training kept averages on the way" in text


def test_quality_over_training_time_comes_from_snapshots_and_from_checkpoint_validation(project):
    metrics = json.loads((project / "metrics/ldm.json").read_text())
    points = [{"step": step, "figures": {"frechet_distance": 9.0 / step}, "intervals": {}} for step in (1, 2, 3)]
    metrics["details"][0]["over_training"] = points
    write_json(project / "metrics/ldm.json", metrics)
    history = project / "runs/vae/history.csv"
    history.write_text("step,autoencode/loss,validation/psnr\n1,5,\n2,4,20\n3,3,25\n")
    content = page(project)
    section = content[content.index('id="over-time"') : content.index('id="curves"')]
    assert section.count("<polyline") == 2 and "ldm" in section and "psnr" in section


def test_guards_are_told_as_passed_or_failed_for_every_candidate(project):
    promoted = json.loads((project / "promoted.json").read_text())
    judged = {
        "guards": {"memorised": {"at_least": None, "at_most": 0.5}, "precision": {"at_least": 1.1, "at_most": None}},
        "objections": {"ldm #0": ["precision 0.2 is under at_least 1.1"], "ldm #1": []},
    }
    write_json(project / "promoted.json", {**promoted, **judged})
    content = page(project)
    main = content[content.index("<table>") : content.index("</table>")]
    assert "<small>\u2264 50.0%</small>" in main and "<small>\u2265 1.10</small>" in main
    rows = dict(re.findall(r"<tr[^>]*><th>(\S+ #\d).*?</th>(.*?)</tr>", main, re.DOTALL))
    assert 'data-name="Memorised" class="pass"' in rows["ldm #0"]
    assert 'data-name="Precision" class="fail"' in rows["ldm #0"] and "under at_least 1.1" in rows["ldm #0"]
    assert '<span class="fail">out</span>' in rows["ldm #0"] and '<span class="pass">passes</span>' in rows["ldm #1"]
    assert not re.search(r">(out|passes)<", rows["dcgan #0"]), "nobody judged it"
    for heading in ("FD", "KID", "Precision", "Recall", "NFE", "CAS"):
        assert f">{heading}&nbsp;" in content


def test_the_gap_of_a_training_has_a_picture_of_its_own(project):
    kind = DENOISING
    losses = [torch.full((9, kind.levels), value) + torch.arange(9)[:, None] / 100 for value in (1.0, 0.8)]
    found = kind.figures(*losses) | kind.figures(*losses, live=True)
    rows = [{"step": step, "denoise/loss": 1.0, **validation.tracked(found)} for step in (1, 2)]
    (project / "runs/ldm/history.csv").write_text(run_folder.as_csv(rows))
    content = page(project)
    section = content[content.index('id="held-out"') : content.index('id="over-time"')]
    assert section.count("<svg") == 3 and "it is over-fitted" in section and "gap 0.200" in section
    assert "held out" in section and "noise level, little to much" in section
    assert "held_out" not in content[content.index('id="over-time"') :], "in no other plot"


def test_without_dvc_or_git_it_says_so(project, monkeypatch):
    (project / "dvc.lock").unlink()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(project.parent))
    content = page(project)
    assert "not a git checkout" in content and "dvc.lock" not in content


@pytest.mark.parametrize(
    ("missing", "writer"),
    [
        ("promoted.json", "pipelines.promote"),
        ("metrics/dcgan.json", "pipelines.evaluate samplers.dcgan"),
        ("samples/ldm/0-grid.png", "pipelines.evaluate samplers.ldm"),
        ("champion/grid.png", "pipelines.promote"),
        ("runs/judge/history.csv", "pipelines.train"),
    ],
)
def test_what_is_missing_is_named_with_who_writes_it(project, missing, writer):
    (project / missing).unlink()
    with pytest.raises(InputError, match=f"{missing}: missing; expected what `python -m {writer}"):
        report.main([])
    assert not (project / "report.html").exists()


def test_figures_of_different_protocols_are_refused(project):
    metrics = json.loads((project / "metrics/dcgan.json").read_text())
    metrics["details"][0]["protocol"]["num_samples"] = 5
    write_json(project / "metrics/dcgan.json", metrics)
    with pytest.raises(InputError, match=r"ldm.json and metrics/dcgan.json: .+ protocols: num_samples 24 against 5"):
        report.main([])


def test_a_metrics_file_without_its_protocol_is_refused(project):
    write_json(project / "metrics/dcgan.json", {"details": [{"candidates": [], "definitions": []}]})
    with pytest.raises(InputError, match="metrics/dcgan.json.protocol: expected a mapping"):
        report.main([])


def test_a_metrics_file_of_an_older_layout_says_what_to_run(project):
    write_json(project / "metrics/dcgan.json", {"candidates": [{"frechet_distance": 1.0}], "protocol": {}})
    with pytest.raises(InputError, match=r"dcgan\.json: no details in it; run .*evaluate samplers\.dcgan` again"):
        report.main([])


@pytest.mark.parametrize("stale", [{"sampler": "gone"}, {"candidate": 9}])
def test_a_stale_champion_is_refused(project, stale):
    promoted = json.loads((project / "promoted.json").read_text())
    write_json(project / "promoted.json", {**promoted, **stale})
    with pytest.raises(InputError, match="promote again"):
        report.main([])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (2.3, "2.30"), (182.4, "182"), (12345, "12,345"), (-0.01234, "-0.0123")],
)
def test_numbers_as_a_person_reads_them(value, shown):
    assert report.number(value) == shown


@pytest.mark.parametrize(
    ("kind", "unit", "value", "low"),
    [("share", "", "96.3%", "95.1%"), ("time", "ms", "0.963 ms", "0.951 ms"), ("score", "", "0.963", "0.951")],
)
def test_figures_as_a_person_reads_them(kind, unit, value, low):
    defined = Definition(name="a", label="a", explanation="", kind=kind, better=None, unit=unit)
    one = defined.figure(0.963, (0.951, 0.97))
    assert report.figure(one) == value and report.interval(one).startswith(f"{low} {report_words.NONE} ")
    assert report.figure(None) == report_words.NONE and report.interval(None) == ""


@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium here")
def test_on_a_phone_and_on_a_desk_nothing_overflows_and_the_console_is_silent(project):
    page(project)
    tab = chromium.Page((project / "report.html").as_uri(), project / "profile")
    try:
        tab.wait_for("document.readyState === 'complete'")
        for width in (380, 1400):
            tab.resize(width, 900)
            tab.wait_for(f"window.innerWidth === {width}")
            tab.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            hidden = "[...document.querySelectorAll('.compared')].filter(box => box.scrollWidth > box.clientWidth)"
            assert tab.evaluate(f"{hidden}.length") == 0, "no column of a table is off the screen"
            broken = "[...document.images].filter(image => image.complete && !image.naturalWidth).length"
            assert tab.evaluate(broken) == 0
        hovered = "[...document.querySelectorAll('#trade-off ~ .plots title')].map(title => title.textContent)"
        assert len(tab.evaluate(hovered)) == 2 * 3
        assert tab.problems == []
        assert [address for address in tab.requests if not address.startswith(("file:", "data:"))] == []
    finally:
        tab.close()
