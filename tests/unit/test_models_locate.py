"""Finding checkpoints: folders, the Hub cache, the Hub, and lists of preferences."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from dllm_decode.errors import CheckpointError, ConfigError
from dllm_decode.models import load_model
from dllm_decode.models import locate as module
from dllm_decode.models.locate import licence_of, locate

LLADA = Path(__file__).parents[1] / "golden" / "checkpoints" / "llada"
HUB_NAME = "GSAI-ML/LLaDA-8B-Instruct"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with a cache; `calls` are the downloads that were tried."""

    class Hub:
        cached = None
        remote = None
        calls = None

    def snapshot_download(name, *, local_files_only=False, allow_patterns=None):
        if Hub.cached is not None:
            return str(Hub.cached)
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        Hub.calls.append((name, allow_patterns))
        if Hub.remote is None:
            raise ConnectionError("no route to host\nmore words")
        return str(Hub.remote)

    Hub.calls = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return Hub


def test_a_local_folder_is_taken(hub):
    assert locate(str(LLADA)).folder == LLADA
    assert locate([str(LLADA)]).name == str(LLADA)


def test_a_list_takes_the_first_available_name_and_says_what_it_passed_over(hub, tmp_path):
    found = locate([HUB_NAME, str(tmp_path / "nowhere"), str(LLADA)])
    assert found.folder == LLADA
    assert "nor in the Hub cache" in found.passed_over[HUB_NAME]
    assert "nowhere does not exist" in found.passed_over[str(tmp_path / "nowhere")]
    assert hub.calls == []


def test_a_list_prefers_what_is_cached(hub):
    hub.cached = LLADA
    found = locate([HUB_NAME, "bundled:llada-tiny"])
    assert (found.name, found.folder, found.passed_over) == (HUB_NAME, LLADA, {})


def test_a_list_never_downloads_and_names_all_that_was_tried(hub):
    hub.remote = LLADA
    with pytest.raises(CheckpointError, match=r"none of .*8B-Instruct: neither .*bundled:no-"):
        locate([HUB_NAME, "bundled:no-such"])
    assert hub.calls == []


def test_an_incomplete_folder_is_passed_over(hub, tmp_path):
    shutil.copy(LLADA / "config.json", tmp_path)
    found = locate([str(tmp_path), str(LLADA)])
    assert found.folder == LLADA
    assert "has no model.safetensors" in found.passed_over[str(tmp_path)]


def test_a_single_hub_name_is_downloaded_without_code(hub):
    hub.remote = LLADA
    assert locate(HUB_NAME).folder == LLADA
    ((name, patterns),) = hub.calls
    assert name == HUB_NAME
    assert "*.safetensors" in patterns
    assert not any(pattern.endswith((".py", ".bin", ".pt")) for pattern in patterns)


def test_a_download_without_weights_is_reported(hub, tmp_path):
    hub.remote = tmp_path
    with pytest.raises(CheckpointError, match=r"was downloaded to .* but has no config.json"):
        locate(HUB_NAME)


def test_offline_and_missing_says_what_was_looked_for_where_and_what_to_do(hub):
    message = (
        r"checkpoint GSAI-ML/LLaDA-8B-Instruct is not available: neither a folder here nor in the "
        r"Hub cache .*cache, and it could not be downloaded \(ConnectionError: no route to host\); "
        r"check the name and the network, or copy the checkpoint here and set model.checkpoint"
    )
    with pytest.raises(CheckpointError, match=message):
        locate(HUB_NAME)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where/at/all", "nowhere", "bundled:no-such"])
def test_a_missing_folder_is_reported_and_never_looked_up_on_the_hub(hub, name):
    with pytest.raises(CheckpointError, match="is not available"):
        locate(name)
    assert hub.calls == []


def test_a_file_is_no_checkpoint(hub):
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        locate(str(LLADA / "config.json"))


@pytest.mark.parametrize("names", [None, [], "", [3], [None]])
def test_names_that_are_none_are_refused(hub, names):
    with pytest.raises(ConfigError, match=r"^model.checkpoint "):
        locate(names)


def test_the_licence_is_read_from_the_model_card(tmp_path):
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text("---\ntags: [a]\nlicense: 'apache-2.0'\n---\n# Card\n")
    assert licence_of(tmp_path) == "apache-2.0"
    (tmp_path / "README.md").write_text("# Card\nlicense: mit\n")
    assert licence_of(tmp_path) is None


def test_the_description_names_licence_and_what_was_passed_over(hub, tmp_path):
    shutil.copytree(LLADA, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: mit\n---\n")
    loaded = load_model([HUB_NAME, str(tmp_path / "mine")], device="cpu")
    assert loaded.description.licence == "mit"
    assert set(loaded.description.passed_over) == {HUB_NAME}
    assert load_model(str(LLADA), device="cpu", licence="X").description.licence == "X"


def test_bundled_names_are_read_from_the_package(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    shutil.copytree(LLADA, tmp_path / "some")
    assert locate("bundled:some").folder == tmp_path / "some"


@pytest.mark.parametrize("strict", [True, False])
def test_a_folder_here_with_the_name_of_a_hub_id_does_not_hide_the_cache(
    hub, tmp_path, monkeypatch, caplog, strict
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / HUB_NAME).mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"has no config.json, and it is not in the Hub cache"
    ):
        locate(HUB_NAME if strict else [HUB_NAME])
    assert hub.calls == []
    hub.cached = LLADA
    assert locate(HUB_NAME if strict else [HUB_NAME]).folder == LLADA
    assert "has no config.json; the copy in the Hub cache is taken" in caplog.text
    shutil.copytree(LLADA, tmp_path / HUB_NAME, dirs_exist_ok=True)
    assert locate(HUB_NAME).folder == Path(HUB_NAME)
