"""`pupitre up`: everything on one machine, under one supervisor that sleeps until something happens.

``prepare`` makes what is missing, ``children`` says what runs with which
environment, ``supervisor`` starts in order, restarts and stops, and ``life``
decides (pure, tested with a fake clock). What needs many modules (databases,
certificates) runs in short-lived children, so that this process stays small.
"""
