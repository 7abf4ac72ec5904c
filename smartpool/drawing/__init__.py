"""The one kit that draws pages and pictures: for reports, for the live page, and for SVG.

In JavaScript: `format.js` (figures as text, ticks; pure functions), `kit.js` (elements, colors, canvases,
tips), `raster.js` (rectangles by the share of each pixel); `tokens.css` has every color. In Python: `ticks`
and `raster`, and `assets`, which reads the files.
"""
