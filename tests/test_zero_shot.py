"""Zero-shot tasks of lm-evaluation-harness: accuracies by hand, records, tables, mistakes."""

import importlib.util
import json
import math
import random

import numpy as np
import pytest
import torch
import transformers
from test_after_training import (
    WORDS,
    config_of,
    in_memory,
    llama,
    model_of,
    run,
    texts,
    tokenizer_of,
)

from seven_exp.cli import measure
from seven_exp.compare.comparison import compare
from seven_exp.compare.records import read_runs
from seven_exp.config import ConfigError, Evaluation, RunConfig
from seven_exp.runs import run_hash
from seven_exp.runs.check import check
from seven_exp.training.harness import task_files

pytest.importorskip("lm_eval")

__all__ = ["llama", "texts"]  # fixtures

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: {metrics[0]}}}, {{metric: {metrics[1]}}}]
metadata: {{version: {version}}}
"""


def questions(count: int, seed: int) -> list[dict]:
    """Choices of different lengths, so that the two accuracies differ."""
    draw = random.Random(seed)
    return [
        {
            "question": " ".join(draw.choices(WORDS, k=draw.randint(3, 9))),
            "choices": [" ".join(draw.choices(WORDS, k=k)) for k in draw.sample(range(1, 6), 3)],
            "answer": draw.randrange(3),
        }
        for _ in range(count)
    ]


def write_task(folder, name, docs, version=3, metrics=("acc", "acc_norm")):
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    values = {"name": name, "file": file, "version": version, "metrics": metrics}
    (folder / f"{name}.yaml").write_text(TASK.format(**values))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with two tasks and their data; the hub's cache of it is here, too."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, "tiny_words", questions(24, 1))
    write_task(folder, "tiny_more", questions(9, 2), version=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
        yield folder


def asked(tasks, *names):
    return (f"evaluation.tasks=[{','.join(names)}]", f"evaluation.include_path={tasks}")


def by_hand(model, tokenizer, docs):
    """Right answers of log p(choice | question), and of that over the choice's length."""
    right = []
    for doc in docs:
        sums, lengths = [], []
        for choice in doc["choices"]:
            context = tokenizer(doc["question"])["input_ids"]
            ids = tokenizer(f"{doc['question']} {choice}")["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].double().numpy()
            logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            sums.append(sum(logs[i - 1, ids[i]] for i in range(len(context), len(ids))))
            lengths.append(len(choice))
        best = np.argmax(sums), np.argmax(np.array(sums) / lengths)
        right.append([choice == doc["answer"] for choice in best])
    return np.array(right, dtype=float)


@pytest.fixture(scope="module")
def evaluated(llama, texts, tasks, tmp_path_factory):
    """A run of Wanda with two tasks, and its record."""
    folder = tmp_path_factory.mktemp("evaluated")
    config = config_of(llama, texts, folder, *asked(tasks, "tiny_words", "tiny_more"))
    return folder / "run", run(config, folder / "run")


@pytest.mark.slow
def test_accuracies_are_those_counted_by_hand(llama, evaluated):
    folder, record = evaluated
    model, words, means = model_of(folder / "model"), tokenizer_of(llama), []
    found = record["harness"]["tasks"]
    for name, docs, version in (
        ("tiny_words", questions(24, 1), 3),
        ("tiny_more", questions(9, 2), 1),
    ):
        right = by_hand(model, words, docs)
        for kind, column in zip(("accuracy", "accuracy_norm"), right.T, strict=True):
            assert found[name][kind] == pytest.approx(column.mean(), abs=1e-12)
            assert record["metrics"][f"{kind}_{name}"] == found[name][kind]
            error = math.sqrt(column.var(ddof=1) / len(docs))
            assert found[name][f"{kind}_stderr"] == pytest.approx(error)
        assert not np.array_equal(*right.T)
        assert (found[name]["examples"], found[name]["version"]) == (len(docs), version)
        means.append(right[:, 0].mean())
    assert record["metrics"]["accuracy_mean"] == pytest.approx(np.mean(means))
    assert record["harness"]["version"] == importlib.metadata.version("lm_eval")
    assert "tasks: one's own (tiny_words, tiny_more)" in record["departures"]


@pytest.mark.slow
def test_the_model_in_memory_has_the_accuracies_of_the_one_on_disk(
    llama, texts, tasks, evaluated, tmp_path
):
    _, record = evaluated
    config = config_of(llama, texts, tmp_path, *asked(tasks, "tiny_words", "tiny_more"))
    again = in_memory(config, tmp_path / "run")
    for key in ("metrics", "harness", "run_hash", "departures"):
        assert again[key] == record[key], key


@pytest.mark.slow
def test_a_finished_run_is_evaluated_later(llama, texts, tasks, evaluated, tmp_path, capsys):
    """The tied embeddings of this model are one parameter, as in the run."""
    settings = transformers.AutoConfig.from_pretrained(llama, tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_config(settings)
    model.save_pretrained(tmp_path / "tied")
    tokenizer_of(llama).save_pretrained(tmp_path / "tied")
    config = config_of(tmp_path / "tied", texts, tmp_path, "pruner=magnitude")
    record = run(config, tmp_path / "run")
    arguments = [str(tmp_path / "run"), "--include-path", str(tasks), "--device", "cpu"]
    assert measure.main([*arguments, "--tasks", "tiny_words", "--limit", "20", "--batch", "4"]) == 0
    assert "accuracy (tiny_words)" in capsys.readouterr().out
    model = model_of(tmp_path / "run/model")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    right = by_hand(model, tokenizer_of(llama), questions(24, 1)[:20])
    facts = json.loads((tmp_path / "run/harness.json").read_text())
    assert facts["metrics"]["accuracy_tiny_words"] == pytest.approx(right[:, 0].mean())
    assert facts["departures"][1] == "tasks: at most 20 examples of each"
    (found,), _ = read_runs([tmp_path / "run"])
    assert found.metrics == {**record["metrics"], **facts["metrics"]}
    assert found.values["departures"] == [*record["departures"], *facts["departures"]]
    compare([tmp_path / "run"], "accuracy_tiny_words")
    assert "tasks: at most 20 examples of each (magnitude)" in capsys.readouterr().out
    assert measure.main([*arguments, "--tasks", "tiny_word"]) == 2
    assert (
        capsys.readouterr().err == "error: unknown task 'tiny_word': did you mean 'tiny_words'?\n"
    )


def test_the_hash_covers_tasks_and_their_files(llama, texts, tasks, tmp_path):
    plain = config_of(llama, texts, tmp_path)
    values = plain.model_dump()
    del values["evaluation"]  # as in older records
    assert run_hash(plain) == run_hash(RunConfig.model_validate(values))
    write_task(tmp_path, "tiny_words", questions(24, 1))
    one, two = (
        run_hash(config_of(llama, texts, tmp_path, *asked(place, "tiny_words")))
        for place in (tasks, tmp_path)
    )
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "tiny_words.yaml").write_bytes((tmp_path / "tiny_words.yaml").read_bytes())
    assert len({run_hash(plain), one, two}) == 3


@pytest.mark.parametrize(
    "line", ["task: quoted", "'task': \"quoted\"", '"task": "quoted"  # a task']
)
def test_a_task_s_file_may_quote_its_keys(line, tmp_path):
    (tmp_path / "own.yaml").write_text(f'"dataset_name": "x"\n{line}\n"task_alias": "other"\n')
    section = Evaluation(tasks=["quoted"], include_path=str(tmp_path), limit=None, batch_size=1)
    assert task_files(section) == {"quoted": tmp_path / "own.yaml"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["evaluation.tasks=[boolqq]"], "unknown task 'boolqq': did you mean 'boolq'?"),
        (["evaluation.tasks=[mmlu]"], "unknown task 'mmlu': name single tasks, such as mmlu_a"),
        (["evaluation.tasks=[tiny_word]"], "unknown task 'tiny_word': did you mean 'tiny_words'?"),
        (["evaluation.include_path=nowhere"], "tasks: no folder 'nowhere' with YAML files"),
        (["dataset=digits", "model=mlp", "pruner=magnitude"],
         "for transformers' language models, not for .* on digits; choose dataset=lm"),
    ],
)  # fmt: skip
def test_a_mistake_is_found_before_anything_is_loaded(
    llama, texts, tasks, tmp_path, overrides, words
):
    config = config_of(llama, texts, tmp_path, *asked(tasks, "tiny_words"), *overrides)
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")) as error:
        check(config)
    assert "\n" not in str(error.value)


def test_without_the_extra_one_line_says_how_to_install_it(
    llama, texts, tasks, tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="uv sync --extra lm-eval"):
        check(config_of(llama, texts, tmp_path, *asked(tasks, "tiny_words")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": ("exact_match", "brier_score")}, "has no accuracy but exact_match"),
        ({"docs": []}, "task 'broken' can't be loaded"),
    ],
)
def test_a_task_that_does_not_fit_is_one_line_and_nothing_is_written(
    llama, texts, tasks, tmp_path, change, words
):
    write_task(tmp_path, "broken", **{"docs": questions(3, 3), **change})
    with pytest.raises(ConfigError, match=words) as error:
        run(config_of(llama, texts, tmp_path, *asked(tmp_path, "broken")), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
