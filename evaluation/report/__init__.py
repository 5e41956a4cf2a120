"""What people look at: text tables, the page and its pictures."""
