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
    with pytest.raises(SamplerError, match=r"more than one class: zero .number 0. or One .number 1.;"):
        class_of("zero or one", CLASSES)


DOGS = ("golden_retriever", "Flat-coated retriever", "retriever", "cafe\u0301", "n02099601")


@pytest.mark.parametrize(
    ("prompt", "number"),
    [
        ("golden retriever", 0),
        ("Golden-Retriever", 0),
        ("a photo of a golden  retriever, sitting", 0),
        ("flat coated_retriever", 1),
        ("a retriever", 2),
        ("a café", 3),
        ("4", 4),
    ],
)
def test_names_as_people_write_them(prompt, number):
    assert class_of(prompt, DOGS) == number


@pytest.mark.parametrize(("prompt", "number"), [("001", 0), ("2", 1), ("0", 0), ("17", 2)])
def test_names_that_are_numbers_go_before_numbers(prompt, number):
    assert class_of(prompt, ("001", "2", "017")) == number


@pytest.mark.parametrize(
    ("prompt", "classes", "told"),
    [
        ("1", ("001", "002"), r"001 \(number 0\) or 002 \(number 1\)"),
        ("a b", ("a_b", "a-b"), r"a_b \(number 0\) or a-b \(number 1\)"),
        ("golden retriever and retriever", DOGS, r"golden_retriever \(number 0\) or retriever \(number 2\)"),
    ],
)
def test_what_may_mean_two_classes_is_refused_with_both(prompt, classes, told):
    with pytest.raises(SamplerError, match=told):
        class_of(prompt, classes)
