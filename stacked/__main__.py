"""`python -m stacked` is the `stacked` command."""

from stacked.cli import main

if __name__ == "__main__":
    main()
