"""Random tensors and parameters in float64, and torch.nn's layers as the reference for the Transformer."""

import torch
from torch import nn

from minlm.transformer import ACTIVATIONS, MultiHeadAttention, Transformer


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter drawn, biases and gains too: zeros would hide a swapped or missing one."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return module.eval()


def copy_attention(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    theirs.in_proj_weight.copy_(ours.in_proj.weight)
    theirs.in_proj_bias.copy_(ours.in_proj.bias)
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


@torch.no_grad()
def torch_stack(ours: Transformer) -> nn.Module:
    """torch.nn's encoder or decoder with our weights."""
    config = ours.config
    crosses = ours.blocks[0].cross_attention is not None
    layer_class = nn.TransformerDecoderLayer if crosses else nn.TransformerEncoderLayer
    layers = [
        layer_class(
            config.d_model,
            config.n_heads,
            config.mlp_width,
            dropout=0.0,
            activation=ACTIVATIONS[config.activation],
            layer_norm_eps=config.norm_eps,
            batch_first=True,
            norm_first=config.norm_first,
            dtype=torch.float64,
        )
        for _ in ours.blocks
    ]
    for block, layer in zip(ours.blocks, layers, strict=True):
        copy_attention(block.attention, layer.self_attn)
        layer.norm1.load_state_dict(block.norm1.state_dict())
        last_norm = layer.norm2
        if crosses:
            copy_attention(block.cross_attention, layer.multihead_attn)
            layer.norm2.load_state_dict(block.norm_cross.state_dict())
            last_norm = layer.norm3
        last_norm.load_state_dict(block.norm2.state_dict())
        layer.linear1.load_state_dict(block.mlp.fc1.state_dict())
        layer.linear2.load_state_dict(block.mlp.fc2.state_dict())
    stack_class = nn.TransformerDecoder if crosses else nn.TransformerEncoder
    arguments = {} if crosses else {"enable_nested_tensor": False}
    stack = stack_class(layers[0], 1, norm=ours.norm, **arguments)
    stack.layers = nn.ModuleList(layers)
    stack.num_layers = len(layers)
    return stack.train()  # torch's inference fast path knows no custom activations
