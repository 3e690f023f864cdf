"""README and the architecture's tree name what there is."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs/ARCHITECTURE.md").read_text()
PACKAGES = ("pipelines", "infra", "components")


def test_every_package_and_module_above_them_is_in_the_tree():
    tree = ARCHITECTURE[ARCHITECTURE.index("## The tree") : ARCHITECTURE.index("## From")]
    for package in PACKAGES:
        for path in sorted((ROOT / package).iterdir()):
            if path.name.startswith("__"):
                continue
            told = f"{path.name}/" if path.is_dir() else path.stem
            assert re.search(rf"(?<![\w.]){re.escape(told)}", tree), f"{package}/{path.name} is not in the tree"


def test_every_file_that_the_walks_name_exists():
    names = re.findall(rf"`((?:{'|'.join(PACKAGES)})/[\w/]+\.py)`", ARCHITECTURE)
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).is_file(), name


def test_every_path_and_target_that_it_names_exists():
    for target in re.findall(r"(?:`|^ {4})make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make {target}"
    for link in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / link).is_file(), link
