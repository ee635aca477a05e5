"""Fuzz the transport's response path: see README.md."""

from run import run

if __name__ == "__main__":
    run("transport")
