"""Opening what others published and what this project wrote."""
