"""The page: rendered here, nothing fetched from elsewhere. Without script everything works but what moves by itself."""
