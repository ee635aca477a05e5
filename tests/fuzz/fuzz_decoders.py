"""Fuzz the stream decoders: see README.md."""

from run import run

if __name__ == "__main__":
    run("decoders")
