"""`python -m toolkit` is the `cifar` command."""

from cli import main

main()
