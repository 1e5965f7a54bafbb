"""Exports for other tools: ONNX files that say what torch says, and folders that timm and the hub's client take."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from safetensors import SafetensorError

import launch
from imet_ray.commands import export as stage
from imet_ray.data.images import read_rgb
from imet_ray.errors import ConfigError
from imet_ray.models import onnx_file, timm_folder
from imet_ray.models.checkpoint import load_tagger
from imet_ray.models.models import Tagger, build_model
from imet_ray.models.onnx_file import INPUT, OUTPUT, write_onnx, written_difference
from imet_ray.models.snapshots import Snapshots
from imet_ray.models.timm_folder import models_of, write_timm_folder
from imet_ray.prediction.ensemble import read_ensemble, write_ensemble
from imet_ray.storage.run_directory import ExportedDirectory

CPU = torch.device("cpu")
EXPORT = ["--export", "small"]


def small(architecture: str = "test_resnet", size: int = 32, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(architecture, n_labels=5, image_size=size, dropout=0.0, weights="none").eval()


def noise(n: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 3, size, size), np.uint8)


def run_onnx(path: Path, pictures: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {INPUT: pictures})[0]


@pytest.fixture(scope="module")
def where(trained, swept) -> list[str]:
    """The options that lead to an ensemble `small` of one checkpoint."""
    store = trained.run.store
    whole = read_ensemble(store.ensemble("k"))
    one = whole.members[0]
    one = one.model_copy(update={"trials": one.trials[:1], "checkpoints": one.checkpoints[:1], "weight": 1.0})
    kept = {"name": "small", "members": [one], "prefixes": []}
    write_ensemble(store.ensemble("small"), whole.model_copy(update=kept))
    return trained.where


@pytest.fixture(scope="module")
def place(where, tmp_path_factory) -> ExportedDirectory:
    folder = tmp_path_factory.mktemp("formats") / "small"
    assert launch.main([*EXPORT, str(folder), *where, "--onnx", "--hub"]) == 0
    return ExportedDirectory(folder)


@pytest.fixture(scope="module")
def trial(place) -> str:
    return next(place.weights.iterdir()).stem


# ONNX


def test_an_onnx_file_gives_the_checkpoints_probabilities_of_pixels(place, trial, trained):
    model, _ = load_tagger(place.weights_of(trial), CPU)
    files = trained.run.catalog.test.files[:3]
    pictures = np.stack([read_rgb(path)[:32, :32].transpose(2, 0, 1) for path in files])
    with torch.inference_mode():
        expected = model(torch.from_numpy(pictures)).sigmoid().numpy()
    found = run_onnx(place.onnx_of(trial), pictures)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("n", [1, 5])
def test_an_onnx_file_takes_any_number_of_pictures(place, trial, n):
    assert run_onnx(place.onnx_of(trial), noise(n)).shape == (n, 40)


def test_an_onnx_file_names_its_labels_and_its_weights(place, trial, trained):
    texts = {entry.key: entry.value for entry in onnx.load(place.onnx_of(trial)).metadata_props}
    assert json.loads(texts["label_names"]) == list(trained.run.catalog.label_names)
    assert texts["imet_ray.trial"] == trial


def test_the_card_states_the_tolerance(place):
    card = place.card.read_text()
    assert "On 8 pictures of the data no probability was further than" in card
    assert "the tolerance is 0.0001" in card


def test_a_file_that_is_further_from_torch_than_allowed_is_refused(tmp_path, monkeypatch):
    export = onnx_file._export

    def other_weights(whole, pictures, path):
        export(onnx_file._Probabilities(small(seed=1)), pictures, path)

    monkeypatch.setattr(onnx_file, "_export", other_weights)
    with pytest.raises(
        ConfigError, match=r"^small as ONNX is .* from torch in a probability, and 0.0001 is allowed"
    ):
        write_onnx(tmp_path / "m.onnx", small(), noise(2), name="small", facts={})
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_write_is_refused_by_name(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, pictures):
            return torch.special.bessel_j0(pictures.float().mean((2, 3)))

    with pytest.raises(ConfigError, match="^torch cannot write odd as ONNX"):
        write_onnx(tmp_path / "m.onnx", Odd(), noise(2), name="odd", facts={})
    assert not list(tmp_path.iterdir())


def test_a_model_that_a_file_cannot_hold_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    with pytest.raises(ConfigError, match="^big is too large for an ONNX file, which holds 2 GB"):
        write_onnx(tmp_path / "m.onnx", small(), noise(2), name="big", facts={})


def test_a_file_of_other_facts_or_a_damaged_one_is_written_again(place, trial, tmp_path):
    path = place.onnx_of(trial)
    assert written_difference(path, {"imet_ray.trial": trial}) is not None
    assert written_difference(path, {"imet_ray.trial": "other"}) is None
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:1000])
    assert written_difference(tmp_path / "half.onnx", {}) is None


def test_missing_packages_are_one_line_with_the_command(where, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx_file, "find_spec", lambda package: None if package == "onnxscript" else 1)
    assert launch.main([*EXPORT, str(tmp_path / "x"), *where, "--onnx"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--onnx needs onnxscript, not installed: `uv pip install onnx onnxruntime onnxscript`" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["cbam", "test_vit", "test_convnext", "test_efficientnet"])
def test_families_of_models_can_be_written(architecture, tmp_path):
    if architecture == "cbam":  # as `cbam_resnet50` is made, of a smaller one
        body = timm.create_model("test_resnet", num_classes=5, block_args={"attn_layer": "cbam"})
        model, size = Tagger(body, (0.5,) * 3, (0.5,) * 3).eval(), 32
    else:
        size = 160 if architecture == "test_vit" else 32
        model = small(architecture, size)
    assert write_onnx(tmp_path / "m.onnx", model, noise(2, size), name=architecture, facts={}) < 1e-5


@pytest.mark.slow
def test_snapshots_are_one_onnx_file(tmp_path):
    model = Snapshots([small(seed=0), small(seed=1)]).eval()
    write_onnx(tmp_path / "m.onnx", model, noise(2), name="snapshots", facts={})
    with torch.inference_mode():
        expected = torch.stack([one(torch.from_numpy(noise(3))).sigmoid() for one in model.snapshots]).mean(0)
    assert np.abs(run_onnx(tmp_path / "m.onnx", noise(3)) - expected.numpy()).max() < 1e-6


@pytest.mark.parametrize("left_in", ["small", ".small.exporting"])
def test_what_an_earlier_or_a_stopped_export_wrote_is_not_written_again(
    place, trial, where, tmp_path, monkeypatch, capsys, left_in
):
    shutil.copytree(place.root, tmp_path / left_in)
    monkeypatch.setattr(stage, "write_onnx", lambda *args, **options: pytest.fail("written again"))
    assert launch.main([*EXPORT, str(tmp_path / "small"), *where, "--onnx"]) == 0
    assert "from torch on 8 pictures of the data; 0.0001 is allowed" in capsys.readouterr().out
    again = ExportedDirectory(tmp_path / "small")
    assert again.onnx_of(trial).read_bytes() == place.onnx_of(trial).read_bytes()
    assert not again.hub.exists()


# timm


def test_timm_gives_the_logits_of_the_checkpoint(place, trial):
    tagger, _ = load_tagger(place.weights_of(trial), CPU)
    body = timm.create_model(f"local-dir:{place.hub / trial}", pretrained=True).eval()
    pictures = noise(4)
    with torch.inference_mode():
        mean, std = (torch.tensor(body.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
        found = body((torch.from_numpy(pictures) / 255 - mean) / std)
        expected = tagger(torch.from_numpy(pictures))
    assert torch.allclose(found, expected, atol=1e-5)


def test_timm_knows_the_labels_and_the_size(place, trial, trained):
    config = timm.create_model(f"local-dir:{place.hub / trial}").pretrained_cfg
    assert config["label_names"] == list(trained.run.catalog.label_names)
    assert config["num_classes"] == 40
    assert timm.data.resolve_data_config({}, pretrained_cfg=config)["input_size"] == (3, 32, 32)


def test_the_folder_says_nothing_of_the_weights_that_training_did_not_begin_from(place, trial):
    assert json.loads((place.hub / trial / "config.json").read_text())["pretrained_cfg"]["tag"] is None


@pytest.mark.parametrize(
    ("architecture", "size"), [("cbam_resnet50", 32), ("test_vit", 160), ("tf_efficientnet_lite0", 32)]
)
def test_timm_rebuilds_models_that_are_built_with_options(architecture, size, tmp_path):
    model = small(architecture, size)
    folder = tmp_path / "m"
    write_timm_folder(folder, model, image_size=size, label_names=[*"abcde"], name=architecture)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    shown = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(again(shown), model.body(shown))


def test_what_timm_makes_another_model_of_is_refused_by_name(tmp_path, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name))  # without the weights
    with pytest.raises(ConfigError, match="^timm makes another model of odd as a folder"):
        write_timm_folder(tmp_path, small(), image_size=32, label_names=[*"abcde"], name="odd")


def test_a_full_disk_is_one_line_and_leaves_nothing(where, tmp_path, monkeypatch, capsys):
    def save(*args, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(timm_folder, "save_for_hf", save)
    assert launch.main([*EXPORT, str(tmp_path / "x"), *where, "--hub"]) == 1
    err = capsys.readouterr().err
    assert f"disk full while writing {tmp_path / 'x'}" in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_each_snapshot_is_a_folder_of_its_own():
    one, other = small(seed=0), small(seed=1)
    assert models_of(one) == [one]
    assert models_of(Snapshots([one, other])) == [one, other]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as the client needs to send small files."""

    received: ClassVar[dict[str, bytes]] = {}
    cards: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict[str, object] = {}
        if self.path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in self.path:
            names = [one["path"] for one in json.loads(body)["files"]]
            kept = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": name, **kept} for name in names]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.received[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/me/small/commit/1",
                "commitOid": "1",
                "hookOutput": "",
            }
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        pass


def test_the_hubs_client_sends_the_folder_as_it_is(place):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            api = HfApi(endpoint=f"http://127.0.0.1:{server.server_address[1]}", token=False)
            api.upload_folder(folder_path=place.root, repo_id="me/small")
        finally:
            server.shutdown()
    files = {
        str(path.relative_to(place.root)): path.read_bytes()
        for path in place.root.rglob("*")
        if path.is_file()
    }
    assert Hub.received == files
    assert Hub.cards == [place.card.read_text()]


def test_the_cards_of_an_export_for_the_hub_name_timm(place, trial):
    assert "timm" in ModelCard.load(place.card).data.tags
    own = ModelCard.load(place.hub / trial / "README.md")
    assert (own.data.library_name, own.data.pipeline_tag) == ("timm", "image-classification")


def test_an_export_without_the_options_has_neither(place, where, tmp_path):
    shutil.copytree(place.root, tmp_path / "small")
    assert launch.main([*EXPORT, str(tmp_path / "small"), *where]) == 0
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "README.md",
        "ensemble.json",
        "labels.csv",
        "weights",
    }


@pytest.mark.parametrize("option", ["--onnx", "--hub"])
def test_the_options_are_for_exports_alone(option, capsys):
    assert launch.main(["--status", option]) == 1
    assert f"{option} has no meaning for --status: it is for --export" in capsys.readouterr().err
