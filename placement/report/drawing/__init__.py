"""What all pages share: charts, numbers, colours, the frame."""
