"""`python -m coedge`."""

from coedge.cli import main

main()
