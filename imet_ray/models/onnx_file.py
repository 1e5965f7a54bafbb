"""A model as an ONNX file: pixels in, probabilities out. It is kept only if it says what torch says.

Views, folds, weights and the decoder are the ensemble's: a file is one checkpoint. The normalisation is inside.
"""

import contextlib
import json
import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from imet_ray.cores import usable_cores
from imet_ray.errors import ConfigError, telling_line
from imet_ray.storage.files import writing

TOLERANCE = 1e-4  # of a probability; predictions are stored with 5e-4 near 1
LARGEST = (1 << 31) - (1 << 24)  # bytes of weights: what a file of protobuf holds
INPUT, OUTPUT = "pictures", "probabilities"
DIFFERENCE = "imet_ray.difference"  # metadata: how far from torch, at most
PACKAGES = ("onnx", "onnxruntime", "onnxscript")  # the last one: torch writes by it


class _Probabilities(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) uint8 to (N, C) float32."""
        logits: torch.Tensor = self.model(pictures)
        return logits.float().sigmoid()


def need_onnx() -> None:
    """Refuse where the packages are missing.

    Raises:
        ConfigError: with the command that installs them.
    """
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--onnx needs {', '.join(missing)}, not installed: `uv pip install {' '.join(PACKAGES)}`, or begin with "
            "`uv run --extra onnx launch.py`"
        )


def write_onnx(
    path: Path, model: torch.nn.Module, pictures: np.ndarray, *, name: str, facts: Mapping[str, object]
) -> float:
    """Write the file, and compare it with torch on these pictures, one at a time and all together.

    Args:
        model: in evaluation mode, on the CPU: (N, 3, S, S) uint8 to (N, C) logits.
        pictures: (n, 3, S, S) uint8, two or more.
        name: of the architecture, for errors.
        facts: what the file says of itself, by name.

    Returns:
        The largest difference of a probability.

    Raises:
        ConfigError: if torch cannot write the model, or the file is further from torch than `TOLERANCE`.
    """
    import onnx

    whole = _Probabilities(model).eval()
    if sum(tensor.nbytes for tensor in model.state_dict().values()) > LARGEST:
        raise ConfigError(f"{name} is too large for an ONNX file, which holds 2 GB: leave --onnx out")
    given = torch.from_numpy(pictures)
    with writing(path) as temporary:
        try:
            _export(whole, given, temporary)
        except OSError:  # such as a full disk
            raise
        except Exception as error:  # the exporter has many kinds
            why = telling_line(_first_cause(error))[:200]
            raise ConfigError(
                f"torch cannot write {name} as ONNX ({why}): leave --onnx out, or the variant"
            ) from error
        with torch.inference_mode():
            expected = whole(given).numpy()
        difference = _difference(temporary, pictures, expected)
        if not difference <= TOLERANCE:  # NaN is refused, too
            raise ConfigError(
                f"{name} as ONNX is {difference:.1e} from torch in a probability, and {TOLERANCE:g} is allowed: leave "
                "--onnx out, or the variant"
            )
        written = onnx.load(temporary)
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
        onnx.helper.set_model_props(written, texts | {DIFFERENCE: repr(difference)})
        onnx.save(written, temporary)
    return difference


def _export(whole: torch.nn.Module, pictures: torch.Tensor, path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch, about itself
        torch.onnx.export(
            whole,
            (pictures[:2],),  # not one: the exporter would take its 1 for a constant
            path,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _first_cause(error: BaseException) -> BaseException:
    """What went wrong, and not at which step of the exporter."""
    return error if error.__cause__ is None else _first_cause(error.__cause__)


def _difference(path: Path, pictures: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of a probability, whatever the size of the batch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    alone = [session.run([OUTPUT], {INPUT: picture[None]})[0] for picture in pictures]
    together = session.run([OUTPUT], {INPUT: pictures})[0]
    found = (np.concatenate(alone), together)
    return float(max(np.abs(one - expected).max() for one in found))


def written_difference(path: Path, facts: Mapping[str, str]) -> float | None:
    """The difference that a file was found to have; None if there is none that says these facts of itself."""
    import onnx

    if not path.is_file():
        return None
    with contextlib.suppress(Exception):  # protobuf raises whatever the first bad byte causes
        texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        if facts.items() <= texts.items():
            return float(texts[DIFFERENCE])
    return None
