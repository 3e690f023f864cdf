"""Folders as other tools of the field lay them out: read as these mean them, or refused by name."""

import json
import unicodedata
from pathlib import Path

import pytest

from components import sources
from components.data.dataset import Rejected
from components.errors import DataError
from components.sources import described, tables
from tests.components.sources.helpers import config_of, items_of, picture, rows_of


def lay(root: Path, images: str) -> None:
    """Pictures, each of its own grey, by paths with spaces between."""
    for number, name in enumerate(images.split()):
        picture(root / name, number, (8, 8))


def jsonl(**captions: str) -> str:
    return "\n".join(json.dumps({"file_name": f"{name}.png", "text": text}) for name, text in captions.items())


def table(root: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def read(root: Path, **fields):
    """-> (rows by split as (picture, class, caption), classes, what was left out)."""
    source = sources.read(config_of(root, image_size=8, **fields), seed=0)
    found = {}
    for split, items in source.splits.items():
        rows = [item for item in items() if not isinstance(item, Rejected)]
        found[split] = [
            (
                int(row["image"][0, 0, 0]),
                source.classes[int(row["label"])] if "label" in row else None,
                row["caption"].tobytes().rstrip(b"\0").decode() if "caption" in row else None,
            )
            for row in rows
        ]
    return found, source.classes, [item for item in items_of(source) if isinstance(item, Rejected)]


READ = {
    "flat": ("a.png b.png c.png", {}, (), {None}),
    "classes behind an outer folder": (
        "images/cat/a.png images/dog/b.png images/dog/c.png",
        {},
        ("cat", "dog"),
        {None},
    ),
    "jsonl": ("a.png b.png c.png", {"metadata.jsonl": jsonl(a="A", b="B", c="C")}, (), {"A", "B", "C"}),
    "jsonl in train": ("train/a.png train/b.png", {"train/metadata.jsonl": jsonl(a="A", b="B")}, (), {"A", "B"}),
    "csv with spaces": (
        "images/a.jpg images/b.jpg",
        {"captions.csv": 'image, caption\na.jpg, "red, and round"\nb.jpg, B\n'},
        (),
        {"red, and round", "B"},
    ),
    "csv of an editor": (
        "a.png b.png",
        {"metadata.csv": "\ufefffile_name;Text\r\na.png;A\r\nb.png;B\r\n"},
        (),
        {"A", "B"},
    ),
    "tsv": ("x/a.png y/b.png", {"labels.tsv": "filename\tlabel\na.png\t1\nb.png\t2\n"}, ("1", "2"), {None}),
    "captions.txt": (
        "Images/a.png Images/b.png",
        {"captions.txt": "image,caption\na.png,one .\na.png,two .\nb.png,three .\n"},
        (),
        {"one .", "two .", "three ."},
    ),
    "texts beside": ("a.png b.png", {"a.txt": "A\nmore", "b.txt": "\nB"}, (), {"A", "B"}),
    "captions beside": ("a.png b.png", {"a.caption": "A", "b.caption": "B"}, (), {"A", "B"}),
    "classes with texts": ("cat/a.png dog/b.png", {"cat/a.txt": "A", "dog/b.txt": "B"}, ("cat", "dog"), {"A", "B"}),
    "shards with texts": ("00000/1.png 00001/2.png", {"00000/1.txt": "A", "00001/2.txt": "B"}, (), {"A", "B"}),
    "classes by numbers with texts": ("0/a.png 1/b.png", {"0/a.txt": "A", "1/b.txt": "B"}, ("0", "1"), {"A", "B"}),
    "csv with line breaks": (
        "a.png b.png c.png",
        {"m.csv": 'file,text\na.png,"A\nand more"\nb.png,B\u2028C\nc.png,5" wide\n'},
        (),
        {"A\nand more", "B\u2028C", '5" wide'},
    ),
    "texts in capitals": ("a.PNG b.png", {"a.TXT": "A", "b.Txt": "B"}, (), {"A", "B"}),
    "texts by whole names": ("a.png b.png", {"a.png.txt": "A", "b.png.caption": "B"}, (), {"A", "B"}),
    "kohya": ("10_girl/a.png 10_girl/b.png", {"10_girl/a.txt": "A"}, (), {"A", "girl"}),
    "kohya without texts": ("img/5_red cat/a.png".replace(" ", "~") + " img/5_red~cat/b.png", {}, (), {"red~cat"}),
    "numbered classes": ("0_cat/a.png 1_dog/b.png 1_dog/c.png", {}, ("0_cat", "1_dog"), {None}),
    "stylegan": (
        "00000/a.png 00000/b.png 00001/c.png",
        {"dataset.json": json.dumps({"labels": [["00000/a.png", 3], ["00000/b.png", 5], ["00001/c.png", 3]]})},
        ("3", "5"),
        {None},
    ),
    "stylegan without labels": ("00000/a.png 00001/b.png", {"dataset.json": '{"labels": null}'}, (), {None}),
}


@pytest.mark.parametrize("name", READ)
def test_it_is_read_as_its_tool_means_it(name, tmp_path):
    images, texts, classes, captions = READ[name]
    lay(tmp_path, images)
    table(tmp_path, texts)
    found, known, left_out = read(tmp_path)
    assert known == classes and not left_out
    rows = found["train"] + found["test"]
    assert {caption for *_, caption in rows} == captions
    assert {picture for picture, *_ in rows} == set(range(len(images.split())))
    assert found["train"] and found["test"]


GIVEN = {
    "train and test": ("train/cat/a.png train/dog/b.png test/cat/c.png", {}, ([0, 1], [2])),
    "with validation": ("train/cat/a.png val/cat/b.png test/cat/c.png", {}, ([0], [2])),
    "validation alone": ("Training/cat/a.png Validation/cat/b.png", {}, ([0], [1])),
    "of images": ("images/train/a.png images/val/b.png", {"labels/train/a.txt": "0 1 1 1 1"}, ([0], [1])),
    "with years": ("train2017/a.png val2017/b.png", {}, ([0], [1])),
    "a table each": (
        "train/a.png test/b.png",
        {"train/metadata.jsonl": jsonl(a="A"), "test/metadata.jsonl": jsonl(b="B")},
        ([0], [1]),
    ),
    "one table": ("train/a.png test/b.png", {"m.csv": "file_name,text\ntrain/a.png,A\ntest/b.png,B\n"}, ([0], [1])),
    "by tables": (
        "images/a.png images/b.png",
        {"train.csv": "file,label\na.png,x\n", "test.csv": "file,label\nb.png,x\n"},
        ([0], [1]),
    ),
}


@pytest.mark.parametrize("name", GIVEN)
def test_a_given_split_is_kept(name, tmp_path):
    images, texts, (train, test) = GIVEN[name]
    lay(tmp_path, images)
    table(tmp_path, texts)
    found, classes, left_out = read(tmp_path)
    assert [row[0] for row in found["train"]] == train and [row[0] for row in found["test"]] == test
    assert not left_out and not {"train", "test", "val"} & set(classes)


def test_lines_and_images_that_the_tables_of_splits_do_not_share_are_told(tmp_path):
    lay(tmp_path, "images/a.png images/b.png images/c.png images/d.png")
    table(
        tmp_path,
        {"train.csv": "file,label\na.png,x\nB.png,x\n", "test.csv": "file,label\nc.png,x\nnope.png,x\n"},
    )
    found, _, left_out = read(tmp_path)
    assert [row[0] for row in found["train"]] == [0] and [row[0] for row in found["test"]] == [2]
    unnamed = "no line of test.csv or train.csv names it"
    assert {item.path: item.reason for item in left_out} == {
        "B.png": "no such image in the folder; there is images/b.png",
        "nope.png": "no such image in the folder",
        "images/b.png": unnamed,
        "images/d.png": unnamed,
    }


def test_validation_images_beside_a_test_split_are_in_neither_and_told(tmp_path):
    lay(tmp_path, "train/a.png val/b.png val/c.png test/d.png")
    source = sources.read(config_of(tmp_path), seed=0)
    assert source.notes == ("2 images of its validation split are in neither: its test split is the test split",)
    assert source.facts["unused_validation_images"] == 2 and len(rows_of(source)) == 2


REFUSED = {
    "a split beside a class": (
        "train/a.png bus/b.png",
        {},
        "found train/ beside bus/, which to other tools is no class",
    ),
    "masks": ("images/a.png masks/a.png", {}, "found images/, masks/ beside one another"),
    "no train": ("test/a/a.png val/a/b.png", {}, "found test/, val/ and no train/"),
    "two of a split": ("val/a.png valid/b.png train/c.png", {}, "more than one folder of the val split"),
    "a class of test alone": ("train/a/a.png test/b/b.png", {}, "the test split has classes that train has not: b"),
    "unlike": (
        "train/a/a.png test/b.png",
        {},
        "those of test have neither class nor text, those of train have classes",
    ),
    "coco": (
        "images/a.png",
        {"annotations/captions_train2017.json": "{}"},
        "annotations/captions_train2017.json: descri",
    ),
    "json": ("a.png b.png", {"captions.json": '{"a.png": "A"}'}, "captions.json: describes the images in a form"),
    "headless": ("a.png b.png", {"captions.csv": "a.png,A\nb.png,B\n"}, "captions.csv: describes the images in a form"),
    "deeper": ("x/a.png y/b.png", {"x/metadata.jsonl": jsonl(a="A")}, "x/metadata.jsonl: a table of images in a sub-"),
    "boxes": ("a.png", {"a.txt": "0 0.5 0.5 0.1 0.2\n"}, "hold a detector's boxes"),
    "boxes, and an image of nothing": (
        "a.png b.png",
        {"a.txt": "0 .5 5e-1 0.1 0.2\n", "b.txt": ""},
        "hold a detector's boxes ('0 .5 5e-1 0.1 0.2')",
    ),
    "an open quotation": (
        "a.png b.png",
        {"c.csv": 'file,text\na.png,A\nb.png,"B\n' + "more of it\n" * 20_000},
        "c.csv: line 3: a quotation mark that is left open",
    ),
    "an open quotation in the last text": (
        "a.png b.png",
        {"c.csv": 'file,text\n"a.png","A\nB"\nb.png,"B\nmore of it\n'},
        "c.csv: line 4: a quotation mark that is left open",
    ),
    "an open quotation in the header": (
        "a.png",
        {"c.csv": 'file,"text\na.png,A\n'},
        "c.csv: line 1: a quotation mark that is left open",
    ),
    "two texts": ("a.png", {"a.txt": "A", "a.caption": "B"}, "found a.caption beside it"),
    "unquoted": (
        "a.png",
        {"c.csv": "file,text\na.png,red, round\n"},
        "line 2: expected file, text; a text with the delim",
    ),
    "no use": ("a.png", {"c.csv": "file,size\na.png,3\n"}, "found file, size"),
    "shared": ("a.png", {"train.csv": "file,text\na.png,A\n", "test.csv": "file,text\na.png,A\n"}, "is in two splits"),
}


UNUSABLE = {
    "names that match nothing": (
        "a.png b.png",
        {"metadata.csv": "file_name,text\nx.png,A\ny.png,B\n"},
        "found 0 usable images; expected at least two, to train and to test on; left out 4: a.png (no line of "
        "metadata.csv names it); b.png (no line of metadata.csv names it); x.png (no such image in the folder); y.png",
    ),
    "bare names that two folders have": (
        "s/a.png t/a.png",
        {"metadata.csv": "file_name,text\na.png,A\n"},
        "left out 3: a.png (names more than one file: s/a.png, t/a.png); s/a.png (no line",
    ),
    "one line with a label": (
        "a.png b.png c.png",
        {"m.jsonl": jsonl(a="A", b="B") + '\n{"file_name": "c.png", "text": "C", "label": "x"}'},
        "found 1 usable images; expected at least two, to train and to test on; left out 2: a.png (its line in m.jsonl "
        "has no label); b.png (its line",
    ),
    "blank texts": (
        "a.png b.png c.png",
        {"a.txt": "A", "b.txt": "", "c.txt": " \n\n"},
        "left out 2: b.png (has no caption: its text is blank); c.png (has no caption",
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, *UNUSABLE])
def test_what_would_be_guessed_and_why_too_few_are_usable_is_told(name, tmp_path):
    images, texts, told = (REFUSED | UNUSABLE)[name]
    lay(tmp_path, images)
    table(tmp_path, texts)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_table_is_parsed_once(tmp_path, monkeypatch):
    lay(tmp_path, "a.png b.png")
    table(tmp_path, {"metadata.csv": 'file_name,text\na.png,"A, and\nmore"\nb.png,"he said ""B"""'})
    whole, read_whole = [], tables.text_of
    monkeypatch.setattr(tables, "text_of", lambda file: whole.append(file.name) or read_whole(file))
    found, _, left_out = read(tmp_path)
    assert {caption for rows in found.values() for *_, caption in rows} == {"A, and\nmore", 'he said "B"'}
    assert whole == ["metadata.csv"] and not left_out


def test_a_layout_that_is_told_is_not_guessed(tmp_path):
    lay(tmp_path, "train/a.png bus/b.png bus/c.png")
    assert read(tmp_path, layout="classes")[1] == ("bus", "train")
    found, classes, left_out = read(tmp_path, layout="flat")
    assert classes == () and not left_out and len(found["train"] + found["test"]) == 3


def test_repeats_count_against_one_another(tmp_path):
    lay(tmp_path, " ".join([*(f"20_a/{n}.png" for n in range(10)), *(f"10_b/{n}.png" for n in range(10, 20))]))
    table(tmp_path, {"20_a/0.txt": "A"})
    found, _, _ = read(tmp_path)
    trained = [number for number, *_ in found["train"]]
    assert all(trained.count(number) == (2 if number < 10 else 1) for number in trained)
    assert not set(trained) & {number for number, *_ in found["test"]}


NAMES = ("Übung", "café", "señal")


@pytest.mark.parametrize(
    "written",
    [
        lambda root, name: unicodedata.normalize("NFC", name),
        lambda root, name: unicodedata.normalize("NFD", name),
        lambda root, name: f"sub\\{name}",
        lambda root, name: f"./sub/{name}",
        lambda root, name: f"{root}/sub/{name}",
        lambda root, name: f"/of/another/machine/set/sub/{name}",
        lambda root, name: f"C:\\Users\\ann\\set\\sub\\{name}",
    ],
)
def test_names_are_found_in_any_form(written, tmp_path):
    for number, name in enumerate(NAMES):  # decomposed on the disk, as another system writes it
        picture(tmp_path / "sub" / (unicodedata.normalize("NFD", name) + ".png"), number, (8, 8))
    lines = [json.dumps({"file_name": written(tmp_path, name) + ".png", "text": name}) for name in NAMES]
    table(tmp_path, {"captions.jsonl": "\n".join(lines)})
    found, _, left_out = read(tmp_path)
    assert not left_out and {(n, text) for n, _, text in found["train"] + found["test"]} == set(enumerate(NAMES))


def test_a_name_that_is_nearly_right_tells_which_there_is(tmp_path):
    lay(tmp_path, "IMG_1.png b.png c.png")
    table(
        tmp_path, {"c.jsonl": "\n".join(json.dumps({"file": n, "text": "t"}) for n in ("img_1.png", "b", "c.png", "x"))}
    )
    (tmp_path / "d.png").write_bytes((tmp_path / "c.png").read_bytes())
    with pytest.raises(DataError, match="found 1 usable images"):
        read(tmp_path)
    table(tmp_path, {"c.jsonl": (tmp_path / "c.jsonl").read_text() + '\n{"file": "d.png", "text": "t"}'})
    reasons = {item.path: item.reason for item in read(tmp_path)[2]}
    assert reasons["img_1.png"] == "no such image in the folder; there is IMG_1.png"
    assert reasons["b"] == "no such image in the folder; there is b.png"
    assert reasons["x"] == "no such image in the folder"


def test_class_names_are_composed(tmp_path):
    decomposed = unicodedata.normalize("NFD", "café")
    lay(tmp_path, f"{decomposed}/a.png {decomposed}/b.png tea/c.png tea/d.png")
    assert read(tmp_path)[1] == ("café", "tea")


@pytest.mark.parametrize("seed", range(5))
def test_the_last_image_of_a_class_is_trained_on(seed, tmp_path):
    names = {f"cat/{number}" for number in range(20)} | {f"{kind}/only" for kind in ("dog", "owl", "ant", "bee")}
    classes = {name: name.split("/")[0] for name in names}
    held = described.held_out(names, seed, 0.9, classes)
    assert held and {classes[name] for name in names - held} == set(classes.values())
    assert held <= described.held_out(names, seed, 0.9)


def test_of_classes_with_one_image_each_one_is_held_out(tmp_path):
    names = {"a/1", "b/1", "c/1"}
    assert len(described.held_out(names, 0, 0.9, {name: name[0] for name in names})) == 1


BLANK = {
    "a table": ("a.png b.png c.png", {"m.csv": "file,text\na.png,A\nb.png,B\nc.png, \n"}),
    "lines of JSON": ("a.png b.png c.png", {"m.jsonl": jsonl(a="A", b="B", c=" ")}),
    "texts beside images": ("a.png b.png c.png", {"a.txt": "A", "b.txt": "B", "c.txt": "\n"}),
    "kohya": ("10_g/a.png 10_g/b.png 10_g/c.png", {"10_g/a.txt": "A", "10_g/b.txt": "B", "10_g/c.txt": ""}),
}


@pytest.mark.parametrize("name", BLANK)
def test_a_blank_caption_is_none_in_every_layout(name, tmp_path):
    images, texts = BLANK[name]
    lay(tmp_path, images)
    table(tmp_path, texts)
    found, _, (rejected,) = read(tmp_path)
    assert {caption for *_, caption in found["train"] + found["test"]} == {"A", "B"}
    assert rejected.path.endswith("c.png") and "has no caption" in rejected.reason


@pytest.mark.parametrize("name", ["metadata.jsonl", "c.txt"])
def test_a_caption_that_is_too_long_is_left_out_and_makes_no_column_wider(name, tmp_path):
    lay(tmp_path, "a.png b.png c.png")
    texts = {"a": "A", "b": "é" * (described.MOST_CAPTION // 2), "c": "z" * 1_000_000}
    table(tmp_path, {name: jsonl(**texts)} if name.endswith("l") else {f"{one}.txt": texts[one] for one in texts})
    items = items_of(sources.read(config_of(tmp_path, image_size=8), seed=0))
    (rejected,) = [item for item in items if isinstance(item, Rejected)]
    assert rejected == Rejected(path="c.png", reason="its caption has 1000000 bytes, expected at most 4096")
    assert {row["caption"].shape for row in items if not isinstance(row, Rejected)} == {(described.MOST_CAPTION,)}


def test_captions_may_stand_in_a_column_that_data_names(tmp_path):
    lay(tmp_path, "a.png b.png")
    table(tmp_path, {"m.csv": "file,Title,text\na.png,A,no\nb.png,B,no\n"})
    found, _, _ = read(tmp_path, caption_key="title")
    assert {caption for *_, caption in found["train"] + found["test"]} == {"A", "B"}
    with pytest.raises(DataError, match=r"m\.csv: data\.caption_key name: .* found file, Title, text$"):
        read(tmp_path, caption_key="name")


def test_a_column_that_data_names_wants_a_table(tmp_path):
    lay(tmp_path, "cat/a.png dog/b.png")
    for key in ("caption_key", "label_key"):
        with pytest.raises(DataError, match=rf"no table of the images in it: data\.{key} kind"):
            read(tmp_path, **{key: "kind"})
    assert read(tmp_path, layout="classes", label_key="kind")[1] == ("cat", "dog")


def test_of_a_list_of_captions_the_first_is_taken_and_that_is_told(tmp_path):
    lay(tmp_path, "a.png b.png c.png")
    lists = {"a": ["A", "no"], "b": ["", "B"], "c": "C"}
    table(tmp_path, {"m.jsonl": "\n".join(json.dumps({"file": f"{n}.png", "captions": lists[n]}) for n in lists)})
    found, _, left_out = read(tmp_path)
    assert {caption for *_, caption in found["train"] + found["test"]} == {"A", "B", "C"} and not left_out
    assert sources.read(config_of(tmp_path), seed=0).notes == (
        "1 of 3 have several captions: the first of each is taken",
    )
    table(tmp_path, {"m.jsonl": '{"file": "a.png", "captions": [{"raw": "A"}]}'})
    with pytest.raises(DataError, match="expected the caption to be text, found .*raw"):
        read(tmp_path)


def test_texts_without_an_image_are_told(tmp_path):
    lay(tmp_path, "a.png s/b.png")
    table(tmp_path, {"README.txt": "of the set", "A.txt": "x", "s/b.jpg.txt": "y"})
    assert sources.read(config_of(tmp_path, layout="flat"), seed=0).notes == ()
    (tmp_path / "s/b.png").rename(tmp_path / "b.png")
    assert sources.read(config_of(tmp_path), seed=0).notes == (
        "texts with no image beside them (2): A.txt, s/b.jpg.txt",
    )
    table(tmp_path, {"m.csv": "file,text\na.png,A\nb.png,B\n"})
    assert sources.read(config_of(tmp_path), seed=0).notes == ()


def test_links_to_folders_are_refused_where_dvc_would_not_look_behind_them(tmp_path):
    lay(tmp_path / "elsewhere", "a.png b.png")
    lay(tmp_path / "set", "dog/c.png")
    (tmp_path / "set/cat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="set/cat: a link to a folder, behind which DVC would see no change"):
        sources.read(config_of(tmp_path / "set"), seed=0)
    (tmp_path / "whole").symlink_to(tmp_path / "elsewhere")  # DVC looks behind the folder that it is told
    assert len(list(sources.read(config_of(tmp_path / "whole"), seed=0).splits["train"]())) == 1
    (tmp_path / "set/cat").unlink()
    (tmp_path / "set/cat").mkdir()
    for name in ("a.png", "b.png"):  # and behind links to files
        (tmp_path / "set/cat" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert sources.read(config_of(tmp_path / "set"), seed=0).classes == ("cat", "dog")


def test_an_archive_is_told_from_a_broken_picture(tmp_path):
    lay(tmp_path, "a.png b.png")
    (tmp_path / "more.zip").write_bytes(b"PK")
    (left_out,) = read(tmp_path)[2]
    assert left_out == Rejected(path="more.zip", reason="an archive or table; expected its images unpacked")
