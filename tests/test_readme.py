"""The README's tree names every file of the packages, and its placeholders are filled."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FOLDERS_TOLD_AS_ONE = ("sources", "nets", "diffusion", "families", "metrics", "ray_train", "interchange")


def test_every_module_is_in_the_tree():
    tree = README[README.index("## The tree") :]
    for package in ("pipelines", "infra", "components"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT / package).parts
            told = f"{parts[0]}/" if parts[0] in FOLDERS_TOLD_AS_ONE else parts[-1]
            assert told == "__init__.py" or told in tree, f"{path.relative_to(ROOT)} is not in the README's tree"


def test_every_path_and_target_that_it_names_exists():
    for target in re.findall(r"(?:`|^ {4})make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"make {target}"
    for link in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / link).is_file(), link
