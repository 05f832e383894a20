"""`python cli.py COMMAND`: the same commands as the installed `minisafe`."""

from minisafe.__main__ import main

if __name__ == "__main__":
    main()
