"""An out-of-memory dump as `docs/out-of-memory.md` describes it."""

from __future__ import annotations

DUMP = {
    "format": "smartpool-out-of-memory",
    "version": 1,
    "time": "2026-01-02T03:04:05+00:00",
    "smartpool": "0.1.0",
    "process": {"pid": 4242, "thread": "MainThread"},
    "stack": "train.py:10 step\ntrain.py:99 <module>",
    "story": {
        "device": "model:1GiB", "stream": 0, "requested_bytes": 30 << 20, "live_bytes": 60 << 20,
        "live_blocks": 3, "reserved_bytes": 64 << 20, "cap_bytes": 64 << 20, "cached_bytes": 0,
        "gap_bytes": 4 << 20, "largest_free_bytes": 4 << 20, "cached_by_stream": {},
        "device_free_bytes": 960 << 20, "device_total_bytes": 1 << 30,
        "fragmentation": {"interval_graph": 0.1, "pool": 0.06, "gpu": 0.06, "overall": 0.08},
        "holders": [{"kind": "tag", "name": "activations", "blocks": 2, "nbytes": 40 << 20},
                    {"kind": "stack", "name": "a.py:1 f\nb.py:2 g", "blocks": 1, "nbytes": 20 << 20}],
        "advice": [{"text": "raise max_bytes", "nbytes": 26 << 20},
                   {"text": "free something", "nbytes": None}],
        "code": "CAP_REACHED",
    },
    "snapshot": {},
    "memory_map": {
        "version": 1,
        "ranges": {
            "address": [1 << 40, (1 << 40) + (40 << 20), (1 << 40) + (60 << 20)],
            "nbytes": [40 << 20, 20 << 20, 4 << 20],
            "state": ["live", "live", "free"],
            "block": [1 << 40, (1 << 40) + (40 << 20), 0],
        },
        "blocks": {
            "address": [1 << 40, (1 << 40) + (40 << 20)], "nbytes": [40 << 20, 20 << 20],
            "requested_bytes": [40 << 20, 20 << 20], "stream": [0, 7], "tier": ["large", "large"],
            "tag": ["activations", None], "stack": [-1, 0],
        },
        "stacks": ["a.py:1 f\nb.py:2 g"],
        "chunks": {"address": [1 << 40], "nbytes": [64 << 20], "used_bytes": [60 << 20]},
    },
}  # fmt: skip
