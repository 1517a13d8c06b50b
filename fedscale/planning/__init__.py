"""What a config takes before it runs: time, memory, network and storage of every stage on given hardware.

`plan` is the whole; `work` and the stages' own files count, `hardware` and `rates` say how fast, `schedule` who waits.
"""
