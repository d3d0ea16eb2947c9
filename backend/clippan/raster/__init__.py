"""Rasters: reading windows of any GDAL source with their validity, aligning pairs, and writing safely.

This room knows no model. GDAL reports failures as exceptions throughout the engine.
"""

from osgeo import gdal, osr

gdal.UseExceptions()
osr.UseExceptions()
# Enough for a row of tiles of a striped raster; GDAL's default (5 % of memory) grows with the machine instead.
gdal.SetCacheMax(256 * 2**20)
