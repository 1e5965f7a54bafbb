"""What only decoded pictures tell of a data directory: copies, and files that are cut off."""

from io import BytesIO

import numpy as np
from data_directory import HEAD, NO_PICTURES, make, problems
from PIL import Image

from imet_ray.data.check import check_data


def drawn(seed, suffix="png", **how):
    file = BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(file, suffix, **how)
    return file.getvalue()


def test_copies_are_named_with_what_they_share_and_whether_their_labels_differ(tmp_path):
    train = HEAD + b"a,0\nb,0\nc,1\nd,0\n"
    files = {"a.png": drawn(1), "b.jpg": drawn(1), "c.webp": drawn(1, compress_level=1), "d.png": drawn(2)}
    root = make(
        tmp_path,
        **{f"train/{name}": data for name, data in files.items()},
        **{"train.csv": train, "test/s.png": drawn(2), "test/u.webp": drawn(3), "test/t.jpg": drawn(4)},
    )
    found = {(p.kind, p.where, p.row, p.text, p.forbids) for p in check_data(root, workers=2).problems}
    assert found == {
        ("copy", "train.csv", 3, "train/b.jpg has the bytes of train/a.png", False),
        ("copy with other labels", "train.csv", 4, "train/c.webp has the pixels of train/a.png", False),
        (
            "test picture that is a training picture",
            "sample_submission.csv",
            3,
            "test/s.png has the bytes of train/d.png",
            False,
        ),
    }


def test_copies_in_two_sub_folders_of_train_are_both_training_pictures(tmp_path):
    files = {"train/x/a.png": drawn(1), "train/y/b.png": drawn(1), "train/y/c.webp": drawn(2)}
    root = make(tmp_path, **NO_PICTURES, **files)
    assert [kind for kind, _, _ in problems(root)] == ["copy with other labels"]


def test_two_files_for_an_id_in_two_sub_folders_are_named_with_these(tmp_path):
    names = ("x/a.png", "y/a.png", "x/b.jpg", "y/c.webp")
    root = make(tmp_path, **NO_PICTURES | {f"train/{name}": drawn(i) for i, name in enumerate(names)})
    assert "'a': x/a.png, y/a.png" in check_data(root, workers=1).text()


def test_a_test_picture_with_other_labels_than_its_training_copy_is_said(tmp_path):
    tested = {"test.csv": HEAD + b"s,1\nt.jpg,0\nu,0\n", "train/a.png": drawn(1), "test/s.png": drawn(1)}
    kinds = [kind for kind, _, _ in problems(make(tmp_path, **tested))]
    assert kinds == ["test picture that is a training picture, with other labels"]


def test_a_picture_that_is_cut_off_a_little_is_a_warning_and_much_a_problem(tmp_path):
    data = drawn(1)
    little, much = data[: -len(data) // 16], data[: len(data) // 2]
    (warning,) = check_data(make(tmp_path, **{"train/a.png": little}), workers=1).problems
    assert (warning.kind, warning.row, warning.forbids) == ("picture that is cut off", 2, False)
    (problem,) = check_data(make(tmp_path, **{"train/a.png": much}), workers=1).problems
    assert problem.forbids
    assert "of its pixels are missing" in problem.text
