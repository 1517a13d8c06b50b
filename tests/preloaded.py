"""What the fork server of `ranks` holds ready: the libraries of stages 1 and 3, and DeepSpeed's operation for CPUs."""

import accelerate
import deepspeed  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torch.distributed.checkpoint
import torch.distributed.fsdp
from accelerate import Accelerator
from deepspeed.ops.op_builder import CPUAdamBuilder

import tests.ranks  # noqa: F401

assert Accelerator is accelerate.Accelerator  # imported here, lazily elsewhere
if not torch.cuda.is_available():
    CPUAdamBuilder().load(verbose=False)
