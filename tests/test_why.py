"""The page's explanations: overlaps against sets, contrasts by hand, and both drawn."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from test_compare import compare, write
from test_conf import composed

from seven_exp.compare import overlap as overlaps
from seven_exp.compare import why
from seven_exp.compare.evidence import pooled, read_evidence
from seven_exp.compare.file_cache import FileCache
from seven_exp.compare.overlap import mask_overlap, read_shapes
from seven_exp.compare.records import read_runs
from seven_exp.runs import save_masks
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord

SHAPES = {"a.weight": (5, 7), "b.weight": (3, 3, 2)}


def random_masks(seed: int, density: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(shape, generator=generator) < density for name, shape in SHAPES.items()
    }


def places(masks: dict[str, torch.Tensor]) -> set:
    return {(name, i) for name, m in masks.items() for i in m.flatten().nonzero()[:, 0].tolist()}


def save(folder, masks):
    path = folder / "masks.safetensors"
    save_masks(path, masks)
    return path


@pytest.mark.parametrize("piece", [1, 3, 8192])
def test_overlaps_are_those_of_sets(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(overlaps, "_PIECE", piece)
    masks = [random_masks(seed, density) for seed, density in enumerate((0.2, 0.5, 0.9))]
    masks.append({name: torch.zeros(shape, dtype=torch.bool) for name, shape in SHAPES.items()})
    found = mask_overlap([save(tmp_path / str(i), m) for i, m in enumerate(masks)])
    for i, j in itertools.product(range(4), repeat=2):
        one, other = places(masks[i]), places(masks[j])
        if not one | other:
            assert np.isnan(found.jaccard[i, j])
            continue
        assert found.jaccard[i, j] == pytest.approx(len(one & other) / len(one | other))


def test_random_masks_share_what_all_pairs_of_masks_share_on_average(tmp_path):
    # all ways to keep 2 of 4 weights in one layer, with all to keep 3 of 5 in another
    def ways(n, k):
        return [set(c) for c in itertools.combinations(range(n), k)]

    both = sum(
        np.mean([len(a & b) for a, b in itertools.product(ways(n, k), ways(n, other))])
        for n, k, other in ((4, 2, 1), (5, 3, 4))
    )
    masks = [
        {"a": torch.tensor([[1, 1], [0, 0]]).bool(), "b": torch.tensor([[1, 1, 1, 0, 0]]).bool()},
        {"a": torch.tensor([[0, 1], [0, 0]]).bool(), "b": torch.tensor([[0, 1, 1, 1, 1]]).bool()},
    ]
    found = mask_overlap([save(tmp_path / str(i), m) for i, m in enumerate(masks)])
    assert found.expected[0, 1] == pytest.approx(both / (5 + 5 - both))
    assert found.jaccard[0, 1] == pytest.approx(3 / 7)


def test_broken_masks_are_said_so(tmp_path):
    whole, broken = save(tmp_path / "a", random_masks(0, 0.5)), tmp_path / "b.safetensors"
    broken.write_bytes(whole.read_bytes()[:-3])
    assert read_shapes(whole) == {"a.weight": "[5, 7]", "b.weight": "[3, 3, 2]"}
    for path, error in ((broken, ValueError), (tmp_path / "nowhere", OSError)):
        with pytest.raises(error):
            read_shapes(path)
    with pytest.raises(ValueError, match=r"\w"):
        mask_overlap([whole, broken])
    other = save(tmp_path / "c", {"other": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"\w"):
        mask_overlap([whole, other])


def contrast(kept, pruned, separation, counts):
    return {
        "kept": {"mean": kept, "counts": [3, 4]}, "pruned": {"mean": pruned, "counts": counts},
        "separation": separation, "separation_in_layers": separation,
    }  # fmt: skip


def test_measurements_weigh_as_many_weights_as_were_pruned():
    found = pooled(
        [
            contrast(0.8, 0.4, 0.9, [1, 2]),
            contrast(0.6, None, None, [0, 0]),
            contrast(0.4, 0.2, 0.5, [0, 1]),
        ]
    )
    assert found.kept == pytest.approx((3 * 0.8 + 0.4) / 4)
    assert found.pruned == pytest.approx((3 * 0.4 + 0.2) / 4)
    assert found.separation == pytest.approx((3 * 0.9 + 0.5) / 4)
    assert found.counts == ([9, 12], [1, 3])


@pytest.mark.parametrize("text", ["", "[]", '{"measurements": []}', '{"measurements": [1]}'])
def test_other_files_are_no_evidence(tmp_path, text):
    path = tmp_path / "analysis.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"\w"):
        read_evidence(path)


def section(folder, name):
    records, _ = read_runs([folder])
    records = sorted(records, key=lambda r: (r.task, r.pruner, r.sparsity, r.seed))
    methods = [record.pruner for record in records]
    found = {s.id: s.data for s in why.explanations(records, methods, FileCache())}
    return records, found.get(name)


@pytest.fixture
def masked(tmp_path):
    """Two methods with two seeds each, a third with one, a dense run, and one without masks."""
    layers = [
        {"name": name, "numel": int(np.prod(shape)), "nonzero": 1} for name, shape in SHAPES.items()
    ]
    draws = {
        (pruner, seed): random_masks(10 * i + seed, 0.4)
        for (i, pruner), seed in itertools.product(enumerate(("one", "two", "three")), (0, 1))
    }
    del draws["three", 1]
    for (pruner, seed), masks in draws.items():
        save(write(tmp_path, pruner, 0.6, seed, 0.9, layers=layers), masks)
    save(write(tmp_path, "dense", 0.0, 0, 0.95), random_masks(99, 1.1))
    write(tmp_path, "four", 0.6, 0, 0.9, layers=layers)
    return tmp_path, draws


def jaccard(one, other):
    a, b = places(one), places(other)
    return len(a & b) / len(a | b)


def test_a_matrix_compares_methods_at_one_seed_and_a_method_between_seeds(masked):
    folder, draws = masked
    records, (matrix,) = section(folder, "overlap")
    names = [records[run].pruner for run in matrix["runs"]]
    assert names == ["one", "three", "two"]
    assert matrix["seeds"] == 2
    found = dict(
        zip(itertools.product(names, repeat=2), itertools.chain(*matrix["jaccard"]), strict=True)
    )
    same = [jaccard(draws["one", seed], draws["two", seed]) for seed in (0, 1)]
    assert found["one", "two"] == found["two", "one"] == pytest.approx(np.mean(same), abs=1e-3)
    itself = jaccard(draws["one", 0], draws["one", 1])
    assert found["one", "one"] == pytest.approx(itself, abs=1e-3)
    assert found["three", "three"] is None
    single = jaccard(draws["three", 0], draws["two", 0])
    assert found["three", "two"] == pytest.approx(single, abs=1e-3)


def test_what_a_matrix_leaves_out_is_counted(masked, monkeypatch):
    folder, _ = masked
    size = sum(int(np.prod(shape)) for shape in SHAPES.values())
    monkeypatch.setattr(why, "MOST_WEIGHTS", 3 * size)
    records, (matrix,) = section(folder, "overlap")
    assert (matrix["seeds"], matrix["more_seeds"]) == (1, 1)
    monkeypatch.setattr(why, "MOST_METHODS", 2)
    records, (matrix,) = section(folder, "overlap")
    assert [records[run].pruner for run in matrix["runs"]] == ["one", "three"]
    assert matrix["more_methods"] == 1


def test_layers_of_another_shape_are_another_matrix(tmp_path):
    for i, pruner in enumerate(("one", "two")):
        save(write(tmp_path, pruner, 0.6, 0, 0.9), random_masks(i, 0.5))
    other = {"c": torch.ones(2, 2, dtype=torch.bool)}
    save(write(tmp_path, "other", 0.6, 0, 0.9), other)
    records, matrices = section(tmp_path, "overlap")
    assert [[records[run].pruner for run in m["runs"]] for m in matrices] == [["one", "two"]]


def test_without_masks_and_measurements_there_are_no_sections(tmp_path):
    write(tmp_path, "one", 0.6, 0, 0.9)
    write(tmp_path, "two", 0.6, 0, 0.9)
    assert section(tmp_path, "overlap")[1] is section(tmp_path, "evidence")[1] is None


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    for pruner, seed in itertools.product(("seven_dyn", "magnitude_dyn"), (0, 1)):
        config = composed(
            "model=mlp", "model.widths=[16]", f"pruner={pruner}", "sparsity=0.8", f"seed={seed}",
            "trainer.max_steps=12", "tracker.mode=disabled", f"cache_dir={folder}",
            "analysis.every=3", "analysis.start_batches=3", "trainer.save_model=false",
        )  # fmt: skip
        run_experiment(config, folder / f"{pruner}{seed}", LocalRecord())
    compare([folder], baseline="magnitude_dyn")
    return folder


def test_the_page_holds_means_over_seeds_of_what_was_measured(measured):
    page = (measured / "comparison.html").read_text()
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    sections = json.loads(text)["sections"]
    assert len(sections["overlap"]) == 1
    rows = sections["evidence"]["rows"]
    assert [len(row["runs"]) for row in rows] == [2, 2]
    for pruner, row in zip(("magnitude_dyn", "seven_dyn"), rows, strict=True):
        reports = [
            json.loads((measured / f"{pruner}{seed}/analysis.json").read_text())["measurements"]
            for seed in (0, 1)
        ]
        ends = [report[-1]["start"]["snr"]["kept"]["mean"] for report in reports]
        found = row["contrasts"]["start_snr"]["kept"]
        assert found == pytest.approx(np.mean(ends), rel=1e-3)
        grid, values = row["curves"]["direction_pruned"]
        pruned = [[m["now"]["direction"]["pruned"]["mean"] for m in report] for report in reports]
        steps = [m["step"] for m in reports[0]]
        assert sections["evidence"]["steps"][grid] == [
            step for step, one in zip(steps, pruned[0], strict=True) if one is not None
        ]
        means = [np.mean(pair) for pair in zip(*pruned, strict=True) if None not in pair]
        assert values == pytest.approx(means, rel=1e-3)
        chosen = [m["choice"]["snr"] for report in reports for m in report if "choice" in m]
        for group, counts in zip(
            ("kept", "pruned"), row["contrasts"]["choice_snr"]["counts"], strict=True
        ):
            expected = np.sum([one[group]["counts"] for one in chosen], axis=0)
            assert counts == expected.tolist()


def test_what_does_not_fit_is_counted(measured, monkeypatch):
    first = measured / "magnitude_dyn0/analysis.json"
    monkeypatch.setattr(why, "MOST_BYTES", first.stat().st_size)
    _, seen = section(measured, "evidence")
    assert (seen["unread"], len(seen["rows"])) == (3, 1)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_both_sections_are_drawn(measured, tmp_path):
    browser = Browser(tmp_path)
    try:
        browser.open((measured / "comparison.html").as_uri())
        assert not browser.errors
        cells = browser.run(
            "[...document.querySelectorAll('#overlap td')].map(cell => cell.textContent)"
        )
        assert len(cells) == 4
        assert all(re.fullmatch(r"\.\d\d \(\.\d\d\)", cell) for cell in cells)
        look = (
            "[...document.querySelectorAll('#evidence tbody tr')].map(r => r.cells[2].textContent)"
        )
        before = browser.run(look)
        browser.choose("look", "start")
        after = browser.run(look)
        assert len(before) == len(after) == 2
        assert before != after
        lines = (
            "document.querySelectorAll('#evidence .panels figure:first-child [data-series]').length"
        )
        assert browser.run(lines) == 4
        browser.choose("measure", "direction")
        browser.choose("course", "unbroken")
        assert not browser.errors
    finally:
        browser.close()
