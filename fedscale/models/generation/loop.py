"""The decode loop: a fixed number of slots, and a waiting prompt in the place of each answer that has ended.

A static batch runs until its longest answer ends, with most of its rows idle by then (PITFALLS, "What slot refill can
gain"). Here finished rows leave, and new ones are prefilled and put in their place once there are enough of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch

from fedscale.models.generation.prefill import PREFILL_TOKENS, Decoder, Prefill
from fedscale.models.generation.prompts import Encoded, Generated, Prompt, Row, Tokens, refusal
from fedscale.models.generation.sampling import Sampler
from fedscale.models.generation.slots import SlotCache
from fedscale.models.generation.vision import Images

# Share of the slots that must be free before they are refilled: a prefill costs its own forward passes whatever its
# size, and all other rows wait for it. For 96 answers of 70 ± 40 % tokens in 32 slots, shares of 0, 1/8, 1/4 and 1/2
# take 50, 17, 9 and 5 prefills at a slot use of 0.95, 0.93, 0.88 and 0.80 (bench/caption_generate.py --shares).
REFILL_SHARE = 1 / 8


@dataclass
class Steps:
    """Decoding so far: slot-steps, those of them that gave a token of an answer, and passes of prefill."""

    slots: int = 0
    useful: int = 0
    prefills: int = 0


class Loop:
    """One call's prompts through the slots; `run` once."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tokens,
        images: Images,
        prompts: Sequence[Prompt],
        slots: int,
        share: float,
        counted: Steps,
    ) -> None:
        self._decoder, self._tokens, self._images, self._prompts = decoder, tokens, images, prompts
        self._counted = counted
        slots = min(slots, len(prompts))
        self._enough = max(1, round(slots * share))  # free slots that are worth a prefill
        self._waiting = Counter(id(prompt.image) for prompt in prompts)  # prompts, by image
        self._stream = self._rows()
        self._prefill = Prefill(decoder, tokens.image)
        self._answers: list[Generated | None] = [None] * len(prompts)
        self._slots: list[Row | None] = [None] * slots
        self._cache = SlotCache(slots, decoder.device)
        # By slot: the newest token, its position, and its number in the answer. A free slot's are of no account.
        self._newest, self._positions, self._number = torch.zeros(3, slots, dtype=torch.long, device=decoder.device)

    def run(self) -> list[Generated]:
        """One answer a prompt, in the same order."""
        try:
            while True:
                self._refill()
                if not any(self._slots):
                    break
                self._step()
        finally:
            self._stream.close()
        answers = [answer for answer in self._answers if answer]
        if len(answers) != len(self._prompts):
            raise AssertionError(f"{len(answers)} answers to {len(self._prompts)} prompts")
        return answers

    def _rows(self) -> Generator[Row | None]:
        """The prompts as rows, those of one image after each other; none for each that has been refused."""
        of_image: dict[int, list[int]] = {}
        for index, prompt in enumerate(self._prompts):
            of_image.setdefault(id(prompt.image), []).append(index)
        images = [self._prompts[indices[0]].image for indices in of_image.values()]
        for chunk in self._images.stream(images):
            texts = [self._prompts[index].text for image, _ in chunk for index in of_image[id(image)]]
            ids = iter(self._tokens.tokenizer(texts)["input_ids"])
            for image, encoded in chunk:
                several = len(of_image[id(image)]) > 1
                for index, plain in zip(of_image[id(image)], ids):  # noqa: B905 (the iterator goes on)
                    yield self._row(index, plain, encoded, several)

    def _row(self, index: int, plain: list[int], encoded: Encoded | Generated, several: bool) -> Row | None:
        prompt = self._prompts[index]
        self._waiting[id(prompt.image)] -= 1
        try:
            if isinstance(encoded, Encoded):
                ids, shared = self._tokens.expanded(plain, encoded)
                return Row(index, prompt, ids, shared if several else 0, encoded)
            self._answers[index] = encoded
        except ValueError as error:
            self._answers[index] = refusal(error)
        return None

    def _refill(self) -> None:
        """Prefill waiting prompts into the free slots, once that is worth a pause of the others."""
        while waiting := self._waiting.total():
            free = [slot for slot, row in enumerate(self._slots) if row is None]
            if len(free) < min(self._enough, waiting):
                break
            rows = list(islice((row for row in self._stream if row), len(free)))
            for slot, row in zip(free, rows, strict=False):
                row.slot = slot
            for group in _groups(rows):
                self._begin(group)
        live = [row for row in self._slots if row]
        if live and not waiting and 2 * len(live) <= len(self._slots):
            self._shrink(live)

    def _begin(self, rows: list[Row]) -> None:
        """Put rows into their slots, with their first tokens."""
        self._counted.prefills += 1
        cache, logits = self._prefill(rows, {image for image, left in self._waiting.items() if left})
        slots = [row.slot for row in rows]
        self._cache.place(slots, cache, range(len(rows)))
        for row in rows:
            self._slots[row.slot] = row
        index = torch.tensor(slots, device=logits.device)
        first = self._sampler(rows)(logits, torch.zeros_like(index))
        self._newest[index] = first
        self._positions[index] = torch.tensor([len(row.ids) for row in rows], device=logits.device)
        self._number[index] = 1
        self._draw = self._sampler(self._slots)
        self._take(rows, first.tolist())

    def _step(self) -> None:
        """One more token in every slot."""
        rows = [row for row in self._slots if row]
        self._counted.slots += len(self._slots)
        self._counted.useful += len(rows)
        ones = [1] * len(self._slots)
        logits = self._decoder(self._cache, ones, self._positions[:, None], input_ids=self._newest[:, None])
        self._newest = self._draw(logits, self._number)
        self._positions += 1
        self._number += 1
        tokens = self._newest.tolist()
        self._take(rows, [tokens[row.slot] for row in rows])

    def _take(self, rows: list[Row], tokens: list[int]) -> None:
        """Write down the rows' new tokens; rows that end with them leave their slots."""
        ended = []
        for row, token in zip(rows, tokens, strict=True):
            row.answer.append(token)
            if token in self._tokens.ends or len(row.answer) == row.prompt.max_new_tokens:
                self._answers[row.index] = self._tokens.generated(row.answer)
                self._slots[row.slot] = None
                ended.append(row.slot)
        if ended:
            self._cache.release(ended)

    def _shrink(self, live: list[Row]) -> None:
        """Only the slots of these rows: nothing waits for the others."""
        slots = [row.slot for row in live]
        self._cache.keep(slots)
        index = torch.tensor(slots, device=self._newest.device)
        self._newest, self._positions, self._number = (
            state[index] for state in (self._newest, self._positions, self._number)
        )
        self._slots = list(live)
        for slot, row in enumerate(live):
            row.slot = slot
        self._draw = self._sampler(self._slots)

    def _sampler(self, rows: Sequence[Row | None]) -> Sampler:
        temperatures = [row.prompt.temperature if row else 0.0 for row in rows]
        return Sampler(temperatures, [row.prompt.seed if row else 0 for row in rows], self._decoder.device)


def _groups(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows to prefill in one pass: all with a shared prefix or none, PREFILL_TOKENS at most, padding included."""
    for several in (True, False):
        group: list[Row] = []
        longest = 0
        for row in rows:
            if bool(row.shared) is several:
                longest = max(longest, len(row.ids))
                if group and (len(group) + 1) * longest > PREFILL_TOKENS:
                    yield group
                    group, longest = [], len(row.ids)
                group.append(row)
        if group:
            yield group
