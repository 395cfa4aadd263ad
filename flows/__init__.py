"""What runs when: `dags`, on the work in `extraction`, `training` and `use`; the command."""
