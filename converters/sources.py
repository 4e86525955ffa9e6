"""Models by the names that libraries give them, and the preprocessing that belongs to each.

    torchvision:NAME[:WEIGHTS]   WEIGHTS as IMAGENET1K_V2 or DEFAULT; without them they are random
    timm:NAME[:TAG]              TAG as a1_in1k or DEFAULT; without one they are random
    hf:PATH_OR_NAME              a folder of transformers' save_pretrained, or a name on the hub

Files in a library's local cache are used; it downloads the rest if it can. Weights are
read from safetensors, or unpickled by torch as tensors alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackendUnavailable, InputError

# images [N, C, H, W] uint8, or PIL images of any sizes, to what the model takes; or texts to token
# ids and masks
Preprocessing = Callable[[Any], Any]
LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "transformers"}
DEFAULT = "DEFAULT"


@dataclass(frozen=True)
class Source:
    """What a spec names; ``weights`` is None where they are random."""

    library: str
    name: str
    weights: str | None = None

    @property
    def trained(self) -> bool:
        return self.weights is not None or self.library == "hf"

    def __str__(self) -> str:
        return ":".join(filter(None, (self.library, self.name, self.weights)))


def is_source(spec: str) -> bool:
    return spec.partition(":")[0] in LIBRARIES


def parse(spec: str) -> Source:
    """Raises InputError where ``spec`` is none of this page's."""
    library, _, rest = spec.partition(":")
    if library not in LIBRARIES or not rest:
        forms = "torchvision:NAME[:WEIGHTS], timm:NAME[:TAG] or hf:PATH_OR_NAME"
        raise InputError(f"'{spec}' is not a model; write {forms}.")
    if library == "hf":  # a path may hold colons
        return Source(library, rest)
    name, _, weights = rest.partition(":")
    return Source(library, name, weights or None)


def load_source(spec: str) -> nn.Module:
    """The model that ``spec`` names, in eval mode and float32.

    Raises BackendUnavailable where its library is missing, InputError where it has no such model or
    weights, or they are not on this machine and cannot be downloaded.
    """
    source = parse(spec)
    model: nn.Module = BUILDERS[source.library](source)
    return model.float().eval()


def preprocessing(spec: str, tokens: int | None = None) -> Preprocessing:
    """The preprocessing of images or texts with which the model was trained.

    Images are [N, C, H, W] uint8, or a list of PIL images of any sizes, which are decoded, resized
    and cropped one by one as the libraries validate: a tensor is resized by other arithmetic.
    Of texts it is a dict of token ids and masks [N, tokens], cut and padded to that, else to the
    longest.
    For ``torchvision:NAME`` without weights it is that of the default weights. Raises as
    ``load_source`` does; nothing is downloaded but for the hub's small configuration files.
    """
    source = parse(spec)
    prepare: Preprocessing = PREPARATIONS[source.library](source)
    length = {} if tokens is None else {"padding": "max_length", "max_length": tokens}
    return partial(prepare, **length)


def takes_texts(spec: str) -> bool:
    """Whether the preprocessing of ``spec`` is a tokenizer. Raises as ``load_source`` does."""
    source = parse(spec)
    return source.library == "hf" and _hf_kind(source).main_input_name == "input_ids"


def imported(what: Any, package: str, module: str, install: str) -> Any:
    """A module of a package that ``what`` needs; BackendUnavailable, with the pip line, without."""
    try:
        import_module(package)
        return import_module(module)
    except ImportError as error:
        torch_version = torch.__version__.partition("+")[0]
        raise BackendUnavailable(
            f"'{what}' needs the package {package!r} ({error}). Install it with: pip install "
            f"{install} torch=={torch_version} (torch is pinned on the same line, or pip may "
            "replace it)"
        ) from error


def _library(source: Source, module: str) -> Any:
    package = LIBRARIES[source.library]
    return imported(source, package, module, package)


def _unknown(source: Source, what: str, asked: str, known: Iterable[str]) -> InputError:
    near = difflib.get_close_matches(asked, list(known), n=4)
    hint = f" Similar names: {', '.join(near)}." if near else ""
    return InputError(f"{LIBRARIES[source.library]} has no {what} {asked!r}.{hint}")


@contextmanager
def _reached(source: Source, fix: str) -> Iterator[None]:
    """Whatever a library raises where it cannot read or download, as one error with the fix."""
    try:
        yield
    except Exception as error:  # of urllib, of the hub, of a damaged file
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InputError(
            f"the weights of '{source}' are not on this machine, or cannot be read, and cannot be "
            f"downloaded ({type(error).__name__}: {first}). {fix}"
        ) from error


# -- torchvision ----------------------------------------------------------------------------------


def _torchvision_weights(source: Source, models: Any, name: str) -> Any:
    known = models.get_model_weights(source.name)
    try:
        return known[name]
    except KeyError:
        raise _unknown(source, f"weights of {source.name}", name, known.__members__) from None


def _torchvision_model(source: Source) -> nn.Module:
    models = _library(source, "torchvision.models")
    if source.name not in models.list_models():
        raise _unknown(source, "model", source.name, models.list_models())
    if source.weights is None:
        return _built(source, models.get_model, source.name, weights=None)
    weights = _torchvision_weights(source, models, source.weights)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    fix = f"Download {weights.url} into the folder {folder}, or give --weights FILE.safetensors."
    with _reached(source, fix):
        return models.get_model(source.name, weights=weights)  # type: ignore[no-any-return]


def _torchvision_preprocessing(source: Source) -> Preprocessing:
    models = _library(source, "torchvision.models")
    if source.name not in models.list_models():
        raise _unknown(source, "model", source.name, models.list_models())
    transforms = _torchvision_weights(source, models, source.weights or DEFAULT).transforms()
    return lambda images: (
        transforms(images)
        if isinstance(images, Tensor)
        else torch.stack([transforms(image) for image in images])
    )


# -- timm -----------------------------------------------------------------------------------------


def _timm_model(source: Source) -> nn.Module:
    timm = _library(source, "timm")
    base = source.name.partition(".")[0]
    if not timm.is_model(base):
        raise _unknown(source, "model", base, timm.list_models())
    if source.weights is None:
        return _built(source, timm.create_model, source.name, pretrained=False)
    tagged = source.name if source.weights == DEFAULT else f"{base}.{source.weights}"
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{base}.*")]
    if source.weights != DEFAULT and source.weights not in tags:
        raise _unknown(source, f"weights of {base}", source.weights, tags)
    with _reached(source, "Give --weights FILE.safetensors."):
        return timm.create_model(tagged, pretrained=True)  # type: ignore[no-any-return]


def _timm_preprocessing(source: Source) -> Preprocessing:
    data, torchvision = _library(source, "timm.data"), _library(source, "torchvision")
    name = source.name
    if source.weights not in (None, DEFAULT):
        name = f"{name.partition('.')[0]}.{source.weights}"
    with torch.device("meta"):
        model = _timm_model(Source("timm", name))
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)
    to_image = torchvision.transforms.functional.to_pil_image
    return lambda images: torch.stack(
        [transform(to_image(image) if isinstance(image, Tensor) else image) for image in images]
    )


def _built(source: Source, build: Callable[..., Any], *args: Any, **options: Any) -> nn.Module:
    try:
        model: nn.Module = build(*args, **options)
    except Exception as error:  # of either library
        raise InputError(f"'{source}' cannot be built: {error}") from error
    return model


# -- transformers ---------------------------------------------------------------------------------


def _at_hub(source: Source, load: Callable[..., Any], **options: Any) -> Any:
    """``load(name)``; a path that is not there is told beside those that are."""
    path = Path(source.name)
    if not path.is_dir() and (path.is_absolute() or source.name.startswith(".")):
        folder = path.parent
        known = [str(p) for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
        near = difflib.get_close_matches(source.name, known, n=4, cutoff=0.4)
        hint = f" Similar names: {', '.join(near)}." if near else ""
        raise InputError(f"'{source}': there is no folder '{source.name}'.{hint}")
    fix = (
        "Download it on a machine with network access (hf download NAME --local-dir FOLDER) and "
        "pass hf:FOLDER. Pickled weights (pytorch_model.bin) are not read: save them again with "
        "model.save_pretrained(FOLDER)."
    )
    with _reached(source, fix):
        return load(source.name, **options)


def _hf_kind(source: Source) -> Any:
    """The class that the model was saved as."""
    transformers = _library(source, "transformers")
    config = _at_hub(source, transformers.AutoConfig.from_pretrained)
    named = (config.architectures or [""])[0]
    kind = getattr(transformers, named, None) if named else type_of(transformers, config)
    if kind is None:
        raise InputError(f"'{source}' is a {named}, which this version of transformers lacks.")
    return kind


def type_of(transformers: Any, config: Any) -> Any:
    """The bare model of a configuration that does not say what it was saved as."""
    return transformers.MODEL_MAPPING[type(config)]


def _hf_model(source: Source) -> nn.Module:
    kind = _hf_kind(source)
    options = {"use_safetensors": True, "dtype": torch.float32}
    model: nn.Module = _at_hub(source, kind.from_pretrained, **options)
    return model


def _hf_preprocessing(source: Source) -> Preprocessing:
    """Of images the image processor, of texts the tokenizer, padded to the longest."""
    transformers, taken = _library(source, "transformers"), _hf_kind(source).main_input_name
    if taken == "input_ids":
        tokenizer = _at_hub(source, transformers.AutoTokenizer.from_pretrained)
        usual = {"padding": True, "truncation": True, "return_tensors": "pt"}
        return lambda texts, **length: dict(tokenizer(list(texts), **usual | length))
    if taken == "pixel_values":
        processor = _at_hub(source, transformers.AutoImageProcessor.from_pretrained)
        return lambda images: processor(images=list(images), return_tensors="pt")[taken]
    raise InputError(
        f"'{source}' takes {taken}, for which there is no preprocessing; save the data as the "
        "model expects them, in a .npy file."
    )


BUILDERS: dict[str, Callable[[Source], nn.Module]] = {
    "torchvision": _torchvision_model,
    "timm": _timm_model,
    "hf": _hf_model,
}
PREPARATIONS: dict[str, Callable[[Source], Preprocessing]] = {
    "torchvision": _torchvision_preprocessing,
    "timm": _timm_preprocessing,
    "hf": _hf_preprocessing,
}
