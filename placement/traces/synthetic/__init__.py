"""The parts of a synthetic model: shapes, requests, routers."""
