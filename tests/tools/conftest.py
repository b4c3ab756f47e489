import pytest


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Runs a command line and returns what it printed; the command line is imported when needed, as it is slow."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> str:
        from mobilemamba_command import main

        main([*args])
        return capsys.readouterr().out

    return run
