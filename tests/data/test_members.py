"""A tar's members make samples by WebDataset's convention, or are refused with a reason."""

import pytest

from fedscale.data.members import Contents, samples
from fedscale.data.tar import BrokenShard, Member


def grouped(*names: str) -> list[tuple[str, list[str]]]:
    members = [Member(name, 512 * i, 1) for i, name in enumerate(names)]
    return [(sample.key, list(sample.members)) for sample in samples(members)]


def test_members_are_grouped_by_what_stands_before_the_first_dot() -> None:
    assert grouped("a.jpg", "a.json", "d/a.PNG", "d/a.seg.npy", "b.webp", "b.txt") == [
        ("a", ["jpg", "json"]),
        ("d/a", ["png", "seg.npy"]),
        ("b", ["webp", "txt"]),
    ]
    assert grouped() == []


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.json", "a.txt"], "sample a has no images (.json, .txt)"),
        (["a.jpg", "a.json", "b.txt", "c.jpg"], "sample b has no images (.txt)"),
        (["a.jpg", "a.png"], "sample a has 2 images"),
        (["a.jpg", "a.jpg"], "a.jpg is there twice"),
        (["a.jpg", "a.JPG"], "a.JPG is there twice"),
        (["a.jpg", "b.jpg", "a.txt"], "key a comes again"),
        (["a.jpg", "b.jpg", "a.jpg"], "key a comes again"),
        (["a.jpg", "a.pkl"], "a.pkl is a pickle"),
        (["a.jpg", "a.emb.pth.gz"], "a.emb.pth.gz is a pickle"),
        (["img_0.5x_001.jpg", "img_0.5x_002.jpg"], "img_0.5x_001.jpg has a dot in its key"),
        (["README"], "README has no extension"),
        (["d/README"], "d/README has no extension"),
        (["a."], "a. has no extension"),
        ([".jpg"], ".jpg has no key"),
        (["d/.DS_Store"], "d/.DS_Store has no key"),
    ],
)
def test_names_that_make_no_samples_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(BrokenShard) as caught:
        grouped(*names)
    assert reason in caught.value.reason


def test_the_index_changes_when_anything_moves() -> None:
    def index(*members: Member) -> str:
        contents = Contents()
        for sample in samples(members):
            contents.add(sample)
        return contents.index

    whole = index(Member("a.jpg", 512, 5), Member("a.txt", 1536, 3))
    assert whole == index(Member("a.jpg", 512, 5), Member("a.txt", 1536, 3))
    others = [
        index(Member("a.jpg", 512, 5)),
        index(Member("b.jpg", 512, 5), Member("b.txt", 1536, 3)),
        index(Member("a.jpg", 512, 6), Member("a.txt", 1536, 3)),
        index(Member("a.jpg", 512, 5), Member("a.txt", 2048, 3)),
        index(Member("a.txt", 512, 5), Member("a.jpg", 1536, 3)),
    ]
    assert len({whole, *others}) == 6
