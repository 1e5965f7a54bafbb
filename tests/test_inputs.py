"""What a kernel finds under its input folder."""

import io
from pathlib import Path

import pytest

from imet_ray.data.competition_files import sample_header
from imet_ray.data.formats import read_catalog
from imet_ray.errors import ConfigError, DataError, StoreError
from imet_ray.storage.encryption import Secret, encrypt
from kernel_builder.runtime.inputs import all_files, find_test
from kernel_builder.runtime.locate_weights import find_secret

SAMPLE = "id,attribute_ids\na,0\nb,1\n"


def competition(root: Path, *pictures: str, sample: str = SAMPLE) -> Path:
    (root / "test").mkdir(parents=True)
    for name in pictures:
        (root / "test" / name).write_bytes(b"")
    (root / "sample_submission.csv").write_text(sample)
    return root


def test_the_pictures_are_in_the_samples_order_and_a_missing_one_is_named(tmp_path):
    competition(tmp_path / "c", "a.png")
    found = find_test(all_files(tmp_path))
    assert found.ids == ("a", "b")
    assert [file.name for file in found.files] == ["a.png", "b"]


def test_the_kernel_finds_pictures_as_the_check_does(tmp_path):
    decomposed, composed = "Ka\u0308the", "K\u00e4the"
    names = (f"{decomposed}.png", "b.JPG", "c.tif", "._c.tif")
    competition(tmp_path / "c", *names, sample=f"id,attribute_ids\n{composed},0\nb.jpg,1\nc,0\n")
    found = find_test(all_files(tmp_path))
    assert [file.name for file in found.files] == list(names[:3])


def test_a_sample_beside_its_pictures_is_preferred_to_one_that_is_nearer(tmp_path):
    (tmp_path / "sample_submission.csv").write_text("id\nz\n")
    competition(tmp_path / "deep" / "competition", "a.png", "b.jpg")
    assert find_test(all_files(tmp_path)).ids == ("a", "b")


@pytest.mark.parametrize("sample", ["sample_submission.csv", "sampleSubmission.csv", "SampleSubmission.csv"])
@pytest.mark.parametrize("folder", ["test", "test_images", "test/test", "test/a"])
@pytest.mark.parametrize(
    "header", ["id,attribute_ids", "id,labels", "image_id,tags", "id,attribute_ids,Usage"]
)
def test_a_competition_is_found_by_the_kernel_as_by_the_check_whatever_its_names(
    tmp_path, sample, folder, header
):
    for part, names in ((folder, "ab"), (folder.replace("test", "train"), "cd")):
        (tmp_path / part).mkdir(parents=True)
        for name in names:
            (tmp_path / part / f"{name}.png").write_bytes(b"")
    (tmp_path / "train.csv").write_text("id,attribute_ids\nc,0\nd,1\n")
    usage = ",Public" if "Usage" in header else ""
    (tmp_path / sample).write_text(f"{header}\nb,0{usage}\na,1{usage}\n")
    found, checked = find_test(all_files(tmp_path)), read_catalog(tmp_path).test
    assert found.ids == checked.ids == ("b", "a")
    assert [file.resolve() for file in found.files] == [file.resolve() for file in checked.files]
    assert found.header == sample_header(tmp_path / sample) == tuple(header.split(",")[:2])


def test_an_empty_folder_of_pictures_hides_no_other(tmp_path):
    competition(tmp_path, "a.png", "b.jpg")
    (tmp_path / "test").rename(tmp_path / "test_images")
    (tmp_path / "test").mkdir()
    assert find_test(all_files(tmp_path)).files[0] == tmp_path / "test_images" / "a.png"


def test_pictures_in_an_archive_are_named_by_the_kernel_and_by_the_check(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.zip").write_bytes(b"PK")
    (tmp_path / "train.csv").write_text("id,attribute_ids\nc,0\n")
    (tmp_path / "sample_submission.csv").write_text(SAMPLE)
    with pytest.raises(DataError, match=r"test\.zip is there: unpack it"):
        find_test(all_files(tmp_path))
    with pytest.raises(DataError, match=r"(?s)train\.zip: unpack it into train/.*test\.zip: unpack it"):
        read_catalog(tmp_path)


def test_one_name_in_two_sub_folders_is_refused(tmp_path):
    for part in ("train/1", "train/2"):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "c.png").write_bytes(b"")
    (tmp_path / "train.csv").write_text("id,attribute_ids\nc,0\n")
    with pytest.raises(DataError, match="several files for an id"):
        read_catalog(tmp_path)


def test_without_any_of_its_pictures_nothing_is_predicted(tmp_path):
    competition(tmp_path / "c", "other.png")
    with pytest.raises(
        DataError, match=r"none of the 2 .*/c/test: it has 1 others, such as other\.png, and .* 'a'"
    ):
        find_test(all_files(tmp_path))


def test_where_the_folder_of_pictures_has_another_name_those_that_are_there_are_named(tmp_path):
    competition(tmp_path / "c", "a.png")
    (tmp_path / "c" / "test").rename(tmp_path / "c" / "Bilder")
    with pytest.raises(DataError, match=r"there is no folder test/, but Bilder/: attach"):
        find_test(all_files(tmp_path))


def test_a_sample_that_is_not_whole_is_refused(tmp_path):
    competition(tmp_path / "c", "a.png", sample='id,attribute_ids\na,0\n"b,1,2,3\n')
    with pytest.raises(DataError, match="cannot be read: .* a submission must have all of its rows"):
        find_test(all_files(tmp_path))


def test_a_sample_with_a_byte_order_mark_or_another_column_is_read(tmp_path):
    competition(tmp_path / "c", "a.png", sample="\ufeffid,attribute_ids,Usage\na,0,Public\nb,1,Private\n")
    assert find_test(all_files(tmp_path)).ids == ("a", "b")


def test_of_two_competitions_the_other_one_is_named(tmp_path, caplog):
    competition(tmp_path / "acomp", "a.png")
    competition(tmp_path / "imet", "a.png")
    (tmp_path / "sample_submission.csv").write_text("id\nz\n")  # without pictures
    assert find_test(all_files(tmp_path)).files[0].parent == tmp_path / "acomp" / "test"
    assert caplog.messages == [f"the pictures of {tmp_path / 'acomp'}, not those of {tmp_path / 'imet'}"]


def test_of_two_competitions_the_kernels_own_is_taken(tmp_path, caplog):
    competition(tmp_path / "acomp", "a.png")
    competition(tmp_path / "competitions" / "imet", "a.png")
    competition(tmp_path / "competitions" / "iwildcam", "a.png")
    found = find_test(all_files(tmp_path), "imet")
    assert found.files[0].parent == tmp_path / "competitions" / "imet" / "test"
    assert caplog.messages == []


def test_data_under_another_name_than_the_competitions_are_found(tmp_path, caplog):
    competition(tmp_path / "copy", "a.png")
    assert find_test(all_files(tmp_path), "imet").files[0].parent == tmp_path / "copy" / "test"
    assert caplog.messages == []


def test_one_competition_is_no_warning(tmp_path, caplog):
    competition(tmp_path / "c", "a.png")
    (tmp_path / "sample_submission.csv").write_text("id\nz\n")
    find_test(all_files(tmp_path))
    assert caplog.messages == []


def test_weights_are_looked_for_in_folders_of_any_name_but_not_among_pictures_and_never_in_circles(tmp_path):
    competition(tmp_path / "c", "a.png")
    for name in ("test", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.safetensors").write_bytes(b"")
    (tmp_path / "circle").symlink_to(tmp_path)
    names = [path.name for path in all_files(tmp_path)]
    assert names == ["sample_submission.csv", "test.safetensors", "train.safetensors"]


def sealed(root: Path, secret: Secret) -> Path:
    target = io.BytesIO()
    encrypt(io.BytesIO(b"weights"), target, secret)
    path = root / "w.encrypted"
    path.write_bytes(target.getvalue())
    return path


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


def test_of_several_key_files_the_one_that_opens_the_weights_is_taken(tmp_path):
    right, other = Secret.new(), Secret.new()
    files = []
    for name, secret in (("1", other), ("2", right)):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "imet_ray.key")
        files[-1].write_text(secret.text)
    (tmp_path / "0").mkdir()
    files.insert(0, tmp_path / "0" / "imet_ray.key")
    files[0].write_text("not ours")
    files.insert(0, tmp_path / "gone" / "imet_ray.key")
    found = sealed(tmp_path, right)
    assert find_secret([found], None, files) == right
    with pytest.raises(StoreError, match="w.encrypted cannot be decrypted: a wrong key"):
        find_secret([found], None, files[:3])


def test_without_a_key_it_is_said_where_one_may_be(tmp_path):
    found = sealed(tmp_path, Secret.new())
    with pytest.raises(ConfigError, match="the weights are encrypted: set IMET_RAY_KEY"):
        find_secret([found], None, [tmp_path / "other.key"])


def test_a_key_file_that_is_none_is_one_line_with_its_name(tmp_path):
    path = tmp_path / "imet_ray.key"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=f"{path}: a key must read imet-ray-key-1:"):
        find_secret([sealed(tmp_path, Secret.new())], None, [path])
