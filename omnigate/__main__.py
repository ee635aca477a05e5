"""`python -m omnigate` is `omnigate`."""

from omnigate.cli import main

if __name__ == "__main__":
    main()
