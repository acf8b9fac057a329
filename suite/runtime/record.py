"""From a packed directory to what the store says of its speed."""

import json
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from suite.environment import code_version, environment_key
from suite.models.checkpoint import Checkpoint
from suite.packed import holds_packed
from suite.readback import PackedModel, find_base
from suite.runtime.model import Runtime, chooser_for, device_named, packed_runtime, plain_runtime
from suite.runtime.speed import Overhead, Race, overhead, race
from suite.store import SpeedRow

PACKED, BASE = "packed", "bfloat16"


def measure_speed(
    model: str,
    *,
    product: str = "auto",
    device: str = "cpu",
    threads: int = 1,
    prompt: int = 128,
    tokens: int = 64,
    rounds: int = 7,
    base: str | None = None,
    command: str = "python",
) -> SpeedRow:
    """Race the packed directory `model` against its unquantized model, where that is to be had.

    The prompt is of random tokens. Raises `ValueError` in one line for what is not a packed model, an unknown product,
    a device that is not there, and more tokens than the model's context.
    """
    torch.set_num_threads(threads)
    if not holds_packed(Path(model)):
        raise ValueError(f"{model}: expected a directory that `run --save` wrote")
    packed = PackedModel.open(model)
    chooser = chooser_for(packed, product, device_named(device))
    context = packed.checkpoint.context
    if prompt + tokens - 1 > context:
        raise ValueError(f"prompt {prompt}, tokens {tokens}: {model} has a context of {context}")
    unquantized, missing = find_base(base, packed)
    runtime = packed_runtime(packed, chooser)
    runtimes = {PACKED: runtime} | _plain(unquantized, chooser.device)
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(int(packed.checkpoint.config.vocab_size), (prompt,), generator=draw)
    found = race(runtimes, text, tokens, rounds)
    cost = overhead(runtime) if runtime.packed_layers else None
    fallbacks = [*chooser.unfit.values(), *([f"base: {missing}"] if unquantized is None else [])]
    header = packed.header
    return SpeedRow(
        model=packed.checkpoint.name, model_sha256=header.sha256, base_sha256=header.model_sha256, method=header.method,
        recipe=header.recipe, bits=header.bits, seed=header.seed, device=_named(chooser.device), threads=threads,
        product=product, products=_products(runtime), prompt=prompt, tokens=tokens, rounds=rounds,
        **_figures(found, cost),
        fallbacks=json.dumps(fallbacks), code=code_version(), env=environment_key(threads), command=command,
        started=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )  # fmt: skip


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _plain(unquantized: Checkpoint | None, device: torch.device) -> dict[str, Runtime]:
    return {} if unquantized is None else {BASE: plain_runtime(unquantized, torch.bfloat16, device)}


def _products(runtime: Runtime) -> str:
    """JSON: layers by the products taken, and the measurements behind it."""
    layers = Counter(str(layer.by_rows) for layer in runtime.packed_layers.values())
    measured = runtime.chooser.measured.values() if runtime.chooser else ()
    taken = [{"products": products, "layers": n} for products, n in sorted(layers.items())]
    return json.dumps({"taken": taken, "measured": [asdict(one) for one in measured]})


def _figures(found: Race, cost: Overhead | None) -> dict[str, Any]:
    packed, base = found.speeds[PACKED], found.speeds.get(BASE)
    ratio = found.decode_ratio[PACKED] if base else None
    return {
        "prefill": packed.prefill.median, "prefill_low": packed.prefill.low, "prefill_high": packed.prefill.high,
        "decode": packed.decode.median, "decode_low": packed.decode.low, "decode_high": packed.decode.high,
        "base_prefill": base and base.prefill.median, "base_decode": base and base.decode.median,
        "prefill_ratio": found.prefill_ratio[PACKED].median if base else None,
        "decode_ratio": ratio and ratio.median, "decode_ratio_low": ratio and ratio.low,
        "decode_ratio_high": ratio and ratio.high,
        "token_bytes": packed.token_bytes, "base_token_bytes": base and base.token_bytes,
        "bandwidth": found.bandwidth, "overhead": cost and cost.share,
    }  # fmt: skip
