"""The limit that no server can beat: raw forward passes of the model on one thread, without any server around it.

python -m tests.bench.serving.engine --model-version 2.2.0 --seconds 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np

from tests.bench.serving.load import LoadFailed

BATCHES = (1, 8, 32, 64)
GRACE_S = 60.0


def engine_passes(model_version: str, seconds: float, environment: Mapping[str, str]) -> dict[int, float]:
    """Windows a second by batch size, from a process of its own. Raises LoadFailed."""
    command = [sys.executable, "-m", __spec__.name, "--model-version", model_version, "--seconds", str(seconds)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=dict(environment), timeout=GRACE_S + 8 * seconds
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = str(error.stderr or error)
        raise LoadFailed(f"the raw engine failed: {said.strip()[-300:]}") from None
    return {int(batch): float(value) for batch, value in json.loads(done.stdout).items()}


def main() -> None:
    """Print windows a second by batch size, as JSON."""
    # Only this process needs torch.
    from tests.bench.serving.baselines.model import load_model

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--model-version", required=True)
    arguments.add_argument("--seconds", type=float, default=1.0)
    chosen = arguments.parse_args()
    model = load_model(chosen.model_version)
    chance = np.random.default_rng(7)
    measured = {}
    for batch in BATCHES:
        windows_kw = chance.uniform(0, 3, (batch, model.entry.input_window_size)).astype(np.float32)
        model.predict(windows_kw)
        passes, started = 0, time.perf_counter()
        while (elapsed_s := time.perf_counter() - started) < chosen.seconds:
            model.predict(windows_kw)
            passes += 1
        measured[batch] = batch * passes / elapsed_s
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
