"""What the nodes of a cluster that we join must have in common: our code, and the versions of its libraries.

The code is sent: this package, and nothing else of the checkout. Versions are compared.
"""

import os
from pathlib import Path
from typing import Any

import imet_ray
from imet_ray.errors import ConfigError
from imet_ray.startup import ONE_ARENA
from imet_ray.storage.experiment import versions

PACKAGE = Path(imet_ray.__file__).resolve().parent
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set where `ray job submit` runs us: the code is there already
ANSWER_S = 60.0  # that a node has to answer


def runtime_env() -> dict[str, Any]:
    """Ray's runtime environment for workers on other nodes; a submitted job has its own, which Ray adds this to."""
    if job := os.environ.get(SUBMITTED):
        return {"env_vars": {name: value for name, value in ONE_ARENA.items() if name not in job}}
    return {"py_modules": [str(PACKAGE)], "excludes": ["__pycache__"], "env_vars": ONE_ARENA}


def code_bytes() -> int:
    """Size of the files that are sent to each node, before compression."""
    return sum(file.stat().st_size for file in PACKAGE.rglob("*") if "__pycache__" not in file.parts)


def difference(ours: dict[str, str], theirs: dict[str, str]) -> str:
    """The versions of another node that differ, in words. A patch release of Python does not matter."""
    found = []
    for name in ours.keys() - {"optuna"}:  # the driver alone has studies
        here, there = ours[name], theirs.get(name, "none")
        if name == "python":
            here, there = here.rpartition(".")[0], there.rpartition(".")[0]
        if here != there:
            found.append(f"{name} {there}, here {here}")
    return "; ".join(sorted(found))


def refuse_other_versions() -> int:
    """Ask each node for its versions; how many nodes there are. Nodes that come later are not asked.

    Raises:
        ConfigError: naming the nodes that have other versions, or that do not answer.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def alive() -> dict[str, str]:
        return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}

    ask = ray.remote(num_cpus=0, max_retries=3)(versions)
    answers = {
        node: ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in alive()
    }
    _, late = ray.wait(list(answers.values()), num_returns=len(answers), timeout=ANSWER_S)
    ours, wrong = versions(), []
    nodes = {
        node: address for node, address in alive().items() if node in answers
    }  # not those lost meanwhile
    for node, address in nodes.items():
        if answers[node] in late:
            wrong.append(f"{address} does not answer")
            continue
        try:
            found = difference(ours, ray.get(answers[node]))
        except ray.exceptions.RayError as error:
            found = str(error).strip().splitlines()[-1]
        if found:
            wrong.append(f"{address} has {found}")
    if wrong:
        listed = "\n  ".join(wrong)
        raise ConfigError(
            f"the nodes of this cluster differ:\n  {listed}\nset them up again: ray up cluster.yaml"
        )
    return len(nodes)
