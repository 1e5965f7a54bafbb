"""Names and metadata as Kaggle's client takes them (rules of version 2.2.5), and files shared among datasets."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imet_ray.errors import ConfigError
from kernel_builder.kaggle import dataset_metadata, kernel_metadata, slug, split_files, user_of


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home without settings."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def save_user(folder, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "kaggle.json").write_text(text)


def kernel(title: str = "imet ray demo", **changed):
    given = {
        "code_file": "kernel.py",
        "competition": None,
        "accelerator": "NvidiaTeslaT4",
    } | changed
    return kernel_metadata("ann", title, **given)


def test_the_user_is_the_given_one_then_the_environments_then_the_files(home, monkeypatch):
    save_user(home / ".kaggle", '{"username": "carl", "key": "k"}')
    assert user_of(None) == "carl"
    monkeypatch.setenv("KAGGLE_USERNAME", "bob")
    assert user_of(None) == "bob"
    assert user_of("ann") == "ann"


@pytest.mark.parametrize("folder", [".kaggle", ".config/kaggle"])
def test_the_users_file_is_found_where_the_client_looks(home, folder):
    save_user(home / folder, '{"username": "carl"}')
    assert user_of(None) == "carl"


def test_the_clients_folder_may_be_named(home, monkeypatch):
    save_user(home / "elsewhere", '{"username": "dora"}')
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(home / "elsewhere"))
    assert user_of(None) == "dora"


def test_no_user_anywhere_says_what_to_do(home):
    with pytest.raises(ConfigError, match="--user NAME, set KAGGLE_USERNAME, or put .*kaggle.json"):
        user_of(None)


def test_a_user_of_the_machine_without_a_home_is_told_so_too(monkeypatch):
    for name in ("HOME", "KAGGLE_USERNAME", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # of nobody
    with pytest.raises(ConfigError, match="--user NAME, set KAGGLE_USERNAME, or put"):
        user_of(None)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"username": 3}', '{"username": "a/b"}'])
def test_a_file_that_names_no_user_is_refused(home, text):
    save_user(home / ".kaggle", text)
    with pytest.raises(ConfigError, match="kaggle.json"):
        user_of(None)


@pytest.mark.parametrize("name", ["", "a b", "ann/weights", "../x"])
def test_what_cannot_be_a_user_is_refused(name):
    with pytest.raises(ConfigError, match="--user"):
        user_of(name)


@pytest.mark.parametrize(
    ("text", "short"),
    [("iMet Ray: Demo!", "imet-ray-demo"), ("a__b--c", "a-b-c"), ("Café 2", "cafe-2"), ("-x-", "x")],
)
def test_slugs_are_plain(text, short):
    assert slug(text) == short


def test_a_name_of_which_nothing_is_left_is_refused():
    with pytest.raises(ConfigError, match="give another --title"):
        slug("日本 !")


@given(st.text())
def test_a_slug_is_its_own_slug(text):
    try:
        short = slug(text)
    except ConfigError:
        return
    assert slug(short) == short


def test_a_dataset_has_what_the_client_demands():
    metadata = dataset_metadata("ann", "iMet weights 1")
    assert metadata["id"] == "ann/imet-weights-1"
    assert metadata["title"] == "iMet weights 1"
    assert metadata["licenses"] == [{"name": "copyright-authors"}]
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize("length", [6, 50])
def test_titles_of_datasets_have_6_to_50_characters(length):
    assert dataset_metadata("ann", "x" * length)["title"] == "x" * length


@pytest.mark.parametrize("title", ["x" * 5, "x" * 51, "a     b", "日本日本日本a"])
def test_other_titles_of_datasets_are_refused(title):
    with pytest.raises(ConfigError, match="must have 6 to 50 characters, got"):
        dataset_metadata("ann", title)


def test_a_kernel_is_a_private_python_script_without_internet():
    metadata = kernel(competition="imet-2019-fgvc6")
    assert (metadata["language"], metadata["kernel_type"], metadata["code_file"]) == (
        "python",
        "script",
        "kernel.py",
    )
    assert (metadata["is_private"], metadata["enable_internet"], metadata["enable_gpu"]) == (
        True,
        False,
        True,
    )
    assert metadata["competition_sources"] == ["imet-2019-fgvc6"]
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize("title", ["iMet Ray: Demo", "imet-ray-demo", "Un été, 2,000 fois"])
def test_a_kernels_title_resolves_to_its_name(title):
    metadata = kernel(title)
    assert metadata["id"] == f"ann/{slug(metadata['title'])}"


@pytest.mark.parametrize("title", ["x" * 4, "x" * 51])
def test_kernels_titles_have_5_to_50_characters(title):
    with pytest.raises(ConfigError, match="a kernel's title must have 5 to 50 characters"):
        kernel(title)


def test_a_competition_is_named_by_its_slug():
    with pytest.raises(ConfigError, match="page's URL"):
        kernel(competition="https://www.kaggle.com/c/imet")


def test_files_fill_the_first_dataset_with_room():
    sizes = [("a", 6), ("b", 6), ("c", 4), ("d", 4)]
    assert split_files(sizes, 10) == [["a", "c"], ["b", "d"]]


def test_a_file_above_the_limit_is_one_line_that_says_what_to_do():
    with pytest.raises(ConfigError) as caught:
        split_files([("a", 4), ("b-f0.safetensors", 25_000)], 20_000)
    assert str(caught.value) == (
        "b-f0.safetensors has 25,000 bytes, more than the 20,000 of a dataset: store it with --dtype float16, "
        "blend without its variant, or raise --max-dataset-bytes"
    )


def test_no_files_make_no_dataset():
    assert split_files([], 10) == []


@given(st.lists(st.integers(0, 100)), st.integers(100, 300))
def test_each_file_is_in_one_dataset_and_none_has_more_than_the_limit(lengths, limit):
    sizes = {f"f{i}": length for i, length in enumerate(lengths)}
    found = split_files(list(sizes.items()), limit)
    assert all(one and sum(sizes[name] for name in one) <= limit for one in found)
    assert sorted(name for one in found for name in one) == sorted(sizes)


@given(st.lists(st.integers(1, 10)), st.integers(10, 20))
def test_at_most_one_dataset_is_less_than_half_full(lengths, limit):
    sizes = {f"f{i}": length for i, length in enumerate(lengths)}
    found = split_files(list(sizes.items()), limit)
    assert sum(2 * sum(sizes[name] for name in one) <= limit for one in found) <= 1
