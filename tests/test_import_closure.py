"""The import closure: everything that is needed, nothing else, and no way to ray or optuna."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from imet_ray.errors import ConfigError
from kernel_builder.import_closure import Closure, import_closure

REPOSITORY = Path(__file__).parents[1]
OURS = {name: REPOSITORY / name for name in ("imet_ray", "kernel_builder")}


@pytest.fixture
def closure_of(tmp_path):
    """Writes the modules of a made-up package and follows one of them."""

    def _closure(
        nested: Mapping[str, str] = MappingProxyType({}), *, entry: str = "mine.main", **modules: str
    ) -> Closure:
        for name, text in {"__init__": "", **modules, **nested}.items():
            file = tmp_path / "mine" / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return import_closure(entry, {"mine": tmp_path / "mine"})

    return _closure


def refusal(closure_of, **modules: str) -> str:
    with pytest.raises(ConfigError) as caught:
        closure_of(**modules)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_imported_in_turn_is_there_with_its_source(closure_of):
    found = closure_of(main="import mine.a", a="from mine.b import x", b="x = 'é'", c="")
    assert sorted(found.modules) == ["mine", "mine.a", "mine.b", "mine.main"]
    assert found.modules["mine.b"] == "x = 'é'"


def test_names_stand_in_order_whatever_the_imports_say(closure_of):
    found = closure_of(main="import mine.z, mine.a", a="", z="")
    assert list(found.modules) == ["mine", "mine.a", "mine.main", "mine.z"]


def test_imports_inside_functions_and_branches_count(closure_of):
    source = "def f():\n    try:\n        import mine.a\n    except OSError:\n        from mine import b\n"
    assert {"mine.a", "mine.b"} <= set(closure_of(main=source, a="", b="").modules)


@pytest.mark.parametrize("condition", ["TYPE_CHECKING", "typing.TYPE_CHECKING"])
def test_imports_for_the_type_checker_alone_are_left_out(closure_of, condition):
    source = f"import typing\nif {condition}:\n    import ray, mine.a\nelse:\n    import mine.b\n"
    found = closure_of(main=source, a="", b="")
    assert sorted(found.modules) == ["mine", "mine.b", "mine.main"]


def test_packages_come_with_what_their_init_imports(closure_of):
    found = closure_of(
        {"deep/__init__": "import mine.side", "deep/leaf": ""}, main="import mine.deep.leaf", side=""
    )
    assert sorted(found.modules) == ["mine", "mine.deep", "mine.deep.leaf", "mine.main", "mine.side"]
    assert found.packages == {"mine", "mine.deep"}


def test_a_name_of_a_package_is_a_submodule_or_one_of_its_own_names(closure_of):
    nested = {"deep/__init__": "value = 1", "deep/leaf": "", "deep/other": ""}
    found = closure_of(nested, main="from mine.deep import leaf, value")
    assert sorted(found.modules) == ["mine", "mine.deep", "mine.deep.leaf", "mine.main"]


def test_relative_imports_are_followed(closure_of):
    nested = {
        "deep/__init__": "from . import leaf",
        "deep/leaf": "from .. import a",
        "deep/other": "from .leaf import a\nfrom ..b import x",
    }
    found = closure_of(nested, main="import mine.deep.other", a="", b="x = 1")
    assert {"mine.deep.leaf", "mine.deep.other", "mine.a", "mine.b"} <= set(found.modules)


def test_modules_that_import_each_other_end(closure_of):
    assert len(closure_of(main="import mine.a", a="import mine.main").modules) == 3


@pytest.mark.parametrize("source", ["import mine.gone", "from mine.gone import x"])
def test_a_missing_module_is_named_with_who_wants_it(closure_of, source):
    text = refusal(closure_of, main=source)
    assert text.startswith("mine.main imports ")
    assert "gone" in text


def test_an_entry_that_is_not_there_is_refused(closure_of):
    with pytest.raises(ConfigError, match="the entry imports mine.gone, which is not there"):
        closure_of(entry="mine.gone")


@pytest.mark.parametrize(
    ("source", "name"), [("import ray.tune", "ray"), ("from optuna import Trial", "optuna")]
)
def test_ray_and_optuna_are_refused_with_the_module_that_imports_them(closure_of, source, name):
    text = refusal(closure_of, main="import mine.a", a="import mine.b", b=f"def f():\n    {source}")
    assert text == f"a kernel must do without {name}, which mine.b imports: remove that import"


def test_the_real_prediction_needs_neither_ray_nor_optuna():
    found = import_closure("imet_ray.prediction.predict", OURS)
    assert "imet_ray.models.models" in found.modules
    assert "imet_ray.cluster" not in found.modules


def test_the_sweep_cannot_go_into_a_kernel():
    with pytest.raises(
        ConfigError, match=r"must do without (ray|optuna), which imet_ray\.cluster\.\w+ imports"
    ):
        import_closure("imet_ray.cluster.trial", OURS)
