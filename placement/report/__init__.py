"""What people read: tables for the terminal (`tables`) and one self-contained HTML page (`html`)."""
