"""Mains power as numbers: units, regular samples, gaps, normalisation, windows. Pure numpy, no torch.

This is the only place that converts between kW (what the public API speaks) and W (what models speak).
A missing sample is NaN or masked here, never zero: missing is not "off".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

W_PER_KW = 1000.0

MAINS_CLIP_W = 6000.0
"""REFIT mains are clipped at 6000 W, and seq2point clips there too, so serving clips its input alike."""

MAINS_MEAN_W = 522.0
MAINS_STD_W = 814.0
"""Mains normalisation of seq2point (Zhang et al. 2018)."""

FLAT_GAP_S = 3600.0
"""Mains that do not change at all for an hour are a stuck meter: a lived-in home varies by some watts."""


def kw_to_w(power_kw: FloatArray) -> FloatArray:
    """kW to W, any shape, float32."""
    return (np.asarray(power_kw, dtype=np.float32) * np.float32(W_PER_KW)).astype(np.float32)


def w_to_kw(power_w: FloatArray) -> FloatArray:
    """W to kW, any shape, float32."""
    return (np.asarray(power_w, dtype=np.float32) / np.float32(W_PER_KW)).astype(np.float32)


def resample_mean(
    times_s: npt.NDArray[np.float64], power_w: FloatArray, period_s: float
) -> tuple[npt.NDArray[np.float64], FloatArray]:
    """Means over consecutive periods, left-labelled: shapes (n,), (n,) -> (m,), (m,).

    A period without any finite sample is NaN. Raises `ValueError` for lengths that differ, times that go
    backwards, or a period that is not positive.
    """
    if times_s.shape != power_w.shape or times_s.ndim != 1:
        raise ValueError(f"times {times_s.shape} and powers {power_w.shape} must be two equally long rows")
    if not period_s > 0:
        raise ValueError(f"the period must be positive, not {period_s} s")
    if times_s.size == 0:
        return np.empty(0, dtype=np.float64), np.empty(0, dtype=np.float32)
    if np.any(np.diff(times_s) < 0):
        raise ValueError("times must not go backwards")
    first = np.floor(times_s[0] / period_s)
    slot = (np.floor(times_s / period_s) - first).astype(np.int64)
    count = int(slot[-1]) + 1
    usable = np.isfinite(power_w)
    total = np.bincount(slot[usable], weights=power_w[usable].astype(np.float64), minlength=count)
    samples = np.bincount(slot[usable], minlength=count)
    mean = np.full(count, np.nan, dtype=np.float64)
    np.divide(total, samples, out=mean, where=samples > 0)
    return (first + np.arange(count)) * period_s, mean.astype(np.float32)


def valid_mask(aggregate_w: FloatArray, sample_period_s: float, flat_gap_s: float = FLAT_GAP_S) -> BoolArray:
    """True where the mains were really measured, shape (n,).

    Missing is: not finite, zero or negative, or part of a stretch constant for `flat_gap_s` or longer.
    """
    aggregate_w = np.asarray(aggregate_w, dtype=np.float32)
    valid: BoolArray = np.isfinite(aggregate_w) & (aggregate_w > 0)
    if aggregate_w.size == 0:
        return valid
    starts = np.flatnonzero(np.concatenate(([True], aggregate_w[1:] != aggregate_w[:-1])))
    lengths = np.diff(np.append(starts, aggregate_w.size))
    flat = lengths * sample_period_s >= flat_gap_s
    for start, length in zip(starts[flat], lengths[flat], strict=True):
        valid[start : start + length] = False
    return valid


def normalise(power_w: FloatArray, mean: float, std: float, clip_w: float | None = None) -> FloatArray:
    """z-score of power (same shape, dimensionless), clipped to [0, clip_w] first when `clip_w` is given.

    `clip_w` is in W when `power_w` is. Raises `ValueError` unless `std` is positive.
    """
    if not std > 0:
        raise ValueError(f"std must be positive, not {std}")
    values = np.asarray(power_w, dtype=np.float32)
    if clip_w is not None:
        values = np.clip(values, 0.0, clip_w)
    return ((values - np.float32(mean)) / np.float32(std)).astype(np.float32)


def complete_windows(series: npt.NDArray[np.floating[Any]], window_size: int) -> BoolArray:
    """Which of all windows of `sliding_windows(series, window_size)` hold no NaN, by a running count of them."""
    missing = np.concatenate(([0], np.cumsum(np.isnan(series))))
    complete: BoolArray = missing[window_size:] == missing[:-window_size]
    return complete


def sliding_windows(series: FloatArray, window_size: int, stride: int = 1) -> FloatArray:
    """Read-only view of all full windows: (n,) -> (1 + (n - window_size) // stride, window_size).

    Raises `ValueError` when the series is shorter than one window or a size is not positive.
    """
    if window_size < 1 or stride < 1:
        raise ValueError(f"window size {window_size} and stride {stride} must be at least 1")
    if series.ndim != 1 or series.size < window_size:
        raise ValueError(f"a series of shape {series.shape} holds no window of {window_size} samples")
    return np.lib.stride_tricks.sliding_window_view(series, window_size)[::stride]
