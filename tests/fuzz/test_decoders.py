"""Every decoder of what others wrote: a value of the right type comes out, or an error of ours.

By default each gets its share of a fifth of a minute; PODLIFT_FUZZ_SECONDS, for all of them together,
lets them run long, with other inputs every time.
"""

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.decoder import Decoder
from tests.fuzz.table import DECODERS

SECONDS = float(os.environ.get("PODLIFT_FUZZ_SECONDS", "0"))
EXAMPLES = 60
"""For each decoder, by default; the same ones every time, so that no run fails by chance."""

_BATCH = settings(
    max_examples=EXAMPLES if not SECONDS else 200,
    deadline=None,
    database=None,
    derandomize=not SECONDS,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.timeout(120 + 3 * SECONDS)
@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_only_our_errors_come_out(decoder: Decoder) -> None:
    for content in decoder.worst():
        decoder.check(content)
    end = time.monotonic() + SECONDS / len(DECODERS)
    count = _BATCH.max_examples if SECONDS else max(10, round(EXAMPLES * decoder.share))
    batch = settings(_BATCH, max_examples=count)(given(decoder.inputs())(decoder.check))
    batch()
    while time.monotonic() < end:
        batch()
