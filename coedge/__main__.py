"""Run the command line: `python -m coedge`."""

from orchestrator.cli import main

main()
