"""What is kept: rows in a database (`database`, `tables`), traces and results in folders (`blobs`)."""
