"""`task=doctor`: what it finds, and that each finding comes with a fix."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from dllm_decode.console.display import make_display
from dllm_decode.console.runfolder import RunFolder
from dllm_decode.models import doctor
from dllm_decode.models.doctor import antlr_findings, examine
from dllm_decode.tasks.doctor import Doctor

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """A machine with an empty Hub cache, no lm-eval and a fitting antlr."""
    monkeypatch.setattr("dllm_decode.models.locate._cached", lambda name: None)
    installed = doctor.version_of
    versions = {"lm_eval": None, "antlr4-python3-runtime": "4.9.3"}
    monkeypatch.setattr(
        doctor, "version_of", lambda name: versions[name] if name in versions else installed(name)
    )
    return versions


def settings(checkpoint, **others):
    return {"checkpoint": checkpoint, "device": "cpu", "dtype": "float32"} | others


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "llada", tmp_path / "llada"))


def only(report):
    (finding,) = report.findings
    assert finding.fix
    return finding


def test_a_sound_checkpoint_has_no_findings(folder):
    report = examine(settings(str(folder)))
    assert report.healthy and report.findings == []
    assert report.facts["architecture"] == "LLaDAModelLM (LLaDA)"
    assert report.facts["tensors matched"] == "21 of 21 (100.0%)"
    assert report.facts["memory for weights"].startswith("0.29 MiB needed")
    assert report.facts["memory per cached token"] == "1 KiB"  # 2 layers x 2 x 48 numbers
    assert report.facts["torch"] == torch.__version__
    assert report.ids["mask_id"] == ("-", "252", "-", "252")
    assert report.ids["eot_ids"] == ("-", "221", "-", "221")


def test_what_would_be_loaded_from_where_is_said_for_every_name(folder):
    report = examine(settings(["GSAI-ML/LLaDA-8B-Instruct", str(folder), "bundled:none"]))
    assert "nor in the Hub cache" in report.facts["checkpoint GSAI-ML/LLaDA-8B-Instruct"]
    assert report.facts[f"checkpoint {folder}"] == f"would be loaded from {folder}"
    assert report.healthy


@pytest.mark.parametrize(
    ("checkpoint", "fix"),
    [
        ("GSAI-ML/LLaDA-8B-Instruct", "hf download GSAI-ML/LLaDA-8B-Instruct"),
        ("./nowhere", "set model.checkpoint to a folder or a Hub id"),
        (["./nowhere", "a/b"], "set model.checkpoint to a folder or a Hub id"),
        (None, "set model.checkpoint to a folder or a Hub id"),
    ],
)
def test_a_missing_checkpoint_is_a_problem_with_its_fix(checkpoint, fix):
    finding = only(examine(settings(checkpoint)))
    assert finding.problem and "no checkpoint to load" in finding.text and fix in finding.fix


def test_missing_tensors_are_counted_and_named(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.transformer.ln_f.weight"]
    save_file(tensors, folder / "model.safetensors")
    report = examine(settings(str(folder)))
    assert report.facts["tensors matched"] == "20 of 21 (95.2%)"
    assert "missing: model.transformer.ln_f.weight" in only(report).text


def test_a_truncated_file_is_a_problem(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "is truncated" in only(examine(settings(str(folder)))).text


def test_an_unknown_architecture_is_a_problem(folder):
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["Other"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert "'Other' is not known" in only(examine(settings(str(folder)))).text


def test_contradicting_mask_ids_are_a_problem(folder):
    report = examine(settings(str(folder), mask_id=250))
    assert report.ids["mask_id"] == ("-", "252", "250", "250")
    assert "different mask ids: [250, 252]" in only(report).text


def test_a_checkpoint_without_mask_id_is_a_problem():
    assert "no mask token" in only(examine(settings(str(GOLDEN / "lladamoe")))).text


def test_too_little_memory_is_a_problem_unless_the_weights_are_spread(folder, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(doctor, "free_memory", lambda place: 1000.0)
    finding = only(examine(settings(str(folder))))
    assert "the weights need 0.29 MiB, but cpu has only" in finding.text
    assert "model.device_map=auto" in finding.fix
    assert examine(settings(str(folder), device_map="auto")).healthy


def test_free_memory_is_a_number_of_bytes():
    assert doctor.free_memory(torch.device("cpu")) > 2**20


def test_a_device_that_is_not_there_is_a_problem(folder):
    finding = only(examine(settings(str(folder), device="gpu")))
    assert "model.device must be auto" in finding.text and finding.fix == "set model.device=auto"


def test_a_dtype_that_this_processor_multiplies_slowly_is_a_hint(folder, monkeypatch):
    times = {torch.float32: 0.1, torch.bfloat16: 0.4}
    monkeypatch.setattr("dllm_decode.models.placement._product_seconds", times.get)
    report = examine(settings(str(folder), dtype="bfloat16", device="cpu"))
    finding = only(report)
    assert "multiplies bfloat16 matrices 4 times slower" in finding.text and report.healthy
    assert "model.dtype=auto" in finding.fix


def test_the_antlr_conflict_is_a_problem_or_a_warning_before_it_happens():
    (clash,) = antlr_findings("4.11.0", "0.4.9")
    assert clash.problem and '"antlr4-python3-runtime==4.9.*"' in clash.fix
    (warning,) = antlr_findings("4.9.3", "0.4.9")
    assert not warning.problem and "[math]" in warning.fix
    assert antlr_findings("4.9.3", None) == []


def test_versions_out_of_range_are_a_problem(no_hub):
    no_hub.update({"transformers": "4.57.1", "torch": "2.8.0"})
    finding = only(examine({}))
    assert finding.text == "transformers 4.57.1 is outside the tested range >=5.20,<6"
    assert finding.fix == 'pip install "transformers>=5.20,<6"'


def test_models_without_a_checkpoint_are_examined_as_far_as_there_is_something():
    report = examine({"_target_": "dllm_decode.models.toy.Copy", "n": 6})
    assert report.healthy and "no checkpoint" in report.facts["model"]


@pytest.mark.parametrize(("mask_id", "code"), [(None, 0), (250, 1)])
def test_the_task_shows_tables_writes_json_and_returns_whether_all_is_well(
    folder, tmp_path, capsys, mask_id, code
):
    context = SimpleNamespace(
        cfg=OmegaConf.create({"model": settings(str(folder), mask_id=mask_id)}),
        display=make_display("plain"),
        folder=RunFolder(tmp_path / "run"),
    )
    assert Doctor().run(context) == code
    shown = capsys.readouterr().out
    assert "tensors matched" in shown and "config.json" in shown
    assert ("fix: set model.mask_id" in shown) == bool(code)
    written = json.loads((tmp_path / "run" / "doctor.json").read_text())
    assert written["facts"]["attention"] == "full" and len(written["findings"]) == code


def test_the_task_loads_and_checks_the_model_when_asked_to(folder, tmp_path, capsys):
    from dllm_decode.models import load_model

    context = SimpleNamespace(
        cfg=OmegaConf.create({"model": settings(str(folder))}),
        display=make_display("plain"),
        folder=RunFolder(tmp_path / "run"),
        model=load_model(str(folder), device="cpu"),
    )
    assert Doctor(load=True).run(context) == 0
    assert "passes its self-check" in capsys.readouterr().out
