"""Several processes. Stages 1 and 3 on Accelerate: `accelerator`, the one factory, and `state`, what checkpoints hold.

Stage 2 on `mesh`, ranks as clients × shard: `launch` reads who they are from any launcher, `meet` brings them together,
`links` are their groups, `watch` names a rank that is lost. Importing this package brings in neither accelerate nor
torch.distributed.
"""
