"""The service from Python: solves there, placements under names, and pulls of what engines load at every start."""

from placement.client.remote import Client

__all__ = ["Client"]
