"""What the user sees: tables, figures, pages, progress."""
