"""`python -m stacked` is the `stacked` command; it must not do anything else."""

from stacked.cli import main

if __name__ == "__main__":
    main()
