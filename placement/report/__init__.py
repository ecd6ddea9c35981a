"""What people read: tables for the terminal and self-contained HTML pages, a folder for each page."""
