"""`python -m tinygpt_lib` is the command line."""

from tinygpt_lib.commands import leave, main

if __name__ == "__main__":
    leave(main())
