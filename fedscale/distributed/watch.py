"""Who of the ranks is lost: each gives signs of life through the store, and the first to miss one names it for all.

Without this a collective that breaks says `Connection closed by peer` on some ranks and `Timed out` on others, and the
peer is often a healthy rank that broke off before. The store is a small key-value server at rank 0, or in torchrun's
agent. Keys: beat/r (a counter that moves while r lives), at/r (number and place of its last collective), broke/r (the
number of the one that broke for it), left/r, verdict.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from torch.distributed import DistError, Store

BEAT = 0.5  # seconds between two signs of life
SILENCE = 4 * BEAT  # without one for so long, a rank is dead or frozen
ANSWER = 2.0  # seconds that a store which lives takes at most to answer
BROKEN = ("gloo", "nccl", "monitored", "timed out", "timeout", "connection", "broken pipe")  # not a shape, say

Result = TypeVar("Result")


class RankLost(Exception):
    """A rank is dead, frozen, too late or ended with an error, so that the others cannot go on. Its text names it."""


class Watch:
    """The signs of life of all ranks of one mesh; `holds_store`: this process is the one that the store lives in.

    `wake` breaks off what the others wait for too, so that the one for which nothing breaks is the late one. What may
    block is asked for on a thread and given up in time: a frozen rank 0 freezes the store too.
    """

    def __init__(
        self, store: Store, rank: int, hosts: Sequence[str], holds_store: bool, timeout: float, stage: str = "federate",
        wake: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self._store, self._asking = store, store.clone()  # one connection waits for one answer at a time
        self._rank, self._hosts, self._holds_store, self._timeout = rank, hosts, holds_store, timeout
        self._stage, self._wake = stage, wake
        self._count, self._mark, self._place, self._since = 0, "the start", "the start", time.monotonic()
        self._verdict = ""
        self._stop = threading.Event()
        store.set(f"beat/{rank}", "0")
        store.set(f"at/{rank}", f"0:{self._place}")
        store.set(f"broke/{rank}", "-1")
        self._thread = threading.Thread(target=self._live, name="signs of life", daemon=True)
        self._thread.start()

    @contextmanager
    def collective(self, what: str, mark: bool = False) -> Iterator[None]:
        """Runs a collective of all ranks in it; `mark` names the place in the run that the next ones come after.

        Raises RankLost when the collective breaks because of a rank, or when that is known before.
        """
        self._mark = what if mark else self._mark
        self._count, self._place, self._since = self._count + 1, f"'{self._mark}'", time.monotonic()
        if not mark:
            self._place = f"{what} after {self._place}"
        try:
            if not self._verdict:
                self._store.set(f"at/{self._rank}", f"{self._count}:{self._place}")  # does not wait for an answer
                yield
                return
        except RuntimeError as error:
            if any(word in str(error).lower() for word in BROKEN) and (verdict := self._blame()):
                raise RankLost(verdict) from error
            raise
        raise RankLost(self._verdict)

    def tell(self, error: BaseException) -> None:
        """Tell the others that this rank ends with the error, so that they need not find out."""
        if not isinstance(error, RankLost):
            line = next(iter(str(error).splitlines()), "")
            within(
                ANSWER, lambda: self._publish(self._text([self._rank], f"ended with {type(error).__name__}: {line}"))
            )

    def leave(self, failed: bool) -> None:
        """Stop giving signs of life. The holder of the store stays until the others have left, or had time to know."""
        self._stop.set()
        within(ANSWER, lambda: self._store.set(f"left/{self._rank}", ""))
        # A thread that is still in the store's code when the interpreter ends takes the process down with SIGABRT.
        self._thread.join(ANSWER)
        if self._holds_store:
            patience = SILENCE if failed else self._timeout
            within(patience, self._wait_for_all_to_leave)

    def _live(self) -> None:
        beats = 0
        try:
            while not self._stop.wait(BEAT):
                beats += 1
                self._asking.set(f"beat/{self._rank}", str(beats))
                self._verdict = self._verdict or self._published()
        except DistError:
            pass  # the store is gone; the next collective breaks, and `_blame` says why

    def _blame(self) -> str:
        """The verdict on the collective that broke, the same on all ranks; empty when no rank is to blame."""
        within(ANSWER, self._wake)
        answers = within(SILENCE + 2 * BEAT + ANSWER, self._judge)
        if answers or self._verdict or self._rank == 0:
            return self._verdict or next(iter(answers), "")
        return self._text([0], f"was lost at {self._place}: neither it nor the store on its host answers")

    def _judge(self) -> str:
        """Ranks whose beats do not move are lost; else those behind this one are late. The first verdict stays.

        Behind are also those at the same place for which nothing broke: they have not come to what the others wait in.
        """
        self._asking.set(f"broke/{self._rank}", str(self._count))
        before = self._read("beat")
        if verdict := self._wait_for_verdict(SILENCE):
            return verdict
        after, at = self._read("beat"), [place.split(":", 1) for place in self._read("at")]
        broke = self._read("broke")
        others = [rank for rank in range(len(self._hosts)) if rank != self._rank]
        if lost := [rank for rank in others if before[rank] == after[rank]]:
            how = f"was lost at {self._place}: no sign of life for {SILENCE:g} s (killed, frozen, or its host is down)"
            return self._publish(self._text(lost, how))
        if time.monotonic() - self._since > self._timeout:
            behind = [rank for rank in others if int(at[rank][0]) < self._count]
            inside = [rank for rank in others if int(at[rank][0]) == self._count > int(broke[rank])]
            if late := behind or inside:
                verb, where = ("arrive at", "last at ") if behind else ("come through", "in the middle of ")
                how = f"did not {verb} {self._place} within {self._timeout:g} s; it lives, {where}{at[late[0]][1]}"
                return self._publish(self._text(late, how))
        return self._wait_for_verdict(2 * BEAT)  # another rank may have begun to judge a moment later

    def _wait_for_verdict(self, seconds: float) -> str:
        end = time.monotonic() + seconds
        while not (verdict := self._published()) and time.monotonic() < end:
            time.sleep(BEAT / 5)
        return verdict

    def _published(self) -> str:
        return self._asking.get("verdict").decode() if self._asking.check(["verdict"]) else ""

    def _publish(self, verdict: str) -> str:
        return self._asking.compare_set("verdict", "", verdict).decode()  # what stands there already, if any does

    def _wait_for_all_to_leave(self) -> None:
        while not self._asking.check([f"left/{rank}" for rank in range(len(self._hosts))]):
            time.sleep(BEAT / 25)  # not Store.wait, which reports at length on stderr when its time is over

    def _read(self, key: str) -> list[str]:
        return [value.decode() for value in self._asking.multi_get([f"{key}/{r}" for r in range(len(self._hosts))])]

    def _text(self, ranks: list[int], how: str) -> str:
        more = f" (and {len(ranks) - 1} more)" if len(ranks) > 1 else ""
        return (
            f"{self._stage}: rank {ranks[0]} (host {self._hosts[ranks[0]]}){more} {how}; "
            "see that rank's own output, then start the same command again: it resumes"
        )


def within(seconds: float, call: Callable[[], Result]) -> list[Result]:
    """The one answer of the call; none when it takes longer (it is left behind) or the network breaks it off."""
    answers: list[Result] = []

    def ask() -> None:
        with suppress(RuntimeError):  # torch.distributed's errors are these, by their base
            answers.append(call())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[:1]
