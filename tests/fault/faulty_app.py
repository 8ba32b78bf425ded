"""The application with architectures that misbehave on purpose. `build` is another `import_path` for the tests.

They have the weights of a TemporalPoolingUNet and load like one. Replicas import this module with the classes below.
An ingress whose event loop is to stand still finds the file that `NILM_TEST_BLOCK` names.
"""

# No `from __future__ import annotations` here: Serve reads the builder's annotation at run time to make AppArgs.
import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import torch
from ray.serve import Application
from torch import Tensor

import serve_app.app
from deployments.appliance import ApplianceModel
from models.architectures import TemporalPoolingUNet, register
from serve_app.app import AppArgs
from serve_app.ingress import Ingress

BLOCK_VARIABLE = "NILM_TEST_BLOCK"
HUNG_S = 3600.0
SLOW_S = 0.2
SCALE = 0.3
NAN_SHARE = 0.01


@register("Scaled")
class Scaled(TemporalPoolingUNet):
    """Says a third of the power."""

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        on_logit, power_w = super().forward(mains)
        return on_logit, power_w * SCALE


@register("Slow")
class Slow(TemporalPoolingUNet):
    """Answers late."""

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(SLOW_S)
        return super().forward(mains)


@register("SometimesNaN")
class SometimesNaN(TemporalPoolingUNet):
    """NaN for one window in a hundred."""

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        on_logit, power_w = super().forward(mains)
        # Constant mains, as in the warm-up, pass.
        chosen = (torch.rand(len(mains)) < NAN_SHARE) & (mains.std(1) > 0)
        on_logit[chosen] = power_w[chosen] = torch.nan
        return on_logit, power_w


@register("Raises")
class Raises(TemporalPoolingUNet):
    """Cannot be made."""

    def __init__(self, input_window_size: int) -> None:
        raise RuntimeError("on purpose")


@register("Hangs")
class Hangs(TemporalPoolingUNet):
    """Is never made."""

    def __init__(self, input_window_size: int) -> None:
        time.sleep(HUNG_S)


class BlockableIngress(Ingress):
    """The real one, and its event loop stands still for as long as a file says. Who moves the file away is meant."""

    @asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        async with super()._background():
            task = asyncio.create_task(_block_when_asked()) if BLOCK_VARIABLE in os.environ else None
            yield
            if task is not None:
                task.cancel()


async def _block_when_asked() -> None:
    path = Path(os.environ[BLOCK_VARIABLE])
    while True:
        await asyncio.sleep(0.1)
        mine = path.with_name(f"blocks-{os.getpid()}")
        try:
            path.rename(mine)  # noqa: ASYNC240 - a moment
        except FileNotFoundError:
            continue
        time.sleep(float(mine.read_text()))  # noqa: ASYNC251 - this is the fault


class FaultyModel(ApplianceModel):
    """The real one; that it stands in this module makes a replica import it."""


def build(args: AppArgs) -> Application:
    """As `serve_app.app.build`."""
    serve_app.app.ApplianceModel = FaultyModel  # type: ignore[misc]
    serve_app.app.Ingress = BlockableIngress  # type: ignore[misc]
    return serve_app.app.build(args)
