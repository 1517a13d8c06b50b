"""Both teachers of the demo's sizes, hardly trained: what the loading and measuring code is tested on."""

import pytest

from fedscale.progress import SilentReporter
from fedscale.teachers import shapes
from fedscale.teachers.clip import train_clip
from fedscale.teachers.llava import train_llava
from fedscale.teachers.optimiser import Schedule


@pytest.fixture(scope="session")
def raw_teachers(tmp_path_factory):
    """A folder with `clip` and `llava`, after four steps each."""
    folder = tmp_path_factory.mktemp("teachers")
    images, _, shown = shapes.dataset("a test", 4)
    questions, schedule = shapes.shapes_questions(), Schedule(epochs=2, batch_size=20)
    clip, silent = folder / "clip", SilentReporter()
    train_clip(images, shapes.clip_texts(shown), clip, shapes.CLIP_SIZE, schedule, [], silent)
    spoken = {kind: [shape.texts[kind] for shape in shown] for kind in questions}
    train_llava(images, spoken, questions, clip, folder / "llava", shapes.LLAVA_SIZE, schedule, [], silent)
    return folder
