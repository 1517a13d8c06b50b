"""What the fork server of `ranks` holds ready: the stages with their libraries, and DeepSpeed's operation for CPUs."""

import accelerate
import deepspeed  # noqa: F401
import open_clip  # noqa: F401
import safetensors.torch  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp
import transformers.models.clip.image_processing_clip
import transformers.models.llava.modeling_llava
import transformers.models.llava.processing_llava  # noqa: F401
import webdataset  # noqa: F401
from accelerate import Accelerator
from deepspeed.ops.op_builder import CPUAdamBuilder

import fedscale.cli
import fedscale.federated.rounds
import fedscale.server.align
import fedscale.server.caption
import fedscale.server.pretrain  # noqa: F401
import tests.ranks  # noqa: F401

assert Accelerator is accelerate.Accelerator  # imported here, lazily elsewhere
if not torch.cuda.is_available():
    CPUAdamBuilder().load(verbose=False)
