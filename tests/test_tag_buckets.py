"""--tag of pictures in a bucket: found below a folder, read once, tagged as if they lay here."""

import io
import shutil

import pytest

import launch
from imet_ray.errors import ConfigError, DataError
from imet_ray.tagging.pictures import Found, find_pictures
from imet_ray.tagging.tables import TABLES


@pytest.fixture
def url(bucket, proxy, tiny_catalog) -> str:
    """Three pictures in two folders, and what is none."""
    files = tiny_catalog.test.files[:3]
    names = [f"in/{'deep/' if i else ''}{i}{file.suffix}" for i, file in enumerate(files)]
    objects = {name: file.read_bytes() for name, file in zip(names, files, strict=True)}
    proxy.store.put(bucket, objects | {"in/notes.txt": b"no picture", "other/x.jpg": b"elsewhere"})
    return f"{proxy.scheme}://{bucket}"


def test_pictures_of_a_bucket_are_tagged_as_those_that_lie_here(url, swept, trained, tiny_catalog, tmp_path):
    found = find_pictures([f"{url}/in"], io.BytesIO())
    assert [one.path.removeprefix(f"{url}/in/").partition(".")[0] for one in found] == [
        "0",
        "deep/1",
        "deep/2",
    ]
    assert [one.read() for one in found] == [file.read_bytes() for file in tiny_catalog.test.files[:3]]
    one = find_pictures([found[1].path], io.BytesIO())
    assert one == [found[1]]
    for file in tiny_catalog.test.files[:3]:
        shutil.copy(file, tmp_path)
    ensemble = str(trained.run.store.ensemble("k").root)
    for given, out in (
        ([one.path for one in found], "bucket.csv"),
        (map(str, tiny_catalog.test.files[:3]), "here.csv"),
    ):
        assert launch.main(["--tag", *given, "--with", ensemble, "--out", str(tmp_path / out)]) == 0
    theirs, here = (TABLES[".csv"].read(tmp_path / name) for name in ("bucket.csv", "here.csv"))
    assert [row.labels for row in theirs] == [row.labels for row in here]
    assert [row.path for row in theirs] == [one.path for one in found]


def test_a_key_may_have_what_addresses_of_other_kinds_have(url, bucket, proxy):
    key = "at/a@2x #1?.jpg"
    proxy.store.put(bucket, {key: b"picture"})
    (found,) = find_pictures([f"{url}/at"], io.BytesIO())
    assert (found.path, found.read()) == (f"{url}/{key}", b"picture")


def test_an_object_of_a_list_that_is_gone_is_told_of_at_the_end(url):
    listed = f"{url}/in/gone.jpg\n{url}/in/deep\n".encode()
    found = [one.path.removeprefix(f"{url}/in/") for one in find_pictures(["-"], io.BytesIO(listed))]
    assert found[0] == "gone.jpg"
    assert [one.partition(".")[0] for one in found[1:]] == ["deep/1", "deep/2"]


def test_what_a_bucket_lacks_is_said(url):
    with pytest.raises(ConfigError, match="there is no picture below"):
        find_pictures([f"{url}/nothing"], io.BytesIO())
    with pytest.raises(DataError, match="no such object"):
        Found(f"{url}/in/gone.jpg").read()
