"""How a command ends."""

import os
import signal
import time

from imet_ray.command_line import exit_code
from imet_ray.errors import ConfigError


def test_sigterm_ends_a_command_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def work() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 0

    assert exit_code(work, "the same command continues") == 130
    assert capsys.readouterr().err == "interrupted: the same command continues\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_users_mistake_is_one_line_and_exit_code_1(capsys):
    def work() -> int:
        raise ConfigError("fold must be below n_folds=5, got fold=7: choose 0..4")

    assert exit_code(work, "") == 1
    assert capsys.readouterr().err == "error: fold must be below n_folds=5, got fold=7: choose 0..4\n"
