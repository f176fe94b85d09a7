"""``seven-exp plan``: what it says is what a run holds."""

import argparse
import subprocess

import pytest
import torch
from preloaded import python
from test_after_training import config_of, llama, save_tokenizer, texts  # noqa: F401  fixtures
from test_conf import composed
from test_families import model_of

from seven_exp.cli.plan import size
from seven_exp.config import ConfigError
from seven_exp.datasets.glue import TASKS
from seven_exp.models.hub_models import fitting_config
from seven_exp.models.shards import on_meta
from seven_exp.pruning import plan_walk
from seven_exp.runs.check import check
from seven_exp.runs.memory import changes, need_of
from seven_exp.runs.parts import build
from seven_exp.training.loop import Stepped, endless, train
from seven_exp.training.world import World

CPU = torch.device("cpu")


def tensors_in(thing):
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_in(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from tensors_in(value)


def bytes_of(*things) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors_in(things)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def held(config) -> dict[str, int]:
    """What a run holds after its last step, while its gradients exist."""
    parts = build(config, World(), CPU)
    model, optimizer, pruner = parts.state.model, parts.state.optimizer, parts.state.pruner
    pruner.start()
    if parts.plan.when == "before":
        pruner.prune(endless(parts.data.train), parts.compute.fair_loss, batches_per_round=1)
    for event in train(parts.trained, parts.data.train, optimizer, parts.compute, parts.recipe):
        if isinstance(event, Stepped):
            pruner.step()
            found = {
                "weights": bytes_of(list(model.parameters()), list(model.buffers())),
                "gradients": bytes_of([p.grad for p in model.parameters()]),
                "optimizer": bytes_of(dict(optimizer.state)),
                "masks": bytes_of(pruner._masks.bits),
                "state": bytes_of(pruner.state.tensors, pruner._regrowth.memory),
            }
            if (average := parts.state.average) is not None:
                kept = [*average.model.parameters(), *average.model.buffers()]
                found["average"] = bytes_of(kept)
    return found


SMALL = ["model.depth=2", "model.width=32", "model.heads=2", "model.mlp_width=36"]
STEPS = ["trainer.max_steps=4", "trainer.batch_size=8", "tracker.mode=disabled", "threads=1"]
RUNS = [
    ["pruner=seven_dyn", "optimizer=adamw"],
    ["pruner=seven_dyn", "pruner.moments=bfloat16", "optimizer=sgd"],
    ["pruner=movement", "optimizer=adam", "trainer.ema=0.9"],
    ["pruner=rigl", "optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"],
    ["pruner=taylor_pre", "optimizer=adamax"],
    ["pruner=synflow", "pruner.rounds=2", "optimizer=adamw"],
    ["pruner=magnitude_dyn", "pruner.pattern=2:4", "optimizer=muon"],
    ["pruner=seven_dyn", "pruner.include=['*mlp*']", "model.freeze=[conv_proj]"],
    ["pruner=ac_dc", "model=resnet20", "optimizer=sgd"],
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", RUNS, ids=" ".join)
def test_a_training_holds_what_is_planned(given, tmp_path):
    own = [] if "model=resnet20" in given else SMALL
    config = composed(*own, *STEPS, *given, f"cache_dir={tmp_path}", "sparsity=0.5")
    need = need_of(config)
    parts = [part for part in need.parts.values() if part]
    assert parts == [part for part in held(config).values() if part]
    assert need.total == sum(parts)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pruner", ["seven_dyn", "platon"])
def test_a_language_models_training_holds_what_is_planned(dtype, pruner, llama, texts, tmp_path):  # noqa: F811
    config = config_of(
        llama, texts, tmp_path, "dataset=lm/text_file", f"dataset.data_dir={texts / 'own'}",
        f"pruner={pruner}", f"model.dtype={dtype}", "trainer.max_steps=4",
        "trainer.batch_size=2", "trainer.grad_clip=null",
    )  # fmt: skip
    need, found = need_of(config), held(config)
    assert list(need.parts.values()) == list(found.values())
    # The ranks share each part.
    assert need_of(config, 4).total == pytest.approx(need.total / 4, abs=len(found))


def test_a_text_model_knows_the_number_of_its_classes():
    from seven_exp.datasets import DATASETS

    classes = {name: DATASETS[f"glue/{name}"].shape()["num_classes"] for name in TASKS}
    assert classes == {"stsb": 1, "mnli": 3, **dict.fromkeys(set(TASKS) - {"stsb", "mnli"}, 2)}
    assert DATASETS["squad"].shape() == {"num_classes": 2}


@pytest.fixture
def llama_7b(tmp_path):
    """A folder with nothing but the config.json of a Llama of 7B."""
    import transformers

    transformers.LlamaConfig(bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def of_7b(folder, *given):
    return composed("model=hf", f"model.name={folder}", "dataset=lm/wikitext2", *given)


def test_seven_billion_weights_are_planned_from_their_shapes(llama_7b):
    config = of_7b(llama_7b, "pruner=seven_dyn", "model.dtype=bfloat16", "optimizer=adamw")
    check(config)
    need = need_of(config, 8)
    prunable = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    total = prunable + 2 * 32000 * 4096 + (2 * 32 + 1) * 4096
    assert (need.parameters, need.prunable) == (total, prunable)
    weights, gradients, moments, masks, state = need.parts.values()
    assert gradients == 2 * total / 8
    assert weights == pytest.approx(gradients, abs=512)  # frequencies of the positions
    assert moments == pytest.approx(2 * gradients, abs=512)  # numbers of steps
    assert (masks, state) == (prunable / 8 / 8, 12 * prunable / 8)


@pytest.mark.slow
def test_what_would_fit_fits(llama_7b):
    config = of_7b(llama_7b, "pruner=seven_dyn", "model.dtype=bfloat16")
    need = need_of(config)
    memory = 120 * 10**9
    assert need.total > memory
    found = list(changes(config, need, 1, memory))
    assert found == ["--ranks 2", "pruner.moments=bfloat16", "optimizer=sgd"]
    assert need_of(config, 2).total <= memory
    for words in found[1:]:
        changed = of_7b(llama_7b, "pruner=seven_dyn", "model.dtype=bfloat16", words)
        assert need_of(changed).total <= memory
    dense = of_7b(llama_7b, "pruner=magnitude", "trainer.max_steps=0", "calibration=c4")
    need = need_of(dense)
    assert list(changes(dense, need, 1, 25 * 10**9)) == [
        "model.dtype=bfloat16",
        "pruner.scope=per_layer, one block at a time",
        "pruner=wanda, one block at a time",
    ]
    assert list(changes(dense, need, 1, 10**9)) == []


@pytest.mark.slow
def test_block_by_block_is_the_plan_of_the_walk(llama_7b):
    given = ["pruner=sparsegpt", "trainer.max_steps=0", "calibration=c4", "model.dtype=bfloat16"]
    config = of_7b(llama_7b, *given)
    need = need_of(config)
    assert need.by_block
    settings = fitting_config(str(llama_7b), "language_modelling", 1, 2048)
    # WikiText-2's test split has 166 blocks of 2,048 of Llama's tokens, more than 128 samples.
    model = on_meta(settings, "bfloat16")
    assert need.total == plan_walk("sparsegpt", model, sequences=166, length=2048).total
    together = need_of(of_7b(llama_7b, *given, "pruner.scope=global"))
    assert not together.by_block
    assert together.total > need.total + 12e9


@pytest.mark.slow
def test_weights_alone_need_one_block(llama_7b):
    given = ["pruner=magnitude", "trainer.max_steps=0", "model.dtype=bfloat16"]
    whole = need_of(of_7b(llama_7b, *given))
    one = need_of(of_7b(llama_7b, *given, "pruner.scope=per_layer"))
    assert (whole.by_block, one.by_block) == (False, True)
    # 31 of 32 blocks of 202 million weights are not there; both hold the rest.
    assert whole.parts["weights"] - one.parts["weights of a block"] > 31 * 2 * 202e6
    assert one.parts["statistics of a block's inputs"] == 0
    assert one.parts["inputs of a block, all sequences"] == 2 * 166 * 2048 * 4096 * 2


@pytest.mark.slow
def test_a_model_in_memory_is_evaluated_batch_by_batch(llama, texts, tmp_path):  # noqa: F811
    """transformers converts Mixtral's files, so only the calibration walks through its blocks."""
    model_of("Mixtral").save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    need = need_of(config_of(tmp_path / "model", texts, tmp_path))
    assert not need.by_block
    assert need.parts["inputs of a block, all sequences"] == 2 * 6 * 16 * 16 * 4


def test_gradients_within_a_block_are_named(llama, texts, tmp_path):  # noqa: F811
    need = need_of(config_of(llama, texts, tmp_path, "pruner=wanda_pp"))
    assert "a block's activations and gradients" in need.besides


def test_pruning_alone_is_not_shared(llama, texts, tmp_path):  # noqa: F811
    with pytest.raises(ConfigError, match="--ranks is 2: only training is shared"):
        need_of(config_of(llama, texts, tmp_path), 2)


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("24GB", 24 * 10**9), ("80GiB", 80 * 2**30), ("1.5 tb", 1.5e12), ("512mib", 2**29)],
)
def test_sizes_are_decimal_or_binary(text, bytes_):
    assert size(text) == bytes_


@pytest.mark.parametrize("text", ["24", "GB", "-1GB", "0GB", "24 apples", ""])
def test_a_size_without_a_unit_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 24GB"):
        size(text)


def plan(folder, *arguments):
    return subprocess.run(
        [python(), "-m", "seven_exp", "plan", *arguments], cwd=folder,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_a_plan_is_a_table_and_a_verdict_and_leaves_nothing(tmp_path):
    done = plan(tmp_path, "pruner=seven_dyn", "optimizer=sgd", "--memory", "1GB", "--ranks", "2")
    assert done.returncode == 0, done.stderr
    for words in ("seven_dyn on vit_tiny", "optimizer, sgd", "on each of 2 devices",
                  "not counted: activations", "fits into 1.0 GB"):  # fmt: skip
        assert words in done.stdout
    done = plan(tmp_path, "--memory", "1MB")
    assert done.returncode == 0, done.stderr
    assert "does not fit into 1.0 MB" in done.stdout
    assert "what would fit: --ranks 4" in done.stdout
    assert list(tmp_path.iterdir()) == []


PLUGIN = """
import torch
from seven_exp.models import MODELS

@MODELS.register("own_counting")
def own(num_classes, image_size, channels):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
    assert model[1].weight.detach().sum().item() < 1e9
    return model
"""

MISTAKES = {
    "pruner=seven_dym": "did you mean 'seven_dyn'",
    "model=vit_tny": "did you mean 'vit_tiny'",
    "--memory=24": "argument --memory: '24' is no size: give a number with MB, GB or GiB",
    "--ranks=0": "argument --ranks: '0' is no number of processes: choose 1 or more",
    "-m": "leave out -m",
    "device=cuda:99": "device",
    "trainer.max_steps=0": "seven_dyn prunes during training",
    "pruner.pattern=7:9": "pattern",
    "model.name=own_counting": "it can't be built without weights",
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_code_2(mistake, tmp_path):
    (tmp_path / "own.py").write_text(PLUGIN)
    given = [mistake]
    if "own" in mistake:
        lean = [f"~model.{key}" for key in ("depth", "width", "heads", "mlp_width", "patch_size")]
        given += ["plugins=[own.py]", *lean, "~model.dropout"]
    done = plan(tmp_path, *given)
    assert done.returncode == 2, done.stdout
    assert MISTAKES[mistake] in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
