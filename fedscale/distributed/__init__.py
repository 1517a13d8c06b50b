"""Stages 1 and 3 on Accelerate: the one factory (`accelerator`), and what a checkpoint holds (`state`).

The only place that knows of strategies (DDP, FSDP2, DeepSpeed). Importing this package brings in neither accelerate
nor torch.distributed; `federate` needs none of it.
"""
