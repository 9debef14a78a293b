"""Administration of databases: creation, grants, migrations, pruning."""
