"""The results page: self-contained, escaped, complete, and still a page for the smallest cohort."""

import base64
import dataclasses
import io
import json
import re
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from page_outline import outline
from PIL import Image
from tiny_cohort import draw_photograph

from engine.config import parse_config, to_dict
from engine.evaluation import Embeddings, Evaluation
from engine.page import duration, matrix_order, read_log, write_page
from engine.page_gallery import choose_examples, thumbnail
from engine.retrieval import recall_by_pool
from engine.zeroshot import zero_shot

HEADER = (
    "step,epoch,loss,loss_left,loss_right,loss_patient,lr,scale_left,scale_right,scale_patient,"
    "grad_norm,patients_per_second,seconds"
)
CONFIG = parse_config(
    {
        "training": {"steps": 3, "batch_size": 8},
        "evaluation": {
            "findings": [{"name": "drusen", "positive": ["drusen"], "negative": ["healthy"]}]
        },
    }
)


class Reader:
    """The part of ShardReader that the page uses, over reports and label columns in memory."""

    def __init__(self, reports, eyes, labels=None):
        self.patients = []
        for number, report in enumerate(reports):
            columns = labels[number] if labels else {}
            photographs = {
                eye: ((number, eye),) if eye in eyes[number] else () for eye in ("left", "right")
            }
            visit = SimpleNamespace(
                report=report, report_id=zlib.crc32(report.encode()), columns=columns, **photographs
            )
            self.patients.append(
                SimpleNamespace(patient_id=f"T{number:03d}", examinations=(visit,))
            )

    def __len__(self):
        return len(self.patients)

    def patient(self, index):
        return self.patients[index]

    def jpeg(self, photo):
        number, eye = photo
        buffer = io.BytesIO()
        draw_photograph(number, eye, (320, 300)).save(buffer, "JPEG")
        return np.frombuffer(buffer.getvalue(), np.uint8)


def measure(reader, noise=0.3, findings=()):
    """An Evaluation and Embeddings of features that resemble each other as far as `noise` lets."""
    generator = torch.Generator().manual_seed(0)
    number = len(reader)
    visits = [reader.patient(index).examinations[0] for index in range(number)]
    report_id = torch.tensor([visit.report_id for visit in visits])
    first = [report_id.tolist().index(value) for value in report_id.tolist()]
    text = F.normalize(torch.randn(3, number, 16, generator=generator), dim=-1)[:, first]
    image = F.normalize(text + noise * torch.randn(3, number, 16, generator=generator), dim=-1)
    eyes = torch.tensor([[bool(getattr(v, eye)) for v in visits] for eye in ("left", "right")])
    present = torch.stack([eyes[0], eyes[1], eyes[0] & eyes[1]])
    embeddings = Embeddings(
        image=image,
        text=text,
        present_eyes=eyes,
        report_id=report_id,
        index=torch.arange(number),
    )
    evaluation = Evaluation(
        patients=number,
        distinct_reports=len(report_id.unique()),
        present=present,
        losses={"left": 1.0, "right": 1.5, "patient": 0.5, "total": 3.0},
        retrieval=recall_by_pool(image[2], text[2], report_id, present[2]),
        zero_shot=zero_shot(
            lambda texts: torch.ones(3, len(texts), 16) * torch.arange(16) / 10,
            findings,
            image,
            present,
            visits,
        ),
    )
    return evaluation, embeddings


def render(tmp_path, reader, measured=None, **changes):
    evaluation, embeddings = measured or measure(reader)
    settings = {
        "evaluation": evaluation,
        "embeddings": embeddings,
        "shards": reader,
        "run_title": "A trial",
        "config_summary": to_dict(CONFIG),
        "training_log": None,
        "facts": {"machine": "a test", "synthetic": False},
        "gallery": True,
    }
    write_page(tmp_path / "report.html", **(settings | changes))
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def cohort(number=12):
    reports = [f"Report {index // 2}: drusen." for index in range(number)]
    eyes = [("left",) if index == 3 else ("left", "right") for index in range(number)]
    labels = [
        {"left_drusen": str(index % 2), "right_drusen": "" if index == 3 else "0"}
        for index in range(number)
    ]
    return Reader(reports, eyes, labels)


def write_log(path, steps=3):
    rows = [f"{s},0,{9 - s},3,3,{3 - s},1e-4,20,20,20,1,50.5,{s * 40}" for s in range(1, steps + 1)]
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    reader = cohort()
    measured = measure(reader, findings=CONFIG.evaluation.findings)
    page = render(tmp_path, reader, measured, training_log=write_log(tmp_path / "metrics.csv"))
    found = outline(page)
    assert all(found.alternatives)
    # seven patients with both eyes, one with one, and five figures
    assert len(found.addresses) == 2 * 7 + 1 + 5
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_reports_cannot_inject_markup(tmp_path):
    attack = '<script>alert(1)</script><img src=x onerror=alert(1)> "quoted" & {{ 7 * 7 }}'
    reader = Reader([attack, "</p></section>", "plain"], [("left", "right")] * 3)
    page = render(tmp_path, reader, run_title="<b>bold</b>", facts={"machine": "<i>m</i>"})
    found = outline(page)
    assert "script" not in found.tags and "b" not in found.tags and "i" not in found.tags
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "{{ 7 * 7 }}" in page
    assert "Content-Security-Policy" in page


def test_figures_and_findings_are_shown(tmp_path):
    reader = cohort()
    measured = measure(reader, findings=CONFIG.evaluation.findings)
    page = render(tmp_path, reader, measured, training_log=write_log(tmp_path / "metrics.csv"))
    found = measured[0].retrieval["distinct"].image_to_text
    assert (
        f"{100 * found.recall[5]:.1f}%" in page and f"chance {100 * found.chance[5]:.1f}%" in page
    )
    assert f"{measured[0].zero_shot[0].auroc:.3f}" in page
    assert "2 min 00 s" in page and "not photographed" in page and "training.batch_size" in page
    assert "For research only" in page and "Rendered patients" not in page
    assert "evaluation.findings.drusen.positive" in page


def test_a_rendered_cohort_says_so_and_no_more(tmp_path):
    page = render(tmp_path, cohort(), facts={"synthetic": True})
    assert "Rendered patients" in page and "Patient by patient" in page
    assert "contains patient data" not in page


def test_patients_are_shown_only_in_a_gallery_that_says_so_first(tmp_path):
    reader = cohort()
    measured = measure(reader, findings=CONFIG.evaluation.findings)
    page = render(tmp_path, reader, measured, training_log=write_log(tmp_path / "metrics.csv"))
    assert page.index("This page contains patient data") < page.index("<h1>")
    assert "data:image/jpeg" in page and "T000" in page and "Report 0: drusen." in page
    page = render(tmp_path, reader, measured, gallery=False)
    outline(page)
    assert "contains patient data" not in page and "data:image/jpeg" not in page
    assert not re.search(r"T0\d\d|Report \d", page)
    # the figures stay
    assert "data:image/svg+xml" in page and f"{measured[0].zero_shot[0].auroc:.3f}" in page


def test_chinese_reports_are_marked_as_chinese(tmp_path):
    reader = Reader(["左眼玻璃膜疣。", "右眼玻璃膜疣。"], [("left", "right")] * 2)
    page = render(tmp_path, reader)
    assert '<p class="report" lang="zh">左眼玻璃膜疣。</p>' in page and "Noto Sans CJK" in page


@pytest.mark.parametrize("eyes", [("left", "right"), ("right",)])
def test_the_smallest_cohort_still_gives_a_page(tmp_path, eyes):
    reader = Reader(["No abnormality."] * 4, [eyes] * 4)
    page = render(tmp_path, reader, measure(reader, findings=CONFIG.evaluation.findings))
    outline(page)
    assert "NaN" not in page and "None" not in page and "nan" not in page
    expected = "there is nothing to tell apart" if len(eyes) == 2 else "nothing is measured at the"
    assert expected in page
    assert "no column drusen" in page and "no record of the training" in page


def test_one_patient_gives_a_page(tmp_path):
    outline(render(tmp_path, Reader(["Drusen."], [("left", "right")])))


def test_examples_run_from_best_to_worst_with_the_single_eye_added():
    reader = cohort(60)
    evaluation, embeddings = measure(reader, noise=1.5)
    examinations = [reader.patient(index).examinations[0] for index in range(60)]
    arguments = embeddings, evaluation.present, examinations, reader, ["drusen"]
    examples = choose_examples(*arguments)
    ranks = [example.rank for example in examples]
    assert ranks == sorted(ranks) and len(examples) == 8 and ranks[0] == 1
    assert [e.patient_id for e in examples if e.level == "left"] == ["T003"]
    assert [e.patient_id for e in choose_examples(*arguments)] == [e.patient_id for e in examples]
    for example in examples:
        own = [answer.place for answer in example.retrieved if answer.is_own]
        assert own == ([example.rank] if example.rank <= 3 else [])
        assert example.is_hit == bool(own)
        assert [photograph.eye for photograph in example.photographs] == ["right", "left"]
    single = next(e for e in examples if e.level == "left")
    assert single.photographs[0].address is None
    assert single.photographs[0].missing == "not photographed"
    assert single.photographs[1].findings == ("drusen",) and single.one_eye
    # where an eye stands in for its fellow, the patient level answers
    present = embeddings.present_eyes
    stand_in = torch.stack([present[0], present[1], present[0] | present[1]])
    found = choose_examples(embeddings, stand_in, examinations, reader, ["drusen"])
    assert [(e.patient_id, e.level) for e in found if e.one_eye] == [("T003", "patient")]


def test_the_last_of_two_reports_is_no_hit():
    reader = Reader(["Drusen.", "Healthy."], [("left", "right")] * 2)
    evaluation, embeddings = measure(reader)
    embeddings = dataclasses.replace(embeddings, image=-embeddings.image)
    examinations = [reader.patient(index).examinations[0] for index in range(2)]
    examples = choose_examples(embeddings, evaluation.present, examinations, reader, [])
    assert [(example.rank, example.is_hit) for example in examples] == [(2, False)] * 2


def test_ranks_of_the_gallery_agree_with_recall():
    reader = Reader([f"Report {n}" for n in range(8)], [("left", "right")] * 8)
    evaluation, embeddings = measure(reader, noise=2.0)
    examinations = [reader.patient(index).examinations[0] for index in range(8)]
    examples = choose_examples(embeddings, evaluation.present, examinations, reader, [])
    recall = evaluation.retrieval["distinct"].image_to_text.recall
    for k in (1, 5):
        assert np.mean([example.rank <= k for example in examples]) == pytest.approx(recall[k])


def test_the_matrix_is_ordered_by_findings_and_bounded():
    reader = cohort(400)
    evaluation, embeddings = measure(reader, findings=CONFIG.evaluation.findings)
    order, findings = matrix_order(evaluation, embeddings)
    assert len(order) == 120 == len(set(order.tolist())) and 3 not in order
    flags = findings["drusen"][order]
    assert flags.tolist() == sorted(flags.tolist()) and 0 < flags.sum() < 120


def test_thumbnails_are_small_and_keep_their_shape():
    reader = cohort()
    address = thumbnail(reader.jpeg((0, "left")))
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as small:
        assert small.size == (224, 210) and small.format == "JPEG"


def test_a_log_is_read_in_the_order_of_steps(tmp_path):
    path = write_log(tmp_path / "metrics.csv")
    # a resumed run repeats a step; a killed process leaves half a row
    path.write_text(path.read_text() + "2,0,4.5,1,1,1,0,0,0,0,0,10,95\n3,0,4")
    log = read_log(path)
    assert log["step"].tolist() == [1, 2, 3] and log["loss"].tolist() == [8, 4.5, 6]
    assert read_log(tmp_path / "nothing.csv") is None and read_log(None) is None
    (tmp_path / "empty.csv").write_text(HEADER + "\n")
    assert read_log(tmp_path / "empty.csv") is None


def test_durations_are_words():
    assert [duration(s) for s in (48.2, 372, 3600, 11100)] == [
        "48 s",
        "6 min 12 s",
        "1 h 00 min",
        "3 h 05 min",
    ]


def test_the_evaluation_of_the_page_is_json_able():
    evaluation, _ = measure(cohort(), findings=CONFIG.evaluation.findings)
    assert json.loads(json.dumps(evaluation.to_dict()))["patients"] == 12
