"""Attention of texts to themselves, without all of their scores in memory.

A pass over S tokens has S x S scores for each head. They are computed all at once ("plain"), for a
few queries at a time ("chunked"), or in a kernel that keeps them on the chip ("cudnn" on a GPU,
"splash" on a TPU). `choose_attention` decides, and nothing else does.

Dimension key: B batch rows, S tokens of a pass, T keys, I rows of queries (S * U), Q query heads,
R key/value heads, U = Q / R query heads per key/value head, C head width, O chunks.

>>> choose_attention("auto", platform="tpu", dtype="bfloat16", head_dim=128, length=4096).kind
'splash'
>>> choose_attention("auto", platform="gpu", dtype="float32", head_dim=128, length=4096).kind
'chunked'
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxspec.config import UNLIMITED, Attention
from jaxspec.ops.attention import group_queries, merge, part, repeat_rows, ungroup_queries
from jaxspec.ops.attention_kernels import cudnn, splash
from jaxspec.ops.mesh_axes import is_mapped

Kind = Literal["plain", "chunked", "cudnn", "splash"]

CHUNK = 128
"""Queries whose scores are in memory at once."""
_SPANS = 8
"""A text is cut into this many spans. The queries of a span skip the keys after it, so that only
9/16 of all scores are computed."""
LONGEST_PLAIN = 256
"""Up to here, all scores are few. Beyond, chunks take 0.2 to 0.6 of the time on a CPU."""
_OLDEST_CAPABILITY = 8.0
"""Of Ampere, the first of NVIDIA's generations that cuDNN's attention runs on."""
KERNEL_PLATFORMS: dict[Kind, str] = {"cudnn": "gpu", "splash": "tpu"}
"""Kernel -> jax's name of the devices that it runs on."""


class Choice(NamedTuple):
    """How attention is computed, and why."""

    kind: Kind
    reason: str


def choose_attention(
    setting: Attention,
    *,
    platform: str,
    dtype: str,
    head_dim: int,
    length: int,
    mapped: bool | None = None,
) -> Choice:
    """How a pass over `length` tokens computes attention.

    Args:
      setting: what the user asks for.
      platform: jax's name of the devices: "cpu", "gpu" or "tpu".
      dtype: of queries, keys and values.
      head_dim: C.
      length: S.
      mapped: whether shard_map or pmap spreads the step; None: as it is here.

    Raises:
      ValueError: a kernel that cannot run there.
    """
    misfit_of = functools.partial(
        _misfit,
        platform=platform,
        dtype=dtype,
        head_dim=head_dim,
        mapped=is_mapped() if mapped is None else mapped,
    )
    if setting == "plain" or setting == "chunked":
        return Choice(setting, "it is set")
    if setting == "auto":
        kernels = [kernel for kernel, where in KERNEL_PLATFORMS.items() if where == platform]
        if kernels and dtype != "float32":
            [kernel] = kernels
            misfit = misfit_of(kernel)
            if kernel == "cudnn" and length % 2:
                misfit = misfit or f"has no gradient for an odd number of tokens, {length}"
            if not misfit:
                return Choice(kernel, f"the kernel for {dtype} on a {platform}")
            reason = f"{kernel} {misfit}"
        else:
            reason = f"{dtype} on a {platform}"
        if length <= LONGEST_PLAIN:
            return Choice("plain", f"{reason}, at most {LONGEST_PLAIN} tokens")
        return Choice("chunked", f"{reason}, more than {LONGEST_PLAIN} tokens")
    if misfit := misfit_of(setting):
        raise ValueError(
            f"target.attention is {setting!r}, but {setting} {misfit}. Choose 'auto', or "
            "'chunked', which runs everywhere."
        )
    return Choice(setting, "it is set")


def _misfit(kernel: Kind, *, platform: str, dtype: str, head_dim: int, mapped: bool) -> str:
    """Why a kernel cannot run; "": it can."""
    needed = KERNEL_PLATFORMS[kernel]
    if platform != needed:
        return f"runs on a {needed}, and this is a {platform}"
    if mapped:
        return "does not run in a step that is spread by shard_map or pmap"
    if kernel == "cudnn" and dtype == "float32":
        return "computes in bfloat16, and the target in float32"
    if kernel == "cudnn" and (head_dim % 8 or head_dim > 128):
        return f"takes heads of a multiple of 8 up to 128, and these have {head_dim}"
    if kernel == "cudnn" and (other := _without_cudnn()):
        return f"runs on NVIDIA's GPUs from Ampere on, and this is {other}"
    return ""


def _without_cudnn() -> str:
    """What jax's GPU is if cuDNN's attention does not run on it; "": it does, or there is none."""
    if jax.default_backend() != "gpu":
        return ""  # Programs are planned or compiled for another machine.
    device = jax.devices()[0]
    if "rocm" in device.client.platform_version.lower():
        return f"a {device.device_kind} of AMD"
    capability = getattr(device, "compute_capability", None)
    is_older = capability is not None and float(capability) < _OLDEST_CAPABILITY
    return f"a {device.device_kind} (compute capability {capability})" if is_older else ""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("segments_BS", "positions_BS", "window"),
    meta_fields=("kind", "windows"),
)
@dataclasses.dataclass(frozen=True)
class Causal:
    """What a token of a text sees: itself and earlier ones, of its document and in its window."""

    kind: Kind
    """How attention is computed: not "plain", which takes a mask instead."""
    segments_BS: jax.Array | None = None
    """The document of each token; None: a row is one document."""
    windows: tuple[int, ...] = ()
    """Windows of the model's layers; (): no layer slides."""
    window: jax.Array | None = None
    """That of the present layer."""
    positions_BS: jax.Array | None = None
    """Where `windows` are measured; within a document they rise by one. None without windows."""


def attend_causally(
    q_BSQC: jax.Array,
    k_BRSC: jax.Array,
    v_BRSC: jax.Array,
    seen: Causal,
    *,
    scaled: bool = True,
) -> jax.Array:
    """Attention of texts to themselves, [B, S, Q, C].

    Args:
      q_BSQC: queries.
      k_BRSC: keys.
      v_BRSC: values.
      seen: what a query sees, and how that is computed.
      scaled: whether scores are scaled by C ** -0.5.
    """
    if seen.kind == "chunked":
        return _in_chunks(q_BSQC, k_BRSC, v_BRSC, seen, scaled=scaled)
    kernel = cudnn if seen.kind == "cudnn" else splash

    # A kernel is made for one window, and a layer looks up which one it has.
    def compute(window: int) -> jax.Array:
        return kernel(
            q_BSQC,
            k_BRSC,
            v_BRSC,
            segments_BS=seen.segments_BS,
            window=window if window < q_BSQC.shape[1] else None,
            scaled=scaled,
        )

    windows = sorted(set(seen.windows)) or [UNLIMITED]
    if seen.window is None or len(windows) == 1:
        return compute(windows[0])
    branches = [functools.partial(compute, window) for window in windows]
    return jax.lax.switch(jnp.searchsorted(jnp.asarray(windows), seen.window), branches)


def _in_chunks(
    q_BSQC: jax.Array, k_BRSC: jax.Array, v_BRSC: jax.Array, seen: Causal, *, scaled: bool
) -> jax.Array:
    """`CHUNK` queries at a time, each with all keys of its span; no softmax has to be merged."""
    length = q_BSQC.shape[1]
    span = -(-length // (_SPANS * CHUNK)) * CHUNK
    places = _Places(jnp.arange(length)[None], seen.segments_BS, seen.positions_BS)
    spans = []
    for start in range(0, length, span):
        end = min(start + span, length)
        keys = k_BRSC[:, :, :end], v_BRSC[:, :, :end]
        of_keys = jax.tree.map(lambda x_BS, end=end: x_BS[:, :end], places)
        chunks = jax.tree.map(functools.partial(_split, start=start, end=end), (q_BSQC, places))
        attend = functools.partial(
            _attend_chunk, keys=keys, of_keys=of_keys, window=seen.window, scaled=scaled
        )
        # A backward pass computes the scores again.
        mixed_OBSQC = jax.lax.map(jax.checkpoint(attend), chunks)
        mixed_BSQC = jnp.moveaxis(mixed_OBSQC, 0, 1).reshape(q_BSQC.shape[0], -1, *q_BSQC.shape[2:])
        spans.append(mixed_BSQC[:, : end - start])
    return jnp.concatenate(spans, axis=1)


class _Places(NamedTuple):
    """What decides whether one token sees another: a tree of [B or 1, S]."""

    order: jax.Array
    segments: jax.Array | None
    positions: jax.Array | None


def _split(x_BS: jax.Array, *, start: int, end: int) -> jax.Array:
    """[B, S, ...] from `start` to `end` as chunks [O, B, CHUNK, ...]; the last one is filled up."""
    x_BS = x_BS[:, start:end]
    padding = [(0, 0), (0, -(end - start) % CHUNK), *[(0, 0)] * (x_BS.ndim - 2)]
    x_BS = jnp.pad(x_BS, padding)
    x_BOS = x_BS.reshape(x_BS.shape[0], -1, CHUNK, *x_BS.shape[2:])
    return x_BOS.swapaxes(0, 1)


def _attend_chunk(
    chunk: tuple[jax.Array, _Places],
    *,
    keys: tuple[jax.Array, jax.Array],
    of_keys: _Places,
    window: jax.Array | None,
    scaled: bool,
) -> jax.Array:
    """Attention of [B, CHUNK, Q, C] to keys and values [B, R, T, C]."""
    q_BSQC, of_queries = chunk
    mask_BST = of_queries.order[..., None] >= of_keys.order[:, None]
    if of_queries.segments is not None and of_keys.segments is not None:
        mask_BST &= of_queries.segments[..., None] == of_keys.segments[:, None]
    if of_queries.positions is not None and of_keys.positions is not None and window is not None:
        mask_BST &= of_queries.positions[..., None] - of_keys.positions[:, None] < window
    heads, kv_heads = q_BSQC.shape[2], keys[0].shape[1]
    mask_BRIT = repeat_rows(mask_BST, heads // kv_heads)
    mixed_BRIC = merge(part(group_queries(q_BSQC, kv_heads), *keys, mask_BRIT, scaled=scaled))
    return ungroup_queries(mixed_BRIC, CHUNK).astype(q_BSQC.dtype)
