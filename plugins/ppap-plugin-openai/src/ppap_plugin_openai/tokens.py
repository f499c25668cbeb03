"""GLIDE's tokens: GPT-2's byte-pair encoding of the prompt in lower case.

The encoding is that of Radford et al., "Language Models are Unsupervised Multitask Learners"
(2019), section 2.2, in the tokenizers library's implementation. Its two data files are not part of
this package: glide-text2im carries them as ``encoder.json.gz`` and ``vocab.bpe.gz``, and GPT-2's
``vocab.json`` and ``merges.txt`` on the hub hold the same.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import own_path
from ppap_host.files.reading import Document, read_bytes

HUB: Final = "openai-community/gpt2"
"""Where the files are downloaded from once, if nothing else is named."""

_FILES: Final = (
    ("encoder.json.gz", "vocab.bpe.gz"),
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
)
_MOST: Final = 64 << 20  # bytes of a vocabulary; GPT-2's has one million
_REMEDY: Final = (
    "Put encoder.json.gz and vocab.bpe.gz from glide_text2im/tokenizer of openai/glide-text2im "
    "beside the checkpoint."
)
_VOCABULARY: Final = Document("vocabulary in JSON", CheckpointError, _REMEDY, _MOST)


class PromptTokenizer:
    """Turns prompts into padded rows of token numbers.

    The prompt is taken as it is: neither trimmed nor normalised, and ``<|endoftext|>`` in it is
    plain text. No start or end token is added.

    Args:
        vocabulary: token to number; the last number pads.
        merges: pairs of tokens to be joined, the most urgent first.
        files: that these were read from.

    Raises:
        CheckpointError: the two do not fit each other.
    """

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        files: Sequence[Path] = (),
    ) -> None:
        self.size = len(vocabulary)
        self.files = tuple(files)
        where = f"{self.files[0].parent}: the" if files else "The"
        if sorted(vocabulary.values()) != list(range(self.size)) or not vocabulary:
            raise CheckpointError(
                f"{where} tokens of the vocabulary are not numbered from 0 on.", remedy=_REMEDY
            )
        try:
            model = models.BPE(vocab=dict(vocabulary), merges=list(merges))
        # tokenizers raises nothing more specific.
        except Exception as error:
            raise CheckpointError(
                f"{where} merges do not belong to the vocabulary ({error}).", remedy=_REMEDY
            ) from error
        self._tokenizer = Tokenizer(model)
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    @classmethod
    def read(cls, source: str | Path) -> PromptTokenizer:
        """From a folder, or from a model on the hub, which is downloaded the first time.

        Args:
            source: a folder with one of the pairs of files named above, packed or not, or the
                name of a GPT-2 on the hub.

        Raises:
            CheckpointError: there are no such files, or they are damaged.
        """
        folder = own_path(source)
        if os.path.isdir(folder):
            found = vocabulary_files(folder)
            if found is None:
                raise CheckpointError(f"{source}: holds no vocabulary of GLIDE.", remedy=_REMEDY)
        else:
            found = _from_hub(str(source))
        vocabulary, merges = found
        return cls(_read_vocabulary(vocabulary), _read_merges(merges), found)

    def encode(self, prompt: str) -> list[int]:
        """The numbers of a prompt's tokens."""
        # Python's lower case, which GLIDE takes, and not that of tokenizers, which differs.
        numbers: list[int] = self._tokenizer.encode(prompt.lower(), add_special_tokens=False).ids
        return numbers

    def __call__(self, prompts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Rows of ``length`` tokens; what is longer is cut.

        Returns:
            Numbers, int64 [b, length], and a mask, bool [b, length], false where there is padding.
        """
        return padded([self.encode(prompt) for prompt in prompts], length, self.size - 1)


def padded(rows: Sequence[Sequence[int]], length: int, padding: int) -> tuple[Tensor, Tensor]:
    """Rows of token numbers cut or padded to ``length``, and the mask of what is no padding."""
    tokens = torch.full((len(rows), length), padding)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for k, row in enumerate(rows):
        kept = torch.tensor(row[:length], dtype=torch.int64)
        tokens[k, : len(kept)] = kept
        mask[k, : len(kept)] = True
    return tokens, mask


def vocabulary_files(folder: Path) -> tuple[Path, Path] | None:
    """Vocabulary and merges in a folder, under any of their names; None if a pair is not there."""
    for names in _FILES:
        vocabulary, merges = (folder / name for name in names)
        if vocabulary.is_file() and merges.is_file():
            return vocabulary, merges
    return None


def _from_hub(name: str) -> tuple[Path, Path]:
    from huggingface_hub import hf_hub_download

    try:
        vocabulary, merges = (Path(hf_hub_download(name, file)) for file in _FILES[-1])
    # The hub's client raises its own errors, httpx's and the operating system's.
    except Exception as error:
        raise CheckpointError(
            f"The vocabulary that GLIDE reads prompts with cannot be had from the hub ({name}): "
            f"{type(error).__name__}.",
            remedy=_REMEDY,
        ) from error
    return vocabulary, merges


def _read_text(path: Path) -> str:
    data = read_bytes(path, CheckpointError, _REMEDY, _MOST)
    try:
        if data.startswith(b"\x1f\x8b"):
            # A few kilobytes may unpack to gigabytes.
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(_MOST + 1)
        if len(data) > _MOST:
            raise CheckpointError(f"{path}: the file is too large for a vocabulary.")
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: the file is damaged or cut short.", remedy=_REMEDY
        ) from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    found: dict[str, int] = _VOCABULARY.parse(_read_text(path), dict[str, int], str(path))
    return found


def _read_merges(path: Path) -> list[tuple[str, str]]:
    lines = _read_text(path).split("\n")
    # Merges of "#" exist as well, so only the whole header is skipped.
    lines = lines[lines[0].startswith("#version") :]
    merges = []
    for line in lines:
        parts = line.split(" ")
        if len(parts) == 2 and all(parts):
            merges.append((parts[0], parts[1]))
        elif line.strip():
            raise CheckpointError(f"{path}: {line[:40]!r} is no pair of tokens.", remedy=_REMEDY)
    return merges
