"""The docs are correct: first commands run, all others are valid, and code blocks work."""

import copy
import importlib
import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from preloaded import python
from test_compare import write
from test_conf import CONF, composed
from torch import nn

from seven_exp.cli.compare import main as compare
from seven_exp.cli.main import after_training
from seven_exp.runs.check import check

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOOLS = ("compare", "export", "measure", "reproduce", "sync", "upload")


def blocks(page: Path, language: str = "") -> list[str]:
    """A page's code blocks in a language; "" is a shell's."""
    found = re.findall(r"^```(.*?)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [text for kind, text in found if kind == language]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command of this package on a page, as Python takes them."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.replace("FOLDER...", "FOLDER").replace("seven-exp ", "python -m seven_exp ")
            found = re.search(
                r"(?:python|uv run) (?:python )?((?:-m seven_exp|train\.py ).*)", line
            )
            if found and (words := shlex.split(found[1], comments=True))[-1] not in (
                "--help",
                "...",
            ):
                yield words


def arguments(words: list[str]) -> tuple[str, list[str]]:
    """The command of ``seven-exp``, and its arguments."""
    if words[0] == "train.py":
        return "train", words[1:]
    name, *rest = words[1].split(".")[1:] + words[2:]
    return name, rest


ALL = {page.relative_to(ROOT).as_posix(): list(commands(page)) for page in PAGES}
FIRST = {page: words[0] for page, words in ALL.items() if words}
# Run in test_wheel.py, test_launchers.py, test_cli.py and test_models.py, or only checked.
ELSEWHERE = {
    *("own", "hydra/launcher=submitit_local", "examples/own_criterion/conf", "compare.margin=1"),
    *("experiment=paper/pre", "model=torchvision"),  # BERT, ResNet-18
    "experiment=seven/factor",  # Fashion-MNIST
}
TRAINING: dict[str, list[str]] = {}
for page, words in FIRST.items():
    name, given = arguments(words)
    if name == "train" and ELSEWHERE.isdisjoint(given) and given not in TRAINING.values():
        TRAINING[page] = given
EVERY = [arguments(words) for page in ALL.values() for words in page]


def trained(name: str, words: list[str]) -> tuple[str, list[str]]:
    """The training that a command does or plans; other commands as they are."""
    if name == "plan":
        kept = {"--ranks", "--memory"}
        words = [w for before, w in pairwise(["", *words]) if not {before, w} & kept]
        name, words = ("prune", words[1:]) if words[:1] == ["prune"] else ("train", words)
    return ("train", after_training(words)) if name == "prune" else (name, words)


EVERY = [trained(*command) for command in EVERY]
TRAINED = sorted({tuple(a) for name, a in EVERY if name in ("train", "tune") and "own" not in a})
# Where it goes on W&B is read once somebody is logged in: tests/test_dashboard.py.
TOOLED = sorted({(n, *a) for n, a in EVERY if n in TOOLS and "--wandb" not in a})


def once(given: list[str]) -> list[str]:
    """A sweep cut down to its first job: the first of each list of values."""
    if "-m" not in given:
        return given
    given = [word for word in given if word != "-m"]
    for key, value in (("pruner", "seven_dyn"), ("sparsity", "0.5"), ("seed", "0")):
        if not any(word.startswith(f"{key}=") for word in given):
            given.append(f"{key}={value}")
    return ["-m", *(word.partition(",")[0] for word in given)]


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


@pytest.mark.slow
@pytest.mark.parametrize("page", TRAINING)
def test_a_pages_first_training_works(page, reviews, tmp_path):
    program = FIRST[page][: len(FIRST[page]) - len(TRAINING[page])]
    words = [word.replace("PATH", str(reviews)) for word in once(TRAINING[page])]
    out = tmp_path / "out"
    short = [
        *("trainer.max_steps=60", "trainer.eval_interval=60", "analysis.start_batches=2"),
        *("tracker.mode=disabled", f"cache_dir={tmp_path / 'cache'}", f"output_root={out}"),
        *("model.pretrain.epochs=1", f"hydra.run.dir={out}", f"hydra.sweep.dir={out}"),
    ]
    short = [word for word in short if "pretrain" not in word or "experiment" in " ".join(words)]
    short += ["trainer.batch_size=8"] if "model=minilm" in words else []
    done = subprocess.run(
        [python(), *program, *words, *short], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = out.rglob("results.json")
    record = json.loads(found.read_text())
    asked = next(float(w.partition("=")[2]) for w in words if w.startswith("sparsity="))
    # Units go whole, so they can miss the sparsity by one unit.
    whole = any(word.startswith("pruner.pattern=") for word in words)
    assert record["sparsity"] == pytest.approx(asked, abs=1e-2 if whole else 1e-4)
    # Ten digits, or two kinds of review.
    assert record["metrics"]["accuracy"] > (0.9 if "minilm" in " ".join(words) else 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in FIRST if arguments(FIRST[page])[0] in TOOLS])
def test_a_pages_first_tool_works_on_a_finished_run(page, finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run("unstructured"), run)
    words = [str(run) if word in ("FOLDER", "RUN") else word for word in FIRST[page]]
    done = subprocess.run([python(), *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A table, and files beside the run.
    assert "magnitude_dyn" in done.stdout or list(run.glob("exports/*"))


def one_job(words: tuple[str, ...]) -> list[str]:
    """A training's words as one job's overrides of the config."""
    words = tuple(word for word in words if word not in ("-m", "--cfg", "job"))
    found = []
    # What Hydra's API can't compose: the launchers' settings.
    launcher = next((w.partition("=")[2] for w in words if w.startswith("hydra/launcher=")), None)
    if launcher is not None:
        settings = (ROOT / "conf" / "hydra" / "launcher" / f"{launcher}.yaml").read_text()
        for word in (word for word in words if word.startswith("hydra.launcher.")):
            key = word.removeprefix("hydra.launcher.").partition("=")[0]
            assert re.search(rf"^ *{key}:", settings, re.MULTILINE), word
        words = tuple(word for word in words if not re.match("hydra[./]launcher", word))
    tuning = [word.partition("=")[0] for word in words if word.startswith("tune.")]
    settings = "".join((CONF / f"hydra/sweeper/{n}.yaml").read_text() for n in ("optuna", "tune"))
    for key in tuning:
        assert re.search(rf"^{key.removeprefix('tune.')}:", settings, re.MULTILINE), key
    words = tuple(word for word in words if not word.startswith("tune."))
    if "--config-dir" in words:
        at = words.index("--config-dir")
        found.append(f"hydra.searchpath=[file://{ROOT / words[at + 1]}]")
        words = words[:at] + words[at + 2 :]
    words = tuple("tracker=none" if word == "tracker=null" else word for word in words)
    for override in OverridesParser.create().parse_overrides(list(words)):
        value = override.value()
        if isinstance(value, IntervalSweep):
            found.append(f"{override.get_key_element()}={value.start}")
        elif override.is_sweep_override():
            found.append(f"{override.get_key_element()}={next(override.sweep_string_iterator())}")
        else:
            found.append(override.input_line or "")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAINED, ids=" ".join)
def test_every_training_that_is_shown_is_valid(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("seven_exp.datasets.check_data", lambda name, **arguments: None)
    monkeypatch.setattr("seven_exp.models.check_model", lambda name, head, **arguments: None)
    for name in ("train.txt", "test.txt", "final.safetensors"):
        (tmp_path / name).touch()
    places = re.compile("=(DOCS|RUN/checkpoints)")
    check(composed(*(places.sub(f"={tmp_path}", word) for word in one_job(words))))


@pytest.mark.parametrize("words", TOOLED, ids=" ".join)
def test_every_tools_options_that_are_shown_are_known(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *rest = words
    # The options are read before the folders are looked for.
    assert importlib.import_module(f"seven_exp.cli.{name}").main(rest) == 2
    assert "no folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [w[1:] for w in TOOLED if w[0] == "compare" and not {"--serve", "--effects"} & {*w}],
    ids=" ".join,
)
def test_every_comparison_that_is_shown_works(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    renamed = {word.partition("=")[0] for word in words}
    axis = words[words.index("--x") + 1].rpartition("pruner.")[2] if "--x" in words else "unread"
    for name in [word for word in words if re.fullmatch("[A-Z][A-Z0-9_]+|outputs/.*", word)]:
        Path(name).mkdir(parents=True)
        for i, pruner in enumerate((
            *("seven_dyn", "seven_pre", "taylor_dyn", "taylor_pre"),
            *("magnitude", "magnitude_dyn", "wanda"),
        )):  # fmt: skip
            for seed in range(3):
                for value in range(2 if "power" in axis else 1):
                    config = {"pruner": {"name": pruner, axis: value}}
                    dataset = next(
                        iter({"fashion_mnist", "image_folder", "lm/text_file"} & renamed),
                        name.lower(),
                    )
                    model = next(iter({"DOCS/llama"} & renamed), "mlp")
                    write(Path(name), pruner, 0.9, seed, 0.3 + i / 10 + seed**2 / 100, model=model,
                          config=config, dataset=dataset, flops_sparse=100 + i)  # fmt: skip
    assert compare(list(words)) == 0
    assert list(tmp_path.rglob("comparison.*"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [w[1:] for w in TOOLED if "--effects" in w], ids=" ".join)
def test_every_comparison_of_effects_that_is_shown_works(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(words[0]).mkdir()
    pruner, *keys = words[words.index("--effects") + 1].split(",")
    assert pruner == "pruner"
    for number, levels in enumerate(itertools.product("ab", repeat=1 + len(keys))):
        name = f"sensitivity_{levels[0]}"
        settings = dict(zip([key.removeprefix("pruner.") for key in keys], levels[1:], strict=True))
        config = {"pruner": {"name": name, **settings}}
        write(Path(words[0]), name, 0.9, 0, 0.5 + number / 100, config=config)
    assert compare(list(words)) == 0
    assert (tmp_path / words[0] / "comparison_effects.png").is_file()


class ScheduleFree(torch.optim.SGD):
    """An optimizer with the two calls of one that swaps the weights."""

    def eval(self) -> None:
        """Bring the averages in."""

    def train(self) -> None:
        """Bring the weights back."""


@pytest.fixture
def run_blocks(monkeypatch, tmp_path):
    """Run a page's Python blocks one after the other, with the names that a reader has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "own_criterion"))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)
    )
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter[:4] = 0  # four neurons that do nothing
    batches = [(torch.randn(16, 8), torch.randint(2, (16,))) for _ in range(4)]

    def run(page: str) -> dict:
        names = {
            "torch": torch,
            "copy": copy,
            "model": model,
            "batches": batches,
            "loader": batches,
            "loss": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
            "optimizer": ScheduleFree(model.parameters(), lr=0.1),
            "evaluate": lambda model: model(batches[0][0]),
            "example_inputs": batches[0][0],
        }
        for block in blocks(ROOT / page, "python"):
            exec(block, names)
        return names

    return run


@pytest.mark.parametrize(
    ("page", "density"),
    # The last loop ends before its pruner's window begins.
    [("README.md", 0.3), ("docs/howto/own_loop.md", 0.3), ("docs/tutorials/lab.md", 1.0)],
)
def test_loops_that_are_shown_prune(page, density, run_blocks):
    pruner = run_blocks(page)["pruner"]
    masks = pruner.masks.values()
    assert sum(int(m.sum()) for m in masks) == int(density * sum(m.numel() for m in masks))
    assert pruner.check().ok


def test_the_test_that_is_shown_to_authors_of_methods_passes(run_blocks):
    run_blocks("docs/tutorials/method.md")["test_the_largest_scores_are_kept"]()


def test_shrinking_as_it_is_shown(run_blocks):
    names = run_blocks("docs/howto/shrink.md")
    first, second = names["smaller"]
    assert [(s.unit, s.before) for s in (first, second)] == [("neurons", 16)] * 2
    assert first.after == names["model"][0].out_features <= 12
    assert second.after == names["model"][2].out_features < 16
    assert 0.5 <= names["pruner"].sparsity < 0.5 + (16 + 2) / (8 * 16 + 16 * 16 + 16 * 2)


def test_the_first_page_is_the_readmes():
    readme, index = (page.read_text() for page in (ROOT / "README.md", ROOT / "docs" / "index.md"))
    for shown in (readme.replace("](docs/", "]("), index):
        picture, caption = re.search(r"(!\[.*?\]\(.*?\))\n\n(\*.*?\*)\n", shown, re.DOTALL).groups()
        assert picture in index
        assert caption in index
        code = re.findall(r"```\n(.*?)```", shown, re.DOTALL)
        assert code[:2] == [
            "pip install uv && uv run train.py pruner=seven_dyn sparsity=0.7\n",
            "uv run pytest\n",
        ]


@pytest.mark.parametrize("page", ALL)
def test_links_and_files_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for path in re.findall(r"`((?:conf|examples|tests|benchmarks|sweep|seven_exp)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


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
