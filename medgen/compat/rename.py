"""Names of MONAI Generative's weights -> names in MONAI core, one by one.

MONAI's own ``load_old_state_dict`` empties the mapping that it is given, and leaves what it does not find at its random
start; here every name has one rule and both sides are loaded strictly.

MONAI Generative's ``AttentionBlock`` owns a linear layer ``proj_attn`` that its ``forward`` never applies. Its weights
are left out, and MONAI core's network is built with ``include_fc=False``; with True it would apply them, and nothing
would say that every output is wrong. The transformer's ``to_out`` is applied, and needs ``include_fc=True``.
"""

import re

from medgen.compat.source import State

_UNUSED = re.compile(r"\.proj_attn\.(weight|bias)$")
_RULES = (
    # attention of the autoencoder and of a UNet without context
    (re.compile(r"^((?:.*\.)?(?:blocks\.\d+|attentions\.\d+|attention))\.(to_[qkv])\."), r"\1.attn.\2."),
    # the transformer's output projection; dropout beside it has no weights
    (re.compile(r"\.(attn[12])\.to_out\.0\."), r".\1.out_proj."),
    # convolutions behind an interpolation
    (re.compile(r"^(decoder\.blocks\.\d+)\.conv\.conv\."), r"\1.postconv.conv."),
    (re.compile(r"\.upsampler\.conv\.conv\."), r".upsampler.postconv.conv."),
)


def renamed(state: State) -> State:
    """A new mapping with MONAI core's names; the one given stays as it is."""
    result: State = {}
    for key, tensor in state.items():
        if _UNUSED.search(key):
            continue
        for pattern, replacement in _RULES:
            key = pattern.sub(replacement, key)
        result[key] = tensor
    return result
