"""Two devices of one process: who may touch whose memory."""

from __future__ import annotations

from smartpool.driver.cuda.bindings import failure
from smartpool.driver.cuda.driver import CudaDriver
from smartpool.errors import UnsupportedError

__all__ = ["allow_peer", "can_access_peer"]


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
        When the devices cannot reach each other.
    """
    if not can_access_peer(peer, owner):
        raise UnsupportedError(f"{peer.name} cannot access the memory of {owner.name}: copy through the host")
    with peer.context.current():
        code = peer.context.api.cuCtxEnablePeerAccess(owner.context.raw, 0)[0]
    if code.name not in ("CUDA_SUCCESS", "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"):
        raise failure("allow_peer", code, {"owner": owner.name, "peer": peer.name})
    owner.add_accessor(peer.ordinal)
