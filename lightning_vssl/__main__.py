"""`python -m lightning_vssl` is the command `lightning-vssl`."""

from lightning_vssl.cli import main

if __name__ == "__main__":
    main()
