"""``python -m mobilemamba``."""

from mobilemamba.cli import run

if __name__ == "__main__":
    run()
