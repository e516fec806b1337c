"""The study of gradient flow: settings, cells, analyses, report."""
