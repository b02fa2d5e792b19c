"""`python -m luban` is `luban`; torchrun starts it this way."""

from luban.cli import main

if __name__ == "__main__":
    main()
