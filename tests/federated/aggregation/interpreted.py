"""Run the kernels in Triton's interpreter on the cases of `test_kernels`: cases in, results out, as torch files.

A process of its own, because Triton decides when it is first imported whether it interprets.
"""

import sys

import torch

from fedscale.federated.aggregation import kernels


def main() -> None:
    results = []
    for case in torch.load(sys.argv[1]):
        blocks, start, out = case["blocks"], case["start"], case["out"]
        table = kernels.table(blocks, case["offsets"])
        kernels.weighted_sum(table, case["weights"], out, start, case["start_weights"])
        results.append({"out": out, "squares": kernels.squared_norms(table, start)})
    torch.save(results, sys.argv[2])


if __name__ == "__main__":
    main()
