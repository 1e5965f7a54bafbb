"""The check of a data directory, for a person: its report, its page, and what a space would add to its labels."""

from pathlib import Path

from imet_ray.cores import usable_cores
from imet_ray.data.catalog import Catalog
from imet_ray.data.check import check_data as check_directory
from imet_ray.errors import ConfigError
from imet_ray.search_space import SearchSpace
from imet_ray.space_file import read_space
from imet_ray.storage.run_directory import Cache
from imet_ray.storage.runs import Runs
from imet_ray.training.pseudo_labels import described, source_at
from imet_ray.training.recipe import check_recipe
from imet_ray.units import as_typed


def check_data(
    root: Path,
    cache: Cache,
    *,
    negatives: bool,
    page: Path | None = None,
    space: Path | None = None,
    runs: Runs,
) -> int:
    """Print the report on a data directory; 1 if it must not be trained on.

    Args:
        negatives: pictures without labels have none of them; else they are a problem.
        page: where the report with figures and pictures goes; None: nowhere.
        space: whose pseudo-labels are counted; None: none are.
        runs: where it looks for ensembles that they come from.
    """
    if page is not None and (page.is_dir() or not page.parent.is_dir()):  # before all pictures are decoded
        raise ConfigError(f"--report takes a file in a folder that is there, such as page.html, got {page}")
    counted = read_space(space, check=check_recipe) if space is not None else None
    report = check_directory(root, workers=usable_cores(), cache=cache, negatives=negatives)
    print(report.text())
    if counted is not None and report.catalog is not None:
        _count_pseudo_labels(counted, report.catalog, runs)
    if page is not None:
        # Here: matplotlib takes a second to import, and no other stage that begins here draws.
        from imet_ray.reporting.data_page import write_data_page

        write_data_page(page, report)
        print(f"page          {as_typed(page.resolve())}")
    return 1 if report.forbids else 0


def _count_pseudo_labels(space: SearchSpace, catalog: Catalog, runs: Runs) -> None:
    """Print a line for each variant that learns from some."""
    for variant in space.variants:
        if variant.added is not None:
            source = source_at(runs.run(space.name), variant.added)
            print(f"labels        {described(variant, catalog.labels, source, catalog.train.ids)}")
