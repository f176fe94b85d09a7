"""A small corpus and a model of it, for experiments with language models without a network.

    python benchmarks/docstrings.py FOLDER

The text is that of the docstrings of installed packages: torch, torchvision, numpy, scipy and
scikit-learn under BSD licences, matplotlib under one like Python's. A sixtieth of their files,
chosen by a hash of the path, is the test text. FOLDER gets ``train.txt`` and ``test.txt`` for
``dataset=lm/text_file``, and in ``llama/`` a byte-level BPE tokenizer of 4,096 words and the config
of a Llama.
"""

import argparse
import ast
import importlib.metadata
import importlib.util
import json
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib")
WORDS = 4096
SHORTEST = 100
"""Characters of the shortest docstring."""

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": WORDS,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


def files() -> Iterator[tuple[str, Path]]:
    """Path inside its package, and file, of every module of the packages."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            yield f"{name}/{path.relative_to(root).as_posix()}", path


def docstrings(path: Path) -> Iterator[str]:
    """The long docstrings of a file; none if it can't be parsed."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST:
                yield text


def texts() -> dict[str, str]:
    """Split -> its text; a docstring that several functions share is in one place only."""
    found: dict[str, list[str]] = {"train": [], "test": []}
    seen: set[str] = set()
    for name, path in files():
        split = "test" if zlib.crc32(name.encode()) % 60 == 0 else "train"
        for text in docstrings(path):
            if text not in seen:
                seen.add(text)
                found[split].append(text)
    return {split: "\n\n".join(parts) for split, parts in found.items()}


def main() -> None:
    """Write the corpus, the tokenizer and the config."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    warnings.simplefilter("ignore", SyntaxWarning)
    (folder / "llama").mkdir(parents=True, exist_ok=True)
    for split, text in texts().items():
        (folder / f"{split}.txt").write_text(text)
        print(f"{split}: {len(text):,} characters, checksum {zlib.crc32(text.encode()):08x}")
    for name in PACKAGES:
        print(name, importlib.metadata.version("scikit-learn" if name == "sklearn" else name))

    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(folder / "train.txt")], vocab_size=WORDS, special_tokens=["<end>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<end>", eos_token="<end>", pad_token="<end>"
    )
    fast.save_pretrained(folder / "llama")
    (folder / "llama" / "config.json").write_text(json.dumps(LLAMA, indent=2) + "\n")


if __name__ == "__main__":
    main()
