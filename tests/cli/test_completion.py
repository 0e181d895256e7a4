"""What the shells complete: click's own protocol, and its scripts in the shells that are here."""

import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from lora_export.cli import main
from lora_export.onnx_export.precision.grids import PRECISIONS
from lora_export.options import VERBS

COMMANDS = ["merge", "onnx", "verify", "unmerge", "inspect", "parity", "explain"]


def completed(*words, shell="bash"):
    """Return what is offered for the last word: (kind, value)."""
    env = {"_LORA_EXPORT_COMPLETE": f"{shell}_complete"}
    if shell == "fish":
        env |= {"COMP_WORDS": " ".join(["lora-export", *words[:-1]]), "COMP_CWORD": words[-1]}
    else:
        env |= {"COMP_WORDS": " ".join(["lora-export", *words]), "COMP_CWORD": str(len(words))}
    result = CliRunner().invoke(main, [], prog_name="lora-export", env=env)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    if shell == "zsh":
        return list(zip(lines[::3], lines[1::3], strict=True))
    split = [line.split(",", 1) for line in lines if "," in line]
    return [(kind, value.split("\t")[0]) for kind, value in split]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_options_and_choices(shell):
    assert completed("", shell=shell) == [("plain", name) for name in COMMANDS]
    assert completed("merge", "--dty", shell=shell) == [("plain", "--dtype")]
    choices = next(option.choices for option in VERBS["merge"] if option.name == "dtype")
    offered = completed("merge", "--dtype", "", shell=shell)
    assert offered == [("plain", choice) for choice in choices]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if VERBS[verb]])
def test_every_long_option_is_offered(verb):
    offered = {value for _, value in completed(verb, "--")}
    flags = {option.flag for option in VERBS[verb]}
    flags |= {f"--{option.opposite}" for option in VERBS[verb] if option.opposite}
    assert flags | {"--json", "--quiet", "--verbose", "--debug", "--config"} <= offered


@pytest.mark.parametrize(
    "words",
    [
        ("merge", "sam"),
        ("merge", "base", "ada"),
        ("merge", "base", "adapter", "--hparams", "h"),
        ("verify", "--base", "b"),
        ("inspect", ""),
        ("onnx", "--model", "net"),
        ("merge", "--config", "c"),
    ],
)
def test_paths_are_left_to_the_shell(words):
    assert completed(*words) == [("file", words[-1])]


def test_values_that_are_no_fixed_choice():
    assert [value for _, value in completed("onnx", "--precision", "")] == [*PRECISIONS]
    assert [value for _, value in completed("verify", "--precision", "int8")] == [
        "int8",
        "int8-weights",
    ]
    assert completed("onnx", "--provider", "cu") == [("plain", "cuda")]


def test_explain_completes_its_words():
    assert completed("explain", "fit/no-m") == [("plain", "fit/no-module")]
    assert ("plain", "130") in completed("explain", "1")


def test_a_broken_config_does_not_disturb_the_completion(tmp_path):
    (tmp_path / "c.toml").write_text("broken =")
    offered = completed("merge", "--config", str(tmp_path / "c.toml"), "--dty")
    assert offered == [("plain", "--dtype")]


# Each prints, one a line, what the shell offers for `lora-export merge --dty` after it has read
# click's script. bash and zsh complete only at a terminal, so their functions are called.
ASKED = {
    "bash": """
        eval "$(_LORA_EXPORT_COMPLETE=bash_source lora-export)"
        complete -p lora-export >/dev/null || exit 1
        COMP_WORDS=(lora-export merge --dty) COMP_CWORD=2
        _lora_export_completion lora-export
        printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { print -u2 "defined $2" }
        _describe() { local name=$argv[3]; print -l -- ${(P)name} }
        compadd() { local name=$argv[-1]; print -l -- ${(P)name} }
        eval "$(_LORA_EXPORT_COMPLETE=zsh_source lora-export)"
        words=(lora-export merge --dty) CURRENT=3
        _lora_export_completion
    """,
    "fish": """
        _LORA_EXPORT_COMPLETE=fish_source lora-export | source
        complete -C 'lora-export merge --dty'
    """,
}


@pytest.mark.parametrize("shell", ASKED)
def test_the_script_of_a_shell_completes_there(shell, tmp_path, monkeypatch):
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "lora-export"
    program.write_text(f"#!{sys.executable}\nfrom lora_export.cli import main\nmain()\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("HOME", str(tmp_path))
    # No start file of the user's is read: it may take long, or print.
    plain = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    words = [found, *plain, "-c", ASKED[shell]]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert "--dtype" in done.stdout, done.stderr
    assert "--dry-run" not in done.stdout
