"""VideoMAE, V-JEPA 2 and DINOv2 against transformers' own networks, and published sizes."""

import itertools

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lightning_vssl.backbones import TransformersNet, export, load_backbone
from lightning_vssl.backbones.weights import export_record
from lightning_vssl.evaluation.base import UNTOUCHED, pretrained
from lightning_vssl.optim import parameter_groups

SMALL = {"hidden_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4, "patch_size": 8}
OWN = {
    "videomae_base": {"intermediate_size": 96, "image_size": 32, "num_frames": 4},
    "vjepa2_large": {"crop_size": 32, "pred_hidden_size": 24, "pred_num_attention_heads": 2},
    "dinov2_base": {"image_size": 32},
    "dinov2_registers_base": {"image_size": 32},
}
CLASSES = {
    "videomae_base": ("VideoMAEConfig", "VideoMAEModel"),
    "vjepa2_large": ("VJEPA2Config", "VJEPA2Model"),
    "dinov2_base": ("Dinov2Config", "Dinov2Model"),
    "dinov2_registers_base": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
}


def small(name, **more):
    torch.manual_seed(0)
    return TransformersNet(name, config={**SMALL, **OWN[name], **more}).eval()


def theirs(name, network=None, **more):
    """transformers' own network, with the weights of ours."""
    config, model = (getattr(transformers, one) for one in CLASSES[name])
    extra = {"use_mean_pooling": False} if name == "videomae_base" else {}
    made = model(config(**{**SMALL, **OWN[name], **extra, **more})).eval()
    if network is not None:
        inner = made.encoder if name == "vjepa2_large" else made
        lacking = inner.load_state_dict(network.net.state_dict(), strict=False)
        assert lacking.missing_keys in ([], ["embeddings.mask_token"])
        assert not lacking.unexpected_keys
    return made


def rand(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def check_map(found, tokens):
    """A map holds the tokens of its places, time first, columns last."""
    places = list(itertools.product(*(range(side) for side in found.shape[2:])))
    assert tokens.shape[1] == len(places)
    for number, place in enumerate(places):
        wanted = tokens[:, number]
        torch.testing.assert_close(found[(..., *place)], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "millions", "stride"),
    [
        ("videomae_small", 21.88, (2, 16)),
        ("videomae_base", 86.23, (2, 16)),
        ("videomae_large", 303.86, (2, 16)),
        ("vjepa2_large", 303.89, (2, 16)),
        ("vjepa2_huge", 631.65, (2, 16)),
        ("vjepa2_giant", 1012.17, (2, 16)),
        ("dinov2_small", 22.06, (1, 14)),
        ("dinov2_base", 86.58, (1, 14)),
        ("dinov2_large", 304.37, (1, 14)),
        ("dinov2_giant", 1136.48, (1, 14)),
        ("dinov2_registers_base", 86.58, (1, 14)),
    ],
)
def test_published_sizes(name, millions, stride):
    quick = {
        "num_frames": 2,
        "image_size": 32,
    }  # VideoMAE's table takes seconds, and has no weights
    with torch.device("meta"):
        network = TransformersNet(name, config=quick if name.startswith("videomae") else None)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=6e-3)
    assert network.stride == stride
    assert network.dims == (2 if name.startswith("dinov2") else 3)


def test_videomae_gives_transformers_numbers():
    network = small("videomae_base")
    clip = rand(2, 3, 4, 32, 32)
    peer = theirs("videomae_base", network)
    with torch.no_grad():
        told = peer(clip.transpose(1, 2), output_hidden_states=True)
        maps = network.features(clip, network.stages)
    check_map(maps["layer4"], told.last_hidden_state)
    for stage, after in {"stem": 0, "layer1": 2, "layer2": 4, "layer3": 6}.items():
        check_map(maps[stage], told.hidden_states[after])


@pytest.mark.parametrize(("frames", "side"), [(4, 32), (6, 32), (4, 16), (2, 48)])
def test_vjepa2_at_other_sizes_is_transformers_network_for_that_size(frames, side):
    network = small("vjepa2_large")
    peer = theirs("vjepa2_large", network, crop_size=side, frames_per_clip=frames)
    clip = rand(2, 3, frames, side, side)
    with torch.no_grad():
        network(rand(1, 3, 2, 24, 24))  # another size before leaves nothing behind
        told = peer(clip.transpose(1, 2), skip_predictor=True)
        check_map(network(clip), told.last_hidden_state)


@pytest.mark.parametrize("size", [(16, 40), (40, 16)])
def test_vjepa2_turns_by_the_row_and_column_a_patch_lies_in(size):
    network = small("vjepa2_large")
    attention = network.net.layer[3].attention
    seen, turn = [], attention.apply_rotary_embeddings
    attention.apply_rotary_embeddings = lambda qk, ids: seen.append(ids) or turn(qk, ids)
    with torch.no_grad():
        assert network(rand(2, 3, 4, *size)).shape[2:] == (2, size[0] // 8, size[1] // 8)
    grid = torch.tensor(list(itertools.product(range(2), range(size[0] // 8), range(size[1] // 8))))
    for ids in seen:
        found = torch.stack(ids, -1)  # (B, heads, N, 3)
        assert torch.equal(found, grid.expand_as(found))
    assert len(seen) == 2  # keys and queries


def test_vjepa2_repeats_the_frame_of_an_image_as_transformers_does():
    network = small("vjepa2_large")
    image = rand(1, 3, 1, 32, 32)
    with torch.no_grad():
        told = theirs("vjepa2_large", network)(image.transpose(1, 2), skip_predictor=True)
        check_map(network(image), told.last_hidden_state)


@pytest.mark.parametrize("name", ["dinov2_base", "dinov2_registers_base"])
@pytest.mark.parametrize("size", [(32, 32), (48, 24)])
def test_dinov2_gives_transformers_numbers_at_any_size(name, size):
    network = small(name)
    extra = 5 if "registers" in name else 1
    images = rand(2, 3, *size)
    peer = theirs(name, network)
    with torch.no_grad():
        told = peer(images, output_hidden_states=True)
        maps = network.features(images, network.stages)
        check_map(maps["layer4"], told.last_hidden_state[:, extra:])
        check_map(maps["layer2"], told.hidden_states[4][:, extra:])
        padded = torch.nn.functional.pad(images, (0, 8, 0, 0))
        assert torch.equal(network(padded[..., :-5]), network(padded))


@pytest.mark.parametrize("name", OWN)
def test_all_weights_learn_and_come_back_from_an_export(name, tmp_path):
    network = small(name)
    x = rand(2, 3, 4, 32, 32) if network.dims == 3 else rand(2, 3, 32, 32)
    out = network(x)
    out.square().sum().backward()
    assert not [key for key, one in network.named_parameters() if one.grad is None]
    state = {f"backbone.{key}": value for key, value in network.state_dict().items()}
    record = {"state_dict": state, "export": export_record("Tiny", network)}
    torch.save(record, tmp_path / "last.ckpt")
    export(tmp_path / "last.ckpt", tmp_path / "out")
    again = load_backbone(tmp_path / "out")
    assert again.config == network.config
    assert torch.equal(again(x), out)


@pytest.mark.parametrize("name", OWN)
def test_what_save_pretrained_wrote_is_read(name, tmp_path):
    peer = theirs(name)
    peer.save_pretrained(tmp_path)
    own = {**SMALL, **OWN[name]}
    network = TransformersNet(name, weights=str(tmp_path), config=own).eval()
    inner = (peer.encoder if name == "vjepa2_large" else peer).state_dict()
    for key, value in network.net.state_dict().items():
        assert torch.equal(value, inner[key]), key
    assert pretrained(network, None).method == f"transformers: {tmp_path}"
    assert pretrained(small(name), None).method == UNTOUCHED
    config = network.config["init_args"]["config"]
    assert all(config[entry] == value for entry, value in SMALL.items())
    rebuilt = TransformersNet(**network.config["init_args"])
    assert rebuilt.state_dict().keys() == network.state_dict().keys()
    state = load_file(tmp_path / "model.safetensors")
    lost = next(key for key in state if "layer.5" in key and key.endswith("weight"))
    del state[lost]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack 1 entries: \['.*layer\.5"):
        TransformersNet(name, weights=str(tmp_path), config=own)


# How the files on the hub, which are older than transformers 5, name what is named otherwise now.
HUB_NAMES = {
    "dinov2_base": {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    },
    "videomae_base": {"query.bias": "q_bias", "value.bias": "v_bias"},
}


@pytest.mark.parametrize(("name", "prefix"), [("dinov2_base", ""), ("videomae_base", "videomae.")])
def test_files_as_they_lie_on_the_hub_are_read(name, prefix, tmp_path):
    peer = theirs(name)
    for parameter in peer.parameters():  # biases start at zero
        parameter.data.add_(0.01)
    peer.save_pretrained(tmp_path)
    older = {}
    for key, value in peer.state_dict().items():
        for new, old in HUB_NAMES[name].items():
            key = key.replace(new, old)
        older[prefix + key] = value.contiguous()
    assert set(older) - set(peer.state_dict())
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    network = TransformersNet(name, weights=str(tmp_path), config={**SMALL, **OWN[name]})
    inner = peer.state_dict()
    assert all(torch.equal(value, inner[key]) for key, value in network.net.state_dict().items())


def test_videomae_is_built_for_another_size_with_the_same_weights():
    network = small("videomae_base", num_frames=2, image_size=48)
    network.load_state_dict(small("videomae_base").state_dict())
    peer = theirs("videomae_base", network, num_frames=2, image_size=48)
    clip = rand(2, 3, 2, 48, 48)
    with torch.no_grad():
        check_map(network(clip), peer(clip.transpose(1, 2)).last_hidden_state)


def test_weights_of_another_network_are_refused(tmp_path):
    theirs("dinov2_base").save_pretrained(tmp_path)
    own = {**SMALL, **OWN["dinov2_base"]}
    with pytest.raises(ValueError, match="are a dinov2's, name=videomae_base is a videomae"):
        TransformersNet("videomae_base", weights=str(tmp_path))
    with pytest.raises(ValueError, match="have hidden_size 48, dinov2_base has 768: name the size"):
        TransformersNet("dinov2_base", weights=str(tmp_path))
    with pytest.raises(ValueError, match="have num_attention_heads 4, dinov2_base has 8"):
        TransformersNet(
            "dinov2_base", weights=str(tmp_path), config={**own, "num_attention_heads": 8}
        )
    with pytest.raises(ValueError, match=r"2 entries have other shapes: .*\(48, 3, 8, 8\) for"):
        TransformersNet("dinov2_base", weights=str(tmp_path), config={**own, "patch_size": 16})


def test_what_transformers_cannot_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no folder weights="):
        TransformersNet("dinov2_base", weights=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"reads no network at weights=.*goes to an evaluation's"):
        TransformersNet("dinov2_base", weights=str(tmp_path))
    theirs("dinov2_base").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cannot be read as dinov2_base: .*not fully covered"):
        TransformersNet(
            "dinov2_base", weights=str(tmp_path), config={**SMALL, **OWN["dinov2_base"]}
        )


def test_a_part_of_the_network_is_not_left_over_in_silence(tmp_path):
    theirs("videomae_base").save_pretrained(tmp_path)
    own = {**SMALL, **OWN["videomae_base"], "use_mean_pooling": True}  # has no final norm
    with pytest.raises(ValueError, match=r"have 2 entries that videomae_base lacks .*layernorm"):
        TransformersNet("videomae_base", weights=str(tmp_path), config=own)


def test_weights_stored_in_half_precision_are_computed_with_in_single(tmp_path):
    peer = theirs("dinov2_base").half()
    peer.save_pretrained(tmp_path)
    network = TransformersNet(
        "dinov2_base", weights=str(tmp_path), config={**SMALL, **OWN["dinov2_base"]}
    ).eval()
    images = rand(1, 3, 32, 32)
    with torch.no_grad():
        check_map(network(images), peer.float()(images).last_hidden_state[:, 1:])


def test_decay_spares_positions_and_tokens():
    network = small("dinov2_registers_base")
    names = {name.rpartition(".")[2] for name in network.no_weight_decay()}
    assert names == {"cls_token", "register_tokens", "position_embeddings"}
    decayed = {id(one) for one in parameter_groups(network)[0]["params"]}
    kernels = {id(p) for key, p in network.named_parameters() if key.endswith("proj.weight")}
    assert kernels <= decayed
    assert not decayed & {id(network.get_parameter(key)) for key in network.no_weight_decay()}


def test_videomae_refuses_clips_its_table_is_not_for():
    network = small("videomae_base")
    for shape in ((4, 32, 40), (6, 32, 32)):
        got = " x ".join(str(side) for side in shape)
        with pytest.raises(ValueError, match=f"takes clips of 4 x 32 x 32 .* got {got}. Cut"):
            network(rand(1, 3, *shape))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "videomae_giant"}, "one of videomae_small, .* got 'videomae_giant'"),
        ({"config": {"depth": 4}}, "no entry 'depth' in VideoMAEConfig; there are image_size"),
        ({"config": {"num_frames": "many"}}, "does not make a VideoMAEConfig"),
        (
            {"config": {"num_hidden_layers": 3, "image_size": 32}},
            "at least 4 blocks, one a stage; got 3",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        TransformersNet(**arguments)
