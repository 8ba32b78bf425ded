"""`nilm`: the command line. Commands live in sibling modules; this one only gathers them."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="nilm",
    help="nilm-serve: appliance power from mains power, stored before it is acknowledged.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)

if __name__ == "__main__":
    app()
