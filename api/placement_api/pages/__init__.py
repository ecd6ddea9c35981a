"""The page: rendered here, nothing fetched from elsewhere. Without script everything works but the live progress."""
