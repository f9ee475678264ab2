"""Completion in real shells, with the script that rdpm prints."""

import shutil
import subprocess

import pytest

from rdpm.jobs.cli import COMMANDS, main
from rdpm.jobs.completion import script
from tests.jobs.shells import Shell

shells = pytest.mark.parametrize(
    "shell",
    [
        "bash",
        pytest.param("zsh", marks=pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")),
    ],
)
LINES = {
    "rdpm tok": "rdpm tokenize ",
    "rdpm train-g": "rdpm train-generator ",
    "rdpm tokenize preci": "rdpm tokenize precision=",
    "rdpm tokenize precision=b": "rdpm tokenize precision=bf16 ",
    "rdpm train-generator optimizer.dec": "rdpm train-generator optimizer.decay=",
    "rdpm train-generator optimizer.decay=cos": "rdpm train-generator optimizer.decay=cosine ",
    "rdpm tokenize latents=t": "rdpm tokenize latents=true ",
    "rdpm tokenize images=pic": "rdpm tokenize images=pictures/",
    "rdpm train-generator config-": "rdpm train-generator config-one.yaml ",
    "rdpm train-generator config-one.yaml model.met": "rdpm train-generator config-one.yaml model.method=",
    "rdpm verify --rep": "rdpm verify --repair ",
    "rdpm prepare dig": "rdpm prepare digits ",
    "rdpm completion z": "rdpm completion zsh ",
    "rdpm tokenize batch=": "rdpm tokenize batch=",
    "rdpm tokenize images=my": "rdpm tokenize images=my\\ pictures/",
    "rdpm nothing x": "rdpm nothing x",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a config, another file and pictures."""
    (tmp_path / "config-one.yaml").write_text("job: tokenize")
    (tmp_path / "config-two.txt").write_text("")
    (tmp_path / "my pictures").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    return tmp_path


@pytest.mark.slow
@shells
def test_commands_keys_values_and_files_complete(shell, folder):
    with Shell(shell, script(shell), folder) as terminal:
        for typed, completed in LINES.items():
            assert terminal.complete(typed) == completed


@shells
def test_the_script_holds_every_command(shell):
    subprocess.run([shell, "-n"], input=script(shell), text=True, check=True)
    listing = subprocess.run([shell, "-c", script(shell).split("\n_rdpm() {")[0] + "\n_rdpm_entries ''"],
                             capture_output=True, text=True, check=True)  # fmt: skip
    assert set(listing.stdout.split()) == {*COMMANDS, "help"}


def test_bash_completes_a_value_also_where_the_equals_sign_breaks_no_word(folder):
    with Shell("bash", script("bash") + "\nCOMP_WORDBREAKS=${COMP_WORDBREAKS//=}\n", folder) as terminal:
        assert terminal.complete("rdpm tokenize precision=b") == "rdpm tokenize precision=bf16 "
        assert terminal.complete("rdpm tokenize images=pic") == "rdpm tokenize images=pictures/"


def test_another_shell_is_refused(capsys):
    assert main(["completion", "fish"]) == 2
    said = "rdpm completion: arguments 'fish' are not bash or zsh; use: rdpm completion bash\n"
    assert capsys.readouterr().err == said
