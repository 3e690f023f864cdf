"""What a user sees when something is wrong: one line, an exit code, no traceback."""

import pytest

from components.errors import DataError
from pipelines.support import cli


def test_a_users_error_is_one_line_and_exit_code_2(capsys):
    def main(argv):
        raise DataError("data/images/train: no manifest.json here")

    with pytest.raises(SystemExit) as exit:
        cli.run(main, [])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: data/images/train: no manifest.json here\n"


def test_our_own_bugs_keep_their_traceback():
    def main(argv):
        raise KeyError("bug")

    with pytest.raises(KeyError):
        cli.run(main, [])


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["--help"]])
def test_a_wrong_command_line_prints_its_usage(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.one_argument(argv, "python -m pipelines.train GROUP.NAME")
    assert exit.value.code == 2
    assert "usage: python -m pipelines.train GROUP.NAME" in capsys.readouterr().err
