from fedscale.teachers.words import END, IMAGE, word_tokenizer

TEXT = "it is a heart, because it has two round bumps."


def test_decoding_gives_the_text_back():
    tokenizer = word_tokenizer([f" {TEXT}", "USER: <image>\nWhat is it? ASSISTANT:"])
    for text in (f" {TEXT}", "USER: <image>\nWhat is it? ASSISTANT:"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_an_answer_is_the_same_tokens_alone_and_behind_its_prompt():
    prompt = "USER: What is it? ASSISTANT:"
    tokenizer = word_tokenizer([prompt, f" {TEXT}"])
    whole, before = tokenizer(f"{prompt} {TEXT}")["input_ids"], tokenizer(prompt)["input_ids"]
    assert whole == before + tokenizer(f" {TEXT}", add_special_tokens=False)["input_ids"]


def test_a_clip_text_ends_with_the_largest_id_and_ignores_case():
    tokenizer = word_tokenizer(["a photo of a cat."], lowercase=True, end=True)
    ids = tokenizer("A photo of a CAT.")["input_ids"]
    assert ids[-1] == max(tokenizer.get_vocab().values()) == tokenizer.convert_tokens_to_ids(END)
    assert tokenizer.unk_token_id not in ids


def test_an_unknown_word_is_unknown_and_the_image_is_one_token():
    tokenizer = word_tokenizer(["a cat."])
    assert tokenizer(" zebra", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]
    assert len(tokenizer(IMAGE, add_special_tokens=False)["input_ids"]) == 1
