"""The presets of papers against what the papers, or their authors' code, state."""

from itertools import pairwise
from pathlib import Path

import pytest
from test_conf import CONF, composed

from seven_exp.config import moment
from seven_exp.models import build_model
from seven_exp.pruning.layers import prunable_layers
from seven_exp.runs.check import check
from seven_exp.runs.plan import Plan
from seven_exp.training.lr_schedules import lr_factor

IMAGES = {"imagenet": 1_281_167, "cifar10": 50_000, "squad": 87_599, "glue/mnli": 392_702}
"""Training examples."""

UNSTATED = None

# Epochs count all training examples; a rate is given at some epochs; a window is in epochs, or in
# steps where the paper counts those; sparsity, scope.
PUBLISHED = {
    # Frankle et al., arXiv 1912.05671, table 1 and appendix A: 63K steps, x0.1 at 32K and 48K,
    # 20% of the weights per level, rewinding to step 2,000.
    "recipe/lth_resnet20": {
        "model": "resnet20", "dataset": "cifar10", "pruner": "imp", "batch": 128,
        "optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "smoothing": 0.0,
        "rates": {1: 0.1, 31_999: 0.1, 32_001: 0.01, 48_001: 0.001}, "of": "steps",
    },
    # Evci et al., arXiv 1911.11134, section 4.1: 32,000 steps of 4,096; 1.6 after 5 epochs, x0.1 at
    # epochs 30, 70, 90; every 100 steps until 25,000, a third at first; label smoothing 0.1.
    "recipe/rigl_resnet50": {
        "model": "resnet50", "dataset": "imagenet", "pruner": "rigl", "batch": 4096,
        "steps": 32_000, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4,
        "smoothing": 0.1, "warmup": 5, "window": (0, 25_000, 100), "sparsity": 0.8,
        "rates": {5.1: 1.6, 29.9: 1.6, 30.1: 0.16, 70.1: 0.016, 90.1: 0.0016},
    },
    # Wang et al., arXiv 2002.07376, section 5.1: 160 epochs, batch 128, 0.1, x0.1 at 1/2 and 3/4.
    # The paper does not state the decay; their code has these.
    "recipe/grasp_resnet32": {
        "model": "resnet32", "dataset": "cifar10", "pruner": "grasp", "batch": 128, "epochs": 160,
        "optimizer": "sgd", "momentum": UNSTATED, "weight_decay": 1e-4, "smoothing": 0.0,
        "rates": {1: 0.1, 79.9: 0.1, 80.1: 0.01, 120.1: 0.001}, "sparsity": 0.9,
    },
    "recipe/grasp_vgg19": {
        "model": "vgg19", "dataset": "cifar10", "pruner": "grasp", "batch": 128, "epochs": 160,
        "optimizer": "sgd", "momentum": UNSTATED, "weight_decay": 5e-4, "smoothing": 0.0,
        "rates": {1: 0.1, 79.9: 0.1, 80.1: 0.01, 120.1: 0.001}, "sparsity": 0.9,
    },
    # Touvron et al., arXiv 2012.12877, table 9: 300 epochs, batch 1,024, AdamW, 0.0005 for each 512
    # images of a batch, cosine, decay 0.05, 5 epochs of warm-up, smoothing 0.1. Nothing is pruned.
    "recipe/deit_small": {
        "model": "timm", "dataset": "imagenet", "pruner": UNSTATED, "batch": 1024, "epochs": 300,
        "optimizer": "adamw", "momentum": UNSTATED, "weight_decay": 0.05, "smoothing": 0.1,
        "warmup": 5, "rates": {5.001: 1e-3, 152.5: (1e-3 + 1e-5) / 2, 299.999: 1e-5},
    },
    # Kusupati et al., arXiv 2002.03231, and their code's file for this baseline: 100 epochs, batch
    # 256, 0.256, cosine after 5 epochs, momentum 0.875, decay 2^-15, smoothing 0.1; epochs 20, 79.
    "recipe/gmp_resnet50": {
        "model": "resnet50", "dataset": "imagenet", "pruner": "magnitude_dyn", "batch": 256,
        "epochs": 100, "optimizer": "sgd", "momentum": 0.875, "weight_decay": 2.0**-15,
        "smoothing": 0.1, "warmup": 5, "rates": {5.001: 0.256, 52.5: 0.128}, "sparsity": 0.9,
        "window_epochs": (20, 79),
    },
    # Sanh et al., arXiv 2005.07683, appendix A.1: SQuAD, 10 epochs, batch 16, 3e-5 with 5,400 steps
    # of warm-up. Pruning begins after these and ends twice as many before the end of training.
    "paper/movement": {
        "model": "bert_base", "dataset": "squad", "pruner": "movement", "batch": 16, "epochs": 10,
        "optimizer": "adamw", "momentum": UNSTATED, "weight_decay": UNSTATED, "smoothing": 0.0,
        "rates": {}, "warmup_steps": 5400, "lr": 3e-5, "first": 5400, "last": 2 * 5400,
    },
    # Zhang et al., arXiv 2206.12562, table 6: 8 epochs, batch 32, 8e-5. Their code: decay 0.01;
    # a tenth of warm-up; pruning begins after 5,400 steps and ends five times as many early.
    "paper/platon": {
        "model": "bert_base", "dataset": "glue/mnli", "pruner": "platon", "batch": 32, "epochs": 8,
        "optimizer": "adamax", "momentum": UNSTATED, "weight_decay": 0.01, "smoothing": 0.0,
        "rates": {}, "warmup_steps": 0.1, "lr": 8e-5, "first": 5400, "last": 5 * 5400,
    },
}  # fmt: skip


def test_every_recipe_has_its_paper():
    files = {f"recipe/{path.stem}" for path in (CONF / "experiment/recipe").glob("*.yaml")}
    assert files == {name for name in PUBLISHED if name.startswith("recipe/")}
    for name in files:
        assert "arXiv" in Path(CONF, "experiment", f"{name}.yaml").read_text() or "grasp" in name


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_what_its_paper_states(name, monkeypatch):
    monkeypatch.setattr("seven_exp.datasets.check_data", lambda name, **arguments: None)
    monkeypatch.setattr("seven_exp.models.check_model", lambda name, head, **arguments: None)
    config, paper = composed(f"experiment={name}"), PUBLISHED[name]
    check(config)
    optimizer, trainer = config.optimizer, config.trainer
    batch = trainer.batch_size * trainer.accumulate
    assert (config.model.name, config.dataset.name) == (paper["model"], paper["dataset"])
    assert (optimizer.name, batch) == (paper["optimizer"], paper["batch"])
    assert trainer.label_smoothing == paper["smoothing"]
    # All training data are trained on.
    assert config.dataset.validation == 0
    for key, value in {
        "pruner": config.pruner.name, "weight_decay": optimizer.weight_decay,
        "epochs": trainer.epochs, "steps": trainer.max_steps, "sparsity": config.sparsity,
        "lr": optimizer.lr, "momentum": optimizer.arguments.get("momentum"),
        "warmup_steps": optimizer.warmup_steps,
    }.items():  # fmt: skip
        if paper.get(key) is not UNSTATED:
            assert value == paper[key], key

    examples = IMAGES[paper["dataset"]]
    batches = examples // trainer.batch_size  # the last, smaller one is dropped
    plan, epoch = Plan.of(config, batches), batches / trainer.accumulate
    if "warmup" in paper:
        assert plan.warmup == pytest.approx(paper["warmup"] * epoch, rel=1e-3)
    for when, rate in paper["rates"].items():
        step = when if paper.get("of") == "steps" else round(when * epoch)
        place = plan.lr_place(step)
        factor = lr_factor(optimizer.lr_schedule, *place, plan.warmup, optimizer.lr_options)
        assert optimizer.lr * factor == pytest.approx(rate, rel=5e-3), when
    if "first" in paper:
        # The authors count somewhat more examples: they cut long texts.
        windows = plan.begin, plan.steps - plan.end
        assert windows == pytest.approx((paper["first"], paper["last"]), rel=0.02)
    if "window" in paper:
        assert (plan.begin, plan.end, plan.interval) == paper["window"]
    if "window_epochs" in paper:
        ends = [x / epoch for x in (plan.begin, plan.end)]
        assert ends == pytest.approx(paper["window_epochs"], rel=2e-3)


def test_lottery_tickets_rewind_to_step_2000_and_lose_a_fifth_at_each_level():
    config = composed("experiment=recipe/lth_resnet20", "dataset.download=true")
    plan = Plan.of(config, 390)
    assert plan.prune_at[0] == 63_000
    assert plan.rewind_to == 2000
    assert len(plan.prune_at) == 10
    assert plan.prune_at[-1] + 61_000 == plan.steps
    assert config.sparsity == pytest.approx(1 - 0.8**10, abs=1e-4)
    assert config.schedule.name == "exponential"
    # Each level trains at the rates of steps 2,000 to 63,000.
    assert plan.lr_place(63_000) == (2000, 63_000)
    assert plan.lr_place(plan.steps - 1) == (62_999, 63_000)


def test_rigl_prunes_all_layers_with_the_settings_of_its_code():
    config = composed("experiment=recipe/rigl_resnet50")
    assert (config.optimizer.arguments["nesterov"], config.pruner.arguments["drop"]) == (True, 0.3)
    model = build_model("resnet50", num_classes=1000, image_size=224, channels=3)
    layers = prunable_layers(model, exclude_defaults=config.pruner.exclude_defaults)
    weights = sum(layer.weight.numel() for layer in layers)
    # The authors' table of models: 23.683 MB at 80%, four bytes a weight and a bit for each mask.
    assert weights * (0.2 * 4 + 1 / 8) == pytest.approx(23.683e6, rel=0.005)


def test_deit_augments_as_its_table_says():
    config = composed("experiment=recipe/deit_small")
    assert config.dataset.transforms == {
        "rand_augment": {"num_ops": 2, "magnitude": 27},  # 9 of 10
        "random_erasing": {"p": 0.25}, "mixup": {"alpha": 0.8}, "cutmix": {"alpha": 1.0},
    }  # fmt: skip
    assert config.model.stochastic_depth == 0.1
    assert config.model.title == "timm/deit_small_patch16_224"


def test_models_of_the_grasp_paper_have_their_sizes():
    """GraSP's code: ResNet-32 of 32, 64, 128 channels; VGG-19 of sixteen convolutions."""
    make = {"num_classes": 10, "image_size": 32, "channels": 3}
    resnet = build_model("resnet32", width=32, **make)
    weights = 9 * (3 * 32 + 10 * 32**2 + 32 * 64 + 9 * 64**2 + 64 * 128 + 9 * 128**2)
    weights += 32 * 64 + 64 * 128 + 128 * 10
    assert sum(p.numel() for p in resnet.parameters() if p.ndim > 1) == weights
    widths = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    vgg = build_model("vgg19", **make)
    expected = sum(9 * a * b for a, b in pairwise(widths)) + 5120
    assert sum(p.numel() for p in vgg.parameters() if p.ndim > 1) == expected


def test_moments_of_recipes_are_epochs():
    deit = composed("experiment=recipe/deit_small")
    assert moment(deit.optimizer.warmup_steps, 300 * 1251) == 5 * 1251
