"""What everything is about: model, cluster, topology, placement, and the moves between two placements."""
