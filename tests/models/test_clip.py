import logging
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file

import fedscale
from fedscale.config.schema import ClipConfig
from fedscale.data.shapes import CLASSES, render
from fedscale.errors import UserError
from fedscale.models.clip import load_clip

CONFIG = ClipConfig(model="teachers/shapes/clip", pretrained=None)


@pytest.fixture(scope="module")
def clip():
    return load_clip(CONFIG)


def test_embeddings_have_length_one_and_no_gradient(clip):
    images = torch.stack([torch.from_numpy(render(5, label, 0).image) for label in range(3)])
    embedded, texts = clip.encode_images(images), clip.encode_texts(["a photo of a star.", "a photo of a ring."])
    assert embedded.shape == (3, clip.embed_dim) and texts.shape == (2, clip.embed_dim)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert not embedded.requires_grad and not any(p.requires_grad for p in clip.model.parameters())


def test_class_logits_are_scaled_cosines_with_the_class_prompts(clip):
    images = torch.from_numpy(render(5, 3, 1).image)[None]
    logits = clip.class_logits(images, clip.encode_classes(CLASSES, CONFIG.prompt), logit_scale=10.0)
    texts = clip.encode_texts([f"a photo of a {name}." for name in CLASSES])
    torch.testing.assert_close(logits, 10.0 * clip.encode_images(images) @ texts.T)


def test_without_a_scale_it_is_the_one_that_the_clip_was_trained_with(clip):
    images = torch.from_numpy(render(5, 3, 1).image)[None]
    classes = clip.encode_classes(CLASSES, CONFIG.prompt)
    learned = load_file(Path(fedscale.__file__).parent / CONFIG.model / "open_clip_model.safetensors")["logit_scale"]
    assert 1 < clip.logit_scale < 50  # the demo's teacher never came near the 100 of published weights
    assert clip.logit_scale == pytest.approx(learned.float().exp().item())
    torch.testing.assert_close(clip.class_logits(images, classes), clip.class_logits(images, classes, clip.logit_scale))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 48), (60, 40), (20, 26)])
def test_preprocessing_is_open_clips_own_as_tensor_code(clip, height, width):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    theirs = image_transform_v2(PreprocessCfg(**clip.model.visual.preprocess_cfg), is_train=False)
    ours = clip.preprocess(torch.from_numpy(np.array(smooth))[None])[0]
    assert ours.shape == (3, 32, 32)
    assert (ours - theirs(smooth)).abs().max() < 2.5 / 255 / 0.25  # Pillow rounds to whole levels after each axis


def test_loading_leaves_logging_as_it_was(clip):
    before = logging.root.manager.disable
    load_clip(CONFIG)
    assert logging.root.manager.disable == before


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no open_clip_config\.json"):
        load_clip(ClipConfig(model=str(tmp_path)))


def test_no_network_is_one_line_that_names_the_remedies(monkeypatch):
    def unreachable(*args, **kwargs):
        raise RuntimeError("Failed to download weights for tag")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(UserError, match=r"fedscale fetch.*offline_teachers\.yaml") as error:
        load_clip(ClipConfig())
    assert "\n" not in str(error.value)
