"""Entry point of ``python -m mobilemamba``."""

from mobilemamba_command import run

if __name__ == "__main__":
    run()
