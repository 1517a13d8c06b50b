"""What `fedscale doctor` finds out about a machine, a launch and a config: one file a check.

`examine` carries the checks out on every rank and brings their findings together, `shown` makes the table. A check is
a function of a `Patient`; what it cannot find out it says so, it never guesses. Nothing here is imported by a stage.
"""
