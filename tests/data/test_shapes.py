import re

import numpy as np
import pytest

from fedscale.data.shapes import CLASSES, OUTLINES, REASONS, render


def test_rendering_is_a_pure_function_of_seed_class_and_index():
    one, again = render(1, 3, 5), render(1, 3, 5)
    assert np.array_equal(one.image, again.image) and one.texts == again.texts
    others = [render(2, 3, 5), render(1, 4, 5), render(1, 3, 6)]
    assert not any(np.array_equal(one.image, other.image) for other in others)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_every_image_is_whole_and_its_texts_name_its_class_alone(label):
    for index in range(20):
        shape = render(9, label, index)
        assert shape.image.shape == (32, 32, 3) and shape.image.dtype == np.uint8 and shape.label == label
        assert shape.image.std() > 3
        assert set(shape.texts) == {"description", "conversation", "reasoning"}
        for text in shape.texts.values():
            assert [name for name in CLASSES if re.search(rf"\b{name}\b", text)] == [CLASSES[label]]
            assert text.endswith(".")


def test_ten_classes_each_with_an_outline_and_a_reason():
    assert len(CLASSES) == 10
    assert set(CLASSES) == set(OUTLINES) == set(REASONS)


def test_the_outlines_cover_different_pixels():
    axis = (np.arange(33, dtype=np.float32) - 16) / 16
    x, y = np.meshgrid(axis, axis)
    masks = {name: outline(x, y) < 0 for name, outline in OUTLINES.items()}
    for name, mask in masks.items():
        assert 0.1 < mask.mean() < 0.75, name
        for other in set(CLASSES) - {name}:
            union = (mask | masks[other]).sum()
            assert (mask & masks[other]).sum() / union < 0.93, (name, other)


def test_the_vocabulary_is_small():
    words = {
        word
        for label in range(len(CLASSES))
        for index in range(200)
        for text in render(3, label, index).texts.values()
        for word in re.findall(r"\w+", text)
    }
    assert len(words) < 150
