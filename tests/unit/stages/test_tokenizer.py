"""Stage ``tokenizer``: trained on the train split alone, or taken from elsewhere and made to append EOS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from mlembed_core.artifacts import manifest_hash, read_manifest, verify_files
from mlembed_core.data.rows import Row
from mlembed_core.data.tokenize import load_tokenizer, token_ids
from mlembed_core.errors import ArtifactError, ConfigError, DataError, MachineError
from mlembed_core.stages import tokenizer as stage

REVISION = "0123456789abcdef0123456789abcdef01234567"


def row(query: str, passage: str, split: str | None = "train", negatives: tuple[str, ...] = ()) -> Row:
    return Row(query, passage, negatives, None, None, split)


def words(text_workspace: Any) -> set[str]:
    """The vocabulary as text."""
    return set(load_tokenizer(text_workspace.workspace.tokenizer).get_vocab())


class TestTrained:
    def test_the_out_is_a_whole_tokenizer_with_a_manifest(self, text_workspace: Any, rows: list[Row]) -> None:
        text_workspace.add_source("names", rows)
        stage.run(text_workspace.workspace)
        out = text_workspace.workspace.tokenizer
        verify_files(out)
        manifest = read_manifest(out)
        assert set(manifest["files"]) == {"tokenizer.json", "tokenizer_config.json"}
        assert manifest["inputs"] == {"source@names": manifest_hash(text_workspace.workspace.sources / "names")}
        assert manifest["counts"]["vocabulary"] == load_tokenizer(out).get_vocab_size() <= 320
        assert manifest["counts"]["texts"] == 320  # 160 training rows, no text twice
        assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == 12

    def test_only_the_train_split_is_seen(self, text_workspace: Any) -> None:
        rows = [row("aaaa bbbb", "aaaa bbbb cccc"), row("zzzz", "zzzz qqqq", "test"), row("yyyy", "yyyy wwww", "dev")] * 9
        text_workspace.add_source("first", rows)
        text_workspace.add_source("second", [row("aaaa", "dddd aaaa")])
        stage.run(text_workspace.workspace)
        vocabulary = words(text_workspace)
        assert {"aaaa", "bbbb"} <= vocabulary
        assert not {"zz", "qq", "yy", "ww"} & vocabulary

    def test_rows_without_a_split_are_seen(self, text_workspace: Any) -> None:
        text_workspace.add_source("own", [row("kkkk", "kkkk mmmm", None), row("mmmm", "mmmm", None)])
        stage.run(text_workspace.workspace)
        assert {"kkkk", "mmmm"} <= words(text_workspace)

    def test_a_repeated_text_counts_once(self, text_workspace: Any, rows: list[Row]) -> None:
        text_workspace.add_source("once", rows)
        stage.run(text_workspace.workspace)
        once = (text_workspace.workspace.tokenizer / "tokenizer.json").read_bytes()
        text_workspace.add_source("again", rows * 3)
        stage.run(text_workspace.workspace)
        assert (text_workspace.workspace.tokenizer / "tokenizer.json").read_bytes() == once

    def test_two_processes_write_the_same_bytes(self, text_workspace: Any, rows: list[Row]) -> None:
        text_workspace.add_source("names", rows)
        hashes = set()
        for seed, threads in (("1", "1"), ("2", "4")):
            command = "from pathlib import Path; from mlembed_core.artifacts import Workspace; import sys; "
            command += "from mlembed_core.stages import tokenizer; tokenizer.run(Workspace(Path(sys.argv[1])))"
            environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
            subprocess.run([sys.executable, "-c", command, str(text_workspace.workspace.root)], env=environment, check=True, timeout=60)
            hashes.add(manifest_hash(text_workspace.workspace.tokenizer))
        assert len(hashes) == 1

    def test_sources_without_training_rows_are_refused(self, text_workspace: Any) -> None:
        text_workspace.add_source("names", [row("a", "b", "test")])
        with pytest.raises(DataError, match="sources names have no training rows"):
            stage.run(text_workspace.workspace)

    def test_a_missing_source_names_what_makes_it(self, text_workspace: Any, rows: list[Row]) -> None:
        path = text_workspace.add_source("names", rows)
        (path.parent / "manifest.json").unlink()
        with pytest.raises(ArtifactError, match=r"data/sources/names is missing.*mlembed source names"):
            stage.run(text_workspace.workspace)

    def test_a_truncated_source_is_named_and_the_tokenizer_before_it_stays(self, text_workspace: Any, rows: list[Row]) -> None:
        path = text_workspace.add_source("names", rows)
        stage.run(text_workspace.workspace)
        before = manifest_hash(text_workspace.workspace.tokenizer)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(ArtifactError, match=r"names/rows\.parquet has \d+ bytes, its manifest says"):
            stage.run(text_workspace.workspace)
        assert manifest_hash(text_workspace.workspace.tokenizer) == before


def write_foreign(folder: Path, **config: Any) -> None:
    """A tokenizer as others publish it: no EOS appended, cutting and padding baked in, options that we do not know."""
    made = Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "<s>": 2, "a": 3, "b": 4}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_truncation(2)
    made.enable_padding(length=7, pad_token="[UNK]")
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OddTokenizer", "add_eos_token": False, **config}))


class TestLocal:
    def run(self, text_workspace: Any, path: str, rows: list[Row]) -> dict[str, Any]:
        text_workspace.add_source("names", rows)
        text_workspace.set("tokenizer", {"type": "local", "path": path, "max_length": 5})
        stage.run(text_workspace.workspace)
        config: dict[str, Any] = json.loads((text_workspace.workspace.tokenizer / "tokenizer_config.json").read_text())
        return config

    def test_a_folder_is_taken_and_made_to_append_eos(self, text_workspace: Any, rows: list[Row], tmp_path: Path) -> None:
        write_foreign(tmp_path / "clone" / "own", eos_token={"content": "</s>", "lstrip": False}, bos_token="<s>", unk_token="[UNK]")
        config = self.run(text_workspace, "own", rows)
        tokenizer = load_tokenizer(text_workspace.workspace.tokenizer)
        assert token_ids(tokenizer, ["a b", "", "a b a b a b"], 5) == [[3, 4, 1], [1], [3, 4, 3, 4, 1]]
        assert config["eos_token"] == config["pad_token"] == "</s>"  # an unpadded tokenizer pads with its EOS
        assert (config["bos_token"], config["unk_token"], config["model_max_length"]) == ("<s>", "[UNK]", 5)
        assert read_manifest(text_workspace.workspace.tokenizer)["inputs"] == {}

        from transformers import AutoTokenizer

        stock = AutoTokenizer.from_pretrained(text_workspace.workspace.tokenizer)
        assert stock(["a b", "", "a b a b a b"], truncation=True)["input_ids"] == [[3, 4, 1], [1], [3, 4, 3, 4, 1]]

    def test_special_tokens_may_stand_in_the_older_file(self, text_workspace: Any, rows: list[Row], tmp_path: Path) -> None:
        write_foreign(tmp_path / "own")
        (tmp_path / "own" / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "[UNK]"}))
        config = self.run(text_workspace, str(tmp_path / "own"), rows)
        assert (config["eos_token"], config["pad_token"]) == ("</s>", "[UNK]")

    def test_a_missing_folder_says_what_to_do(self, text_workspace: Any, rows: list[Row]) -> None:
        with pytest.raises(ArtifactError, match=r"tokenizer\.path=nowhere: .*clone/nowhere.*Put a Hugging Face tokenizer folder"):
            self.run(text_workspace, "nowhere", rows)

    def test_a_damaged_file_is_named(self, text_workspace: Any, rows: list[Row], tmp_path: Path) -> None:
        write_foreign(tmp_path / "own", eos_token="</s>")
        (tmp_path / "own" / "tokenizer.json").write_text("{")
        with pytest.raises(ArtifactError, match=r"own/tokenizer\.json is no tokenizer"):
            self.run(text_workspace, str(tmp_path / "own"), rows)

    def test_a_tokenizer_that_names_no_eos_is_refused(self, text_workspace: Any, rows: list[Row], tmp_path: Path) -> None:
        write_foreign(tmp_path / "own")
        with pytest.raises(ArtifactError, match=r"own names no eos_token.*add \"eos_token\""):
            self.run(text_workspace, str(tmp_path / "own"), rows)


class TestHub:
    @pytest.fixture
    def hub(self, text_workspace: Any, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The hub's own cache, empty, and no network. Returns where the pinned commit's files would lie."""
        import huggingface_hub.constants

        # With its offline switch the library fails at once; without network it would try for half a minute first.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        text_workspace.add_source("names", rows)
        text_workspace.set("tokenizer", {"type": "hub", "repo": "team/words", "revision": REVISION, "max_length": 5})
        return tmp_path / "hub" / "models--team--words" / "snapshots" / REVISION

    def test_a_copy_of_the_commit_needs_no_network(self, hub: Path, text_workspace: Any) -> None:
        write_foreign(hub, eos_token="</s>")
        stage.run(text_workspace.workspace)
        assert token_ids(load_tokenizer(text_workspace.workspace.tokenizer), ["a b"], 5) == [[3, 4, 1]]
        assert read_manifest(text_workspace.workspace.tokenizer)["params"]["revision"] == REVISION

    def test_without_copy_and_network_the_command_that_fetches_it_is_shown(self, hub: Path, text_workspace: Any) -> None:
        with pytest.raises(
            MachineError, match=f"hf download team/words --revision {REVISION} --include 'tokenizer.json' --include 'tokenizer_config.json'"
        ):
            stage.run(text_workspace.workspace)
        assert not text_workspace.workspace.tokenizer.exists()

    def test_a_name_that_is_none_is_a_mistake_in_the_parameters(self, hub: Path, text_workspace: Any) -> None:
        text_workspace.set("tokenizer", {"type": "hub", "repo": "a/b/c", "revision": REVISION, "max_length": 5})
        with pytest.raises(ConfigError, match=r"tokenizer\.repo: 'a/b/c'"):
            stage.run(text_workspace.workspace)

    def test_a_commit_without_the_file_is_refused(self, hub: Path, text_workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.mkdir(parents=True)
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda **_: str(hub))
        with pytest.raises(ArtifactError, match=r"team/words at .* has no tokenizer\.json"):
            stage.run(text_workspace.workspace)


def test_stages_of_text_do_not_import_torch_or_transformers() -> None:
    command = "import sys; from mlembed_core.stages import tokenizer, tokenize, cache; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
