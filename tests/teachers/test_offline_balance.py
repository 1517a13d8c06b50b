"""The offline teachers see every keyword equally often, whatever the long tail left over of it."""

from collections import Counter

from fedscale.teachers.offline import evenly


def test_every_keyword_comes_equally_often_and_nothing_is_left_out_that_fits() -> None:
    keywords = ["truck"] * 90 + ["airplane"] * 10
    chosen = evenly(keywords, seed=3)
    assert Counter(keywords[i] for i in chosen) == {"truck": 50, "airplane": 50}
    times = Counter(int(i) for i in chosen if keywords[i] == "airplane")
    assert set(times.values()) == {5} and len(times) == 10
    assert len({int(i) for i in chosen if keywords[i] == "truck"}) == 50
