import pytest

from components.config import parse
from components.errors import ConfigError
from components.sources import DataConfig


class TestConfig:
    @pytest.mark.parametrize(
        ("block", "told"),
        [
            ({"image_size": 4}, "data.image_size: expected a number of pixels, at least 8, or two of them"),
            ({"image_size": "big"}, "data.image_size: expected a number of pixels"),
            ({"image_size": True}, "data.image_size: expected a number of pixels"),
            ({"image_size": [16]}, "data.image_size: expected a number of pixels"),
            ({"image_size": [16, 4]}, "[height, width], found [16, 4]"),
            ({"image_size": [16, 16, 16]}, "data.image_size: expected a number of pixels"),
            ({"channels": 2}, "data.channels"),
            ({"test_fraction": 0}, "data.test_fraction"),
            ({"test_fraction": 1.0}, "data.test_fraction"),
            ({"rows_per_shard": 0}, "data.rows_per_shard"),
            ({"max_rejected": -1}, "data.max_rejected"),
            (
                {"source": "mnist"},
                "data.source: expected digits, fashion_mnist, folder, moving_digits, spoken_digits or s3://",
            ),
            ({"source": "s3://"}, "data.source: expected"),
            ({"sourse": "digits"}, "data.sourse: unknown key"),
        ],
    )
    def test_impossible_values_are_one_clear_line(self, block, told):
        with pytest.raises(ConfigError) as caught:
            parse(DataConfig, block, "data")
        assert told in str(caught.value) and "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "block",
        [{}, {"source": "s3://bucket/some/prefix"}, {"source": "s3://bucket"}, {"source": "folder", "path": "a"}],
    )
    def test_possible_values_are_taken(self, block):
        assert parse(DataConfig, block, "data").test_fraction == 0.2

    @pytest.mark.parametrize(
        ("image_size", "shape"), [(18, (1, 18, 18)), ([16, 16], (1, 16, 16)), ([48, 64], (1, 48, 64))]
    )
    def test_sides_are_height_and_width(self, image_size, shape):
        assert parse(DataConfig, {"image_size": image_size}, "data").shape == shape
