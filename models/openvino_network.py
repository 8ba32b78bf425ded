"""A network whose forward pass OpenVINO computes: compiled in memory from torch weights that were verified before.

The artifact stays a safetensors file; nothing compiled is stored or read. Refused unless it says what torch says.
"""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.architectures import SequenceModel
from models.refusal import ArtifactRefusal, ArtifactRefused

LOGIT_TOLERANCE = 1e-3
POWER_TOLERANCE_W = 0.1
"""Of every answer, before anything is calibrated, gated or clamped. Sums in another order differ by 4e-5
and 0.015 W at most in our models; bfloat16, which OpenVINO prefers where the CPU has it, by 0.3 and 150 W."""

BLOCK_WINDOWS = 8
"""More at once are hardly faster. Only two shapes are compiled, this and a single window: for every other size of
batch OpenVINO would prepare its kernels anew, at 10 ms the first time and 2 ms whenever the size changes."""

CPU_OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    # As torch has it: replicas share the cores.
    "INFERENCE_NUM_THREADS": 1,
    "NUM_STREAMS": 1,
    "ENABLE_CPU_PINNING": False,
}

_one_export_at_a_time = threading.Lock()
"""torch's exporter keeps its state in variables of its modules."""


class _Graph:
    """One function of mains [n, W] that gives (on_logit, power_w), compiled. Safe to call from several threads."""

    def __init__(self, function: nn.Module, input_window_size: int) -> None:
        openvino = _openvino()
        try:
            core = openvino.Core()
            model = core.read_model(_onnx(function, input_window_size))
            self.compiled = {}
            for size in (BLOCK_WINDOWS, 1):
                model.reshape([size, input_window_size])
                self.compiled[size] = core.compile_model(model, "CPU", CPU_OPTIONS)
        except Exception as error:
            # Its errors share no base class; whichever it is, this network does not run there.
            raise ArtifactRefused(ArtifactRefusal.ENGINE_FAILED, f"OpenVINO does not take it: {error}") from error
        self._samples = self.compiled[1].output(0).shape[1]
        # A request belongs to the thread that made it: two runs at once in one would mix their windows.
        self._of_thread = threading.local()

    def __call__(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        requests = self._requests()
        windows = mains.contiguous().numpy()
        on_logit, power_w = np.empty((2, len(windows), self._samples), dtype=np.float32)
        begin = 0
        while begin < len(windows):
            size = BLOCK_WINDOWS if len(windows) - begin >= BLOCK_WINDOWS else 1
            part = slice(begin, begin + size)
            # Neither copied in nor out: the results are views that the next run overwrites.
            said = requests[size].infer(windows[part], share_inputs=True, share_outputs=True)
            on_logit[part], power_w[part] = said[0], said[1]
            begin += size
        return torch.from_numpy(on_logit), torch.from_numpy(power_w)

    def _requests(self) -> dict[int, Any]:
        if not hasattr(self._of_thread, "requests"):
            self._of_thread.requests = {size: one.create_infer_request() for size, one in self.compiled.items()}
        requests: dict[int, Any] = self._of_thread.requests
        return requests


class _At(nn.Module):
    """`network.at` of fixed samples as a module: what is exported is a module's `forward`."""

    def __init__(self, network: SequenceModel, samples: Sequence[int]) -> None:
        super().__init__()
        self._network = network
        self._samples = samples
        # The exporter gives its mode back to all it finds inside.
        self.train(network.training)

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        return self._network.at(mains, self._samples)


class OpenVinoNetwork(SequenceModel):
    """`network` for windows of `input_window_size` samples, compiled for what is asked of it at `samples`.

    What it says of whole windows, which training's figures need, is compiled when first asked for. Raises
    `ArtifactRefused` when OpenVINO is missing or cannot compile it.
    """

    def __init__(self, network: SequenceModel, input_window_size: int, samples: Sequence[int]) -> None:
        super().__init__()
        self.answers_for = network.answers_for
        self.readouts = network.readouts
        self._network = network
        self._samples = tuple(samples)
        self._answers = _Graph(_At(network, self._samples), input_window_size)
        self._windows: _Graph | None = None

    def forward(self, mains: Tensor) -> tuple[Tensor, Tensor]:
        """As every network: normalised mains [n, W] -> (on_logit [n, W], power_w [n, W])."""
        if self._windows is None:
            self._windows = _Graph(self._network, mains.shape[1])
        return self._windows(mains)

    def at(self, mains: Tensor, samples: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self._answers(mains) if tuple(samples) == self._samples else super().at(mains, samples)


def compiled(network: SequenceModel, mains: Tensor, samples: Sequence[int]) -> OpenVinoNetwork:
    """`network` on OpenVINO, once both say the same of normalised `mains` [n, W] at `samples`.

    Compared in blocks and one by one. Raises `ArtifactRefused`.
    """
    with torch.inference_mode():
        expected = network.at(mains, samples)
    other = OpenVinoNetwork(network, mains.shape[1], samples)
    with torch.inference_mode():
        _compare(expected, other.at(mains, samples))
        for row in range(len(mains)):
            part = slice(row, row + 1)
            _compare((expected[0][part], expected[1][part]), other.at(mains[part], samples))
    return other


def _compare(expected: tuple[Tensor, Tensor], actual: tuple[Tensor, Tensor]) -> None:
    answers = zip(("on_logit", "power_w"), (LOGIT_TOLERANCE, POWER_TOLERANCE_W), expected, actual, strict=True)
    for name, tolerance, by_torch, by_engine in answers:
        if not torch.allclose(by_engine, by_torch, rtol=0.0, atol=tolerance, equal_nan=True):
            difference = float((by_engine - by_torch).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).max())
            raise ArtifactRefused(
                ArtifactRefusal.ENGINE_MISMATCH,
                f"OpenVINO's {name} differs from torch's by {difference:.6g}, more than {tolerance}",
            )


def _openvino() -> Any:
    # Importing OpenVINO reports to its makers, over the network, unless this package of theirs is not there.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        # An extra: most installations do not have it. torch exports with the help of onnx.
        import onnx  # noqa: F401, PLC0415
        import openvino  # noqa: PLC0415
    except ImportError as error:
        raise ArtifactRefused(
            ArtifactRefusal.ENGINE_MISSING, f"{error.name} is not installed: pip install 'nilm-serve[openvino]'"
        ) from error
    return openvino


def _onnx(function: nn.Module, input_window_size: int) -> bytes:
    """The function as OpenVINO reads it: an ONNX file in memory, for any number of windows.

    By way of the older of torch's two exporters, which takes a file in memory although its type says a path. The newer
    one takes ten times as long and a hundred megabytes more, and what `torch.jit.trace` makes, which OpenVINO reads
    too, is never freed. Constants are OpenVINO's to fold.
    """
    content = io.BytesIO()
    with _one_export_at_a_time:
        torch.onnx.export(
            function,
            (torch.zeros(BLOCK_WINDOWS, input_window_size),),
            content,  # type: ignore[arg-type]
            dynamo=False,
            do_constant_folding=False,
            input_names=["mains"],
            dynamic_axes={"mains": {0: "windows"}},
        )
    return content.getvalue()
