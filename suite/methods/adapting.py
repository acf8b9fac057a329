"""What methods with adapters share: their schedule, and a branch made of options.

Releases train branches of rank 64 beside 4096 channels, a quarter or half of a bit for a weight; the shipped model has
256 channels, where rank 8 costs as much as one bit. Their scale s, a quarter, is 1 here. The rate is the best of .001,
.003 and .01 for the shipped model after 50 updates of eight rows of English text: training losses of 4.76, 4.21 and
3.84 nats for QLoRA at 2 bits, 4.89, 4.31, 3.98 for L4Q, 5.44, 5.15, 4.61 for QA-LoRA.
"""

from dataclasses import fields, replace
from typing import Any

from suite.adaptation.low_rank import Adapters, LowRank
from suite.adaptation.training import Schedule
from suite.methods.method import taken

ADAPTING = Schedule(steps=200, rate=1e-2, warmup=0.05, weight_decay=0.0)
ADAPTERS = Adapters(rank=8)


def adapters(options: dict[str, Any]) -> Adapters:
    """`rank` and `scale` of the options, which are taken out."""
    return replace(ADAPTERS, **{name: options.pop(name) for name in ("rank", "scale") if name in options})


def branch(options: dict[str, Any], *, trained: bool = True, **defaults: Any) -> LowRank:
    """A branch made of the options that name fields of `Adapters`, `Schedule` or `LowRank`, which are taken out."""
    changed = {f.name: options.pop(f.name) for f in fields(Schedule) if f.name in options} if trained else {}
    schedule = replace(ADAPTING, **changed) if trained else None
    return taken(LowRank, options, **(defaults | {"adapters": adapters(options), "schedule": schedule}))
