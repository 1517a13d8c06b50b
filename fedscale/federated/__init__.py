"""Stage 2: federated finetuning. `rounds` is the loop; a method is one file of `methods`, a backend one of `backends`.

Nothing here imports open_clip, transformers, accelerate or deepspeed.
"""
