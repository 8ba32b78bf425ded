"""From settings to the collaborators that decide who may do what."""

from __future__ import annotations

from serve_app.access.development_grants import GRANTS_FILE_NAME, DevelopmentGrants
from serve_app.access.grants import GrantCache
from serve_app.access.keys import JwksCache
from serve_app.access.supabase import SupabaseGrants
from serve_app.access.tokens import TokenVerifier
from serve_app.settings import Settings

GRANTS_TTL_S = 60.0
"""How long revoked access may go on, unless an operator drops it."""


def build_verifier(settings: Settings) -> TokenVerifier:
    """HS256 where there is a shared secret, the provider's published keys where there is a provider."""
    secret = settings.supabase_jwt_secret.get_secret_value() or None
    keys = JwksCache(f"{settings.issuer}/.well-known/jwks.json") if settings.supabase_url else None
    return TokenVerifier(issuer=settings.issuer, secret=secret, keys=keys)


def build_grants(settings: Settings) -> GrantCache:
    """Supabase where it is configured; else the development file, which production's settings rule out."""
    if settings.supabase_url:
        key = settings.supabase_service_role_key.get_secret_value()
        return GrantCache(SupabaseGrants(settings.supabase_url, key), ttl_s=GRANTS_TTL_S)
    # Not cached: a building that a developer just granted works at once.
    return GrantCache(DevelopmentGrants(settings.nilm_data_dir / GRANTS_FILE_NAME), ttl_s=0)
