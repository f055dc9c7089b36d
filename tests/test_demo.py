"""The commands of the demo: run in order, up to the first that fails."""

from toolkit.demo import demo_commands, run_demo


def names_run(folder, exit_codes):
    """The names of the commands that were run, and what `run_demo` returned."""
    names = []

    def run(arguments):
        names.append(arguments[0])
        return exit_codes.get(arguments[0])

    return names, run_demo(folder, run=run, echo=lambda text: None)


def test_all_commands_run_in_order(tmp_path):
    assert names_run(tmp_path / "demo", {}) == (["train", "export", "verify", "data", "predict"], 0)


def test_the_demo_ends_with_the_command_that_fails(tmp_path):
    assert names_run(tmp_path / "demo", {"export": 3}) == (["train", "export"], 3)


def test_a_run_that_was_killed_before_its_first_checkpoint_is_resumed(tmp_path):
    (tmp_path / "runs/demo").mkdir(parents=True)
    (tmp_path / "runs/demo/recipe.toml").touch()
    assert demo_commands(tmp_path)[0] == ["train", "--resume", str(tmp_path / "runs/demo"), "--data", "demo"]
