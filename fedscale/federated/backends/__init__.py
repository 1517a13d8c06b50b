"""How clients' local training is executed: `loop`, `batched`, `graph`, and `auto`, which times them and picks.

They share `trainer`, the steps themselves, and must agree with one another and with a plain float64 reference.
"""

from fedscale.federated.backends.base import Backend, Interrupted, OutOfMemory, RoundStart, Trained
from fedscale.federated.backends.batched import BatchedBackend
from fedscale.federated.backends.loop import LoopBackend
from fedscale.federated.backends.trainer import LaneTrainer

__all__ = [
    "Backend",
    "BatchedBackend",
    "Interrupted",
    "LaneTrainer",
    "LoopBackend",
    "OutOfMemory",
    "RoundStart",
    "Trained",
]
