"""The main job: split, count, solve, measure."""
