"""Stages as Slurm jobs: what is asked for (`request`), the scripts (`render`, `scripts`), handing them in (`submit`).

`prepare` makes what all stages read, and copies it to a node's own disk. Nothing here is imported by a stage.
"""
