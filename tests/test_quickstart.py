"""docs/QUICKSTART.md: its layouts are read as it says, its settings and commands work, its refusals come."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from components import sources
from components.errors import InputError
from components.sources import DataConfig
from pipelines import prepare
from pipelines.support.params import load
from tests.clones import ROOT, command, make_clone, tiny_params
from tests.components.sources.helpers import png, write_parquet, write_tar

TEXT = (ROOT / "docs/QUICKSTART.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    part = TEXT[TEXT.index(heading) :]
    table = re.search(r"(^\|.*\n)+", part, re.MULTILINE)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


LAYOUTS = {files.strip("`"): told for files, told in rows("## 1.")}
REFUSALS = [message.strip("`") for message, _ in rows("## What is refused")]
SETTINGS = {
    heading.split(",")[0].lower(): yaml.safe_load(block)
    for heading, block in re.findall(r"^### ([^\n]*)\n\n```yaml\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL)
}
COMMANDS = re.findall(r"^ {4}(\S.*)$", TEXT[TEXT.index("## 3.") :], re.MULTILINE)


def lay(root, files: str) -> None:
    """Files of these names, each with content of its kind."""
    names = files.split()
    for name in [name for name in names if name.endswith((".tar", ".parquet"))]:
        lay_packed(root / name)
        names.remove(name)
    pictures = [name for name in names if name.endswith(".png")]
    for number, name in enumerate(pictures):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (number * 9 % 256, 0, 128)).save(root / name)
    for name in set(names) - set(pictures):
        inside = [one.rsplit("/", 1)[-1] for one in pictures]
        content = {
            ".jsonl": "\n".join(json.dumps({"file_name": one, "text": f"a {one}"}) for one in inside),
            ".csv": "file_name,text\n" + "".join(f"{one},a {one}\n" for one in inside),
            ".json": json.dumps({"labels": [[one, number] for number, one in enumerate(pictures)]}),
            ".txt": "a red cat",
        }[name[name.rindex(".") :]]
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def lay_packed(path: Path) -> None:
    """Two images with captions in one file."""
    images, texts = [png(10), png(20)], ["a red cat", "a dog"]
    if path.suffix == ".tar":
        write_tar(path, {f"{n}.{end}": part[n] for n in (0, 1) for end, part in (("png", images), ("txt", texts))})
    else:
        write_parquet(path, {"image": [{"bytes": image, "path": None} for image in images], "text": texts})


@pytest.mark.parametrize("files", LAYOUTS)
def test_a_layout_is_read_as_the_table_says(files, tmp_path):
    lay(tmp_path, files)
    source = sources.read(DataConfig(source="folder", path=tmp_path), seed=0)
    told = LAYOUTS[files]
    assert bool(source.classes) == told.startswith("classes") and not {"train", "test"} & set(source.classes)
    assert source.captions == ("captions" in told)
    assert len([row for split in source.splits.values() for row in split()]) >= len(re.findall(r"\.png\b(?!\.)", files))


def project(root, settings: dict, **changes) -> None:
    """params.yaml as shipped with what the document says in its place."""

    def lay_over(block: dict, over: dict) -> dict:
        return block | {k: lay_over(block[k], v) if isinstance(block.get(k), dict) else v for k, v in over.items()}

    content = lay_over(yaml.safe_load((ROOT / "params.yaml").read_text()), settings)
    (root / "params.yaml").write_text(yaml.safe_dump(lay_over(content, changes)))


FOLDERS = {
    "classes": " ".join(f"{'cat' if number % 2 else 'dog'}/{number}.png" for number in range(60)),
    "captions": " ".join(f"{number}.png" for number in range(60)) + " metadata.jsonl",
    "nothing": " ".join(f"{number}.png" for number in range(60)),
    "crops and buckets": " ".join(f"{'cat' if number % 2 else 'dog'}/{number}.png" for number in range(60)),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_settings_and_commands_work(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    project(tmp_path, SETTINGS[kind])
    lay(tmp_path / "data/raw/flowers", FOLDERS[kind])
    assert [line for line in COMMANDS if line.startswith(("dvc", "make"))] == [
        "dvc repro prepare",
        "dvc repro",
        "make serve",
    ]
    prepare.main([])
    assert "images 3x32x32" in capsys.readouterr().out
    for line in COMMANDS:
        if line.startswith("python -m pipelines.params"):
            _, _, module, *arguments = shlex.split(line)
            importlib.import_module(module).main(arguments)
            assert "in params.yaml: " in capsys.readouterr().out


MANY = " ".join(f"{n}.png" for n in range(60))
WRONG = {  # message -> the folder, and keys of params.yaml
    "no such folder": (None, {}),
    "holds no image": ("LICENSE.txt", {}),
    "names no split": ("train-0.tar more.tar", {}),
    "cannot be read beyond its first": ("x.tar", {}),
    "model.crops needs crops": ("a/1.png b/2.png", {"samplers": {"ldm": {"model": {"crops": True}}}}),
    "files to be left out": ("a/1.png a/2.png 3.png", {}),
    "which to other tools is no class": ("train/1.png bus/2.png", {}),
    "and no train/": ("test/a/1.png val/a/2.png", {}),
    "describes the images in a form that is not read": ("1.png 2.png annotations/instances.json", {}),
    "no such image in the folder": ("1.png 2.png 3.png", {}),
    "no line has a caption or label": ("1.png 2.png", {}),
    "hold a detector's boxes": ("1.png 2.png", {}),
    "must be described alike": ("train/a/1.png test/2.png", {}),
    "classes that train has not": ("train/a/1.png test/b/2.png", {}),
    "data.image_size": ("a/1.png b/2.png", {"data": {"image_size": 48}}),
    "expected labelled images": (MANY, {}),
    "expected images with captions": (MANY, {"samplers": {"ldm": {"model": {"conditioning": "text"}}}}),
    "a link to a folder": ("a/1.png b/2.png", {}),
    "unknown key": (MANY, {"data": {"chanels": 3}}),
    "nothing says a caption there": ("1.png 2.png metadata.jsonl", {"data": {"caption_key": "blip"}}),
    "usable images; expected at least two": ("1.png 2.png", {}),
    "has no caption": ("1.png 2.png 3.png", {}),
}
EXTRA = {
    "cannot be read beyond its first": ("x.tar", "no tar"),
    "no such image in the folder": ("m.csv", "file,label\n1.png,a\n2.png,b\n4.png,c\n"),
    "no line has a caption or label": ("m.csv", "file,breed\n1.png,a\n2.png,b\n"),
    "usable images; expected at least two": ("m.csv", "file,label\n1.jpg,a\n2.jpg,b\n"),
    "has no caption": ("m.csv", "file,label,text\n1.png,a,x\n2.png,b,y\n3.png,a,\n"),
    "hold a detector's boxes": ("1.txt", "0 0.5 0.5 0.1 0.2"),
    "describes the images in a form that is not read": ("annotations/instances.json", "{}"),
}


def test_every_refusal_of_the_table_is_tried():
    assert set(REFUSALS) == WRONG.keys() | {"Could not find 'data.path'"}  # DVC's own


@pytest.mark.parametrize("message", WRONG)
def test_a_refusal_comes_in_one_line_and_nothing_is_written(message, tmp_path, monkeypatch):
    files, changes = WRONG[message]
    monkeypatch.chdir(tmp_path)
    project(tmp_path, SETTINGS["classes"], **changes)
    folder = tmp_path / "data/raw/flowers"
    if files is not None:
        lay(folder, files)
    if message == "a link to a folder":
        (folder / "c").symlink_to(folder / "a")
    if message in EXTRA:
        name, content = EXTRA[message]
        (folder / name).write_text(content)
    with pytest.raises(InputError) as caught:
        prepare.main([])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "data/images").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["captions", "nothing"])
def test_the_whole_pipeline_goes_through(kind, tmp_path):
    content = tiny_params()
    content["data"] = SETTINGS[kind]["data"] | {"image_size": 8}
    content["samplers"]["ldm"]["model"] |= SETTINGS[kind]["samplers"]["ldm"]["model"]
    clone = make_clone(tmp_path / "clone", content)
    lay(clone / "data/raw/flowers", FOLDERS[kind])
    for line in COMMANDS[:-1]:
        done = command(clone, *shlex.split(line))
        assert done.returncode == 0, done.stdout + done.stderr
    assert "champion: " in done.stdout
    assert load(clone / "params.yaml") and (clone / "report.html").is_file()
