"""Two devices of one process: who may touch whose memory, and copies from one to the other."""

from __future__ import annotations

from smartpool.driver.cuda.bindings import failure
from smartpool.driver.cuda.driver import CudaDriver
from smartpool.errors import UnsupportedError

__all__ = ["allow_peer", "can_access_peer", "copy_to_peer"]


def can_access_peer(device: CudaDriver, peer: CudaDriver) -> bool:
    """Return whether `device` can read and write the memory of `peer` directly."""
    context = device.context
    result = context.api.cuDeviceCanAccessPeer(context.device, peer.context.device)
    return bool(context.bindings.expect("can_access_peer", result, device=device.name, peer=peer.name))


def allow_peer(owner: CudaDriver, peer: CudaDriver) -> None:
    """Let `peer` read and write the memory of `owner`: raw, and virtual enabled from now on. Idempotent.

    Raises
    ------
    UnsupportedError
        When the devices cannot reach each other. `copy_to_peer` works all the same.
    """
    if not can_access_peer(peer, owner):
        raise UnsupportedError(f"{peer.name} cannot access the memory of {owner.name}: use copy_to_peer")
    with peer.context.current():
        code = peer.context.api.cuCtxEnablePeerAccess(owner.context.raw, 0)[0]
    if code.name not in ("CUDA_SUCCESS", "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"):
        raise failure("allow_peer", code, {"owner": owner.name, "peer": peer.name})
    owner.add_accessor(peer.ordinal)


def copy_to_peer(
    owner: CudaDriver, peer: CudaDriver, destination: int, source: int, size: int, *, stream: int
) -> None:
    """Queue on a stream of `owner`: copy `size` bytes of `owner` at `source` to `destination` on `peer`.

    Works between any two devices; without peer access the driver goes through the host.
    """
    owner.check_touch("copy_to_peer", source, size)
    peer.check_touch("copy_to_peer", destination, size)
    context = owner.context
    values = (destination, peer.context.raw, source, context.raw, size, owner.stream_handle(stream))
    context.call_here(
        "copy_to_peer",
        context.api.cuMemcpyPeerAsync,
        values,
        destination=destination,
        source=source,
        size=size,
        stream=stream,
    )
