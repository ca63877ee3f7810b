"""Free words as a condition: a frozen text encoder from a folder on this machine.

The folder is a Hugging Face one: ``config.json``, ``*.safetensors`` and the tokenizer's files. Nothing is downloaded,
no code in the folder is run and nothing is unpickled. The encoder is not part of a model: a model keeps the SHA-256 of
the encoder's files, and refuses another encoder.
"""

import difflib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medgen.errors import InputError
from medgen.files import atomic, digest, sha256_file

_ENDINGS = (".json", ".txt", ".safetensors", ".model")
_HOW = "give a Hugging Face folder with config.json, model.safetensors and the tokenizer's files"


@dataclass(frozen=True)
class TextEncoderSpec:
    """Which encoder a model reads texts with.

    Attributes:
        folder: where it lies; of one that was read from JSON the name alone, for paths are the machine's own.
        files: name -> SHA-256 of its files.
        tokens: so many tokens of a text are read.
        width: of the states.
    """

    folder: str = field(compare=False)
    files: Mapping[str, str]
    tokens: int
    width: int

    @staticmethod
    def of(folder: str | Path, tokens: int) -> "TextEncoderSpec":
        """Look at an encoder's folder without loading its weights.

        Raises:
            InputError: not such a folder, weights that are not safetensors, or more tokens than the encoder can take.
        """
        folder = Path(folder).expanduser().resolve()
        files = _hashes(folder)
        config = _said(folder, lambda: _transformers().AutoConfig.from_pretrained(folder, **_LOCAL))
        config = getattr(config, "text_config", config)
        longest = getattr(config, "max_position_embeddings", None)
        if isinstance(longest, int) and longest < tokens:
            raise InputError(f"covariates.text_tokens {tokens} is more than the {longest} that {folder} can take")
        if not isinstance(getattr(config, "hidden_size", None), int):
            raise InputError(f"{folder} is no text encoder that medgen understands (no hidden_size in config.json)")
        return TextEncoderSpec(str(folder), files, tokens, config.hidden_size)

    @property
    def key(self) -> str:
        """Identity of what it says of a text."""
        return digest([dict(sorted(self.files.items())), self.tokens])

    def to_json(self) -> dict[str, Any]:
        """As plain JSON, without the path of its folder."""
        return {"folder": Path(self.folder).name, "files": dict(self.files), "tokens": self.tokens, "width": self.width}

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "TextEncoderSpec":
        """From what :meth:`to_json` gave."""
        return TextEncoderSpec(str(raw["folder"]), dict(raw["files"]), int(raw["tokens"]), int(raw["width"]))


class TextStates:
    """Texts -> states (t, D) of their tokens, float32; each distinct text is encoded once.

    Texts are encoded one by one, so that no padding and no neighbour changes a text's states by a bit.

    Args:
        spec: which encoder.
        folder: where it lies, if not where ``spec`` says.
        cache: file that keeps the states (under SHA-256 of the texts, not the texts), if any.
    """

    def __init__(self, spec: TextEncoderSpec, folder: str | Path | None = None, cache: Path | None = None) -> None:
        self.spec, self.folder, self.cache = spec, Path(folder or spec.folder), cache
        self.cut = 0
        """How many of the texts encoded so far were longer than ``spec.tokens``."""

    def __call__(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """States of each text.

        Raises:
            InputError: the encoder is not there or is another one.
        """
        keys = {text: hashlib.sha256(text.encode()).hexdigest() for text in dict.fromkeys(texts)}
        missing = [text for text, key in keys.items() if key not in self._known]
        for text in missing:
            self._known[keys[text]] = self._encode(text)
        if missing and self.cache is not None:
            with atomic(self.cache) as temporary:
                save_file(self._known, temporary, metadata={"encoder": self.spec.key})
        return {text: self._known[key] for text, key in keys.items()}

    def require(self) -> None:
        """Refuse early what encoding would refuse late: an encoder that is not there, or is another one.

        Raises:
            InputError: see :meth:`__call__`.
        """
        self._parts  # noqa: B018 (loads it)

    @cached_property
    def _known(self) -> dict[str, torch.Tensor]:
        if self.cache is None or not self.cache.exists():
            return {}
        try:
            with safe_open(self.cache, "pt") as f:
                if (f.metadata() or {}).get("encoder") != self.spec.key:
                    return {}
                return {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError:
            return {}  # a cache that is damaged is made again

    @cached_property
    def _parts(self) -> tuple[Any, torch.nn.Module]:
        if not self.folder.is_dir():
            raise InputError(
                f"the text encoder {self.folder} that the model was trained with is not there; name its folder with "
                "--text-encoder"
            )
        found = _hashes(self.folder)
        for name in sorted({*found, *self.spec.files}):
            if found.get(name) != self.spec.files.get(name):
                raise InputError(
                    f"{self.folder} is not the text encoder that the model was trained with ({name} differs); name "
                    "that one's folder with --text-encoder"
                )
        return _said(self.folder, lambda: _load(self.folder))

    @torch.no_grad()
    def _encode(self, text: str) -> torch.Tensor:
        tokenizer, network = self._parts
        read = tokenizer(text, truncation=True, max_length=self.spec.tokens, return_tensors="pt")
        whole = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        self.cut += len(whole) > self.spec.tokens
        out = network(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
        return out.last_hidden_state[0].float().contiguous()


_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError("texts need the package transformers; install it with: pip install 'medgen[text]'") from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that make an encoder."""
    if not folder.is_dir():
        raise InputError(f"the text encoder {folder} is no folder; {_HOW}")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _ENDINGS)
    names = [p.name for p in files]
    if "config.json" not in names:
        near = difflib.get_close_matches("config.json", names, n=1)
        raise InputError(f"the text encoder {folder} holds no config.json{f' but {near[0]}' if near else ''}; {_HOW}")
    if not any(name.endswith(".safetensors") for name in names):
        raise InputError(f"the text encoder {folder} holds no *.safetensors (pickles are not read); {_HOW}")
    return {p.name: sha256_file(p) for p in files}


def _load(folder: Path) -> tuple[Any, torch.nn.Module]:
    """Tokenizer and frozen network."""
    transformers = _transformers()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
    config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
    known = type(config) in transformers.AutoModelForTextEncoding._model_mapping.keys()  # noqa: SIM118 (lazy mapping)
    auto = transformers.AutoModelForTextEncoding if known else transformers.AutoModel
    network, said = auto.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **_LOCAL)
    # transformers fills what is missing with random numbers. A pooler is not used here.
    missing = [key for key in said["missing_keys"] if "pooler" not in key]
    if missing:
        raise InputError(f"the text encoder {folder} lacks weights ({missing[0]}); copy the whole model again")
    return tokenizer, network.float().eval().requires_grad_(False)


def _said(folder: Path, work: Any) -> Any:
    """What transformers refuses, in one sentence."""
    try:
        return work()
    except (OSError, ValueError, KeyError, SafetensorError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the text encoder {folder} cannot be loaded ({reason}); {_HOW}") from None
