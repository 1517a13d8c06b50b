"""Stage 1b: pretraining of the compact model f on the captioned pool, by Dynamic Weighted Distillation.

`run` is the stage; the loss is in `task`, the pairs in `data`, the loop in `trainer`.
"""

from fedscale.server.pretrain.stage import run

__all__ = ["run"]
