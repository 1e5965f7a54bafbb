"""`python -m kernel_builder keygen | encrypt | decrypt`: files that come back as they were, or one line."""

import pytest

from imet_ray.storage.encryption import Secret
from kernel_builder.__main__ import main

WEIGHTS = b"weights" * 1000


@pytest.fixture
def call(capsys):
    def _call(*argv):
        capsys.readouterr()
        code = main([str(arg) for arg in argv])
        out = capsys.readouterr()
        return code, out.out, out.err

    return _call


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file, and a key in the environment."""
    monkeypatch.delenv("IMET_RAY_PASSPHRASE", raising=False)
    monkeypatch.setenv("IMET_RAY_KEY", Secret.new().text)
    path = tmp_path / "w.safetensors"
    path.write_bytes(WEIGHTS)
    return path


def test_keygen_prints_a_key_of_256_bits_and_never_the_same(call):
    texts = [call("keygen")[1].strip() for _ in range(2)]
    assert texts[0] != texts[1]
    assert [len(Secret.parse(text).key) for text in texts] == [32, 32]


@pytest.mark.parametrize("name", ["IMET_RAY_KEY", "IMET_RAY_PASSPHRASE"])
def test_what_is_encrypted_is_decrypted_to_the_same_bytes(call, file, monkeypatch, name):
    if name == "IMET_RAY_PASSPHRASE":
        monkeypatch.delenv("IMET_RAY_KEY")
        monkeypatch.setenv(name, "correct horse")
    sealed = file.with_name("w.safetensors.encrypted")
    assert call("encrypt", file) == (0, f"{sealed}\n", "")
    assert WEIGHTS[:14] not in sealed.read_bytes()
    file.unlink()
    assert call("decrypt", sealed) == (0, f"{file}\n", "")
    assert file.read_bytes() == WEIGHTS
    assert call("decrypt", sealed, "--out", file.with_name("other"))[0] == 0
    assert file.with_name("other").read_bytes() == WEIGHTS


def test_a_wrong_key_or_an_altered_file_is_one_line_with_its_name_and_leaves_nothing(call, file, monkeypatch):
    sealed = file.with_name("w.safetensors.encrypted")
    call("encrypt", file)
    file.unlink()
    before = sorted(path.name for path in file.parent.iterdir())
    right = Secret.new().text
    monkeypatch.setenv("IMET_RAY_KEY", right)
    code, out, err = call("decrypt", sealed)
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert f"{sealed} cannot be decrypted: a wrong key" in err
    assert right not in err
    sealed.write_bytes(sealed.read_bytes()[:-3])
    assert call("decrypt", sealed)[0] == 1
    assert sorted(path.name for path in file.parent.iterdir()) == before


def test_mistakes_are_one_line(call, file, monkeypatch, tmp_path):
    sealed = file.with_name("w.safetensors.encrypted")
    call("encrypt", file)
    for argv, expected in (
        (("encrypt", file), f"{sealed} is there already: delete it, or name another with --out"),
        (("decrypt", sealed), f"{file} is there already"),
        (("decrypt", file), f"{file} does not end in .encrypted: say with --out where the plain file goes"),
        (("encrypt", tmp_path / "none"), f"cannot read {tmp_path / 'none'}: No such file"),
        (("encrypt", "."), ". is a folder: name a file"),
        (("decrypt", tmp_path), f"{tmp_path} is a folder: name a file"),
    ):
        code, out, err = call(*argv)
        assert (code, out, len(err.splitlines())) == (1, "", 1)
        assert expected in err
    monkeypatch.delenv("IMET_RAY_KEY")
    code, _, err = call("encrypt", file)
    assert code == 1
    assert "no key: put one of `python -m kernel_builder keygen` into IMET_RAY_KEY" in err
    monkeypatch.setenv("IMET_RAY_KEY", "abc")
    code, _, err = call("encrypt", file)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "abc" not in err


def test_the_help_names_all_that_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(word in out for word in ("--train", "--take", "keygen", "encrypt", "decrypt", "--dry-run"))
