"""A folder of another config is refused by the config's own keys, whatever stage's inputs they stand in."""

import json

import pytest

from fedscale.config import overlaid
from fedscale.config.schema import Config
from fedscale.differing import differing
from fedscale.runs import GROWING, stage_inputs


def lines(stage: str, *, growing: tuple[str, ...] = (), **changes: object) -> list[str]:
    """What is said of a stage's folder when a config without its first change is followed by one with it."""
    old, new = Config(), overlaid(Config(), dict(changes))
    return differing(*(json.loads(json.dumps(stage_inputs(config, stage))) for config in (old, new)), growing)


@pytest.mark.parametrize("stage", ["pretrain", "federate", "align"])
def test_a_key_is_named_as_the_config_names_it_once_however_often_it_counts(stage: str) -> None:
    assert lines(stage, model={"width": 8}) == ["model.width was 64, is 8"]
    assert lines(stage, seed=8) == ["seed was 7, is 8"]
    assert lines(stage, data={"image_size": 64}) == ["data.image_size was 32, is 64"]
    assert lines(stage, caption={"seed": 8}) == ["caption.seed was 7, is 8"]
    assert lines(stage, teachers={"mllm": {"model": "x"}}) == ["teachers.mllm.model was llava-hf/llava-1.5-7b-hf, is x"]


def test_what_goes_by_another_name_or_as_a_whole_is_named_by_its_key() -> None:
    assert lines("align", federate={"rounds": 9}) == ["federate.rounds was 200, is 9"]
    assert lines("align", data={"partition": {"alpha": 0.1}}) == ["data.partition.alpha was 0.5, is 0.1"]
    assert lines("align", pretrain={"enabled": False}) == ["pretrain.enabled was True, is False"]


def test_more_captions_add_to_captions_and_change_what_is_made_of_them() -> None:
    more = {"caption": {"max_images": 9}}
    assert lines("caption", growing=GROWING, **more) == []
    assert lines("pretrain", growing=GROWING, **more) == ["caption.max_images was 0, is 9"]
