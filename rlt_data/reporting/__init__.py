"""The page that shows a run: what it shows (collect), the HTML (build), and serving it (serve)."""
