"""Users' own files of conversations: found, read row by row, checked, and written as examples."""
