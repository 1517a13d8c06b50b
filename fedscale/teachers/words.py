"""The small word tokenizers of the teachers that are trained here."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, START, UNKNOWN, IMAGE, END = "<pad>", "<s>", "<unk>", "<image>", "</s>"


def word_tokenizer(texts: Iterable[str], lowercase: bool = False, end: bool = False) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of all words in `texts`: `<s>` in front, and `</s>` behind with `end` (a CLIP text).

    Words keep the space before them (as in SentencePiece), punctuation is apart, so that decoding gives the text back.
    `</s>` is the largest id, where open_clip's `argmax` pooling looks for the end of a text.
    """
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
            pre_tokenizers.Split(Regex(r"[^\w▁]|\n"), behavior="isolated"),
        ]
    )
    words = sorted({word for text in set(texts) for word in _pieces(tokenizer, text)})
    vocabulary = {word: number for number, word in enumerate([PAD, START, UNKNOWN, IMAGE, *words, END])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}" if end else f"{START} $A",
        special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[IMAGE],
        padding_side="right" if end else "left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
