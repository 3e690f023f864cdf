import pytest

from components.conditioning.classes import class_of
from components.errors import SamplerError

CLASSES = ("zero", "One", "T-shirt/top", "ankle boot", "boot")


@pytest.mark.parametrize(
    ("prompt", "number"),
    [("zero", 0), (" ONE\n", 1), ("4", 4), ("t-shirt/TOP", 2), ("boot", 4), ("a handwritten zero.", 0), ("an ONE", 1)],
)
def test_names_and_numbers(prompt, number):
    assert class_of(prompt, CLASSES) == number


def test_a_name_goes_before_a_number():
    assert class_of("1", ("1", "0")) == 0


@pytest.mark.parametrize("prompt", ["", "cat", "5", "-1", "9" * 5000, "zeros", "0.5"])
def test_no_class_lists_the_classes(prompt):
    with pytest.raises(SamplerError, match="names no class; expected one of zero, One, T-shirt/top, ankle boot, boot"):
        class_of(prompt, CLASSES)


def test_two_classes():
    with pytest.raises(SamplerError, match="more than one"):
        class_of("zero or one", CLASSES)
