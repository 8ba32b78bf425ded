"""`nilm token`: prints a development token, and nothing else, so that `$(nilm token)` works in a shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from serve_app.access.development import (
    SECRET_FILE_NAME,
    SECRET_VARIABLE,
    mint_development_token,
    read_development_secret,
)
from serve_app.settings import token_issuer


def token(
    user: Annotated[str, typer.Option(help="Whom the token stands for (`sub`): a user id.")] = "demo-user",
    minutes: Annotated[int, typer.Option(min=1, max=7 * 24 * 60, help="How long it is valid.")] = 60,
    buildings: Annotated[
        list[str] | None,
        typer.Option("--buildings", "-b", help="Buildings the token grants; repeat it or separate by commas."),
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(envvar="NILM_DATA_DIR", help="Data directory of the service to call.")
    ] = Path(".nilm"),
) -> None:
    """Print a token for the development service, signed with its local secret. Refused in production."""
    if os.environ.get("ENV", "development") == "production":
        _refuse("ENV is production: its tokens come from the identity provider, `nilm token` makes none.")
    secret = read_development_secret(data_dir)
    if secret is None:
        _refuse(
            f"No development secret: {data_dir / SECRET_FILE_NAME} does not exist and {SECRET_VARIABLE} "
            "is not set. `nilm run` makes it at its first start."
        )
    granted = [name.strip() for entry in buildings for name in entry.split(",")] if buildings else None
    issuer = token_issuer(os.environ.get("SUPABASE_URL"))
    typer.echo(mint_development_token(secret, user, minutes, issuer, granted))


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(2)
