"""The one argument that every baseline's program takes."""

from __future__ import annotations

import argparse


def chosen_port() -> int:
    """`--port` of the command line."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    return int(arguments.parse_args().port)
