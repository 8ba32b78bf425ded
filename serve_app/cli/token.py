"""`nilm token`: prints a development token, and nothing else, so that `$(nilm token)` works in a shell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from serve_app.access.development import (
    SECRET_FILE_NAME,
    SECRET_VARIABLE,
    in_production,
    mint_development_token,
    read_development_secret,
)
from serve_app.access.development_grants import grant_development_access, grants_come_from_this_file
from serve_app.access.grants import GrantSourceError
from serve_app.access.principal import Role
from serve_app.settings import token_issuer


def token(
    user: Annotated[str, typer.Option(help="Whom the token stands for (`sub`): a user id.")] = "demo-user",
    minutes: Annotated[int, typer.Option(min=1, max=7 * 24 * 60, help="How long it is valid.")] = 60,
    buildings: Annotated[
        list[str] | None,
        typer.Option(
            "--buildings",
            "-b",
            help="Grant the user these buildings, or '*' for all, and keep that in the data directory's "
            "development-grants.json. Repeat it or separate by commas.",
        ),
    ] = None,
    role: Annotated[Role, typer.Option(help="Role in `app_metadata.role`.")] = Role.USER,
    data_dir: Annotated[
        Path, typer.Option(envvar="NILM_DATA_DIR", help="Data directory of the service to call.")
    ] = Path(".nilm"),
) -> None:
    """Print a token for the development service, signed with its local secret. Refused in production."""
    if in_production():
        _refuse("ENV is production: its tokens come from the identity provider, `nilm token` makes none.")
    if os.environ.get("SUPABASE_URL") and os.environ.get("ENV") != "development":
        _refuse("SUPABASE_URL is set, so its users sign in there; with ENV=development `nilm token` makes tokens too.")
    secret = read_development_secret(data_dir)
    if secret is None:
        _refuse(
            f"No development secret: {data_dir / SECRET_FILE_NAME} does not exist and {SECRET_VARIABLE} "
            "is not set. `nilm run` makes it at its first start."
        )
    issuer = token_issuer(os.environ.get("SUPABASE_URL"))
    if buildings:
        if not grants_come_from_this_file():
            _refuse("SUPABASE_URL is set, so buildings are granted there and not by `nilm token --buildings`.")
        try:
            grant_development_access(data_dir, user, [name.strip() for entry in buildings for name in entry.split(",")])
        except (ValueError, GrantSourceError) as error:
            _refuse(f"--buildings: {error}")
    typer.echo(mint_development_token(secret, user, minutes, issuer, role if role is not Role.USER else None))


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    raise typer.Exit(2)
