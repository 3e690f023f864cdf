import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import sources
from components.errors import DataError
from components.sources import DataConfig, fashion_mnist

SHARED = Path(__file__).parents[4] / "shared" / "data"


class TestFashionMnist:
    @pytest.mark.skipif(not (SHARED / "fashion-mnist").is_dir(), reason="../shared/data/fashion-mnist is not here")
    def test_the_published_files(self):
        config = DataConfig(source="fashion_mnist", mirror=str(SHARED / "fashion-mnist"), image_size=28)
        source = sources.read(config, seed=0)
        rows = list(itertools.islice(source.splits["train"](), 200))
        assert source.classes[int(rows[0]["label"])] == "Ankle boot"  # the first picture, as the publisher shows it
        assert rows[0]["image"].shape == (1, 28, 28)
        # the publisher's pictures are 28x28: this size changes no pixel
        assert rows[0]["image"].sum() == 76247
        assert {int(row["label"]) for row in rows} == set(range(10))
        assert sum(1 for _ in source.splits["test"]()) == 10_000

    def test_a_file_that_is_not_the_published_one_is_refused(self, tmp_path):
        for name in fashion_mnist.MD5:
            (tmp_path / name).write_bytes(b"other")
        with pytest.raises(DataError, match="train-images.* has md5 .*, expected"):
            sources.read(DataConfig(source="fashion_mnist", mirror=str(tmp_path)), seed=0)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DataError, match="cannot read train-images-idx3-ubyte.gz .No such file"):
            sources.read(DataConfig(source="fashion_mnist", mirror=str(tmp_path)), seed=0)

    @pytest.mark.parametrize("mirror", ["http://127.0.0.1:9", "nonsense://a", "http://[bad"])
    def test_an_address_that_cannot_be_reached_is_one_line(self, mirror):
        with pytest.raises(DataError, match="cannot fetch train-images") as caught:
            sources.read(DataConfig(source="fashion_mnist", mirror=mirror), seed=0)
        assert "\n" not in str(caught.value)

    @given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), seed=st.integers(0, 99))
    def test_idx_is_parsed_as_its_format_says(self, shape, seed):
        values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        head = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        assert np.array_equal(fashion_mnist.parse_idx(head + values.tobytes()), values)
