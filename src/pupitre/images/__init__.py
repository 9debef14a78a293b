"""Images: files that hold a prepared computer, where they are kept, and how they are made."""
