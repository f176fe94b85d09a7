"""Peak memory of pruning a random Llama block by block, against its depth.

uv run benchmarks/walk_memory.py --width 1024 --depths 4 8 16
"""

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = [f"w{i}" for i in range(1000)]

RUN = """
import sys, time
from pathlib import Path
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
conf, folder, *overrides = sys.argv[1:]
with initialize_config_dir(conf, version_base="1.3"):
    values = compose("config", overrides)
from seven_exp.config import parse
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord
import torch, transformers.models.llama.modeling_llama
torch.set_num_threads(1)
def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = memory("VmRSS")
since = time.perf_counter()
config = parse(OmegaConf.to_container(values, resolve=True))
record = run_experiment(config, Path(folder), LocalRecord())
after = memory("VmHWM")
print(before / 1024, after / 1024, time.perf_counter() - since, record["params_total"])
"""


def texts(folder: Path, length: int) -> None:
    """Random words, as C4's and WikiText's files."""
    draw = random.Random(0)
    documents = [" ".join(draw.choices(WORDS, k=2 * length)) for _ in range(32)]
    with gzip.open(folder / "c4-train.00000-of-01024.json.gz", "wt") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
    (folder / "wiki.test.raw").write_text("\n".join(documents[:4]) + "\n")


def model(folder: Path, width: int, depth: int, length: int, dtype: str) -> None:
    """A random Llama in shards of one block, made block by block, with a tokenizer of words."""
    import torch
    import transformers
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers

    from seven_exp.models.shards import on_meta

    vocab = {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=depth,
        num_attention_heads=width // 64, vocab_size=len(vocab), max_position_embeddings=length,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    bare = on_meta(config, dtype)
    config.save_pretrained(folder)
    shards: dict[str, dict] = {}
    for name, tensor in bare.state_dict().items():
        block = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(f"model-{block}.safetensors", {})[name] = tensor
    generator, places = torch.Generator().manual_seed(0), {}
    for file, tensors in shards.items():
        values = {
            name: (torch.randn(t.shape, generator=generator) / width**0.5).to(t.dtype)
            for name, t in tensors.items()
        }
        save_file(values, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(values, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def main() -> None:
    """Print a row for each depth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--pruner", default="wanda")
    options = parser.parse_args()
    conf = Path(__file__).resolve().parent.parent / "conf"
    print("depth  parameters  weights (MB)  before (MB)  peak (MB)  seconds")
    for depth in options.depths:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            model(folder, options.width, depth, options.length, options.dtype)
            texts(folder, options.length)
            overrides = [
                "model=hf", f"model.name={folder}", f"model.dtype={options.dtype}",
                "dataset=lm/wikitext2", f"dataset.data_dir={folder}",
                f"dataset.max_length={options.length}", "trainer.max_steps=0",
                "trainer.batch_size=1", "calibration=c4", f"calibration.data_dir={folder}",
                f"calibration.samples={options.samples}", f"calibration.length={options.length}",
                f"pruner={options.pruner}", "sparsity=0.5", "device=cpu", "threads=1",
                f"cache_dir={folder / 'cache'}",
            ]  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-c", RUN, str(conf), str(folder / "run"), *overrides],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                sys.exit(done.stderr)
            before, peak, seconds, size = map(float, done.stdout.split()[-4:])
            held = size * (2 if options.dtype != "float32" else 4) / 2**20
            print(
                f"{depth:5d}  {size:10,.0f}  {held:12.0f}  {before:11.0f}  {peak:9.0f}  "
                f"{seconds:7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
