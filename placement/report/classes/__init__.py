"""The table and the section of maps by class."""
