"""``python -m pupitre``: how `up` starts its children, with no need of a PATH."""

from pupitre.cli import main

main()
