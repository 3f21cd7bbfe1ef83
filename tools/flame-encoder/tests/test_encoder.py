"""The encoder: how it starts, what stays frozen, its file, and images through it."""

import math

import pytest
import torch
import torchvision
from flame_encoder.encoder import losses, rendering, samples, synthetic, trained
from flame_encoder.encoder.crop import CropView, box_of, crops_of, cut_out
from flame_encoder.encoder.network import EidolonEncoder, freeze, set_training
from flame_encoder.encoder.vector import Layout
from recon4d import InputError

SMALL = "mobilenetv3_small_050"  # of timm


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EidolonEncoder(SMALL)


def save(path, network, layout=None, head="open-head", **more):
    state = trained.state_of(network, layout or Layout(), CropView(size=64), head, SMALL)
    trained.save(path, state | more)


def test_starts_at_the_identity(network):
    out = network.eval()(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, 227)
    parts = Layout().split(network.head.bias[None])
    assert parts.pop("global_rot").tolist() == [[1, 0, 0, 0, 1, 0]]
    assert all((part == 0).all() for part in parts.values())


def test_resnet50_is_torchvisions_and_normalises_as_imagenet(tmp_path):
    torch.manual_seed(0)
    whole = torchvision.models.resnet50(num_classes=1000)
    torch.save(whole.state_dict(), tmp_path / "resnet50.pth")
    made = EidolonEncoder("resnet50", str(tmp_path / "resnet50.pth")).eval()
    assert made.head.in_features == 2048
    images = torch.rand(1, 3, 64, 64)
    normal = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    whole.fc = torch.nn.Identity()
    torch.testing.assert_close(made.backbone(normal(images)), whole.eval()(normal(images)))
    torch.testing.assert_close(made(images), made.head(whole(normal(images))))


def test_weights_that_are_not_there_or_do_not_fit(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--weights .*none\.pth is not a file"):
        EidolonEncoder(SMALL, str(tmp_path / "none.pth"))
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not hold the weights of this backbone"):
        EidolonEncoder(SMALL, str(tmp_path / "other.pth"))
    (tmp_path / "evil.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="does not hold the weights of this backbone"):
        EidolonEncoder(SMALL, str(tmp_path / "evil.pth"))
    with pytest.raises(InputError, match="neither a torchvision nor a timm model"):
        EidolonEncoder("resnet5000")

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(InputError, match=r"resnet50-0676ba61\.pth can't be fetched .*put the file into .*--weights"):
        EidolonEncoder("resnet50", "imagenet")
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda n, **o: unreachable() if o else create(n))
    with pytest.raises(InputError, match=f"the pretrained weights of {SMALL} can't be fetched"):
        EidolonEncoder(SMALL, "imagenet")


def test_freeze(network):
    freeze(network, "backbone")
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
    freeze(network, "none")
    assert all(p.requires_grad for p in network.parameters())
    freeze(network, "first-2")
    stem = {id(p) for part in (network.backbone.conv_stem, network.backbone.bn1) for p in part.parameters()}
    assert all(p.requires_grad != (id(p) in stem) for p in network.parameters())
    # Frozen blocks keep their statistics too, the others do not.
    before = {k: v.clone() for k, v in network.state_dict().items() if "running_mean" in k}
    set_training(network)
    network(torch.rand(4, 3, 64, 64))
    after = network.state_dict()
    assert all(torch.equal(before[k], after[k]) == k.startswith("backbone.bn1") for k in before)
    for what, message in (("first-99", "has .* blocks"), ("some", "is not known"), ("first-x", "is not known")):
        with pytest.raises(InputError, match=message):
            freeze(network, what)


def test_file_and_back(network, tmp_path):
    layout = Layout(shape=100, expression=0, detail=106)
    save(tmp_path / "e.pth", network, layout)
    made = trained.load(tmp_path / "e.pth")
    assert made.layout == layout and made.view == CropView(size=64) and made.backbone == SMALL
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(made.network(images), network.eval()(images))
    assert torch.load(tmp_path / "e.pth", weights_only=True)["layout"] == {"shape": 100, "expression": 0, "detail": 106}
    trained.save(tmp_path / "half.pth", trained.halved(trained.read(tmp_path / "e.pth")))
    assert (tmp_path / "half.pth").stat().st_size < 0.6 * (tmp_path / "e.pth").stat().st_size
    close = trained.load(tmp_path / "half.pth").network(images)
    torch.testing.assert_close(close, network(images), atol=2e-2, rtol=2e-2)


def test_files_that_are_no_encoder(network, tmp_path):
    path = tmp_path / "e.pth"
    with pytest.raises(InputError, match="does not exist"):
        trained.load(path)
    path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        trained.load(path)
    save(path, network)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        trained.load(path)
    torch.save({"weights": {}}, path)
    with pytest.raises(InputError, match="is not an encoder"):
        trained.load(path)
    save(path, network, head="flame2023.pkl")
    with pytest.raises(InputError, match=r"trained with the head model flame2023\.pkl, not open-head"):
        trained.load(path)
    save(path, network, backbone="resnet18")
    with pytest.raises(InputError, match="do not fit its backbone resnet18"):
        trained.load(path)


def test_the_one_that_ships():
    """Small, offline, and three times nearer to the landmarks of unseen people than the mean head in the crop."""
    source = trained.SHIPPED
    assert source.stat().st_size < 6e6 and source.with_suffix(".md").exists()
    encoder = trained.load()
    assert encoder.layout.size == 227 and encoder.head.name == "open-head" and encoder.note
    people = samples.Synthetic(synthetic.scene(encoder.head, encoder.layout, encoder.view), 24, 77)
    batch = samples.collate([people[i] for i in range(24)])
    judge = losses.judge(encoder.head, encoder.layout, encoder.view)

    def errors(vectors):
        parts = encoder.layout.split(vectors)
        turned = rendering.turned(judge.points, parts)
        goal = rendering.turned(judge.points, encoder.layout.split(batch.vectors))
        points = losses.landmark_pixels(judge, turned, parts["transl"])
        eyes = (batch.landmarks[:, 36] - batch.landmarks[:, 45]).norm(dim=-1)
        landmarks = (points - batch.landmarks).norm(dim=-1).mean(1) / eyes
        return landmarks.mean().item(), (turned - goal).norm(dim=-1).mean().item()

    rest = torch.zeros(24, 227)
    rest[:, 150:156] = torch.tensor([1.0, 0, 0, 0, 1, 0])
    ours, mean_head = errors(encoder.network(batch.images)), errors(rest)
    assert ours[0] < mean_head[0] / 3 and ours[1] < mean_head[1] / 2.5


def test_encode_looks_at_the_crop(network, tmp_path):
    save(tmp_path / "e.pth", network)
    encoder = trained.load(tmp_path / "e.pth")
    images = torch.rand(2, 3, 90, 120)
    marks = torch.rand(2, 68, 2) * 40 + 30
    parts = encoder.encode(images, landmarks=marks)
    boxed = encoder.encode(images, boxes=box_of(marks))
    for name in parts:
        assert torch.equal(parts[name], boxed[name])
    crops = crops_of(box_of(marks))
    assert torch.equal(parts.pop("crop"), crops)
    direct = encoder.network(cut_out(images, crops, 64))
    torch.testing.assert_close(encoder.layout.join(parts), direct)
    assert encoder.encode(images)["crop"].tolist() == [[0, -15, 120]] * 2
    K = torch.tensor([[500.0, 0, 60], [0, 500, 45], [0, 0, 1]])
    R, t = encoder.head_pose(encoder.encode(images, landmarks=marks), K)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(2))
    size = crops[:, 2] / (2 * math.tan(math.radians(15)))
    assert torch.allclose(t[:, 2] / (500 / size * 2.7 / encoder.view.scale), torch.ones(2), atol=0.3)
