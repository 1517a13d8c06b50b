"""The figures: themed, legible for everyone, and numbers that are right."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from fedscale.report import classes, confusions, palette, plots, svg
from fedscale.report.collect import collect, read_run
from fedscale.report.compare import Comparison, summary_rows

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
DEUTERANOPIA = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
PROTANOPIA = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]


def lab(colour: str, vision: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour as seen with `vision`."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = vision @ np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(linear, 1e-3, 1) / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("vision", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["usual", "deuteranopia", "protanopia"])
def test_the_four_variants_of_the_ablation_are_told_apart_by_everyone(theme, vision):
    colours = [lab(pair[theme], np.array(vision)) for pair in palette.SERIES[:4]]

    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 12


def test_variants_beyond_the_palette_still_have_a_colour_and_marker_of_their_own():
    looks = {(palette.series(index), palette.marker(index)) for index in range(24)}

    assert len(looks) == 24


def test_a_figure_is_themed_inline_svg_without_a_stand_in_or_a_foreign_address(demo):
    runs = collect([demo]).runs
    drawn = plots.by_round(runs, {"fedavg": 0, "full": 3}, "all", "some-salt")

    assert drawn.startswith("<svg viewBox=") and "var(--series-3)" in drawn
    assert not palette.STAND_IN.search(drawn)
    assert "http" not in drawn and "<style" not in drawn and "<metadata" not in drawn
    assert "<text" in drawn  # text stays text: it can be searched, and takes the page's font


def test_two_figures_of_a_page_share_no_id(build):
    run = read_run(build().run("full"))
    counts = np.array(run.final.confusion)
    one, two = (str(svg.inline(confusions.confusion(run.final, counts), "matrix", salt)) for salt in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', drawn)) for drawn in (one, two)]

    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]+)\)", one)) <= ids[0]


def test_variants_with_the_same_curve_are_both_visible(demo):
    runs = collect([demo]).runs
    alone = plots.by_round(runs, {"fedavg": 0}, "all", "salt")
    together = plots.by_round(runs, {"fedavg": 0, "align": 2}, "all", "salt")

    assert "stroke-dasharray" not in alone
    dashed = re.findall(
        r"stroke-dasharray: ([\d., ]+); stroke-dashoffset: ([\d.]+); stroke: var\(--series-(\d)", together
    )
    offsets = {series: offset for dashes, offset, series in dashed if dashes != "1.95,2.6"}
    assert set(offsets) == {"0", "2"} and offsets["0"] != offsets["2"]


def test_confusions_are_shares_of_the_true_class_from_head_to_tail(build):
    run = read_run(build().run("full"))
    counts = np.array(run.federated.confusion)
    drawn = svg.inline(confusions.confusion(run.federated, counts), "matrix", "salt")

    numbers = [int(number) for number in re.findall(r">(\d+)</text>", drawn)]
    assert round(100 * counts[0, 0] / counts[0].sum()) == numbers[0]


def test_the_variants_matrices_stand_side_by_side_each_with_its_numbers(build):
    run = read_run(build().run("full"))
    before, after = (np.array(evaluation.confusion) for evaluation in (run.federated, run.aligned))
    panels = [confusions.Panel("one", before), confusions.Panel("two", after)]
    drawn = svg.inline(confusions.side_by_side(run.final, panels), "matrices", "salt")

    assert drawn.index(">one</text>") < drawn.index(">two</text>")
    names = [drawn.count(f">{name}</text>") for name in run.final.class_names]
    assert names == [3] * 10  # the rows once, the columns of both
    numbers = [int(number) for number in re.findall(r">(\d+)</text>", drawn)]
    firsts = [round(100 * counts[0, 0] / counts[0].sum()) for counts in (before, after)]
    assert set(firsts) <= set(numbers)


def test_many_classes_side_by_side_have_a_colour_scale_instead_of_numbers(build):
    run = read_run(build(num_classes=100, imbalance=100.0, n_max=500, rounds=3).run("full"))
    panels = [confusions.Panel(name, np.array(run.final.confusion)) for name in "abcde"]
    drawn = svg.inline(confusions.side_by_side(run.final, panels), "matrices", "salt")

    assert ">100%</text>" in drawn and all(f">{name}</text>" in drawn for name in "abcde")
    assert drawn.count("taken for, head to tail") == 3  # below the lowest of each column


def test_the_fractions_curve_has_both_starts_means_at_each_share_and_the_seeds(demo):
    runs = [run for run in collect([demo]).runs if run.variant == "pretrain"]
    made = plots.fractions(runs, 1)
    drawn = svg.inline(made, "fractions", "salt")

    for share in range(4):
        points = [run.probe[share] for run in runs]
        for values in ([p.scratch for p in points], [p.pretrained for p in points]):
            assert f">{np.mean(values):.1f}</text>" in drawn
    assert all(f">{share}</text>" in drawn for share in ("1%", "5%", "10%", "100%")) and ">1,120</text>" in drawn
    lines = [line for line in made.axes[0].lines if len(line.get_xdata()) == 4]
    assert [line.get_linestyle() for line in lines] == ["--", "-"]
    assert len({line.get_color() for line in lines}) == 2
    assert len(made.axes[0].collections) == 2  # a band of one deviation around each


def test_within_for_print_figures_have_the_light_themes_colours_and_outside_stand_ins():
    with palette.for_print():
        printed = palette.role("ink"), palette.series(1)

    assert printed == (palette.ROLES["ink"][1], palette.SERIES[1][0])
    assert palette.STAND_IN.fullmatch(palette.role("ink")) and palette.STAND_IN.fullmatch(palette.series(1))


def test_a_hundred_classes_are_shown_by_group_instead_of_by_name(build):
    builder = build(num_classes=100, imbalance=100.0, n_max=500, rounds=3)
    run = read_run(builder.run("full"))
    counts = np.array(run.federated.confusion)
    drawn = svg.inline(confusions.confusion(run.federated, counts), "matrix", "salt")
    by_class = classes.per_class([run], {"full": 0}, "other")

    assert "class 042" not in drawn + by_class
    assert all(f">{name}</text>" in drawn and f">{name}</text>" in by_class for name in ("many", "medium", "few"))
    few = [index for index in range(100) if run.final.train_counts[index] < 20]
    kept = counts[np.ix_(few, few)].sum(axis=1) / counts[few].sum(axis=1)
    assert f">{100 * kept.mean():.0f}%</text>" in drawn


def test_the_most_frequent_mistakes_are_listed_with_what_became_of_them(build):
    run = read_run(build().run("full"))
    before, after = (np.array(evaluation.confusion) for evaluation in (run.federated, run.aligned))
    listed = confusions.top_confusions(run.federated, before, after)

    shares = 100 * before / before.sum(axis=1, keepdims=True)
    np.fill_diagonal(shares, 0)
    assert listed[0].before == shares.max()
    assert all(mistake.actual != mistake.predicted for mistake in listed)
    names = run.final.class_names
    row, column = names.index(listed[0].actual), names.index(listed[0].predicted)
    assert listed[0].after == pytest.approx(100 * after[row, column] / after[row].sum())


def test_a_running_mean_keeps_its_length_and_its_level():
    assert classes.running_mean(np.array([1.0, 2.0, 3.0, 10.0]), 3).tolist() == [1.5, 2.0, 5.0, 6.5]
    assert classes.window(100) % 2 == 1


def test_groups_without_a_class_leave_a_gap(demo):
    collection = collect([demo])
    rows = [{**row, "few": None} for row in summary_rows(collection.runs)]

    assert "Few" in plots.by_group(Comparison(tuple(rows)), {"fedavg": 0, "full": 3}, "salt")


def test_four_narrow_bars_are_labelled_without_decimals_which_would_touch():
    scores = {"all": 98.76, "many": 98.76, "medium": 98.76, "few": 98.76}
    styles = {"a": 0, "b": 1, "c": 2, "d": 3}
    comparison = Comparison(tuple({"variant": variant, "seed": 1, **scores} for variant in styles))
    broad, narrow = (plots.by_group(comparison, styles, "salt", narrow) for narrow in (False, True))
    assert broad.count(">98.8<") == 16
    assert narrow.count(">99<") == 16 and ">98.8<" not in narrow


def test_drawing_leaves_matplotlibs_settings_as_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    svg.inline(svg.figure(100, 100), "nothing", "salt")

    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("seconds", "text"), [(0, "0"), (15, "15 s"), (90, "1.5 min"), (7200, "2 h")])
def test_ticks_of_time_are_brief(seconds, text):
    assert plots.brief(seconds) == text
