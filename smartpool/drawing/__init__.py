"""The one kit that draws pages: of reports, of runs, and of live pools.

In JavaScript: `format.js` (figures as text, ticks; pure functions), `kit.js` (elements, colors, canvases,
tips), `raster.js` (rectangles by the share of each pixel). `tokens.css` has every color, `base.css` what all
pages look like. In Python: `ticks` and `raster`, and `assets`, which reads the files.
"""
