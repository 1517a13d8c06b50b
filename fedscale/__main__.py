"""`python -m fedscale` is the same as `fedscale`: what the launchers (accelerate, deepspeed, torchrun, srun) start."""

from fedscale.cli import main

if __name__ == "__main__":
    main()
