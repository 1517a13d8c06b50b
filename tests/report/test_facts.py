"""What the report says of a run beside its numbers."""

import pytest

from fedscale.report.collect import read_run
from fedscale.report.facts import facts


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet8", "resnet8, width 16"),
        ("resnet50", "resnet50"),
        ("lenet", "lenet"),
        ("timm:resnet18", "timm:resnet18"),
    ],
)
def test_a_width_is_said_of_the_model_that_has_one(build, name, said):
    run = read_run(build().run("fedavg", model={"name": name, "width": 16}))

    assert dict(facts(run))["Model"] == said
