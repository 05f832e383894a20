"""`python cli.py COMMAND`: the same commands as the installed `minisafe`."""

from minisafe.cli import main

if __name__ == "__main__":
    main()
