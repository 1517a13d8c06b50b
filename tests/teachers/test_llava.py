import open_clip
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from fedscale.data.augment import normalise
from fedscale.data.shapes import render
from fedscale.teachers.clip import MEAN, STD
from fedscale.teachers.llava import vision_tower


def test_the_vision_tower_is_open_clips_to_rounding(raw_teachers):
    clip = open_clip.create_model(f"local-dir:{raw_teachers / 'clip'}", require_pretrained=True).eval()
    tower = vision_tower(raw_teachers / "clip")
    pixels = normalise(torch.stack([torch.from_numpy(render(1, i, 0).image) for i in range(10)]), MEAN, STD)
    with torch.no_grad():
        theirs = tower(pixels).pooler_output @ clip.visual.proj
        torch.testing.assert_close(theirs, clip.encode_image(pixels), atol=1e-5, rtol=1e-5)


def test_the_saved_folder_is_a_llava_with_that_tower(raw_teachers):
    model = AutoModelForImageTextToText.from_pretrained(raw_teachers / "llava", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(raw_teachers / "llava")
    assert isinstance(model, LlavaForConditionalGeneration) and isinstance(processor, LlavaProcessor)
    tower = vision_tower(raw_teachers / "clip").state_dict()
    for name, value in model.model.vision_tower.state_dict().items():
        torch.testing.assert_close(value, tower[name])  # half precision holds what half precision was read from


def test_its_forward_pass_is_the_one_that_was_trained(raw_teachers):
    from fedscale.teachers.llava import _loss, _prompt_ids

    model = AutoModelForImageTextToText.from_pretrained(raw_teachers / "llava", dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(raw_teachers / "llava")
    images = [torch.from_numpy(render(1, i, 0).image).permute(2, 0, 1) for i in range(3)]
    question = "What is the main object in this image?"
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True)
    answer = processor.tokenizer(" a star.", add_special_tokens=False)["input_ids"] + [processor.tokenizer.eos_token_id]
    inputs = processor(images=images, text=[f"{prompt} a star."] * 3, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[:, -len(answer) :]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(answer * 3))
        tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-1]
        ours = _loss(model, tower, _prompt_ids(processor, question), torch.tensor([answer] * 3))
    torch.testing.assert_close(ours, expected)
