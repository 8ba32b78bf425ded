"""RolloutGate: the deployment whose `user_config` is the rollout. Checks it whole, then hands it to the coordinator.

Outside every request's path, so Serve may take it out of rotation and even let it fail: a configuration that is
refused makes this deployment, and nothing else, DEPLOY_FAILED with the reason, as `serve status` shows. Holds no
state; while it is away, what serves goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from typing import Any

from deployments.registry_source import registry_source
from deployments.rollout_contracts import Offer, OfferOutcome
from deployments.rollout_plan import PlanRefused, check_against, read_plans
from models.registry import RegistryError

OFFER_WAIT_S = 10.0
"""How long a deploy waits for its outcome. A newer one waits behind it, so a load that hangs must not hold it up."""
REPEAT_S = 5.0
"""How soon a coordinator that has lost its memory is told again."""
CALL_MARGIN_S = 10.0
"""Beyond what a call waits by itself: the coordinator may be restarting."""
ATTEMPT_KEY = "_attempt"
"""Of `user_config`, ignored: Serve does not try again a configuration that failed, unless something in it differs."""
logger = logging.getLogger("ray.serve")


class RolloutRefused(Exception):
    """The configuration does not serve; what served before does."""


class RolloutGate:
    """`coordinator`: its handle. `appliances`: each must have a plan."""

    def __init__(self, coordinator: Any, appliances: tuple[str, ...]) -> None:
        self._coordinator = coordinator
        self._appliances = appliances
        self._source = registry_source()
        self._refused = ""
        self._repeating: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: object) -> None:
        """Takes the plans of serve_config.yaml. Raises `RolloutRefused`: that is how Serve is told."""
        if self._repeating is not None:
            self._repeating.cancel()
        self._refused = ""
        if isinstance(user_config, dict):
            user_config = {key: value for key, value in user_config.items() if key != ATTEMPT_KEY}
        try:
            plans = read_plans(user_config, self._appliances)
            check_against(await asyncio.to_thread(self._source.registry), plans)
        except (PlanRefused, RegistryError) as error:
            await self._tell_refusal(str(error), json.dumps(user_config, default=str))
            raise RolloutRefused(str(error)) from None
        offer = Offer(tuple(plans.items()), fresh=True)
        try:
            refused = _reasons(await self._offer(offer, OFFER_WAIT_S))
        except Exception as error:  # noqa: BLE001 - whatever a dead coordinator raises, it is told when it is back
            logger.warning("the coordinator is away: %s", type(error).__name__)
        else:
            if refused:
                raise RolloutRefused(refused)
            offer = replace(offer, fresh=False)
        self._repeating = asyncio.create_task(self._repeat(offer))

    def check_health(self) -> None:
        """Raises when what was accepted could not be carried out after all: a load that hung, for example."""
        if self._refused:
            raise RolloutRefused(self._refused)

    async def _repeat(self, offer: Offer) -> None:
        away = False
        while True:
            await asyncio.sleep(REPEAT_S)
            try:
                self._refused = _reasons(await self._offer(offer, 0.0))
                away, offer = False, replace(offer, fresh=False)
            except Exception as error:  # noqa: BLE001 - whatever a dead coordinator raises, it is told again
                if not away:
                    logger.warning("the coordinator is away: %s", type(error).__name__)
                away = True

    async def _tell_refusal(self, reason: str, document: str) -> None:
        try:
            await self._call(self._coordinator.refuse_config.remote(reason, document), 0.0)
        except Exception as error:  # noqa: BLE001 - Serve is to hear the reason, whatever a dead coordinator raises
            logger.warning("the coordinator was not told of a refusal: %s", type(error).__name__)

    async def _offer(self, offer: Offer, wait_s: float) -> OfferOutcome:
        outcome: OfferOutcome = await self._call(self._coordinator.offer.remote(offer, wait_s), wait_s)
        return outcome

    async def _call(self, response: Any, wait_s: float) -> Any:
        async with asyncio.timeout(wait_s + CALL_MARGIN_S):
            return await response


def _reasons(outcome: OfferOutcome) -> str:
    """Why replicas refused it; empty when they did not."""
    return "; ".join(f"{name}: {refused}" for name, refused in outcome.refused)
