"""Stage 1a: an MLLM captions the open pool, one sidecar of rows for each input shard.

`run` is the stage; other stages read its rows through `fedscale.server.caption.sidecar`.
"""

from fedscale.server.caption.stage import run

__all__ = ["run"]
