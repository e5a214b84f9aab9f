"""Reading published checkpoints strictly and by their names: DEQ-Flow, RAFT, GMA, SEA-RAFT, and torchvision's RAFT."""

import re

import torch
from torch import Tensor

from deqflow.model.build import build
from deqflow.model.estimator import FlowEstimator
from deqflow.model.sizes import SIZES, UpdateName
from deqflow.model.tensor_files import CheckpointError, plain_names, read_tensors

Rules = tuple[tuple[str, str], ...]

# Tables from published names to ours: within each table the first pattern that matches decides.
_STAGE = r"layer(\d)\.(\d)\."
_ENCODER: Rules = (
    (_STAGE + r"downsample\.", r"stages.\1.\2.shortcut."),
    (_STAGE, r"stages.\1.\2."),
    (r"conv1\.", "stem."),
    (r"norm1\.", "stem_norm."),
    (r"conv2\.", "head."),
)
_SEA_ENCODER: Rules = (
    (_STAGE + r"bn(\d)\.", r"stages.\1.\2.norm\3."),
    (r"bn1\.", "stem_norm."),
    (r"final_conv\.", "head."),
    *_ENCODER,
)
_TORCHVISION_ENCODER: Rules = (
    (_STAGE + r"downsample\.", r"stages.\1.\2.shortcut."),
    (_STAGE + r"convnormrelu(\d)\.0\.", r"stages.\1.\2.conv\3."),
    (_STAGE + r"convnormrelu(\d)\.1\.", r"stages.\1.\2.norm\3."),
    (r"convnormrelu\.0\.", "stem."),
    (r"convnormrelu\.1\.", "stem_norm."),
    (r"conv\.", "head."),
)
_UPDATE: Rules = (
    (r"update_block\.mask\.", "upsampler.mask."),
    (r"mask\.", "upsampler.mask."),
    (r"update_block\.encoder\.convc1\.", "update.motion.correlation.0."),
    (r"update_block\.encoder\.convc2\.", "update.motion.correlation.1."),
    (r"update_block\.encoder\.convf1\.", "update.motion.flow.0."),
    (r"update_block\.encoder\.convf2\.", "update.motion.flow.1."),
    (r"update_block\.encoder\.conv\.", "update.motion.merge."),
    (r"update_block\.flow_head\.", "update.head."),
    (r"update_block\.(?:aggregator|gma)\.to_v\.", "update.aggregation.values."),
    (r"update_block\.(?:aggregator|gma)\.project\.", "update.aggregation.projection."),
    (r"update_block\.(?:aggregator|gma)\.gamma", "update.aggregation.gamma"),
    (r"attn?\.to_qk\.", "update.attention."),
)
_SEA_UPDATE: Rules = (
    (r"init_conv\.", "context_encoder.mix."),
    (r"upsample_weight\.", "upsampler.mask."),
    (r"flow_head\.0\.", "update.head.conv1."),
    (r"flow_head\.2\.", "update.head.conv2."),
    (r"update_block\.refine\.(\d)\.dwconv\.", r"update.blocks.\1.depthwise."),
    (r"update_block\.refine\.(\d)\.pwconv1\.", r"update.blocks.\1.widen."),
    (r"update_block\.refine\.(\d)\.pwconv2\.", r"update.blocks.\1.narrow."),
    (r"update_block\.refine\.(\d)\.final\.", r"update.blocks.\1.merge."),
    (r"update_block\.refine\.", "update.blocks."),
)
_TORCHVISION_UPDATE: Rules = (
    (r"mask_predictor\.convrelu\.0\.", "upsampler.mask.0."),
    (r"mask_predictor\.conv\.", "upsampler.mask.2."),
    (r"update_block\.motion_encoder\.convcorr1\.0\.", "update.motion.correlation.0."),
    (r"update_block\.motion_encoder\.convcorr2\.0\.", "update.motion.correlation.1."),
    (r"update_block\.motion_encoder\.convflow1\.0\.", "update.motion.flow.0."),
    (r"update_block\.motion_encoder\.convflow2\.0\.", "update.motion.flow.1."),
    (r"update_block\.motion_encoder\.conv\.0\.", "update.motion.merge."),
    (r"update_block\.flow_head\.", "update.head."),
)
_GATE = re.compile(r"update_block\.(?:gru\.conv([zrq])(\d?)|recurrent_block\.convgru(\d)\.conv([zrq]))\.(\w+)")
_GATES = "zrq"  # the order of ConvGRU's rows: update, reset, candidate
__all__ = ["from_published", "read_tensors", "translate"]
_OURS = ("feature_encoder.stem.", "feature_encoder.stages.")  # no published name begins with these
_LENGTH, _DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"


def from_published(tensors: dict[str, Tensor], *, source: str = "the state dict") -> FlowEstimator:
    """Build the model that published tensors belong to and load them strictly; see :func:`deqflow.load_published`.

    Raises:
        CheckpointError: the tensors fit no known model.
    """
    tensors = plain_names(tensors)
    if any(name.startswith(_OURS) for name in tensors):
        raise CheckpointError(
            f"{source} holds tensors by deqflow's own names, but not the configuration that they belong to: write the "
            "model with deqflow.save."
        )
    try:
        ours = translate(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{source} has gates of different shapes, so it fits no model: {error}") from error
    nearest, fewest = "", None
    options = _options(ours)
    for size in SIZES:
        for recurrent in (True, False):  # both fit SEA-RAFT, which is published as a recurrent model
            with torch.device("meta"):
                candidate = build(size, recurrent=recurrent, **options)
            expected = {name: tuple(tensor.shape) for name, tensor in candidate.state_dict().items()}
            fitted = _reparametrise(ours, set(expected))
            shapes = {name: tuple(tensor.shape) for name, tensor in fitted.items()}
            if expected == shapes:
                estimator = build(size, recurrent=recurrent, **options)
                estimator.load_state_dict(fitted, strict=True)
                estimator.origin = _origin(tensors, estimator)
                return estimator.eval()
            differing = sorted(k for k in expected.keys() | shapes.keys() if expected.get(k) != shapes.get(k))
            if fewest is None or len(differing) < len(fewest):
                nearest, fewest = _describe(candidate), differing
    names = ", ".join(_both_names(fewest or [], tensors)[:6])
    raise CheckpointError(
        f"{source} fits no model that is known. The nearest is {nearest}, from which {len(fewest or [])} tensors "
        f"differ in name or shape, among them {names}."
    )


def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to ours and join the three gates of each recurrent unit.

    Unknown names stay as they are, so that a strict comparison finds them.
    """
    tensors = plain_names(tensors)
    ours: dict[str, Tensor] = {}
    gates: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        gate = _GATE.fullmatch(name)
        if gate:
            gates.setdefault(_rename(name), {})[gate[1] or gate[4]] = tensor
        elif not _unread(name, tensors):
            ours[_rename(_of_the_shortcut(name, tensors) or name)] = _as_convolution(name, tensor)
    for target, parts in gates.items():
        ours[target] = torch.cat([parts[g] for g in _GATES if g in parts])
    return ours


def _as_convolution(name: str, tensor: Tensor) -> Tensor:
    """SEA-RAFT has linear layers for some 1x1 convolutions: (outputs, inputs) -> (outputs, inputs, 1, 1)."""
    linear = re.search(r"\.pwconv\d\.weight\Z", name) and tensor.dim() == 2
    return tensor[..., None, None] if linear else tensor


def _unread(name: str, tensors: dict[str, Tensor]) -> bool:
    """Whether no model reads a tensor: a table of positions (attention uses content alone), or one listed twice."""
    return bool(re.match(r"attn?\.pos_emb\.", name)) or _of_the_shortcut(name, tensors) in tensors


def _of_the_shortcut(name: str, tensors: dict[str, Tensor]) -> str | None:
    """The shortcut's name of a normalisation that programs also list as the last of its block; None for other tensors.

    A safetensors file has such a module once, under either name.
    """
    norm = re.match(r"([fc]net\.layer\d\.\d\.)(norm|bn)(\d)\.", name)
    if not norm or f"{norm[1]}downsample.0.weight" not in tensors:
        return None
    last = "4" if f"{norm[1]}conv3.weight" in tensors else "3"
    return name.replace(f".{norm[2]}{last}.", ".downsample.1.") if norm[3] == last else None


def _rename(name: str) -> str:
    gate = _GATE.fullmatch(name)
    if gate:
        unit = int(gate[2] or gate[3] or 1) - 1
        return _parameter(f"update.units.{unit}.gates.{gate[5]}")
    for prefix, target, rules in (
        ("fnet.", "feature_encoder.", _SEA_ENCODER),
        ("cnet.", "context_encoder.", _SEA_ENCODER),
        ("feature_encoder.", "feature_encoder.", _TORCHVISION_ENCODER),
        ("context_encoder.", "context_encoder.", _TORCHVISION_ENCODER),
    ):
        if name.startswith(prefix):
            rest = _apply(rules, name.removeprefix(prefix))
            # Published stages count from 1, ours from 0.
            return target + re.sub(r"^stages\.(\d)", lambda m: f"stages.{int(m[1]) - 1}", rest)
    for rules in (_UPDATE, _SEA_UPDATE, _TORCHVISION_UPDATE):
        name = _apply(rules, name)
    return _parameter(name)


def _apply(rules: Rules, name: str) -> str:
    for pattern, replacement in rules:
        renamed, count = re.subn(rf"\A{pattern}", replacement, name)
        if count:
            return renamed
    return name


def _parameter(name: str) -> str:
    return re.sub(r"\.weight_v\Z", f".{_DIRECTION}", re.sub(r"\.weight_g\Z", f".{_LENGTH}", name))


def _options(ours: dict[str, Tensor]) -> dict:
    """The architecture that the tensors' names imply, as arguments of :func:`deqflow.build`."""
    update: UpdateName | None = None
    if "update.aggregation.gamma" in ours:
        update = "gma"
    elif any(name.startswith("update.blocks.") for name in ours):
        update = "sea"
    elif any(name.startswith("update.units.1.") for name in ours):
        update = "raft"
    elif any(name.startswith("update.units.0.") for name in ours):
        update = "raft-small"
    head = next((ours[n] for n in ours if re.fullmatch(rf"update\.head\.conv1\.(weight|{_DIRECTION})", n)), None)
    return {
        "update": update,
        "weight_norm": any(name.startswith("update.") and name.endswith(_LENGTH) for name in ours),
        "flow_head": None if head is None or head.dim() == 0 or len(head) == 0 else len(head),
    }


def _reparametrise(ours: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """Give each convolution the parametrisation that is expected: length and direction, or one weight."""
    fitted = dict(ours)
    for name in ours:
        module, _, parameter = name.rpartition(".weight")
        length, direction, plain = f"{module}.{_LENGTH}", f"{module}.{_DIRECTION}", f"{module}.weight"
        if name == plain and parameter == "" and plain not in expected and direction in expected:
            weight = fitted.pop(plain)
            fitted[direction], fitted[length] = weight, _norm(weight)
    for name in [n for n in ours if n.endswith(_DIRECTION)]:
        module = name.removesuffix(f".{_DIRECTION}")
        length, plain = f"{module}.{_LENGTH}", f"{module}.weight"
        if name not in expected and plain in expected and length in fitted:
            weight = fitted.pop(name)
            fitted[plain] = weight * fitted.pop(length) / _norm(weight)
    return fitted


def _norm(weight: Tensor) -> Tensor:
    """Length of each output channel's weights, (outputs, 1, 1, 1)."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)


def _origin(tensors: dict[str, Tensor], estimator: FlowEstimator) -> str:
    """Which program wrote these names."""
    config = estimator.config
    assert config is not None
    gma = " + GMA" if config.update == "gma" else ""
    if "feature_encoder.head.weight" not in tensors and "feature_encoder.conv.weight" in tensors:
        return f"torchvision raft_{'small' if config.size == 'small' else 'large'}"
    if SIZES[config.size].update == "sea":
        return f"SEA-RAFT {config.size.removeprefix('sea-').upper()}"
    if config.recurrent and config.size in ("base", "small"):
        return "GMA" if gma else {"base": "RAFT", "small": "RAFT-small"}[config.size]
    if config.recurrent:
        return f"RAFT {config.size}{gma}"
    version = 2 if "mask.0.weight" in tensors else 1
    return f"DEQ-Flow version {version}, {config.size}{gma}"


def _describe(estimator: FlowEstimator) -> str:
    return estimator.config.description if estimator.config else "a model of your own"


def _both_names(differing: list[str], tensors: dict[str, Tensor]) -> list[str]:
    """For each of our names the published name that is translated to it, if there is one."""
    published = {_rename(name): name for name in tensors}
    return [published.get(name, f"{name} (missing, by deqflow's name)") for name in differing]
