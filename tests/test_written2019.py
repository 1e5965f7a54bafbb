"""The ensemble of 2019's own description, written back beside ours."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml
from folder2019 import Folder, margins

from imet_ray.blending.imet2019_files import write_2019
from imet_ray.errors import StoreError
from imet_ray.storage.files import Files
from imet_ray.storage.run_directory import EnsembleDirectory, RunDirectory


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def place(folder: Folder, name: str = "e") -> EnsembleDirectory:
    return RunDirectory(folder.root).ensemble(name)


def test_the_ensemble_names_each_members_files_by_fold_and_its_weight(folder):
    found = folder.read(folder.add(), folder.add("4f", margins(1)))
    path = write_2019(place(folder, "best_ensemble"), 0.63974, found, np.array([0.25, 0.75]))
    assert path == place(folder, "best_ensemble").root / "best_ensemble_val_0.6397.yml"
    assert path.read_text() == (
        "- predicts:\n"
        "  - level1_train_2b_se_resnext50_f0_e00_0.5900.npy\n"
        "  - level1_train_2b_se_resnext50_f1_e01_0.5910.npy\n"
        "  - level1_train_2b_se_resnext50_f2_e02_0.5920.npy\n"
        "  weight: 0.25\n"
        "- predicts:\n"
        "  - level1_train_4f_f0_e00_0.5900.npy\n"
        "  - level1_train_4f_f1_e01_0.5910.npy\n"
        "  - level1_train_4f_f2_e02_0.5920.npy\n"
        "  weight: 0.75\n"
    )


def test_weights_of_an_ensemble_are_read_back_exactly(folder):
    found = folder.read(folder.add(), folder.add("4f " + "long " * 40, margins(1)))
    weights = [1 / 3, 1e-17]
    read = yaml.safe_load(write_2019(place(folder), 0.5, found, weights).read_text())
    assert [entry["weight"] for entry in read] == weights
    assert [entry["predicts"] for entry in read] == [[file.name for file in own] for own in found.files]


def test_an_ensemble_replaces_the_one_of_its_name_and_leaves_nothing_beside_it(folder):
    found = folder.read(folder.add())
    for weight in (0.5, 1.0):
        write_2019(place(folder), 0.5, found, [weight])
    assert [path.name for path in place(folder).root.iterdir()] == ["e_val_0.5000.yml"]


@dataclass(frozen=True)
class Elsewhere(Files):
    """Files that lie elsewhere, too: what is removed there."""

    removed: list[Path] = field(default_factory=list)

    def remove(self, path: Path) -> None:
        self.removed.append(path)
        super().remove(path)


def test_an_earlier_one_of_another_score_is_removed_wherever_the_run_lies(folder):
    found = folder.read(folder.add())
    files = Elsewhere()
    there = EnsembleDirectory(folder.root / "e", files)
    earlier = write_2019(there, 0.4, found, [1.0])
    later = write_2019(there, 0.5, found, [1.0])
    assert files.removed == [earlier]
    assert list(there.root.iterdir()) == [later]


def test_a_place_that_cannot_be_written_is_one_line(folder):
    found = folder.read(folder.add())
    (place(folder).root / "e_val_0.5000.yml").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot write"):
        write_2019(place(folder), 0.5, found, [1.0])
