"""What every package needs and no model of experts is in: files, parallel work, progress."""
