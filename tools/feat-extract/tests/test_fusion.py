"""The fusion model beside PyTorch's own transformer, and what must not change its answer."""

import numpy as np
import pytest
import torch
from feat_extract.fusion import Block, Fusion, centred, positions
from torch import nn


@pytest.fixture
def model() -> Fusion:
    torch.manual_seed(0)
    sizes = {"feat2d": torch.rand(7) + 0.5, "crops": torch.tensor(0.2)}
    return Fusion(sizes, 3, width=16, heads=4, layers=2, dropout=0.1, length=10).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.arange(10)[None] < torch.tensor([10, 6, 1])[:, None]
    return {"feat2d": torch.randn(3, 10, 7), "crops": torch.rand(3, 10, 3, 24, 24)}, mask


def test_block_is_a_pre_norm_transformer_layer():
    torch.manual_seed(0)
    block = Block(16, 4, 0.0).eval()
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    layer.self_attn.in_proj_weight.data, layer.self_attn.in_proj_bias.data = block.qkv.weight, block.qkv.bias
    layer.self_attn.out_proj.load_state_dict(block.out.state_dict())
    layer.norm1.load_state_dict(block.norm_attention.state_dict())
    layer.norm2.load_state_dict(block.norm_forward.state_dict())
    layer.linear1.load_state_dict(block.forward_layers[0].state_dict())
    layer.linear2.load_state_dict(block.forward_layers[2].state_dict())
    tokens, mask = torch.randn(2, 9, 16), torch.arange(9)[None] < torch.tensor([9, 5])[:, None]
    expected = layer(tokens, src_key_padding_mask=~mask)
    torch.testing.assert_close(block(tokens, mask)[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_script_answers_as_the_module(model, batch, tmp_path):
    torch.jit.save(torch.jit.script(model), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt", map_location="cpu")
    torch.testing.assert_close(loaded(*batch), model(*batch))


def test_frames_after_the_end_have_no_influence(model, batch):
    inputs, mask = batch
    expected = model(inputs, mask)
    rubbish = {name: values.clone() for name, values in inputs.items()}
    for values in rubbish.values():
        values[~mask] = 1e4
    torch.testing.assert_close(model(rubbish, mask), expected)
    short = {name: values[1:2, :6] for name, values in inputs.items()}
    torch.testing.assert_close(model(short, mask[1:2, :6]), expected[1:2], atol=1e-5, rtol=1e-5)


def test_a_person_s_own_level_has_no_influence(model, batch):
    inputs, mask = batch
    moved = inputs | {"feat2d": inputs["feat2d"] + torch.randn(3, 1, 7)}
    torch.testing.assert_close(model(moved, mask), model(inputs, mask), atol=1e-4, rtol=1e-4)
    changed = inputs | {"feat2d": 2 * inputs["feat2d"]}
    assert (model(changed, mask) - model(inputs, mask)).abs()[:2].max() > 1e-3


def test_order_matters(model, batch):
    inputs, mask = batch
    turned = {name: values.flip(1) for name, values in inputs.items()}
    assert (model(turned, mask) - model(inputs, mask))[0].abs().max() > 1e-4


def test_centred_beside_numpy():
    rng = np.random.default_rng(0)
    values, mask = rng.normal(size=(4, 8, 3)), rng.random((4, 8)) < 0.6
    mask[:, 0] = True
    found = centred(torch.from_numpy(values), torch.from_numpy(mask)).numpy()
    for row in range(4):
        there = values[row, mask[row]]
        np.testing.assert_allclose(found[row, mask[row]], there - there.mean(0), atol=1e-12)
        assert not found[row, ~mask[row]].any()


def test_positions_differ_and_match_the_paper():
    table = positions(50, 8).numpy()
    expected = [np.sin(7 / 10000 ** (2 / 8)), np.cos(7 / 10000 ** (2 / 8))]
    np.testing.assert_allclose(table[7, 2:4], expected, atol=1e-6)
    assert table.shape == (50, 8) and len(np.unique(table.round(4), axis=0)) == 50
