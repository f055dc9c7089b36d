"""The picture rule in JavaScript, in a browser: Pillow's bytes, and `read_image`'s for every file format."""

import numpy as np
import pytest
from PIL import Image

from tests.support.scenes import save_formats, scene
from toolkit.inference import Classifier, read_image
from toolkit.inference.model_file import SHIPPED_MODEL

pytestmark = pytest.mark.slow

SIZES = [(1, 1), (1, 600), (600, 1), (5, 7), (31, 33), (33, 31), (32, 32), (64, 64), (97, 301), (301, 97), (1601, 1203)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_are_pillows(shipped_tab, tmp_path, size):
    """Center square at integer offsets, then Pillow's bicubic filter: the same bytes."""
    width, height = size
    image = scene(width, height)
    image.save(tmp_path / "picture.png")
    side = min(size)
    left, top = (width - side) // 2, (height - side) // 2
    expected = image.crop((left, top, left + side, top + side)).resize((32, 32), Image.Resampling.BICUBIC)
    (result,) = shipped_tab.choose(tmp_path / "picture.png")
    np.testing.assert_array_equal(result.pixels, np.asarray(expected))


def test_extreme_levels_are_clipped_as_in_pillow(shipped_tab, tmp_path):
    """Black and white next to each other make the filter overshoot both."""
    levels = np.random.default_rng(0).integers(0, 2, (200, 200, 3), dtype=np.uint8) * 255
    image = Image.fromarray(levels.repeat(3, axis=0).repeat(3, axis=1))
    image.save(tmp_path / "picture.png")
    (result,) = shipped_tab.choose(tmp_path / "picture.png")
    np.testing.assert_array_equal(result.pixels, np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))


def test_every_format_gives_what_the_classifier_gives(shipped_tab, tmp_path):
    """The same pixels as `read_image`; logits within 1e-4 of `Classifier`, and the same five classes."""
    classifier = Classifier(SHIPPED_MODEL, provider="cpu")
    files = save_formats(tmp_path)
    found = shipped_tab.choose(*files.values())
    assert [result.name for result in found] == list(files)
    for result, path in zip(found, files.values(), strict=True):
        pixels = read_image(path)
        np.testing.assert_array_equal(result.pixels, pixels, err_msg=path.name)
        logits, _ = classifier.session.logits_and_probabilities(pixels[np.newaxis])
        np.testing.assert_allclose(result.logits, logits[0], rtol=0, atol=1e-4, err_msg=path.name)
        (expected,) = classifier.predict(path, top=5)
        assert [label for label, _ in result.top] == [label for label, _ in expected.top], path.name
