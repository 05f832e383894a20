"""`python -m minisafe` runs the command line."""

from minisafe.cli import main

if __name__ == "__main__":
    main()
