"""Reading weights that others wrote: files, names, shapes, and a report of what fitted."""
