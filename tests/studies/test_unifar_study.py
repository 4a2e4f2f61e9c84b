"""The study of encoders with facets: what its arms do, on an invented literature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tacit.retrieval.benchmarks import FACETS
from tacit.retrieval.encoder import Encoder
from tacit.retrieval.modules import pooling_of
from tacit.studies import faceted
from tacit.studies.study import Arm, Measured
from tacit.studies.unifar import ABLATIONS, CLAIMS, PROPERTIES, REFERENCES, STUDY, TFIDF, VIEWS, arms, gap, plan

PLAN = plan("smoke")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Measured], dict[str, Path]]:
    """Every arm of the smoke preset but the transformer, in its order."""
    root = tmp_path_factory.mktemp("unifar")
    found, places = {}, {}
    for arm in PLAN.arms:
        if "transformer" not in arm.name:
            places[arm.name] = root / arm.name.replace(" ", "-")
            found[arm.name] = STUDY.measure(arm, 0, places[arm.name], places[arm.after] if arm.after else None)
    return found, places


def test_every_arm_measures_the_same_queries(done):
    found, _ = done
    for name, told in found.items():
        assert told.clusters == found["TF-IDF"].clusters and len(told.clusters) == 24
        for metric, values in told.numbers.items():
            if metric.partition("/")[0] in faceted.METRICS:
                counted = [v for v in values if v is not None]
                of_group = metric.count("/") == 2
                assert len(values) == 24 and len(counted) == (4 if of_group else 12) and all(0 <= v <= 1 for v in counted), (name, metric)


def test_groups_are_parts_of_the_whole(done):
    told = done[0]["full"].numbers
    parts = [[v for v in told[f"csfcube/map/{facet}"] if v is not None] for facet in FACETS]
    assert sorted(v for part in parts for v in part) == sorted(v for v in told["csfcube/map"] if v is not None)


def test_the_better_of_words_is_no_worse_than_any(done):
    numbers = {name: {0: told.numbers} for name, told in done[0].items()}
    for metric in ("csfcube/map", "csfcube/ndcg%20", "dorismae/map"):
        gaps = [gap(numbers, "better of words", name, metric) or 0.0 for name in REFERENCES if name != "LSA"]
        assert min(gaps) == pytest.approx(0)


def test_a_view_is_made_of_what_its_arm_left(done, tmp_path):
    found, places = done
    assert found["full, all facets"].numbers["csfcube/map"] != found["full, wrong facet"].numbers["csfcube/map"]
    settings = PLAN.arm("hybrid").settings
    words, model = ({"csfcube": x, "dorismae": x} for x in (0.0, 1.0))
    as_words, as_model = (faceted.measure_view({**settings, "weight": weight}, places["full"]).numbers for weight in (words, model))
    assert as_model["csfcube/map"] == found["full"].numbers["csfcube/map"]
    partner = faceted.measure_reference({"data": "invented", "words": [TFIDF]}).numbers
    assert as_words["csfcube/ndcg%20"] == partner["csfcube/ndcg%20"]


def test_wrong_facets_are_the_two_that_were_not_asked_for():
    query = faceted.material("invented").sets["csfcube"].queries[0]
    asked = {faceted.ASKED[how](query) for how in faceted.HOW["wrong"]}
    assert asked == set(FACETS) - {query.facet} and faceted.ASKED["given"](query) == query.facet


def test_whole_texts_alone_are_the_first_block(done):
    scores = json.loads((done[1]["untrained"] / "scores.json").read_text())["csfcube"]
    benchmark, model = faceted.material("invented").sets["csfcube"], made(done[1]["untrained"])
    query = benchmark.queries[0]
    size = pooling_of(model).dim
    name = next(iter(query.grades))
    mine, other = Encoder(model).documents([query.text, benchmark.corpus[name]])[:, :size]
    assert scores["whole"][query.id][name] == pytest.approx(float(mine @ other), abs=1e-5)


def test_training_teaches_roles_and_needs_labels(done):
    found = done[0]
    assert found["full"].numbers["roles/dev"] > found["untrained"].numbers["roles/dev"] - 0.05
    assert all(0 < found["full"].numbers[f"gate/{grain}/papers"] < 1 for grain in ("token", "sentence", "global"))
    assert found["no sentences"].numbers["gate/sentence/papers"] == 0


def made(folder: Path):
    settings = PLAN.arm("untrained").settings
    return faceted.start(faceted.prepared(settings, 0, folder), faceted.options(settings), 0)


def test_names_follow_the_labels_and_change_no_score(done):
    """Property 6.3: an order of anchors is a matter of names."""
    model = made(done[1]["untrained"])
    labelled = faceted.material("invented").labelled["train"]
    pooling = pooling_of(model)
    with_names = Encoder(model).documents(["Many systems need this. We propose that."])
    faceted.name_facets(model, labelled)
    before = faceted.accuracy(faceted.told_roles(Encoder(model), labelled))
    order = [2, 0, 1]
    pooling.anchors.data, pooling.position.data = pooling.anchors.data[order], pooling.position.data[order]
    assert faceted.accuracy(faceted.told_roles(Encoder(model), labelled)) <= before
    faceted.name_facets(model, labelled)
    assert faceted.accuracy(faceted.told_roles(Encoder(model), labelled)) == pytest.approx(before)
    again = Encoder(model).documents(["Many systems need this. We propose that."])
    assert np.allclose(np.sort(with_names), np.sort(again), atol=1e-5)


def test_calibration_looks_at_held_out_sets_alone(tmp_path, done):
    settings = {**PLAN.arm("full").settings, "sets": False, "steps": 2}
    told = STUDY.measure(Arm("x", settings, after="untrained"), 1000, tmp_path / "x", done[1]["untrained"])
    assert told.clusters == () and not any(name.startswith(("csfcube", "dorismae", "roles/test")) for name in told.numbers)
    assert all(len(steps) == 10 for steps, _ in told.curves.values()) and any("with TF-IDF" in name for name in told.curves)
    assert all(arm.settings.get("sets") is False for arm in plan("calibrate").arms)


def test_properties_tell_what_was_measured(done):
    numbers = {name: {0: told.numbers} for name, told in done[0].items()}
    told = {p.id: p.test(numbers) for p in PROPERTIES}
    assert all(result is not None for name, result in told.items() if not name.startswith("E7"))
    assert told["E7-whole"] is None and all(p.test({}) is None for p in PROPERTIES)
    made_up = {"full": {0: {"roles/test": 0.8, "collapse": 0.95}}}
    assert {p.id: p.test(made_up) for p in PROPERTIES if p.id in ("E3-roles", "6.7")} == {"E3-roles": (0.8, True), "6.7": (0.95, False)}


def test_presets_hold_every_arm():
    names = {arm.name for arm in plan("core").arms}
    assert {*ABLATIONS, *REFERENCES, *VIEWS, "SPECTER", "transformer"} <= names and len(plan("core").seeds) >= 3
    assert len([name for name in names if name.startswith("published") or name == "SPECTER"]) == 17
    assert {c.a for c in CLAIMS} | {c.b for c in CLAIMS} <= {arm.name for arm in arms()}
