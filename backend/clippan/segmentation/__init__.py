"""Maps by text: prompts, dense features in windows, class maps, calibration. The prompts need no torch and no GDAL."""
