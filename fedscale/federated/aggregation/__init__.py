"""The weighted mean of clients' vectors: blocks of lanes go into one flat sum, which ranks reduce once a round.

`accumulate` has the sums in floating point, `exact` the one in fixed point; `norms` judges lanes and clips them;
`kernels` does on a GPU in one pass what the others do on a CPU. Import from here.
"""

from fedscale.federated.aggregation.accumulate import Accumulator, FloatAccumulator, make_accumulator
from fedscale.federated.aggregation.exact import ExactAccumulator, check_used
from fedscale.federated.aggregation.norms import Clip, clip_factors, lane_norms

__all__ = [
    "Accumulator",
    "Clip",
    "ExactAccumulator",
    "FloatAccumulator",
    "check_used",
    "clip_factors",
    "lane_norms",
    "make_accumulator",
]
