"""Parts of the data doctor (``python -m datasets.doctor``): what is looked for, how, and how it is told."""
