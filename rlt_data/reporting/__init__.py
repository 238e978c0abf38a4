"""The HTML report of a run: its data (collect, overview), the HTML (build), and a live server (serve)."""
