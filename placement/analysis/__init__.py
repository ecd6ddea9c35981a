"""What a trace and a map say about traffic: descriptions, studies, advice, and a watch over drift."""
