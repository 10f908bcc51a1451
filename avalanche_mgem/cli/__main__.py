"""`python -m avalanche_mgem.cli` is the command avalanche-mgem."""

from avalanche_mgem.cli.app import main

if __name__ == "__main__":
    main()
