import sys
import types

import pytest
from training_runs import QUICK, read_log

from deqflow.training import Progress, Trainer, logs
from deqflow.training.logs import Board, make_bar, say, shows_bars, write_row

ENTRY = Progress(3, 1.5, {6: 2.0}, 4.0, {6: 0.25}, 11.0)


class Writer:
    """Stands for TensorBoard's, which is not installed here."""

    def __init__(self, folder: str, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.values, self.closed = folder, purge_step, {}, False
        made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.values[name, step] = value

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


made: list[Writer] = []


@pytest.fixture
def tensorboard(monkeypatch) -> list[Writer]:
    made.clear()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.ModuleType("torch.utils.tensorboard"))
    module = types.ModuleType("torch.utils.tensorboard.writer")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", module)
    return made


def test_numbers_go_to_tensorboard_where_it_is(tmp_path, tensorboard):
    Trainer(QUICK, tmp_path).run(lambda _: None)
    (writer,) = tensorboard
    assert (writer.folder, writer.purge_step, writer.closed) == (str(tmp_path), None, True)
    (row,) = read_log(tmp_path)
    expected = {(name, 2): float(value) for name, value in row.items() if name != "step"}
    assert writer.values == expected
    Board(tmp_path, 2)
    assert tensorboard[1].purge_step == 2


def test_without_tensorboard_there_is_nothing_to_write(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    board = Board(tmp_path, 0)
    board.write(ENTRY)
    board.close()
    assert list(tmp_path.iterdir()) == []


def test_a_log_gets_a_line_an_interval_and_no_bar(tmp_path, capfd):
    Trainer(QUICK, tmp_path).run()
    out, err = capfd.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == ["step 2"]
    assert err == ""


def test_a_terminal_gets_a_bar(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logs.sys.stderr, "isatty", lambda: True, raising=False)
    assert shows_bars()
    Trainer(QUICK, tmp_path).run()
    out, err = capfd.readouterr()
    assert out == ""
    assert "train: 100%" in err
    assert "2/2" in err


def test_a_line_says_all_that_matters(capsys):
    say(ENTRY)
    assert capsys.readouterr().out == (
        "step 3: loss 1.500; held-out error 2.00 px after 6; residual 0.250 px; 11 evaluations to converge; 4 s\n"
    )
    say(Progress(3, 1.5, {6: 2.0}, 4.0))
    assert capsys.readouterr().out == "step 3: loss 1.500; held-out error 2.00 px after 6; 4 s\n"


def test_a_bar_begins_where_the_run_goes_on(capfd):
    with make_bar(5, 10, shown=True) as bar:
        bar.update()
        assert (bar.n, bar.total) == (6, 10)
    assert "6/10" in capfd.readouterr().err


def test_rows_of_later_steps_are_replaced(tmp_path):
    for step in (1, 2, 3, 2):
        write_row({"step": step, "loss": step / 2}, tmp_path / "log.csv")
    assert [row["step"] for row in read_log(tmp_path)] == ["1", "2"]
