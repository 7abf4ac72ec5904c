"""What CUDA does where its documentation says 'undefined' or nothing: one process for each trial.

    python bench/gpu/driver_trials.py [--device 0]

Some trials crash or lose the context, by design. Prints what each step returned and writes
`bench/results/driver_trials.json`. The driver's book of addresses refuses most of these before
CUDA is asked, so they call the bindings directly.
"""

import argparse
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from common import write_results  # noqa: E402 - found by the path above

PREFIX = """
import sys; sys.path.insert(0, {root!r})
from smartpool.driver.cuda import CudaDriver
d = CudaDriver({device}); api = d.context.api; u = d.granularity; d.memory_info()
base, chunk, access = d.reserve(16 * u), d.create_chunk(2 * u), d._access
def say(name, result): print(f"{{name}}: {{getattr(result[0], 'name', result[0])}}", flush=True)
def then(): say("  then", api.cuCtxSynchronize())
def touch(name, address): say("touch " + name, api.cuMemsetD8(address, 1, 16)); then()
def free(): return d.memory_info().free
"""

TRIALS = {
    "unmap the first half of a mapping": """
d.map_chunk(base, chunk); d.enable_access(base, 2 * u)
say("unmap half", api.cuMemUnmap(base, u)); touch("first half", base); touch("second half", base + u)
say("unmap whole", api.cuMemUnmap(base, 2 * u))
""",
    "release a chunk that is mapped": """
before = free(); d.map_chunk(base, chunk); d.enable_access(base, 2 * u)
say("release", api.cuMemRelease(chunk)); print("bytes freed:", free() - before); touch("it", base)
say("map the released handle again", api.cuMemMap(base + 4 * u, 2 * u, 0, chunk, 0))
say("unmap", api.cuMemUnmap(base, 2 * u)); print("bytes freed:", free() - before)
say("unmap the other", api.cuMemUnmap(base + 4 * u, 2 * u)); print("bytes freed:", free() - before)
""",
    "release twice": """
say("release", api.cuMemRelease(chunk)); say("again", api.cuMemRelease(chunk))
""",
    "enable access over a hole": """
d.map_chunk(base, chunk); d.map_chunk(base + 4 * u, chunk)
say("enable", api.cuMemSetAccess(base, 6 * u, access, 1))
touch("before the hole", base); touch("after the hole", base + 4 * u); touch("the hole", base + 2 * u)
""",
    "enable access on a part of a mapping": """
d.map_chunk(base, chunk); say("enable", api.cuMemSetAccess(base, u, access, 1)); touch("it", base)
""",
    "touch before access": """
d.map_chunk(base, chunk); touch("it", base)
""",
    "touch what is only reserved": """
touch("it", base)
""",
    "map over a mapping": """
d.map_chunk(base, chunk); say("same place", api.cuMemMap(base, 2 * u, 0, chunk, 0))
say("half over", api.cuMemMap(base + u, 2 * u, 0, chunk, 0))
""",
    "give back a reservation with a mapping inside": """
d.map_chunk(base, chunk); say("unreserve", api.cuMemAddressFree(base, 16 * u))
""",
    "unmap across two reservations": """
other = None
for _ in range(64):
    made = d.reserve(16 * u)
    if made in (base + 16 * u, base - 16 * u): other = min(made, base); break
print("side by side:", other is not None)
if other is not None:
    d.map_chunk(other + 14 * u, chunk); d.map_chunk(other + 16 * u, chunk)
    say("access across", api.cuMemSetAccess(other + 14 * u, 4 * u, access, 1))
    touch("first", other + 14 * u); touch("second", other + 16 * u)
    say("unmap across", api.cuMemUnmap(other + 14 * u, 4 * u))
""",
    "ask a destroyed stream for its context": """
stream = api.cuStreamCreate(1)[1]; api.cuStreamDestroy(stream); say("context", api.cuStreamGetCtx(stream))
""",
    "ask a number for its context": """
say("context", api.cuStreamGetCtx(api.CUstream(0x123456780)))
""",
    "query a destroyed event": """
event = api.cuEventCreate(2)[1]; api.cuEventDestroy(event); say("query", api.cuEventQuery(event))
""",
    "free what is not ours": """
raw = d.allocate(4096); say("inside", api.cuMemFree(raw + 512)); say("never was", api.cuMemFree(0x12345000))
say("zero", api.cuMemFree(0)); say("right", api.cuMemFree(raw)); say("again", api.cuMemFree(raw))
""",
    "unmap under pending work": """
d.map_chunk(base, chunk); d.enable_access(base, 2 * u); big, stream = d.allocate(8 << 30), d.create_stream()
for _ in range(40): d.fill(big, 1, 8 << 30, stream)
d.fill(base, 1, 2 * u, stream); say("unmap", api.cuMemUnmap(base, 2 * u)); then()
""",
    "work queued before remapping lands in the new chunk": """
other, big, stream = d.create_chunk(2 * u), d.allocate(8 << 30), d.create_stream()
d.map_chunk(base, chunk); d.map_chunk(base + 4 * u, other)
d.enable_access(base, 2 * u); d.enable_access(base + 4 * u, 2 * u)
d.fill(base, 1, 2 * u, 0); d.fill(base + 4 * u, 2, 2 * u, 0); d.synchronize()
for _ in range(40): d.fill(big, 1, 8 << 30, stream)
d.fill(base, 9, 2 * u, stream)
api.cuMemUnmap(base, 2 * u); api.cuMemUnmap(base + 4 * u, 2 * u)
api.cuMemMap(base, 2 * u, 0, other, 0); api.cuMemSetAccess(base, 2 * u, access, 1)
api.cuMemMap(base + 4 * u, 2 * u, 0, chunk, 0); api.cuMemSetAccess(base + 4 * u, 2 * u, access, 1)
then()
data = bytearray(1)
for name, at in (("the new chunk", base), ("the old chunk", base + 4 * u)):
    api.cuMemcpyDtoH(data, at, 1); print(name, "holds", data[0])
""",
}

CAPTURE = """
stream, other, event, raw = d.create_stream(), d.create_stream(), d.create_event(), d.allocate(u)
handle, quiet, marker = d.stream_handle(stream), d.stream_handle(other), d._events._live[event]
d.map_chunk(base, chunk); d.enable_access(base, 2 * u); events = [api.cuEventCreate(2)[1]]
steps = {
 "query an event": lambda: api.cuEventQuery(marker), "create an event": lambda: api.cuEventCreate(2),
 "destroy an event": lambda: api.cuEventDestroy(events.pop()),
 "record on another stream": lambda: api.cuEventRecord(marker, quiet),
 "record on the legacy stream": lambda: api.cuEventRecord(marker, api.CUstream(0)),
 "synchronize an event": lambda: api.cuEventSynchronize(marker),
 "synchronize another stream": lambda: api.cuStreamSynchronize(quiet),
 "create a stream": lambda: api.cuStreamCreate(1), "a stream's context": lambda: api.cuStreamGetCtx(handle),
 "is it capturing": lambda: api.cuStreamIsCapturing(handle), "memory info": lambda: api.cuMemGetInfo(),
 "reserve": lambda: api.cuMemAddressReserve(u, 0, 0, 0),
 "create": lambda: api.cuMemCreate(u, d._chunk_properties, 0),
 "map": lambda: api.cuMemMap(base + 4 * u, 2 * u, 0, chunk, 0),
 "enable access": lambda: api.cuMemSetAccess(base, 2 * u, access, 1),
 "unmap": lambda: api.cuMemUnmap(base + 4 * u, 2 * u),
 "allocate": lambda: api.cuMemAlloc(u), "free": lambda: api.cuMemFree(raw),
}
mode = api.CUstreamCaptureMode
for name, step in steps.items():
    api.cuStreamBeginCapture(handle, mode(0)); api.cuThreadExchangeStreamCaptureMode(mode(MODE))
    api.cuMemsetD8Async(base, 1, 64, handle)
    result = step()[0].name; api.cuThreadExchangeStreamCaptureMode(mode(0))
    print(f"{name}: {result}, capture {api.cuStreamEndCapture(handle)[0].name}")
"""
TRIALS["beside a capture, this thread strict"] = CAPTURE.replace("MODE", "0")
TRIALS["beside a capture, this thread relaxed"] = CAPTURE.replace("MODE", "2")


def run(code, device):
    prefix = PREFIX.format(root=str(Path(__file__).parents[2]), device=device)
    done = subprocess.run(
        [sys.executable, "-c", prefix + code], capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    if done.returncode:
        lines.append(f"the process ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=int, default=0)
    device = parser.parse_args().device
    results = {}
    for name, code in TRIALS.items():
        results[name] = run(code, device)
        print(name, *results[name], sep="\n    ")
    print(write_results("driver_trials", results))


if __name__ == "__main__":
    main()
