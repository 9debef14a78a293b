"""``python -m pupitre.gateway`` is ``pupitre gateway``."""

from pupitre import config, log
from pupitre.gateway.serve import run

if __name__ == "__main__":
    settings = config.load()
    log.setup(settings, "gateway")
    run(settings)
