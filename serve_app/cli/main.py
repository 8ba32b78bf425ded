"""`nilm`: the command line. Commands live in sibling modules; this one only gathers them."""

from __future__ import annotations

import typer

from serve_app.cli.backfill import backfill
from serve_app.cli.data import data
from serve_app.cli.db import db
from serve_app.cli.demo import demo
from serve_app.cli.leave import leave
from serve_app.cli.models import models
from serve_app.cli.replay import replay
from serve_app.cli.rollout import rollout
from serve_app.cli.run import run
from serve_app.cli.token import token
from serve_app.cli.train import ensemble, evaluate, study, train

app = typer.Typer(
    name="nilm",
    help="nilm-serve: appliance power from mains power, stored before it is acknowledged.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_show_locals=False,
)

app.command()(demo)
app.command()(run)
app.command()(token)
app.command()(backfill)
app.command()(replay)
app.command()(leave)
app.command()(train)
app.command()(ensemble)
app.command()(evaluate)
app.command()(study)
app.add_typer(data, name="data")
app.add_typer(db, name="db")
app.add_typer(models, name="models")
app.add_typer(rollout, name="rollout")


@app.callback()
def _commands() -> None:
    """Keeps `nilm COMMAND` spelled out whatever the number of commands."""


if __name__ == "__main__":
    app()
