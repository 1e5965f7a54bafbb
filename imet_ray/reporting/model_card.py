"""The model card of an exported ensemble: what it scores, learned from, is made of, and must not be trusted with.

The text opens with the metadata that the Hugging Face hub reads. Paths of this machine are left out.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from imet_ray.data.catalog import Catalog
from imet_ray.prediction.decode import Decoder
from imet_ray.prediction.ensemble import Ensemble, EnsembleMember
from imet_ray.prediction.metrics import Metric, metric_named
from imet_ray.reporting.error_analysis import LabelCounts, count_labels
from imet_ray.specs import WEIGHTS, TrialSpec, Variant
from imet_ray.storage.experiment import Experiment

SHOWN_LABELS = 25  # the commonest ones
TAGS = ["image-classification", "multi-label", "image-tagging"]
NUMBER = re.compile(r"[\d,.]+( ± [\d.]+)?$")
SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")


@dataclass(frozen=True)
class Evidence:
    """What only the training data can tell."""

    counts: LabelCounts  # out of fold, decoded as the ensemble decodes
    interval: float  # half of the 95 % interval of the score, over pictures
    per_picture: float  # labels
    without: int  # pictures that have none


@dataclass(frozen=True)
class CardFacts:
    """What the card tells."""

    ensemble: Ensemble
    experiment: Experiment
    members: Sequence[EnsembleMember]  # that are needed
    specs: Mapping[str, TrialSpec]  # by trial id
    label_names: Sequence[str]
    evidence: Evidence | None  # None: the data are not there
    onnx: Mapping[str, float]  # by trial id: how far from torch; empty: there are no such files
    tolerance: float  # of that
    compared: str  # which pictures both were shown
    hub: Mapping[str, Sequence[str]]  # by trial id: folders for timm
    command: str  # that tags with it


def evidence(probs: np.ndarray, catalog: Catalog, decoder: Decoder, metric: Metric) -> Evidence:
    """Judge the ensemble's out-of-fold probabilities.

    Args:
        probs: (N, C) float32, in the order of the training pictures.
    """
    rows = 4096
    each = np.concatenate(
        [
            metric.per_picture(decoder.decode(probs[i : i + rows]), catalog.labels[i : i + rows])
            for i in range(0, len(probs), rows)
        ]
    )
    return Evidence(
        counts=count_labels(probs, catalog.labels, decoder),
        interval=float(1.96 * each.std(ddof=1) / np.sqrt(len(each))),
        per_picture=float(catalog.labels.sum() / len(catalog.labels)),
        without=int((~catalog.labels.any(axis=1)).sum()),
    )


def model_card(facts: CardFacts) -> str:
    """The text of README.md."""
    metric = metric_named(facts.experiment.space.metric)
    n_models, n_labels = sum(len(member.trials) for member in facts.members), len(facts.label_names)
    lines = [
        f"---\n{_metadata(facts, metric)}\n---",
        f"# {_plain(facts.ensemble.name)}: {n_labels:,} labels for pictures",
        f"An ensemble of {len(facts.members)} variants, {n_models} models in all. It gives a picture any number of "
        f"{n_labels:,} labels. Made by imet_ray {facts.experiment.versions.get('imet_ray', '')}.",
        "## What it scores",
        *_scores(facts, metric),
        *_labels(facts, metric),
        "## What it learned from",
        *_data(facts),
        "## What it is made of",
        *_members(facts),
        "## How a picture gets its labels",
        *_decision(facts),
        "## What to keep in mind",
        *_limits(facts),
        "## Use",
        f"    {facts.command}",
        "In Python:",
        '    import imet_ray\n\n    imet_ray.load("DIR").predict(["picture.jpg"])',
        "## Files",
        *_files(facts),
    ]
    return "\n\n".join(lines) + "\n"


def _metadata(facts: CardFacts, metric: Metric) -> str:
    data = Path(facts.experiment.data).name
    result = EvalResult(
        task_type="image-classification",
        task_name="Multi-label classification",
        dataset_type=re.sub(r"[^A-Za-z0-9._-]+", "-", data).strip("-.") or "pictures",
        dataset_name=data or "pictures",
        dataset_split="train, out of fold",
        metric_type=metric.title.lower(),
        metric_name=f"{metric.title}, nested",
        metric_value=round(float(facts.ensemble.report.get("nested", 0.0)), 4),
    )
    of_timm = ["timm"] if facts.hub else []
    return ModelCardData(
        library_name="imet-ray",
        pipeline_tag="image-classification",
        tags=[*TAGS, *of_timm],
        model_name=facts.ensemble.name,
        eval_results=[result],
    ).to_yaml()


def _scores(facts: CardFacts, metric: Metric) -> list[str]:
    report = facts.ensemble.report
    uniform = [
        row for row in report.get("rows", ()) if row.get("method") == "uniform" and not row.get("is_single")
    ]
    single = report.get("single") or {}
    within = f" ± {facts.evidence.interval:.4f}" if facts.evidence is not None else ""
    rows = [("this ensemble", f"{report['nested']:.4f}{within}")] if "nested" in report else []
    if single:
        rows.append((f"the best single variant, {_plain(single['method'])}", f"{single['nested']:.4f}"))
    if uniform:
        rows.append(("the same variants with equal weights", f"{max(row['nested'] for row in uniform):.4f}"))
    interval = " ± is its 95 % interval over pictures." if within else ""
    words = [*str(report.get("verdict", "")).splitlines()[:-1], *report.get("remarks", ())]
    return [
        _table(("", f"{metric.title}, nested"), rows),
        f"Nested: weights and decoder were fitted without the fold that is scored, and each picture was predicted by "
        f"models that never saw it.{interval} What {metric.title} a new collection gives depends on how like these "
        "pictures it is.",
        *(f"{_plain(word[:1].upper() + word[1:])}." for word in words),
    ]


def _labels(facts: CardFacts, metric: Metric) -> list[str]:
    if facts.evidence is None:
        return []
    counts = facts.evidence.counts
    commonest = np.argsort(-counts.true, kind="stable")[:SHOWN_LABELS]
    each = np.eye(len(counts.true), dtype=bool)
    rows = [
        (
            _plain(facts.label_names[i]),
            f"{counts.true[i]:,}",
            f"{counts.chosen[i]:,}",
            f"{counts.hits[i]:,}",
            f"{counts.score(each[i], metric):.3f}",
        )
        for i in commonest
    ]
    head = ("label", "pictures that have it", "that got it", "both", metric.title)
    return [
        f"Out of fold, the {len(rows)} commonest labels:" if len(rows) < len(counts.true) else "Out of fold:",
        _table(head, rows),
    ]


def _data(facts: CardFacts) -> list[str]:
    ensemble, experiment, known = facts.ensemble, facts.experiment, facts.evidence
    pictures = ensemble.report.get("pictures")
    items = [
        f"{pictures:,} training pictures" if pictures is not None else "",
        f"{len(ensemble.label_ids):,} labels",
    ]
    if known is not None:
        items.append(f"{known.per_picture:.1f} labels per picture")
        items += [f"{known.without:,} pictures without labels"] * bool(known.without)
    digests = f"`{ensemble.data_digest[:16]}`; of the folds: `{ensemble.folds_digest[:16]}`"
    sample = experiment.limit is not None
    return [
        f"{_plain(Path(experiment.data).name)}: {', '.join(item for item in items if item)}. Digest of pictures and "
        f"labels: {digests}.",
        *["It is a sample of a larger collection, for a first look."] * sample,
        f"{experiment.space.n_folds} folds, drawn with seed {experiment.space.seed} so that each has its share of each "
        "label and copies of a picture lie in one fold, unless the run was given folds of its own. Each model learned "
        "from all folds but one.",
        *(
            ["The data were not there when this was written: counts of labels are left out."]
            * (known is None)
        ),
    ]


def _members(facts: CardFacts) -> list[str]:
    rows = []
    for member in facts.members:
        recipes = [facts.specs[trial].recipe for trial in member.trials]
        recipe = recipes[0]
        rows.append(
            (
                _plain(member.variant),
                _plain(recipe.architecture),
                f"{recipe.image_size}",
                f"{recipe.epochs}",
                f"{len(recipes)}",
                _origin(facts.specs[member.trials[0]].variant),
                "level 2" if facts.ensemble.level2 is not None else f"{member.weight:.3f}",
                f"{member.score:.4f}",
            )
        )
    head = ("variant", "architecture", "pixels", "epochs", "models", "trained from", "weight", "alone")
    return [_table(head, rows)]


def _origin(variant: Variant) -> str:
    """What training began from; the path of a file may be private."""
    if variant.added is not None:
        return f"{_origin(variant.model_copy(update={'labels': None}))}, with pseudo-labels"
    if variant.parent is not None:
        return f"variant {_plain(variant.parent)}"
    names = dict(
        zip(WEIGHTS, ("timm's weights", "weights of a Python package", "random weights"), strict=True)
    )
    return names.get(str(variant.weights), "a file of weights")


def _decision(facts: CardFacts) -> list[str]:
    ensemble = facts.ensemble
    views = (
        f"the views {ensemble.views}"
        if ensemble.views is not None
        else "its own views ("
        + "; ".join(sorted({", ".join(spec.recipe.views) for spec in facts.specs.values()}))
        + ")"
    )
    blended = f"variants are averaged as {ensemble.scale} with the weights above"
    if ensemble.level2 is not None:
        blended = f"level 2 ({ensemble.level2.stacker}), a model over the variants' probabilities, makes one of them"
    empty = "may have no label" if ensemble.decoder.negatives else "gets one label or more"
    return [
        f"Each model sees the picture in {views}, and its probabilities are averaged over these. The models of a "
        f"variant are averaged; {blended}. The set of labels is decided by: {_plain(str(ensemble.decoder))}. A "
        f"picture {empty}."
    ]


def _limits(facts: CardFacts) -> list[str]:
    pretrained = sorted({_origin(spec.variant) for spec in facts.specs.values()} - {"random weights"})
    began = (
        f" Training began from {', '.join(pretrained)}: their licence and their bias come with it."
        if pretrained
        else ""
    )
    items = [
        "It knows these labels and no others, and pictures like those that it learned from." + began,
        "Labels of collections are often incomplete. Where annotators left labels out, it learned to leave them out, "
        "and what counts as its mistake may be right. The score counts each missing label against it.",
        "Rare labels were learned from few pictures: look at their probabilities before you rely on them.",
        "Probabilities are "
        + ("calibrated on held-out pictures" if facts.ensemble.calibration is not None else "not calibrated")
        + "; sets of labels are decided on those that the models give.",
        "It was trained to propose labels that a person checks. Do not use it to decide about people.",
    ]
    return ["\n".join(f"- {item}" for item in items)]


def _files(facts: CardFacts) -> list[str]:
    rows = [
        (f"`weights/{trial}.safetensors`", _plain(member.variant), f"{facts.specs[trial].fold}")
        for member in facts.members
        for trial in member.trials
    ]
    found = [
        "`ensemble.json`: members, weights, decoder, and all that the blend found. `labels.csv`: the labels. "
        "`weights/`: a file per model, whose header says how it was trained.",
        _table(("file", "variant", "held-out fold"), rows),
    ]
    if facts.onnx:
        worst = max(facts.onnx.values())
        found.append(
            "`onnx/`: the same models for ONNX Runtime. The input `pictures` is uint8, (N, 3, size, size), RGB, any N: "
            "the normalisation is inside. The output `probabilities` is float32, (N, labels). On "
            f"{facts.compared} no probability was further than {worst:.1e} from torch's; the tolerance is "
            f"{facts.tolerance:g}. Labels stand in the file's metadata."
        )
    if facts.hub:
        example = next(iter(facts.hub.values()))[0]
        found.append(
            "`hub/`: the same models for timm, a folder each; where a model is the mean of several, a folder for each "
            "of these. Labels stand in `pretrained_cfg`. timm gives logits of normalised pictures:"
        )
        found.append(f'    timm.create_model("local-dir:DIR/hub/{example}", pretrained=True)')
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of numbers stand right."""
    numeric = [
        bool(rows) and all(NUMBER.match(cell) for cell in column) for column in zip(*rows, strict=True)
    ]
    lines = [head, ["---:" if right else "---" for right in numeric], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def timm_card(facts: Mapping[str, Any], *, labels: int, repository: str) -> str:
    """The card of one model's folder for timm.

    Args:
        facts: what it is, by name.
        repository: where the folder lies, for the example.
    """
    metadata = ModelCardData(
        library_name="timm", pipeline_tag="image-classification", tags=[*TAGS, "timm"], model_name=repository
    ).to_yaml()
    rows = [(_plain(name), _plain(str(value))) for name, value in facts.items()]
    return "\n\n".join(
        [
            f"---\n{metadata}\n---",
            f"# {_plain(repository)}",
            f"One model of an ensemble of imet_ray, for {labels:,} labels: logits of normalised pictures; their "
            "sigmoid is a probability per label. The ensemble's own card says what it scores.",
            _table(("", ""), rows),
            f'    timm.create_model("local-dir:{repository}", pretrained=True)',
            "",
        ]
    )
