"""One adapter per block structure; files are found by scanning this folder."""
