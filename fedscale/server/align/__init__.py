"""Stage 3: the alignment of the federated model on a small, class-balanced set of the captioned pool.

`run` is the stage; the set is drawn in `draw`, the teachers' distributions come from `teacher`, the loss is in `loss`.
"""

from fedscale.server.align.stage import run

__all__ = ["run"]
