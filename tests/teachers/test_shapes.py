"""The shipped teachers, and the script that makes them."""

import pytest
import torch

from fedscale import files
from fedscale.config.schema import ClipConfig
from fedscale.data.shapes import CLASSES
from fedscale.house import PACKAGE
from fedscale.progress import SilentReporter
from fedscale.teachers import shapes
from fedscale.teachers.accuracy import classes_in, clip_accuracy, llava_accuracy
from fedscale.teachers.clip import ClipSize
from fedscale.teachers.llava import LlavaSize
from fedscale.teachers.optimiser import Schedule

SHIPPED = PACKAGE / "teachers" / "shapes"


@pytest.fixture(scope="module")
def held_out():
    images, labels, _ = shapes.dataset("another test", 20)
    return images, labels


def test_the_shipped_clip_names_at_least_80_percent(held_out):
    accuracy = clip_accuracy(SHIPPED / "clip", *held_out, CLASSES, ClipConfig().prompt)
    assert accuracy >= 80
    assert accuracy == pytest.approx(files.read_json(SHIPPED / "card.json")["accuracy"]["clip"], abs=8)


def test_the_captions_of_the_shipped_llava_name_at_least_80_percent(held_out):
    asked = {kind: several[0] for kind, several in shapes.shapes_questions().items()}
    for kind, accuracy in llava_accuracy(SHIPPED / "llava", *held_out, CLASSES, asked).items():
        assert accuracy >= 80, kind


def test_the_shipped_folders_hold_no_pickle_and_at_most_4_mb():
    held = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in held) <= 4_000_000
    assert {path.suffix for path in held} <= {".json", ".safetensors", ".jinja", ".md"}


def test_a_teacher_that_misses_80_percent_is_not_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "IMAGES", 4)
    monkeypatch.setattr(shapes, "HELD_OUT", 2)
    monkeypatch.setattr(shapes, "THREADS", torch.get_num_threads())
    monkeypatch.setattr(shapes, "CLIP_SIZE", ClipSize(layers=1, width=32, heads=1, text_layers=1))
    monkeypatch.setattr(shapes, "LLAVA_SIZE", LlavaSize(width=32, heads=1, layers=1, intermediate=32))
    for name in ("CLIP_SCHEDULE", "LLAVA_SCHEDULE"):
        monkeypatch.setattr(shapes, name, Schedule(epochs=1, batch_size=8))
    reporter = SilentReporter()
    assert shapes.main(tmp_path / "shapes", reporter) == 1
    assert not (tmp_path / "shapes").exists()
    assert "not shipped" in reporter.lines[-1]


def test_a_text_names_whole_words_alone():
    assert classes_in("It is a Ring, because its string bends.", CLASSES) == ["ring"]
