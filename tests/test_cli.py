import sys

import pytest

from medgen import __version__, cli

COMMANDS = [
    ["demo"],
    ["run"],
    ["doctor"],
    ["phantom"],
    ["prepare"],
    ["train", "autoencoder"],
    ["encode"],
    ["train", "diffusion"],
    ["generate"],
    ["evaluate"],
    ["model", "show"],
]


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["medgen", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr()
    return stopped.value.code, said.out, said.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(monkeypatch, capsys, command):
    code, out, _ = call(monkeypatch, capsys, *command, "--help")
    assert code == 0 and "Example:" in out


def test_version(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "--version") == (0, f"medgen {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["generat"], "No such command"),
        (["generate"], "Missing argument"),
        (["run", "a.yaml", "--st", "x"], "No such option"),
        (["phantom", "x", "--n", "none"], "Invalid value for '--n'"),
        (["run", "nothing.yaml"], "nothing.yaml does not exist"),
        (["generate", ".", "out", "--shard", "5/4"], "--shard needs i/N"),
        (["generate", ".", "out", "--space", "mars"], "--space is native or grid"),
    ],
)
def test_wrong_words_are_one_sentence_and_exit_code_2(monkeypatch, capsys, arguments, word):
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 2 and out == ""
    assert err.startswith("medgen: ") and err.count("\n") == 1 and word in err


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("medgen.cohort.phantom.write_phantom", interrupted)
    code, _, err = call(monkeypatch, capsys, "phantom", str(tmp_path / "out"))
    assert code == 130 and "run the same command again" in err
