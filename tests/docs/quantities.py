"""Values as a dashboard writes them: in the unit of their panel, with few digits; and ticks of an axis."""

import math

DECIMAL = ((1e9, "Bil"), (1e6, "Mil"), (1e3, "K"))
RATES = ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s"), (1.0, "B/s"))
BINARY = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B"))
BASE = {"Bps": "B/s", "bytes": "B", "s": "s"}
TIMES = ((3600.0, "hours"), (60.0, "mins"), (1.0, "s"), (1e-3, "ms"))


def written(value: float, unit: str, decimals: int | None = None) -> str:
    """Return a value with its unit, by Grafana's name for it."""
    if unit == "percentunit":
        return f"{_digits(value * 100, decimals)} %"
    scales = {"Bps": RATES, "bytes": BINARY, "s": TIMES, "short": DECIMAL, "none": ()}[unit]
    for size, name in scales:
        if abs(value) >= size:
            return f"{_digits(value / size, decimals)} {name}"
    return f"{_digits(value, decimals)} {BASE.get(unit, '')}".rstrip()


def _digits(value: float, decimals: int | None) -> str:
    """Return a number with three digits that say something, or with as many decimals as are wanted."""
    if decimals is not None:
        return f"{value:.{decimals}f}"
    after = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    text = f"{value:.{after}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ticks(most: float, unit: str, count: int = 4) -> list[float]:
    """Return round values from 0 to at least ``most``, about ``count`` steps apart."""
    if most <= 0:
        most = 1.0
    step = _round_up(most / count, 2.0 if unit == "bytes" else 10.0)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _round_up(value: float, base: float) -> float:
    """Return the next power of two, or the next 1, 2 or 5 of a power of ten."""
    if base == 2.0:
        return 2.0 ** math.ceil(math.log2(value))
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
