"""Parts of config.json that only some transformers have, each read and written by one `Feature`.

Each does what the code of transformers does for that model type; a file that says something else
than what transformers would compute is refused.

>>> reader = ConfigReader({"no_rope_layer_interval": 2})
>>> SMOLLM3_LAYERS.read(reader, Shape(num_layers=4, head_dim=8))
{'nope_layers': (1, 3)}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxspec.checkpoints import bounds
from jaxspec.checkpoints.config_reader import ConfigReader
from jaxspec.config import (
    DrafterConfig,
    ExpertsConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    RopeScaling,
    TransformerConfig,
    YarnRopeScaling,
)
from jaxspec.json_files import shown


class Shape(NamedTuple):
    """What has been read before the features are."""

    num_layers: int
    head_dim: int


@dataclasses.dataclass(frozen=True)
class Feature:
    """One part of config.json."""

    read: Callable[[ConfigReader, Shape], dict[str, Any]]
    """The fields of `TransformerConfig` that it sets; problems go to the reader."""
    write: Callable[[TransformerConfig], dict[str, Any]]
    """The entries of config.json."""


ROPE_NAMES = {LinearRopeScaling: "linear", Llama3RopeScaling: "llama3", YarnRopeScaling: "yarn"}
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOW = 4096
"""Window that transformers assumes where the file has none."""


def rope_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The entry rope_parameters, as transformers 5 writes it."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    return {
        "rope_type": ROPE_NAMES[type(scaling)],
        **dataclasses.asdict(scaling),
        "rope_theta": theta,
    }


def rope_to_json(
    theta: float, scaling: RopeScaling | None, *, type_key: str = "rope_type"
) -> dict[str, Any]:
    """Both spellings: most servers read the first two keys, transformers 5 the last one.

    Args:
      theta: base of the wavelengths.
      scaling: the rule; None: none.
      type_key: what rope_scaling calls its kind.
    """
    parameters = rope_parameters(theta, scaling)
    rule = {
        type_key if key == "rope_type" else key: value
        for key, value in parameters.items()
        if key != "rope_theta"
    }
    return {
        "rope_theta": theta,
        "rope_scaling": rule if scaling else None,
        "rope_parameters": parameters,
    }


def sliding_to_json(config: TransformerConfig | DrafterConfig) -> dict[str, Any]:
    """Kinds of layers. max_window_layers is only for readers that do not know layer_types."""
    return {
        "layer_types": list(config.layer_types) or [FULL] * config.num_layers,
        "max_window_layers": config.num_layers,
        "sliding_window": config.sliding_window or None,
        "use_sliding_window": config.sliding_window > 0,
    }


def _switched_to_json(config: TransformerConfig) -> dict[str, Any]:
    return sliding_to_json(config) if config.windows else {}


def _never(reader: ConfigReader, shape: Shape) -> dict[str, Any]:
    sliding = reader.sliding_layers(shape.num_layers)
    if sliding:
        reader.problems.append(
            f"sliding_window: got {sliding['sliding_window']} in a "
            f"{reader.raw.get('model_type')}, expected full attention in every layer, as "
            "transformers computes it"
        )
    return sliding


def _every_layer(
    reader: ConfigReader, shape: Shape, *, default: int | None, switch: str = ""
) -> dict[str, Any]:
    """All layers slide or none does, whatever layer_types and max_window_layers say."""
    # null means no window; only an absent key takes the default.
    window = reader.raw.get("sliding_window", default)
    if switch and not reader.flag(switch):
        window = None
    kind = FULL if window is None else SLIDING
    stated = reader.raw.get("layer_types")
    if stated is not None and stated != [kind] * shape.num_layers:
        reader.problems.append(
            f"layer_types: got {shown(stated)}, expected {kind!r} in every layer, as transformers "
            f"computes it with sliding_window {shown(window)}"
        )
    if window is None:
        return {}
    return {
        "layer_types": (SLIDING,) * shape.num_layers,
        "sliding_window": reader.integer(
            "sliding_window", largest=bounds.POSITIONS, within={"sliding_window": window}
        ),
    }


def _window_to_json(config: TransformerConfig) -> dict[str, Any]:
    return {"sliding_window": config.sliding_window or None}


def _moe_window_to_json(config: TransformerConfig) -> dict[str, Any]:
    return {**_window_to_json(config), "use_sliding_window": config.sliding_window > 0}


NO_SLIDING = Feature(_never, lambda _: {})
SWITCHED_SLIDING = Feature(
    lambda reader, shape: reader.sliding_layers(shape.num_layers), _switched_to_json
)
"""Windows count only with use_sliding_window."""
MISTRAL_SLIDING = Feature(
    lambda reader, shape: _every_layer(reader, shape, default=WINDOW), _window_to_json
)
PHI3_SLIDING = Feature(
    lambda reader, shape: _every_layer(reader, shape, default=None), _window_to_json
)
QWEN3_MOE_SLIDING = Feature(
    lambda reader, shape: _every_layer(reader, shape, default=WINDOW, switch="use_sliding_window"),
    _moe_window_to_json,
)


def _gemma3_sliding(reader: ConfigReader, shape: Shape) -> dict[str, Any]:
    """Five sliding layers, then a full one, and so on; each kind has wavelengths of its own."""
    pattern = reader.integer("sliding_window_pattern", 6, largest=bounds.LAYERS)
    kinds = reader.raw.get("layer_types")
    if kinds is None:
        kinds = [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(shape.num_layers)]
    kinds = reader.layer_kinds(kinds, num_layers=shape.num_layers)
    theta = reader.sliding_rope_theta(LOCAL_THETA)
    if SLIDING not in kinds:
        return {}
    window = reader.raw.get("sliding_window", WINDOW)
    return {
        "layer_types": tuple(kinds),
        "sliding_window": reader.integer(
            "sliding_window", largest=bounds.POSITIONS, within={"sliding_window": window}
        ),
        "sliding_rope_theta": theta,
    }


def _gemma3_sliding_to_json(config: TransformerConfig) -> dict[str, Any]:
    return {
        "layer_types": list(config.layer_types) or [FULL] * config.num_layers,
        # transformers makes a mask for sliding layers even where there are none.
        "sliding_window": config.sliding_window or WINDOW,
        "rope_local_base_freq": config.sliding_rope_theta or LOCAL_THETA,
        "rope_parameters": {
            FULL: rope_parameters(config.rope_theta, config.rope_scaling),
            SLIDING: rope_parameters(config.sliding_rope_theta or LOCAL_THETA, None),
        },
    }


LOCAL_THETA = 10_000.0
"""Base of the wavelengths in sliding layers that transformers assumes for a Gemma 3."""
GEMMA3_SLIDING = Feature(_gemma3_sliding, _gemma3_sliding_to_json)


def _gemma3_scores(reader: ConfigReader, shape: Shape) -> dict[str, Any]:
    if reader.flag("use_bidirectional_attention"):
        reader.problems.append("use_bidirectional_attention: got true, expected false")
    # transformers has this entry and does not read it; other programs do.
    if reader.raw.get("attn_logit_softcapping") is not None:
        reader.problems.append(
            f"attn_logit_softcapping: got {shown(reader.raw['attn_logit_softcapping'])}, expected "
            "null"
        )
    cap = 0.0
    if reader.raw.get("final_logit_softcapping") is not None:
        cap = reader.number("final_logit_softcapping", 0.0, limits=bounds.SCORE)
    return {
        "query_pre_attn_scalar": reader.number("query_pre_attn_scalar", 256.0, limits=bounds.SCORE),
        "logit_softcap": cap,
    }


def _gemma3_scores_to_json(config: TransformerConfig) -> dict[str, Any]:
    scalar = config.query_pre_attn_scalar
    return {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": config.logit_softcap or None,
        "query_pre_attn_scalar": int(scalar) if scalar.is_integer() else scalar,
    }


GEMMA3_SCORES = Feature(_gemma3_scores, _gemma3_scores_to_json)


def _nope_layers(reader: ConfigReader, shape: Shape) -> tuple[int, ...]:
    """Layers without rotation; the file marks those that have one, in spite of its name."""
    stated = reader.raw.get("no_rope_layers")
    if stated is None:
        every = reader.integer("no_rope_layer_interval", 4, largest=bounds.LAYERS)
        return tuple(range(every - 1, shape.num_layers, every))
    if not isinstance(stated, list) or [i for i in stated if type(i) is not int or i not in (0, 1)]:
        reader.problems.append(
            f"no_rope_layers: got {shown(stated)}, expected a list of 1 (with rotation) and 0"
        )
        return ()
    if len(stated) < shape.num_layers:
        reader.problems.append(
            f"no_rope_layers: got {len(stated)} entries for {shape.num_layers} layers"
        )
    return tuple(i for i, rotates in enumerate(stated[: shape.num_layers]) if not rotates)


def _smollm3_layers(reader: ConfigReader, shape: Shape) -> dict[str, Any]:
    """Where nothing else is said, the layers without rotation slide."""
    nope, window = _nope_layers(reader, shape), reader.raw.get("sliding_window")
    stated = dict(reader.raw)
    if stated.get("layer_types") is None:
        slides = window is not None and reader.flag("use_sliding_window")
        stated["layer_types"] = [
            SLIDING if slides and i in nope else FULL for i in range(shape.num_layers)
        ]
    return {"nope_layers": nope, **reader.over(stated).sliding_layers(shape.num_layers)}


def _smollm3_layers_to_json(config: TransformerConfig) -> dict[str, Any]:
    rotated = [int(i not in config.nope_layers) for i in range(config.num_layers)]
    return {**sliding_to_json(config), "no_rope_layers": rotated}


SMOLLM3_LAYERS = Feature(_smollm3_layers, _smollm3_layers_to_json)


def _experts(reader: ConfigReader, shape: Shape) -> dict[str, Any]:
    key = "num_experts" if reader.raw.get("num_experts") is not None else "num_local_experts"
    count = reader.integer(key, 128, largest=bounds.EXPERTS, smallest=0)
    step = reader.integer("decoder_sparse_step", 1, largest=bounds.LAYERS)
    listed = reader.raw.get("mlp_only_layers") or []
    if not isinstance(listed, list) or [i for i in listed if type(i) is not int]:
        reader.problems.append(
            f"mlp_only_layers: got {shown(listed)}, expected a list of layer ids"
        )
        listed = []
    dense = tuple(i for i in range(shape.num_layers) if i in listed or (i + 1) % step)
    per_token = reader.integer("num_experts_per_tok", 8, largest=bounds.EXPERTS)
    width = reader.integer("moe_intermediate_size", 768, largest=bounds.WIDTH)
    renormalise = reader.flag("norm_topk_prob")
    if count == 0 or len(dense) == shape.num_layers:
        return {}
    if per_token > count:
        reader.problems.append(
            f"num_experts_per_tok: got {per_token}, expected at most {key} ({count})"
        )
        return {}
    return {"experts": ExpertsConfig(count, per_token, width, renormalise, dense)}


def _experts_to_json(config: TransformerConfig) -> dict[str, Any]:
    if config.experts is None:
        return {"num_experts": 0}
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(config.experts.dense_layers),
        "moe_intermediate_size": config.experts.width,
        "norm_topk_prob": config.experts.renormalise,
        "num_experts": config.experts.num_experts,
        "num_experts_per_tok": config.experts.per_token,
    }


QWEN3_MOE_EXPERTS = Feature(_experts, _experts_to_json)


def _rotary_dim(reader: ConfigReader, shape: Shape) -> dict[str, Any]:
    """Width of the rotated part of a head, from its share."""
    parameters = {**reader.section("rope_scaling"), **reader.section("rope_parameters")}
    share = reader.number(
        "partial_rotary_factor", 1.0, limits=(0.0, 1.0), within={**reader.raw, **parameters}
    )
    width = int(shape.head_dim * share)
    if width % 2 or width == 0:
        reader.problems.append(
            f"partial_rotary_factor: got {share}, which rotates {width} of {shape.head_dim} "
            "channels, expected an even number of them"
        )
    return {"rotary_dim": 0 if width == shape.head_dim else width}


def _rotary_dim_to_json(config: TransformerConfig) -> dict[str, Any]:
    share = (config.rotary_dim or config.head_dim) / config.head_dim
    parameters = rope_parameters(config.rope_theta, config.rope_scaling)
    return {
        "original_max_position_embeddings": config.max_position_embeddings,
        "partial_rotary_factor": share,
        "rope_parameters": {**parameters, "partial_rotary_factor": share},
    }


PHI3_ROTARY = Feature(_rotary_dim, _rotary_dim_to_json)
