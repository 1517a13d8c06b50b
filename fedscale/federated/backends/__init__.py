"""How a client's local training is executed. `loop` is the reference that every other backend must agree with."""

from fedscale.federated.backends.loop import ClientResult, LoopBackend

__all__ = ["ClientResult", "LoopBackend"]
