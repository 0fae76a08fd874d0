"""`python -m goat_peft` is the command `goat`."""

from goat_peft.cli import main

main()
