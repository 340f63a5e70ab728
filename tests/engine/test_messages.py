from __future__ import annotations

import msgspec

from sarathi.engine.messages import Submit, ToEngine
from sarathi.sampling.params import SamplingParams
from sarathi.scheduler import SchedulingParams


def test_scheduling_params_cross_the_socket():
    terms = SchedulingParams(priority=-3, tenant="key 2", ttft_target=1.5, tbt_target=0.1)
    message = Submit(7, [1, 2], SamplingParams(), 0.5, terms)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ToEngine) == message
