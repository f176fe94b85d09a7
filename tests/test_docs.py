"""The first command of each page of the docs runs as written and ends in a sensible result."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_conf import composed

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of this package in a page's code blocks."""
    for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(seven-exp (?!train)|(?<=python |uv run )train\.py ).*", line)
            if found:
                yield shlex.split(found[0].replace("FOLDER...", "FOLDER"), comments=True)


FIRST = {page.stem: first for page in PAGES if (first := next(commands(page), None))}


def once(words: list[str]) -> list[str]:
    """A sweep's command cut down to its first job: the first of each list of values."""
    if "-m" not in words:
        return words
    given = [word for word in words[1:] if word != "-m"]
    for key, value in (("pruner", "seven_dyn"), ("sparsity", "0.5"), ("seed", "0")):
        if not any(word.startswith(f"{key}=") for word in given):
            given.append(f"{key}={value}")
    return ["train.py", "-m", *(word.partition(",")[0] for word in given)]


@pytest.fixture
def reviews(tmp_path):
    """SST-2's layout, with sentences that any sound training tells apart."""
    good, bad = ("wonderful", "moving", "brilliant"), ("awful", "dull", "terrible")
    texts = [
        f"{subject} is {manner} {word}\t{int(word in good)}"
        for subject in ("the film", "this story", "every scene", "the cast")
        for manner in ("truly", "quite", "simply", "rather")
        for word in good + bad
    ]
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for name, rows in (("train", texts * 4), ("dev", texts)):
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder.parent


@pytest.mark.parametrize("page", [p for p in FIRST if FIRST[p][0] == "train.py"])
def test_a_pages_first_training_works(page, reviews, tmp_path):
    words = [word.replace("PATH", str(reviews)) for word in once(FIRST[page])]
    out = tmp_path / "out"
    short = [
        *("trainer.max_steps=60", "trainer.eval_interval=60", "analysis.start_batches=2"),
        *("tracker.mode=disabled", f"cache_dir={tmp_path / 'cache'}", f"output_root={out}"),
        *("model.pretrain.epochs=1", f"hydra.run.dir={out}", f"hydra.sweep.dir={out}"),
    ]
    short = [word for word in short if "pretrain" not in word or "experiment" in " ".join(words)]
    done = subprocess.run(
        [sys.executable, *words, *short], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = out.rglob("results.json")
    record = json.loads(found.read_text())
    asked = next(float(w.partition("=")[2]) for w in words if w.startswith("sparsity="))
    assert record["sparsity"] == pytest.approx(asked, abs=1e-4)
    # Ten digits, or two kinds of review.
    assert record["metrics"]["accuracy"] > (0.9 if "minilm" in " ".join(words) else 0.3)


@pytest.mark.parametrize("page", [p for p in FIRST if FIRST[p][0] == "seven-exp"])
def test_a_pages_first_tool_works_on_a_finished_run(page, finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run("unstructured"), run)
    words = [str(run) if word in ("FOLDER", "RUN") else word for word in FIRST[page]]
    done = subprocess.run(
        [sys.executable, "-m", "seven_exp", *words[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    # A table, and files beside the run.
    assert "magnitude_dyn" in done.stdout or list(run.glob("exports/*"))


@pytest.mark.parametrize("model", ["minilm", "bert_base", "gpt2", "vit_hf"])
def test_pretrained_transformers_bring_a_recipe_for_fine_tuning(model):
    data = {"vit_hf": [], "gpt2": ["dataset=wikitext2"]}.get(model, ["dataset=glue/sst2"])
    config = composed(f"model={model}", *data)
    assert (config.optimizer.lr, config.optimizer.lr_schedule) == (5e-5, "linear")
    assert config.optimizer.warmup_steps == 0.1
    assert (config.trainer.epochs, config.trainer.batch_size) == (3, 32)
    # The user's word counts.
    own = composed(f"model={model}", *data, "optimizer=sgd", "trainer=short", "optimizer.lr=0.5")
    assert (own.optimizer.name, own.optimizer.lr, own.trainer.max_steps) == ("sgd", 0.5, 200)


def test_models_trained_from_scratch_keep_the_general_recipe():
    config = composed()
    assert (config.optimizer.lr, config.trainer.epochs) == (1e-3, 30)
