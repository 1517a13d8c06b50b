"""Several processes, brought together by `mesh`: `launch` reads who they are from any launcher, `meet` brings them to
one another, `links` are their groups, `watch` names a rank that is lost.

Stage 2 cuts the mesh as clients × shard. Stages 1b and 3 train on it through `training`, under the strategy that
`strategy` reads off the launch: `accelerator` makes it, `state`, `zero` and `checkpoint` keep it, `batch_norm` and
`rows` see all ranks' samples. `waiting` is for what the main rank does alone. Importing this package brings in neither
accelerate nor torch.distributed.
"""
